"""What testing a run on a target said, as data: for Python, the console, JSON, JUnit and Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tapml.devices.interface import DeviceInfo
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.invariance import Invariance
from tapml.verdicts import Measure, Verdict, summary, worth_explaining

if TYPE_CHECKING:
    from tapml.migrate.device_pool import Share
    from tapml.migrate.segment import SegmentResult


@dataclass(frozen=True)
class TestResult:
    """What testing a run on a target said. `verdicts` are in execution order, one an operator that was asked for; `measures` are
    the calls that were measured for them. `devices` says which did how many; `device` is one of them. `circumstances` say what
    the result is worth, `positions` which of the cache the recorded calls exercise (see `tapml.carving.late`), None for a module
    that is no decoder. `segment` is what testing one segment said, whose verdict is then the only one; `invariance` what `repeat`
    found. `kernels` is the folder whose kernels were tested, `without` the operators that it has none for, which are among the
    verdicts as skipped. None where these were not asked for."""

    __test__ = False  # its name begins like a test's

    target: str
    device: DeviceInfo
    mode: str
    verdicts: tuple[Verdict, ...]
    seconds: float
    measures: tuple[Measure, ...] = ()
    devices: tuple[Share, ...] = ()
    circumstances: Circumstances = field(default_factory=Circumstances)
    positions: dict[str, Any] | None = None
    segment: SegmentResult | None = None
    invariance: Invariance | None = None
    kernels: str | None = None
    without: frozenset[str] = frozenset()

    @cached_property
    def tested(self) -> tuple[Verdict, ...]:
        """The verdicts but for those of operators without a kernel in the folder."""
        return tuple(v for v in self.verdicts if v.operator not in self.without)

    @property
    def passed(self) -> bool:
        """Every operator passed, and none differs from itself by more than its bound; one that was skipped did not pass. Where a
        folder of kernels was tested: every operator that it has a kernel for, and there is one."""
        right = all(v.status == "pass" for v in self.tested) and (self.kernels is None or bool(self.tested))
        return right and (self.invariance is None or self.invariance.passed)

    @cached_property
    def in_order(self) -> tuple[Verdict, ...] | None:
        """Of a cumulative test those that did not pass, in the order in which the model ran into them: what comes behind a wrong
        operator is wrong because of it. None for an isolated test."""
        if self.mode != "cumulative":
            return None
        when: dict[str, int] = {}
        for m in self.measures:
            if m.status != "pass":
                when[m.operator] = min(m.step, when.get(m.operator, m.step))
        return tuple(sorted((v for v in self.tested if v.status != "pass"), key=lambda v: when.get(v.operator, 0)))

    @property
    def first_wrong(self) -> str | None:
        """The first operator with wrong numbers in a cumulative test; None where there is none, or in an isolated test."""
        return next((v.operator for v in self.in_order or () if v.status in ("fail", "flaky")), None)

    @property
    def to_explain(self) -> str | None:
        """The operator to go on with: the first wrong one, or the worst; of a segment the one that fails alone."""
        if self.segment is not None:
            return self.segment.alone
        worst = worth_explaining(self.verdicts)
        return self.first_wrong or (None if worst is None else worst.operator)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "device": self.device.to_json(),
            "mode": self.mode,
            "verdicts": [v.to_json() for v in self.verdicts],
            "summary": summary(self.verdicts),
            "seconds": self.seconds,
            "devices": [share.to_json() for share in self.devices],
            "first_wrong": self.first_wrong,
            "passed": self.passed,
            **self.circumstances.to_json(),
            "positions": self.positions,
            "segment": None if self.segment is None else self.segment.to_json(),
            "invariance": None if self.invariance is None else self.invariance.to_json(),
            "kernels": self.kernels,
        }
