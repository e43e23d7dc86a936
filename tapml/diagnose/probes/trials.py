"""The calls that an operator is judged on: those that were recorded, and those that it meets while the model runs.

    for trial in recorded(run, model, operator): ...
    for trial in met(run, model, hybrid, operator): ...         inputs as a hybrid computes them

A trial's expected outputs are the source's, masked where an element cannot be compared (see `tapml.carving.tolerance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tapml.carving.folder import RunFolder
from tapml.diagnose.probes.watch import watch
from tapml.errors import is_confined
from tapml.migrate.end_to_end import check_calls
from tapml.migrate.model import Model
from tapml.migrate.operator_test import Trial, late_beside
from tapml.operators.graph import Operator
from tapml.runtime.hybrid import Hybrid, makers, refusal
from tapml.runtime.protocol import Call
from tapml.tensors import HostArray


def recorded(run: RunFolder, model: Model, operator: Operator) -> Iterator[Trial]:
    """The operator's own recorded calls; where it has none, those of its signature, with its own weights and the outputs
    computed now where it reads weights; and the late positions of its signature. Nothing where its signature has none."""
    keys = model.weight_keys(operator)
    cases = run.cases_of(operator.name) or run.cases_of_signature(operator.signature)
    for case in (*cases, *late_beside(run, operator, cases)):
        inputs, references = run.case_references(case)
        if case.operator == operator.name or all(key is None for key in keys):
            yield Trial(case.label, inputs, references, case)
        else:
            yield Trial.computed(model, operator, _with_weights(model, keys, inputs), case.label, case)


def met(
    run: RunFolder, model: Model, hybrid: Hybrid, operator: Operator, calls: Sequence[Call] | None = None
) -> Iterator[Trial]:
    """The calls of the operator in the check of the whole model, or in `calls`, with the inputs that `hybrid` computes; the
    hybrid is reset first, and runs operator by operator. Raises DeviceError and DeviceLost as it does, WrongValue also where the
    source refuses to compute what the operator should make of its inputs."""
    for seen in watch(model, hybrid, check_calls(run) if calls is None else calls):
        if seen.operator.name == operator.name:
            try:
                trial = Trial.computed(model, operator, seen.inputs, f"call {seen.step} of the model ({seen.graph})")
            except Exception as error:
                if not hybrid.offloaded or not is_confined(error):
                    raise
                raise refusal(operator, error, makers(model, seen.graph, operator, hybrid.offloaded)) from error
            yield trial


def _with_weights(model: Model, keys: Sequence[str | None], recorded: Sequence[HostArray]) -> list[HostArray]:
    return [array if key is None else model.weight(key) for array, key in zip(recorded, keys, strict=True)]
