"""How work on a device went, as a value: it ran, the device refused it, or the device was lost over it.

    match bench.attempt(lambda: bench.run(operator, program, inputs, specs)):
        case Ran(outputs): ...
        case failed: failed.status, failed.stage, failed.text

What is no matter of this work (a connection that does not come back, an error that nobody foresaw) stays an exception. An
operator for which there is nothing to run is `NotCompiled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

from tapml.errors import DeviceError, DeviceLost
from tapml.verdicts import Stage, Status, Verdict

T = TypeVar("T")


@dataclass(frozen=True)
class Ran(Generic[T]):
    """What the work gave."""

    value: T

    def get(self) -> T:
        return self.value


@dataclass(frozen=True)
class Refused:
    """The device's driver or engine did not take an operator, or could not run it; the device is as it was."""

    error: DeviceError

    @property
    def status(self) -> Status:
        return "error"

    @property
    def stage(self) -> Stage:
        return self.error.stage if self.error.stage in ("convert", "driver", "backend") else "launch"  # type: ignore[return-value]

    @property
    def text(self) -> str:
        return str(self.error)

    @property
    def suspects(self) -> tuple[str, ...]:
        """The operators that it is about, where the device, or what the source said, tells."""
        return self.error.suspects

    def get(self) -> NoReturn:
        raise self.error


@dataclass(frozen=True)
class Lost:
    """The device died over the work, and was opened anew: what lay on it is gone."""

    error: DeviceLost

    @property
    def status(self) -> Status:
        return "crash"

    @property
    def stage(self) -> Stage:
        return "launch"

    @property
    def text(self) -> str:
        return f"the device was lost: {self.error}"

    @property
    def suspects(self) -> tuple[str, ...]:
        return ()

    def get(self) -> NoReturn:
        raise self.error


@dataclass(frozen=True)
class NotCompiled:
    """There are no kernels of an operator; `verdict` says why."""

    verdict: Verdict

    @property
    def status(self) -> Status:
        return self.verdict.status

    @property
    def stage(self) -> Stage | None:
        return self.verdict.stage

    @property
    def text(self) -> str:
        return self.verdict.reason


Failed = Refused | Lost
Attempted = Ran[T] | Refused | Lost
