"""What a bisection found, as data: for the command line, for JSON and for whoever explains the culprits next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tapml.carving.late import positions_words
from tapml.devices.interface import DeviceInfo
from tapml.diagnose.bisect.model_check import How, RunRecord
from tapml.diagnose.bisect.search import Rate
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.end_to_end import Answer
from tapml.verdicts import Stage
from tapml.words import plural


@dataclass(frozen=True)
class Missing:
    """An operator that stayed on the source because it did not compile, and why; `stage` is None for one that always stays."""

    operator: str
    stage: Stage | None
    reason: str


@dataclass(frozen=True)
class Culprit:
    """An operator, what it is and where it is in the model. `alike` are the other operators that run the very same kernels."""

    operator: str
    kind: str
    graph: str
    module: str
    signature: str
    kernel: str
    schedule: str
    alike: tuple[str, ...]


@dataclass(frozen=True)
class FailingSet:
    """Operators that make the model wrong together, and none of which can be left out. `how` says how that was seen: "one by
    one",
    each operator given host values, or "together", which is the only way that a fault between operators shows. `answer` is the
    whole model's with these alone on the target, seen in that way, up to the first wrong call; `alone` is the same as
    the model ships. `repeats` passes in a row made a set believed (1: every run gave the same bits)."""

    culprits: tuple[Culprit, ...]
    how: How
    stage: Stage | None
    steady: bool
    rate: Rate | None
    repeats: int
    first_wrong_call: int | None
    answer: Answer
    alone: Answer

    @property
    def operators(self) -> tuple[str, ...]:
        return tuple(culprit.operator for culprit in self.culprits)

    def to_json(self) -> dict[str, Any]:
        return {
            "operators": list(self.operators),
            "culprits": [asdict(culprit) for culprit in self.culprits],
            "how": self.how,
            "stage": self.stage,
            "flaky": not self.steady,
            "rate": None if self.rate is None else self.rate.value,
            "repeats": self.repeats,
            "first_wrong_call": self.first_wrong_call,
            "answer": self.answer.to_json(),
            "alone": self.alone.to_json(),
        }


@dataclass(frozen=True)
class BisectResult:
    """`sets` are disjoint, in the order in which they were found. `answer` is the model's with everything that compiles on the
    target, None when nothing compiles; `without` the model's without the sets, None when there are none or nothing is left;
    `more` says that it is wrong again without them. `bound` is the most runs that a search like this one takes where errors do
    not cancel. `operators_run` counts operators that the checks one by one carried out, of `operators_without_memory`.
    `further` says which calls were checked where the check of the run is right and tokens part later; `tokens` how many of each
    answer were compared to see that, None: what the last migration said was used. `positions`: see `tapml.carving.late`."""

    target: str
    device: DeviceInfo
    sets: tuple[FailingSet, ...]
    answer: Answer | None
    without: Answer | None
    more: bool
    first_wrong_call: int | None
    confidence: float
    rate: Rate | None
    unsteady: tuple[str, ...]
    offloaded: int
    not_compiled: tuple[Missing, ...]
    course: tuple[RunRecord, ...]
    bound: int
    operators_run: int
    operators_without_memory: int
    seconds: float
    circumstances: Circumstances = field(default_factory=Circumstances)
    further: str | None = None
    tokens: int | None = None
    positions: dict[str, Any] | None = None

    @property
    def culprits(self) -> tuple[str, ...]:
        """Operators of all sets."""
        return tuple(name for found in self.sets for name in found.operators)

    @property
    def passed(self) -> bool:
        """Something was offloaded, and the model is right with it."""
        return not self.sets and self.offloaded > 0

    @property
    def flaky(self) -> bool:
        return self.rate is not None and (self.rate.failures > 0 or not self.passed)

    @property
    def runs(self) -> int:
        return len(self.course)

    @property
    def reason(self) -> str:
        """The outcome in plain words."""
        verb = "does" if len(self.not_compiled) == 1 else "do"
        stayed = f"; {len(self.not_compiled)} that {verb} not compile stayed on the source" if self.not_compiled else ""
        if not self.offloaded:
            return f"nothing could be offloaded{stayed}"
        if not self.sets:
            return f"the model is right with {_count(self.offloaded)} on {self.target}{self._seen()}{self._as_far()}{stayed}"
        sentences = [_of_set(found) for found in self.sets]
        if self.more:
            sentences.append("Without them the model is still wrong, so there are more: --all finds them")
        elif self.without is not None:
            sentences.append("Without them the model is right" if len(self.culprits) > 1 else "Without it the model is right")
        else:
            sentences.append("No other operator is on the target")
        return ". ".join(sentences) + stayed

    def _as_far(self) -> str:
        """How many tokens and positions a model that is right was checked on."""
        same = "" if self.tokens is None else f"; the first {self.tokens} tokens of each answer agree, as far as the cache goes"
        return same + (f"; {positions_words(self.positions)}" if self.positions else "")

    def _seen(self) -> str:
        runs = self.runs if self.rate is None else self.rate.runs
        often = 1.0 - (1.0 - self.confidence) ** (1.0 / runs)
        how = "the same bits in" if self.rate is None else "its results differ from run to run, and are within the bound in all"
        out = f"which leaves out faults that show in {often:.0%} of runs or more (confidence {self.confidence:g})"
        return f": {how} {plural(runs, 'run')}, {out}"

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "device": self.device.to_json(),
            "culprits": list(self.culprits),
            "runs": self.runs,
            "bound": self.bound,
            "sets": [found.to_json() for found in self.sets],
            "more": self.more,
            "flaky": self.flaky,
            "confidence": self.confidence,
            "rate": None if self.rate is None else self.rate.value,
            "unsteady": list(self.unsteady),
            "first_wrong_call": self.first_wrong_call,
            "answer": None if self.answer is None else self.answer.to_json(),
            "without": None if self.without is None else self.without.to_json(),
            "offloaded": self.offloaded,
            "not_compiled": [asdict(missing) for missing in self.not_compiled],
            "operators_run": self.operators_run,
            "operators_without_memory": self.operators_without_memory,
            "course": [record.to_json() for record in self.course],
            "seconds": self.seconds,
            "reason": self.reason,
            "passed": self.passed,
            **self.circumstances.to_json(),
            "further": self.further,
            "tokens": self.tokens,
            "positions": self.positions,
        }


def _of_set(found: FailingSet) -> str:
    names = _listed(found.operators)
    verb = "makes" if len(found.operators) == 1 else "together make"
    text = f"{names} {verb} the model wrong"
    if len(found.operators) > 1:
        text += ", and with any of them on the source it is right"
    if not found.steady:
        text += f", not in every run (a set that passed was run {found.repeats} times)"
    if found.how == "together":
        text += "; every operator is right with the inputs that it gets, so the fault is in what is passed between them"
    return text


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(operators: int) -> str:
    return "its 1 operator" if operators == 1 else f"all {operators} operators"
