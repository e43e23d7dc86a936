"""What `explain` found about one operator: everything that the console, the JSON and the report show.

    found = explain(run, "layers.0.mlp.down_proj", "opencl")          see `tapml.diagnose.explain.stage`
    found.stage, found.because, found.evidence, found.advice, found.reproducer
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapml.backends.interface import Compiled
from tapml.backends.on_device import kernels_of
from tapml.devices.interface import DeviceInfo
from tapml.diagnose.explain.in_model import InModel
from tapml.diagnose.probes.evidence import Evidence, Triage
from tapml.migrate.circumstances import Circumstances
from tapml.operators.graph import Operator
from tapml.tensors import HostArray
from tapml.verdicts import Stage, Status

if TYPE_CHECKING:
    from tapml.diagnose.minimise.stage import Minimised

# Arrays of more elements than this are not written out in JSON or on the console; the reproducer has them.
MOST_VALUES = 64

@dataclass(frozen=True)
class Explanation:
    """`triage` is that of the call with which the operator is wrong, or of the first call. `model` is there where the operator
    was right alone and the whole model was asked. `minimised` is None where nothing could be made smaller, and `not_minimised`
    says why. `actual` are the outputs of the minimised program. `kernels_at` holds the kernels' whole source text,
    `circumstances` say what the result is worth."""

    operator: Operator
    target: str
    device: DeviceInfo
    triage: Triage
    program: Compiled | None
    module_lines: tuple[str, ...]
    cases: int
    elements: int
    folder: Path
    kernels_at: tuple[Path, ...]
    advice: tuple[str, ...]
    seconds: float
    model: InModel | None = None
    minimised: Minimised | None = None
    actual: tuple[HostArray, ...] = ()
    not_minimised: str = ""
    reproducer: Path | None = None
    circumstances: Circumstances = field(default_factory=Circumstances)

    @property
    def status(self) -> Status:
        """Of the operator; "fail" also where it makes the model wrong though it is right alone."""
        return "fail" if self.triage.passed and self.model is not None and self.model.stage is not None else self.triage.status

    @property
    def stage(self) -> Stage | None:
        return self.triage.stage if self.model is None or self.model.stage is None else self.model.stage

    @property
    def because(self) -> str:
        return self.triage.because if self.model is None or self.model.trial is not None else self.model.because

    @property
    def passed(self) -> bool:
        return self.status == "pass"

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """In the order in which it was gathered."""
        model = () if self.model is None else self.model.evidence
        return (*model, *self.triage.evidence) if self.model and self.model.trial else (*self.triage.evidence, *model)

    def to_json(self) -> dict[str, Any]:
        numbers = {k: v for k, v in self.triage.to_json().items() if k in ("error", "bound", "source_error", "trial")}
        return {
            "operator": self.operator.name, "op": self.operator.kind, "signature": self.operator.signature,
            "target": self.target, "device": self.device.to_json(), "passed": self.passed, **self.circumstances.to_json(),
            "status": self.status, "stage": self.stage,
            "because": self.because, **numbers,
            "evidence": [e.to_json() for e in self.evidence],
            "findings": [f.to_json() for f in self.triage.findings],
            "advice": list(self.advice),
            "cases": self.cases,
            "reproducer": None if self.reproducer is None else str(self.reproducer),
            "elements_before": self.elements if self.minimised is None else self.minimised.elements_before,
            "elements_after": None if self.minimised is None else self.minimised.elements_after,
            "minimised": None if self.minimised is None else self._small(self.minimised),
            "not_minimised": self.not_minimised or None,
            "kernels": [] if self.program is None
            else [{**k.to_json(), "schedule": self.program.schedule} for k in kernels_of(self.program)],
            "folder": str(self.folder),
            "seconds": self.seconds,
        }  # fmt: skip

    def _small(self, small: Minimised) -> dict[str, Any]:
        return {
            "inputs": [_array(a) for a in small.inputs],
            "expected": [_array(a) for a in small.expected],
            "actual": [_array(a) for a in self.actual],
            "steps": [str(step) for step in small.steps],
            "kernels": [k.to_json() for k in kernels_of(small.program)],
        }


def _array(array: HostArray) -> dict[str, Any]:
    small = array.size <= MOST_VALUES
    return {"shape": list(array.shape), "dtype": str(array.dtype), "values": array.astype(object).tolist() if small else None}
