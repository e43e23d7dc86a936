"""Watching a model run: every operator of every call with the inputs that it got and the outputs that it gave, on the host.

    for seen in watch(model, Hybrid(model, source), calls):             the source
        seen.operator, seen.inputs, seen.outputs
    for seen in watch(model, bench.hybrid(), calls): ...        whatever the hybrid has offloaded, read back after each operator

What an operator got is what the operators before it gave, so on a target these are the target's own values. Judging them is left
to others. Values are let go after their last use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tapml.carving.folder import RunFolder
from tapml.errors import UsageError
from tapml.migrate.end_to_end import asked
from tapml.migrate.model import Model
from tapml.operators.graph import Operator
from tapml.runtime.hybrid import Hybrid
from tapml.runtime.protocol import Call
from tapml.tensors import HostArray


@dataclass(frozen=True)
class Seen:
    """One operator in one call; `inputs` are in the body's order, weights among them. The arrays must not be written to."""

    step: int
    graph: str
    operator: Operator
    inputs: tuple[HostArray, ...]
    outputs: tuple[HostArray, ...]


def calls_of(run: RunFolder, prompt: int = 0) -> list[Call]:
    """The calls of a short check with a prompt of the run (prefill and the first decode steps with the recorded tokens), or with
    an example of a module that is not a decoder. Raises UsageError when there is no such prompt."""
    given = asked(run)
    if not 0 <= prompt < len(given):
        what = run.protocol.noun
        raise UsageError(f"The run {run.path} has no {what} {prompt}; it has {len(given)}, numbered from 0.")
    return run.protocol.check(*given[prompt])


def watch(model: Model, hybrid: Hybrid, calls: Sequence[Call]) -> Iterator[Seen]:
    """Runs the calls from the initial states on. DeviceError and DeviceLost of the hybrid's device pass through."""
    hybrid.reset()
    states = dict(model.initial_states)
    for number, call in enumerate(calls):
        walk = model.walks[call.graph]
        values = walk.begin(call.inputs, states)
        for step, (operator, outputs) in zip(walk.steps, hybrid.observe(call.graph, call.inputs), strict=True):
            yield Seen(number, call.graph, operator, tuple(step.read(values, model.weight)), outputs)
            step.done(values, outputs)
        states |= walk.advanced(values, model.weight)
