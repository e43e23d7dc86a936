"""The calls that an operator is judged on: those that were recorded, and those that it meets while the model runs.

    for trial in recorded(run, model, operator): ...
    for trial in met(run, model, hybrid, operator): ...         inputs as a hybrid computes them

A trial's expected outputs are the source's, masked where the source is no judge (see `tapml.carve.tolerance`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tapml.carve.folder import RunFolder
from tapml.carve.tolerance import distance, undecided
from tapml.migrate.end_to_end import check_calls
from tapml.migrate.hybrid import Hybrid
from tapml.migrate.model import Model
from tapml.migrate.operator_test import Trial
from tapml.operators.graph import Operator
from tapml.tensors import FLOATS, HostArray, dtype_name


def recorded(run: RunFolder, model: Model, operator: Operator) -> Iterator[Trial]:
    """The operator's own recorded calls; where it has none, those of its signature, with its own weights and the outputs
    computed now where it reads weights. Nothing where its signature has none."""
    own = run.cases_of(operator.name)
    keys = model.weight_keys(operator)
    for case in own or run.cases_of_signature(operator.signature):
        inputs, expected = run.case_arrays(case)
        if own or all(key is None for key in keys):
            yield Trial(case.id, inputs, expected, case.source_error)
        else:
            yield computed(model, operator, _with_weights(model, keys, inputs), case.id)


def computed(model: Model, operator: Operator, inputs: Sequence[HostArray], name: str) -> Trial:
    """A trial on any inputs: what the source answers to them, and how far it is from float64."""
    expected = model.function(operator.signature)(inputs)
    exact = model.function(operator.signature, "float64")(inputs)
    judged = [_against(r, x) for r, x in zip(expected, exact, strict=True)]
    return Trial(name, inputs, [r for r, _ in judged], [e for _, e in judged])


def met(run: RunFolder, model: Model, hybrid: Hybrid, operator: Operator) -> Iterator[Trial]:
    """The calls of the operator in the check of the whole model, with the inputs that `hybrid` computes; the hybrid is reset
    first, and runs operator by operator. Raises DeviceError and DeviceLost as it does."""
    hybrid.reset()
    states: dict[str, HostArray] = dict(model.initial_states)
    keys = model.weight_keys(operator)
    for number, call in enumerate(check_calls(run)):
        graph = model.graphs[call.graph]
        values = {p.name: call.inputs[p.key] for p in graph.inputs} | {p.name: states[p.key] for p in graph.states}
        weights = {p.name: p.key for p in graph.weights}
        for each, outputs in hybrid.observe(call.graph, call.inputs):
            if each.name == operator.name:
                inputs = [values[n] if k is None else model.weight(k) for n, k in zip(operator.inputs, keys, strict=True)]
                yield computed(model, operator, inputs, f"call {number} of the model ({call.graph})")
            values.update(zip(each.outputs, outputs, strict=True))
        for key, name in graph.mutations.items():
            states[key] = values[name] if name in values else model.weight(weights[name])


def _with_weights(model: Model, keys: Sequence[str | None], recorded: Sequence[HostArray]) -> list[HostArray]:
    return [array if key is None else model.weight(key) for array, key in zip(recorded, keys, strict=True)]


def _against(expected: HostArray, exact: HostArray) -> tuple[HostArray, float]:
    """The source's output, masked where it is no judge, and its distance from float64."""
    mask = undecided(expected, exact)
    judged = expected if mask is None else np.ma.MaskedArray(expected, mask)
    if dtype_name(expected) not in FLOATS:
        return judged, 0.0
    return judged, distance(expected, exact if mask is None else np.ma.MaskedArray(exact, mask))
