"""What an agent offers: each platform of its machine, tried in the background, one after another.

    offers = Offers(parse_offered(["opencl", "cpu"]), changed=send_it)
    for name, offer in offers.look(): …  tries them, in a thread of its own
    offers.listed()                      {"opencl": {"state": "looking", "info": None, "reason": ""}, …} for the hub
    offers.settled("cpu", 0.5)           False while it is not known
    offers.choice("cpu", None)           what to open for a client's wish, or an error that says why not

"ready" means that a kernel ran in a child process just now, confined as those of sessions are, and every number was right
(`tapml.devices.trial`). Until then it is "looking", so that an agent is listed at once, whatever its drivers take to load.

Kernels for the processor, C for `cpu` and OpenCL C for a software driver, are native code with inline assembly: they are offered
only when `--target` names them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tapml.devices.known import PLATFORMS, WITHOUT_RUNTIME, here_only, is_native, on_processor
from tapml.errors import TargetError, UnavailableError, UsageError
from tapml.targets.parse import TargetChoice, parse

ONLY_BY_NAME = (
    "Its kernels would be native code on the processor of the agent's machine. That is offered only when the agent is started "
    "with --target"
)

if TYPE_CHECKING:
    from tapml.devices.interface import DeviceInfo
    from tapml.devices.sandbox import Sandbox

MOST_REASON = 2000


@dataclass(frozen=True)
class Offered:
    """What an agent is to offer. `named`: by `--target`, so that kernels may be native code."""

    choices: tuple[TargetChoice, ...]
    named: bool


def parse_offered(texts: Sequence[str]) -> Offered:
    """The values of `--target`, or all platforms but those on the processor itself where there is none. Raises TargetError,
    UsageError for an option that is the client's to choose, UnavailableError for a target that cannot run anywhere yet."""
    choices = [parse(text) for text in texts] or [TargetChoice(name) for name in PLATFORMS if not on_processor(name)]
    for choice in choices:
        if here_only(choice.name):
            raise UsageError(f"Target {choice}: its operators run unconfined, and an agent runs nobody else's. Leave it out.")
        if choice.name in WITHOUT_RUNTIME:
            raise UnavailableError(f"Target {choice.name}: {WITHOUT_RUNTIME[choice.name]}. Can run: {', '.join(PLATFORMS)}.")
        if set(choice.options) - {"device"}:
            raise UsageError(f"Target {choice}: an agent takes the option device only; the client chooses the others.")
    names = [choice.name for choice in choices]
    if len(set(names)) < len(names):
        raise UsageError("An agent offers one device of each target. Start a second agent, with another --name, for the second.")
    return Offered(tuple(choices), bool(texts))


class Offers:
    """Thread-safe. `changed` is called, from the thread that looks, whenever `listed` has changed. `sandbox` makes what a
    platform's child process is confined by; None for nothing."""

    def __init__(
        self, offered: Offered, memory: int | None, changed: Callable[[], None],
        sandbox: Callable[[str], Sandbox | None] = lambda platform: None,
    ) -> None:
        self._choices = {choice.name: choice for choice in offered.choices}
        self._named = offered.named
        self._sandbox = sandbox
        self._memory = memory
        self._changed = changed
        self._known: dict[str, dict[str, Any]] = {}
        self._news = threading.Condition()

    def listed(self) -> dict[str, dict[str, Any]]:
        """As docs/wire.md has it."""
        looking = {"state": "looking", "info": None, "reason": ""}
        with self._news:
            return {name: self._known.get(name, looking) for name in self._choices}

    def look(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Tries each."""
        from tapml.devices.trial import try_target
        from tapml.remote.agent.descriptions import described

        for name, choice in self._choices.items():
            try:
                trial = try_target(choice, sandbox=self._sandbox(name))
                refused = self.refused(trial.info) if trial.info is not None else ""
                info = described(trial.info, self._memory) if trial.ready and trial.info is not None and not refused else None
                reason = (trial.reason or refused)[:MOST_REASON]
            except Exception as error:
                info, reason = None, f"{type(error).__name__}: {error}"[:MOST_REASON]
            offer = {"state": "absent" if info is None else "ready", "info": info, "reason": reason}
            with self._news:
                self._known[name] = offer
                self._news.notify_all()
            self._changed()
            yield name, offer

    def refused(self, info: DeviceInfo) -> str:
        """Why a device is not offered although it is there; "" for one that is."""
        if self._named or not is_native(info.platform) or not (info.software or on_processor(info.platform)):
            return ""
        return f"{info.name} is there. {ONLY_BY_NAME} {info.platform}."

    def settled(self, target: str, seconds: float) -> bool:
        """Waits until it is known whether the target is there."""
        with self._news:
            return self._news.wait_for(lambda: target not in self._choices or target in self._known, seconds)

    def choice(self, target: str, device: str | None) -> TargetChoice:
        """What to open when a client wishes for this target and device. Raises TargetError when it is not among the offers,
        UnavailableError when it is absent."""
        own = self._choices.get(target)
        if own is None:
            why = f" {ONLY_BY_NAME} {target}." if is_native(target) else ""
            raise TargetError(f"This agent does not offer {target!r}. It offers: {', '.join(self._choices)}.{why}")
        if own.device is not None and device is not None and device != own.device:
            raise TargetError(f"This agent offers device {own.device} of {target} only. Leave out device={device}.")
        known = self._known.get(target)
        if known is not None and known["state"] != "ready":
            raise UnavailableError(f"{target} is absent on this agent: {known['reason']}")
        wished = device if device is not None else own.device
        return TargetChoice(target, {} if wished is None else {"device": wished})
