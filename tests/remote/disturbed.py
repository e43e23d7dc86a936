"""A migration on a remote device while something goes wrong, and what it may not change.

    with bench(tmp_path, "--target", "cpu", near=0.1) as remote:      a hub, an agent, and a proxy in the client's leg
        moments = Moments(seed=1).at("test", 10, remote.agent.restart)
        result = remote.migrate(run, "cpu", moments)
        assert facts(result) == facts(undisturbed)

`near` and `far` are bad networks (`tests.remote.proxy`) in the client's and in the device's leg.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tapml.backends.interface import Backend
from tapml.carving.folder import RunFolder
from tapml.migrate.journal import read
from tapml.migrate.migrate import MigrationResult, folder_name, migrate
from tapml.remote.address import HubAddress
from tests.remote.processes import START_SECONDS, Agent, Hub, Process
from tests.remote.proxy import Proxy

TOKENS = 4


class Moments:
    """Things that happen in the middle of a migration: each begins up to `spread` seconds after a stage has come so far, so that
    it meets whatever request is under way then. `happened` counts those that are over."""

    def __init__(self, seed: int = 1, spread: float = 0.05) -> None:
        self.happened = 0
        self._rng = random.Random(seed)
        self._spread = spread
        self._planned: dict[tuple[str, int], Callable[[], Any]] = {}
        self._threads: list[threading.Thread] = []
        self._failed: list[BaseException] = []

    def at(self, stage: str, done: int, what: Callable[[], Any]) -> Moments:
        self._planned[stage, done] = what
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        what = self._planned.pop((stage, done), None)
        if what is not None:
            thread = threading.Thread(target=self._happen, args=(what, self._rng.uniform(0, self._spread)))
            self._threads.append(thread)
            thread.start()

    def _happen(self, what: Callable[[], Any], delay: float) -> None:
        time.sleep(delay)
        try:
            what()
            self.happened += 1
        except BaseException as error:
            self._failed.append(error)

    def over(self) -> None:
        """Waits for all of it, and raises what failed in it."""
        for thread in self._threads:
            thread.join()
        assert not self._planned, f"it never came so far: {list(self._planned)}"
        if self._failed:
            raise self._failed[0]


@dataclass
class Bench:
    """`device` is what `--device` takes, by way of the client's proxy if there is one."""

    hub: Hub
    agent: Agent
    near: Proxy | None
    far: Proxy | None

    @property
    def device(self) -> str:
        return f"bench@{through(self.near, self.hub.address).url}"

    def wait_ready(self, target: str) -> None:
        """Until the hub lists the agent as offering the target; asked on a way of its own, past the proxies."""
        until = time.monotonic() + START_SECONDS
        while not any(d["offers"].get(target, {}).get("state") == "ready" and d["state"] != "away" for d in self.hub.devices()):
            assert time.monotonic() < until, f"{self.hub.devices()}\n{self.agent.said()}"
            time.sleep(0.02)

    def wait_idle(self) -> None:
        """Until nobody has the device."""
        until = time.monotonic() + START_SECONDS
        while [device["state"] for device in self.hub.devices()] != ["idle"]:
            assert time.monotonic() < until, self.hub.devices()
            time.sleep(0.02)

    def launches(self) -> int:
        """Of kernels, since the agent's start; asked when its client is gone. The agent says so once a second, and a hub that it
        has only just come back to knows of none: what it says twice is so."""
        until, before = time.monotonic() + START_SECONDS, 0
        while True:
            self.wait_idle()
            (device,) = self.hub.devices()
            if 0 < device["launches"] == before:
                return before
            assert time.monotonic() < until, device
            before = int(device["launches"])
            time.sleep(1.2)

    def migrate(
        self, run: RunFolder, target: str, moments: Moments | None = None, backend: Backend | None = None, **settings: Any
    ) -> MigrationResult:
        """On `backend`, which is on this device, or on one that is opened for it."""
        where = (target, self.device) if backend is None else (backend,)
        result = migrate(run, *where, **{"fresh": True, "max_tokens": TOKENS, "progress": moments, **settings})
        if moments is not None:
            moments.over()
        assert_nothing_doubled(run, target, "inject" in settings)
        return result


class Migration(Process):
    """`tapml migrate` to the target cpu as a process of its own, which can be killed."""

    def __init__(self, run: RunFolder, device: str, patience: float = 60.0) -> None:
        self._journal = run.path / "targets" / folder_name("cpu") / "migrate.jsonl"
        self._journal.unlink(missing_ok=True)
        flags = ("--target", "cpu", "--device", device, "--tokens", str(TOKENS), "--fresh", "--json", "-")
        super().__init__("migrate", str(run.path), *flags, env={"TAPML_PATIENCE": str(patience)})

    def wait_verdicts(self, count: int) -> None:
        """Until the journal has so many."""
        until = time.monotonic() + START_SECONDS
        while not self._journal.exists() or self._journal.read_bytes().count(b'{"record":"verdict"') < count:
            assert time.monotonic() < until and self.process.poll() is None, self.said()
            time.sleep(0.002)

    def ended(self) -> tuple[int, dict[str, Any]]:
        """Its exit code, and what it said as JSON."""
        assert self.process.stdout is not None
        data = json.loads(self.process.stdout.read())
        return self._wait(), data


def through(proxy: Proxy | None, address: HubAddress) -> HubAddress:
    """The same hub by way of a proxy."""
    return address if proxy is None else replace(address, host=proxy.address[0], port=proxy.address[1])


@contextmanager
def bench(
    folder: Path, *flags: str, heartbeat: float = 5.0, near: dict[str, Any] | None = None, far: dict[str, Any] | None = None,
    host: str = "127.0.0.1", hub_class: type[Hub] = Hub, agent_class: type[Agent] = Agent,
) -> Iterator[Bench]:
    """A hub at `host`, and an agent with these flags. `near` and `far`: arguments of a `Proxy` in the client's and in the
    device's leg."""
    with ExitStack() as stack:
        hub = hub_class(folder / "hub", "--host", host, "--heartbeat", str(heartbeat))
        stack.callback(hub.end)
        legs = [None if leg is None else stack.enter_context(Proxy((host, hub.port), **leg)) for leg in (near, far)]
        agent = agent_class(through(legs[1], hub.address).url, "bench", *flags)
        stack.callback(agent.end)
        yield Bench(hub, agent, *legs)


class HastyHub(Hub):
    """Gives up on an end that is away after a second and a half in place of twenty."""

    launcher = (
        sys.executable, "-c", "import functools, sys; from tapml.remote.hub import hub; "
        "hub.Leases = functools.partial(hub.Leases, grace=1.5); "
        "from tapml.cli.main import main; sys.exit(main())",
    )  # fmt: skip


def facts(result: MigrationResult) -> dict[str, Any]:
    """All that a migration said, but for what differs between processes anyway."""
    return {
        "verdicts": [(v.operator, v.status, v.stage, v.error, v.bound, v.kernel) for v in result.verdicts],
        "tokens": [list(prompt.tokens_target or ()) for prompt in result.end_to_end.prompts],
        "errors": [prompt.error for prompt in result.end_to_end.prompts],
        "offloaded": result.offloaded,
        "kept": result.kept_on_source,
    }


def journal(run: RunFolder, target: str, injected: bool = False) -> list[dict[str, Any]]:
    return read(run.path / "targets" / folder_name(target) / ("migrate.injected.jsonl" if injected else "migrate.jsonl"))[0]


def assert_nothing_doubled(run: RunFolder, target: str, injected: bool = False) -> None:
    """Each operator's verdict, each check and each prompt is in the journal once."""
    records = journal(run, target, injected)
    verdicts = [r["verdict"]["operator"] for r in records if r["record"] == "verdict"]
    assert sorted(verdicts) == sorted(operator.name for operator in run.operators)
    for kind, key in (("check", lambda r: r["set"]), ("prompt", lambda r: r["result"]["index"])):
        seen = [key(r) for r in records if r["record"] == kind]
        assert len(seen) == len(set(seen)) > 0, kind
    assert [r["record"] for r in records].count("done") == 1
