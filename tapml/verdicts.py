"""What a test of an operator said, and never without the reason.

Statuses: `pass`; `fail` (wrong numbers); `flaky` (the same kernel on the same input gave different answers);
`error` (a stage before the numbers refused); `crash` (a process died: the compiler's or the device's);
`unchecked` (it ran, and too few elements could be compared for that to show anything); `skipped` (not run, and why). Only
`pass` passes. Stages name where it went wrong, in the order of the pipeline. Two of them are about numbers: `numeric` is what a
test says (the numbers differ; where that comes from was not asked), `precision` is what a diagnosis says (it comes from how
exact the reference itself is, so no stage of the compiler is at fault). `backend` is all that happens inside of an engine that
TapML did not make, whose stages cannot be told apart; `plan` how a bundle puts right operators together.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from tapml import strict

Status = Literal["pass", "fail", "flaky", "error", "crash", "unchecked", "skipped"]
Stage = Literal[
    "convert", "lower", "schedule", "codegen", "driver", "launch", "numeric", "precision", "weights", "state", "backend", "plan",
]

STATUSES: tuple[Status, ...] = ("pass", "fail", "flaky", "error", "crash", "unchecked", "skipped")
STAGES: tuple[Stage, ...] = (
    "convert", "lower", "schedule", "codegen", "driver", "launch", "numeric", "precision", "weights", "state", "backend", "plan",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """The outcome for one operator. `error`, `bound` and `source_error` are in the unit of
    `tapml.carving.distance.distance`; None where no numbers were reached. `kernel` is the digest of the kernels that ran,
    `schedule` the one that was chosen, `cases` how many recorded calls were checked. `elements` counts the elements of all
    outputs of those calls, `excluded` those of them that were not compared since the source cannot decide them. `same_as` is the
    operator that was tested in its place, where both run the same kernels and neither has weights."""

    operator: str
    signature: str
    op: str
    status: Status
    stage: Stage | None
    error: float | None
    bound: float | None
    source_error: float | None
    reason: str
    seconds: float
    schedule: str | None = None
    kernel: str | None = None
    cases: int = 0
    elements: int = 0
    excluded: int = 0
    same_as: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Verdict:
        """Raises ValueError, KeyError or TypeError for what is no verdict."""
        known = {f.name: data[f.name] for f in fields(Verdict) if f.name in data}
        for key in ("operator", "signature", "op", "reason"):
            strict.text(data, key)
        _check_numbers(data)
        strict.maybe(strict.one_of, data, "stage", STAGES)
        strict.real(data, "seconds")
        optional = {"schedule": None, "kernel": None, "same_as": None} | known
        strict.maybe(strict.text, optional, "schedule")
        strict.maybe(strict.text, optional, "same_as")
        strict.maybe(strict.hexadecimal, optional, "kernel")
        for key in {"cases", "elements", "excluded"} & known.keys():
            strict.whole(known, key)
        return Verdict(**known)

    @property
    def badness(self) -> float:
        """Sorts worst first: anything that is no pass above any pass, then by error over bound."""
        ratio = 0.0 if self.error is None else self.error / self.bound if self.bound else float(self.error > 0)
        return ratio + (0.0 if self.status == "pass" else 1e12)


@dataclass(frozen=True)
class Measure:
    """One call that was measured: what a verdict, which carries the worst one, is made of. `case` is the recorded call (None in a
    cumulative test), `prompt`, `step` and `graph` say which call of the model it was. The numbers are those of the worst output,
    in the unit of `tapml.carving.distance.distance`; None where none were reached. `elements` and `excluded` as in `Verdict`."""

    operator: str
    case: str | None
    prompt: int
    step: int
    graph: str
    error: float | None
    bound: float | None
    source_error: float | None
    status: Status
    elements: int = 0
    excluded: int = 0

    @property
    def ratio(self) -> float | None:
        """Error over bound; inf where the bound is 0 and the error is not. None without numbers."""
        if self.error is None or self.bound is None:
            return None
        return self.error / self.bound if self.bound else math.inf if self.error else 0.0

    def to_json(self) -> dict[str, Any]:
        """As a record of a journal or of a test's results."""
        return {"record": "measure", **asdict(self)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Measure:
        """Raises ValueError, KeyError or TypeError for what is no measure."""
        known = {f.name: data[f.name] for f in fields(Measure) if f.name in data}
        for key in ("operator", "graph"):
            strict.text(data, key)
        strict.maybe(strict.text, data, "case")
        for key in ({"prompt", "step"} | ({"elements", "excluded"} & known.keys())):
            strict.whole(data, key)
        _check_numbers(data)
        return Measure(**known)


def _check_numbers(data: dict[str, Any]) -> None:
    strict.one_of(data, "status", STATUSES)
    for key in ("error", "bound", "source_error"):
        strict.maybe(strict.real, data, key)


def worth_explaining(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The worst of those that `tapml explain` has something to say about: whatever ran, or was to run, and went wrong."""
    wrong = [v for v in verdicts if v.status in ("fail", "flaky", "error", "crash")]
    return max(wrong, key=lambda v: v.badness, default=None)


def summary(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many of each status, zeros included."""
    counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
    for verdict in verdicts:
        counts[verdict.status] += 1
    return counts


def finite(value: Any) -> Any:
    """The same data with numbers that JSON can hold: infinity as the largest double, NaN as None."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else math.copysign(sys.float_info.max, value)
    return value
