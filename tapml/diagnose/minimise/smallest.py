"""The smallest case that still fails, and its reproducer; or why there is none.

    small = smallest(bench, operator, found, trial, program, folder)
    small.case, small.actual, small.why_not, small.reproducer

A fault that is not in the kernel (weights, the source's own precision, what is passed between calls) has no failing input of
its own, and that is said instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tapml.backends.interface import Compiled
from tapml.diagnose.minimise.interestingness import Symptom
from tapml.diagnose.minimise.reproducer import write_reproducer
from tapml.diagnose.minimise.stage import Minimised, minimise
from tapml.diagnose.probes.evidence import Triage
from tapml.diagnose.probes.shots import fire
from tapml.errors import TapmlError, is_confined, unexpected
from tapml.migrate.operator_test import Trial
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Operator
from tapml.tensors import HostArray


@dataclass(frozen=True)
class Smallest:
    """`actual` are the outputs of the smallest case's program, empty where the device refuses it. `why_not` is "" where case and
    reproducer are both there."""

    case: Minimised | None = None
    actual: tuple[HostArray, ...] = ()
    why_not: str = ""
    reproducer: Path | None = None


def smallest(
    bench: Workbench, operator: Operator, found: Triage, trial: Trial, program: Compiled | None, folder: Path,
    progress: Progress | None = None,
) -> Smallest:
    """Minimises the trial and writes the reproducer to `folder`. Raises UnavailableError when the device is lost for good."""
    if found.passed:
        return Smallest(why_not="the operator is right alone, so there is no failing input of its own")
    if program is None:
        return Smallest(why_not="it does not compile, so there is no kernel to run")
    if found.stage in ("weights", "precision"):
        return Smallest(why_not=f"a fault of stage {found.stage} is not in the kernel, which is right for any input")
    try:
        case = _as_it_lies(bench, operator, found, trial) if trial.layouts else minimise(bench, operator, trial.inputs, progress)
    except Exception as error:
        return Smallest(why_not=f"it could not be minimised: {_said(error)}")
    actual: tuple[HostArray, ...] = ()
    if case.program is not None:
        shown = Trial(trial.name, case.inputs, case.references)
        actual = fire(bench, operator, case.program, shown, case.runs, resident=False).outputs
    note = f"{found.stage}: {found.because}" if found.stage else found.because
    try:
        path = write_reproducer(folder, str(bench.choice), case, bench.info, note)
    except Exception as error:
        return Smallest(case, actual, f"no reproducer was written: {_said(error)}")
    return Smallest(case, actual, "", path)


def _as_it_lies(bench: Workbench, operator: Operator, found: Triage, trial: Trial) -> Minimised:
    """The whole case, where it fails with inputs that are not contiguous: a smaller one would lie in memory in another way."""
    program, inputs = bench.lying(operator, trial.inputs, trial.layouts)
    elements = sum(a.size for a in trial.inputs)
    return Minimised(
        operator.name, bench.body(operator), tuple(inputs), tuple(trial.references), program, found.comparison, found.output,
        Symptom(found.status, found.stage), found.because, elements, elements, (), 1, 0.0,
    )  # fmt: skip


def _said(error: Exception) -> str:
    """What goes into the result in place of the case; what concerns more than this operator is raised again."""
    if isinstance(error, TapmlError | ValueError):
        return str(error)
    if not is_confined(error):
        raise error
    return unexpected(error)
