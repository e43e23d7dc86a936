"""What a test of an operator said, and never without the reason.

Statuses: `pass`; `fail` (wrong numbers); `flaky` (the same kernel on the same input gave different answers);
`error` (a stage before the numbers refused); `crash` (a process died: the compiler's or the device's);
`skipped` (not run, and why). Stages name where it went wrong, in the order of the pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Status = Literal["pass", "fail", "flaky", "error", "crash", "skipped"]
Stage = Literal["convert", "lower", "schedule", "codegen", "driver", "launch", "numeric"]

STATUSES: tuple[Status, ...] = ("pass", "fail", "flaky", "error", "crash", "skipped")
STAGES: tuple[Stage, ...] = ("convert", "lower", "schedule", "codegen", "driver", "launch", "numeric")


@dataclass(frozen=True)
class Verdict:
    """The outcome for one operator. `error`, `bound` and `source_error` are in the unit of
    `tapml.carve.tolerance.distance`; None where no numbers were reached. `kernel` is the digest of the kernels that ran,
    `schedule` the one that was chosen, `cases` how many recorded calls were checked."""

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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Verdict:
        known = {f.name for f in fields(Verdict)}
        return Verdict(**{k: v for k, v in data.items() if k in known})

    @property
    def badness(self) -> float:
        """Sorts worst first: anything that is no pass above any pass, then by error over bound."""
        ratio = 0.0 if self.error is None else self.error / self.bound if self.bound else float(self.error > 0)
        return ratio + (0.0 if self.status == "pass" else 1e12)


def summary(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many of each status, zeros included."""
    counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
    for verdict in verdicts:
        counts[verdict.status] += 1
    return counts
