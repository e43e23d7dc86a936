"""What compiling one body gave: a program, or the stage at which each schedule failed, with the compiler's own words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tapml.kernels import Program
from tapml.verdicts import Stage

Outcome = Literal["ok", "error", "crash"]


@dataclass(frozen=True)
class Attempt:
    """One schedule that was tried. `status` "crash" covers what the worker did not survive: a signal, the time limit, the memory
    limit; `message` says which. `stage` is the last one that the worker reported; None when it succeeded."""

    schedule: str
    status: Outcome
    stage: Stage | None
    message: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Attempt:
        return Attempt(data["schedule"], data["status"], data["stage"], data["message"], data["seconds"])


@dataclass(frozen=True)
class Result:
    """`program` is None unless `status` is "ok". `stage` and `message` are those of the last attempt when all failed; when one
    succeeded, `message` tells what failed before, and what a schedule could not do of it. `seconds` is what compiling took, also
    when `cached`."""

    signature: str
    program: Program | None
    stage: Stage | None
    message: str
    status: Outcome
    seconds: float
    cached: bool
    attempts: tuple[Attempt, ...]

    @property
    def deterministic(self) -> bool:
        """Whether compiling again would give the same: no attempt ended in a crash, a time limit or a memory limit."""
        return all(a.status != "crash" for a in self.attempts)

    def from_cache(self, signature: str) -> Result:
        return replace(self, cached=True, signature=signature)

    def to_json(self) -> dict[str, Any]:
        return {
            "signature": self.signature,
            "program": None if self.program is None else self.program.to_json(),
            "stage": self.stage,
            "message": self.message,
            "status": self.status,
            "seconds": self.seconds,
            "attempts": [a.to_json() for a in self.attempts],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Result:
        program = data["program"]
        return Result(
            data["signature"], None if program is None else Program.from_json(program), data["stage"], data["message"],
            data["status"], data["seconds"], False, tuple(Attempt.from_json(a) for a in data["attempts"]),
        )


def concluded(signature: str, program: Program | None, attempts: tuple[Attempt, ...]) -> Result:
    """The result of all attempts on one body; the last one succeeded if there is a program."""
    seconds = sum(a.seconds for a in attempts)
    failed = [a for a in attempts if a.status != "ok"]
    if program is not None:
        before = [f"schedule {a.schedule} failed in {a.stage}: {a.message}" for a in failed]
        notes = [a.message for a in attempts if a.status == "ok" and a.message]
        return Result(signature, program, None, "; ".join([*before, *notes]), "ok", seconds, False, attempts)
    last = attempts[-1]
    others = "".join(f"\nschedule {a.schedule} failed before, in {a.stage}: {a.message}" for a in failed[:-1])
    return Result(signature, None, last.stage, last.message + others, last.status, seconds, False, attempts)
