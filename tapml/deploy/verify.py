"""Whether a bundle computes on this device what was tested, however its plan is run.

    verified = verify(session, repeat=20)
    verified.passed, verified.checks, verified.found

Each operator of a bundle passed alone; what is left to go wrong is their composition. Every prompt of the run is fed with the
source's tokens, and must choose the source's tokens; run again, and in four other ways (`composition.QUESTIONS`), it must give
the same bits at every call, and so must prompts that are taken in by other pieces. Where bits differ, the first operator is
looked for whose bits depend on what is around it (`composition.locate`). A model that chooses no tokens is given its first
example, and must be within the bound of the source's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from tapml.carving.tolerance import compare
from tapml.deploy.bundle import AGAIN, BundleFolder, Example
from tapml.deploy.chunks import first_apart, other_pieces
from tapml.deploy.composition import QUESTIONS, Composition, Found, Stand, digest_of, locate, trace
from tapml.deploy.player import Player
from tapml.deploy.session import Session
from tapml.errors import BundleError
from tapml.runtime.protocol import Cached, Call, Generating, ModelProtocol
from tapml.tensors import HostArray
from tapml.words import plural

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Check:
    """One demand. `detail` says what was seen."""

    name: str
    question: str
    passed: bool
    detail: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verified:
    """`found` is where the composition goes wrong; None where it does not, or where it cannot be told."""

    checks: tuple[Check, ...]
    found: Found | None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "checks": [check.to_json() for check in self.checks], "found": None if self.found is None else self.found.to_json(),
        }  # fmt: skip


_Outputs = dict[str, HostArray]


@dataclass(frozen=True)
class _Prompt:
    """The calls of one prompt or example, and the prompt's tokens. `unlike` says how the outputs of the calls differ from what
    the source gave."""

    name: str
    tokens: tuple[int, ...]
    calls: tuple[Call, ...]
    unlike: Callable[[Sequence[_Outputs]], list[str]]


def verify(
    session: Session, repeat: int = 20, max_tokens: int | None = None, composition: Composition | None = None,
    progress: Progress | None = None,
) -> Verified:
    """`repeat` is how often the first prompt runs, `max_tokens` how many tokens of each answer are compared (default: all that
    the run has). `composition` is for faults that are put in. Raises BundleError for a bundle without prompts and examples;
    DeviceError and UnavailableError from the device."""
    tell: Progress = progress or (lambda stage, done, total: None)
    stand = Stand(session, composition or Composition(session.bundle.plan))
    prompts = _prompts(session.bundle, max_tokens)
    counted = plural(len(prompts), "prompt" if prompts[0].tokens else "example")
    checks: list[Check] = []
    traces: list[list[str]] = []
    with closing(stand.player()) as player:
        told: list[str] = []
        for index, prompt in enumerate(prompts):
            tell("tokens", index, len(prompts))
            outputs = _outputs(player, prompt.calls)
            traces.append([digest_of(answer) for answer in outputs])
            told += prompt.unlike(outputs)
        asked = "Does it choose the source's tokens?" if prompts[0].tokens else "Is it within the bound of the source's outputs?"
        checks.append(_check("source", asked, told, counted))
        others = 0
        for index in range(1, repeat):
            tell("repeat", index, repeat)
            others += trace(player, prompts[0].calls) != traces[0]
        told = [f"{others} of {repeat} runs give other bits than the first"] if others else []
        checks.append(_check("repeat", "Is it the same in every run?", told, f"{repeat} runs"))
    for variant in QUESTIONS:
        with closing(variant.player(stand)) as player:
            told = []
            for index, prompt in enumerate(prompts):
                tell(variant.name, index, len(prompts))
                told += _parted(prompt, trace(player, prompt.calls), traces[index])
        checks.append(_check(variant.name, variant.question, told, counted))
    found = None
    if not all(check.passed for check in checks):
        tell("locate", 0, 1)
        found = _located(stand, prompts, tell)
    protocol = session.bundle.protocol
    if isinstance(protocol, Cached) and protocol.chunk > 1:
        tell("chunks", 0, 1)
        checks.append(_chunked(stand, protocol, prompts, traces))
    return Verified(tuple(checks), found)


def _check(name: str, question: str, wrong: Sequence[str], right: str) -> Check:
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return Check(name, question, not wrong, f"{wrong[0]}{more}" if wrong else right)


def _outputs(player: Player, calls: Sequence[Call]) -> list[_Outputs]:
    player.reset()
    return [player.step(call.graph, call.inputs) for call in calls]


def _prompts(bundle: BundleFolder, max_tokens: int | None) -> list[_Prompt]:
    protocol = bundle.protocol
    if isinstance(protocol, Generating):
        found = [_prompt(protocol, k, p["tokens"], p["generated"][:max_tokens]) for k, p in enumerate(bundle.prompts)]
    else:
        found = [_example(protocol, example) for example in bundle.examples]
    if not found:
        raise BundleError(f"{bundle.path} has no prompts or examples of the run, so there is nothing to compare with. {AGAIN}")
    return found


def _prompt(protocol: Generating, index: int, prompt: Sequence[int], answer: Sequence[int]) -> _Prompt:
    """The last call of the prompt chooses the first token, and each one after it the next."""
    calls = tuple(protocol.forced(prompt, answer[:-1]))

    def unlike(outputs: Sequence[_Outputs]) -> list[str]:
        chosen = [int(protocol.row(answer).argmax()) for answer in outputs[-len(answer) :]]
        for place, (have, wanted) in enumerate(zip(chosen, answer, strict=False)):
            if have != wanted:
                return [f"prompt {index} chooses {have} as token {place}, and the source {wanted}"]
        return []

    return _Prompt(f"prompt {index}", tuple(prompt), calls, unlike)


def _example(protocol: ModelProtocol, example: Example) -> _Prompt:
    def unlike(outputs: Sequence[_Outputs]) -> list[str]:
        found = {key: compare(outputs[-1][key], judge) for key, judge in example.outputs.items()}
        return [f"output {key}: {comparison.describe()}" for key, comparison in found.items() if not comparison.passed]

    return _Prompt("the example", (), tuple(protocol.check(example.inputs, ())), unlike)


def _parted(prompt: _Prompt, have: Sequence[str], planned: Sequence[str]) -> list[str]:
    """Where a way gives other bits than the plan as it ships."""
    for call, (a, b) in enumerate(zip(have, planned, strict=True)):
        if a != b:
            return [f"{prompt.name} has other bits from its call {call} ({prompt.calls[call].graph}) on"]
    return []


def _located(stand: Stand, prompts: Sequence[_Prompt], tell: Progress) -> Found | None:
    for index, prompt in enumerate(prompts):
        tell("locate", index, len(prompts))
        found = locate(stand, prompt.calls)
        if found is not None:
            return found
    return None


def _chunked(stand: Stand, protocol: Cached, prompts: Sequence[_Prompt], traces: Sequence[Sequence[str]]) -> Check:
    """Each prompt in other pieces, then its answer: the same bits at every token of the answer."""
    told, counted = [], 0
    for prompt, planned in zip(prompts, traces, strict=True):
        given, after = prompt.tokens, [call for call in prompt.calls if call.graph == protocol.appends]
        for pieces in other_pieces(protocol, given):
            counted += 1
            with closing(stand.player()) as player:
                have = trace(player, [*pieces.calls, *after])
            if have[-len(after) - 1 :] != planned[-len(after) - 1 :]:
                operator = first_apart(stand, protocol, list(protocol.read(given)), pieces.calls)
                first = f"; the first operator with other bits is {operator}" if operator else ""
                told.append(f"{prompt.name} in pieces of {plural(pieces.length, 'token')} gives other bits{first}")
    question = "Is it the same when the prompt is taken in by other pieces?"
    return _check("chunks", question, told, plural(counted, "other cut"))
