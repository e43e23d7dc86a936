"""What a diagnosis is made of: probes and their outcomes, findings, and the triage that they add up to. Plain data.

    Evidence("cpu", "right", "plain C, one thread: error 0.11 of the tolerance")
    Finding("out-of-bounds write", "…")

A probe is one differential run: the same operator on the same input with one thing changed. Its outcome says what that run gave,
never what it means; what outcomes mean together is `tapml.diagnose.explain.decide`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tapml.carving.tolerance import Comparison
from tapml.targets.known import REFERENCE
from tapml.verdicts import Stage, Status

Outcome = Literal["right", "wrong", "refused", "not run", "not needed"]

FindingKind = Literal[
    "race", "uninitialised read", "unwritten output", "out-of-bounds read", "out-of-bounds write", "launch size",
    "weight differs", "early return",
]

# The probe that runs an operator on the target that diagnosis holds the others against.
CPU = REFERENCE.name

# Every probe, in the order in which they are made (cheap ones first), and the question that it answers.
QUESTIONS: dict[str, str] = {
    "compile": "Does the compiler make kernels of the operator?",
    "limits": "Are the launch sizes and bindings within what the device says it has?",
    "load": "Does the driver accept the kernels?",
    "run": "Are the numbers right, in every repetition and whatever memory held before?",
    "float64": "Is the target nearer to float64 than the source is?",
    "graph": "Does the graph that the compiler was given compute the recorded outputs, in PyTorch?",
    "uploads": "Are the same kernels right when the weights are uploaded as plain inputs?",
    "memory": "Does the result depend on nothing but the inputs, and does nothing else get written?",
    "text": "Is the text free of hazards: reads before writes, threads that do not wait for each other?",
    "grid": "Is the same text right with more workgroups?",
    CPU: "Is the lowered function right as plain C, in one thread?",
    "converted": "Is the operator right as it was converted, before it is lowered?",
    "other schedule": "Is another schedule of the same lowered function right on this target?",
    "text elsewhere": "Is the same schedule's text for another target free of them?",
    "same schedule elsewhere": "Is the same schedule right on another target?",
    "other schedule elsewhere": "Is another schedule right on that other target?",
    "other driver": "Is the very same text right with another driver?",
}

# The whole model, asked where an operator is right with all that was recorded.
MODEL_QUESTIONS: dict[str, str] = {
    "model": "Is the whole model right with every operator on the target?",
    "model without": "Is it right with every operator but this one on the target?",
    "model with only": "Is it right with this operator alone on the target?",
    "met": "Is the operator right on the inputs that it meets while the model runs on the target?",
}


@dataclass(frozen=True)
class Evidence:
    """What one probe gave. `where` names target, schedule or driver; `error`, `bound` and `source_error` are in the unit of
    `tapml.carving.distance.distance`, those of the worst output, None where no numbers were reached. `detail` is a sentence
    without a capital: what was seen, or why it was not run."""

    probe: str
    outcome: Outcome
    detail: str
    where: str = ""
    error: float | None = None
    bound: float | None = None
    source_error: float | None = None
    seconds: float = 0.0

    @property
    def question(self) -> str:
        return (QUESTIONS | MODEL_QUESTIONS)[self.probe]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "question": self.question}


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
        """What a probe gave, None for one that was not made."""
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


def left_out(evidence: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """The evidence in the order of `QUESTIONS`, with a line for each probe that was not made because it could change nothing."""
    made = {e.probe: e for e in evidence}
    missing = "the probes before it decide the stage already"
    return tuple(made.get(probe, Evidence(probe, "not needed", missing)) for probe in QUESTIONS)


def worst_of(found: Sequence[Comparison]) -> tuple[int, Comparison]:
    """The output that is farthest beyond its bound: its number, and its comparison."""
    index = max(range(len(found)), key=lambda k: (not found[k].passed, ratio(found[k].error, found[k].bound)))
    return index, found[index]


def ratio(error: float, bound: float) -> float:
    """Error over bound; a bound of 0 allows no difference, so then inf or 0."""
    return error / bound if bound else float("inf") if error else 0.0

