"""What a diagnosis is made of: questions and what was found for them, findings, and the triage that they add up to. Plain data.

    Float64().gave("right", "the target is 1e-08 away from float64", "PyTorch in float64")
    Finding("out-of-bounds write", "…")

An outcome says what was seen, never what it means; what outcomes mean together is `tapml.diagnose.explain.decide`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tapml.carving.tolerance import Comparison
from tapml.verdicts import Stage, Status

if TYPE_CHECKING:
    from tapml.diagnose.probes.shots import Shot

Outcome = Literal["right", "wrong", "refused", "not run", "not needed"]

# How an outcome is shown: "open" is a "wrong" that shows no fault.
Tone = Literal["right", "wrong", "refused", "not run", "not needed", "open"]

FindingKind = Literal[
    "race", "uninitialised read", "unwritten output", "out-of-bounds read", "out-of-bounds write", "launch size",
    "weight differs", "early return",
]


class Measured(Protocol):
    """Numbers in the unit of `tapml.carving.distance.distance`, those of the worst output; None where none were reached."""

    @property
    def error(self) -> float | None: ...

    @property
    def bound(self) -> float | None: ...

    @property
    def source_error(self) -> float | None: ...


class Question:
    """One question of a diagnosis, under the `name` by which rules and results know it. `right`, `wrong` and `refused` are what
    these outcomes say, as a step of the argument; `start` says "right" in few words, where that is where every argument starts.
    `wrong_is_open`: "wrong" shows no fault here, and leaves open where it is."""

    name: str
    question: str
    right = ""
    wrong = ""
    refused = ""
    start = ""
    wrong_is_open = False

    def gave(self, outcome: Outcome, detail: str, where: str = "", measured: Measured | None = None) -> Evidence:
        """See `Evidence` for `detail` and `where`."""
        if measured is None:
            return Evidence(self, outcome, detail, where)
        return Evidence(self, outcome, detail, where, measured.error, measured.bound, measured.source_error)

    def not_run(self, why: str, where: str = "") -> Evidence:
        return self.gave("not run", why, where)

    def of_shot(self, shot: Shot, where: str) -> Evidence:
        return self.gave(shot.outcome, shot.detail, where, shot.comparison)

    def says(self, outcome: Outcome) -> str:
        """One sentence."""
        if outcome == "not run":
            return f"Not run: {self.question[0].lower()}{self.question[1:]}"
        said = {"right": self.right, "wrong": self.wrong, "refused": self.refused}.get(outcome, "")
        return said or f"{self.question} {outcome}"


@dataclass(frozen=True)
class Evidence:
    """What was found for a question. `where` names target, schedule or driver; the numbers are those of `Measured`. `detail` is a
    sentence without a capital: what was seen, or why it was not run; "" where the outcome says all."""

    asked: Question
    outcome: Outcome
    detail: str
    where: str = ""
    error: float | None = None
    bound: float | None = None
    source_error: float | None = None
    seconds: float = 0.0

    @property
    def probe(self) -> str:
        return self.asked.name

    @property
    def said(self) -> str:
        return self.asked.says(self.outcome)

    @property
    def tone(self) -> Tone:
        return "open" if self.outcome == "wrong" and self.asked.wrong_is_open else self.outcome

    def to_json(self) -> dict[str, Any]:
        return {
            "probe": self.probe, "outcome": self.outcome, "detail": self.detail, "where": self.where, "error": self.error,
            "bound": self.bound, "source_error": self.source_error, "seconds": self.seconds, "question": self.asked.question,
            "said": self.said, "tone": self.tone,
        }  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """Something seen beside the stage. `text` is one sentence with its numbers."""

    kind: FindingKind
    text: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Triage:
    """`stage` is None where nothing is wrong, or where the probes that could be run do not decide it: `because` then says so.
    `status` is that of the run as given; `comparison` of its worst output, number `output`, None where no numbers were
    reached."""

    operator: str
    status: Status
    stage: Stage | None
    because: str
    trial: str
    evidence: tuple[Evidence, ...]
    findings: tuple[Finding, ...]
    comparison: Comparison | None = None
    output: int = 0

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    def of(self, probe: str) -> Evidence | None:
        """What a probe gave, None for one that is unknown."""
        return next((e for e in self.evidence if e.probe == probe), None)

    def found(self, kind: FindingKind) -> Finding | None:
        return next((f for f in self.findings if f.kind == kind), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "operator": self.operator, "status": self.status, "stage": self.stage, "because": self.because, "trial": self.trial,
            "error": None if self.comparison is None else self.comparison.error,
            "bound": None if self.comparison is None else self.comparison.bound,
            "source_error": None if self.comparison is None else self.comparison.source_error,
            "evidence": [e.to_json() for e in self.evidence],
            "findings": [f.to_json() for f in self.findings],
        }  # fmt: skip


def worst_of(found: Sequence[Comparison]) -> tuple[int, Comparison]:
    """The output that is farthest beyond its bound: its number, and its comparison."""
    index = max(range(len(found)), key=lambda k: (not found[k].passed, found[k].ratio))
    return index, found[index]


def share(error: float, bound: float) -> str:
    """An error as a multiple of the tolerance, in words."""
    return f"error {error / bound:.3g} of the tolerance" if error else "equal to the reference"


def first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:300]
