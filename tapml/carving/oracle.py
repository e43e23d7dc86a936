"""How wrong the source itself is over a whole model: the same computation in float64, operator by operator, errors compounding.

    for line in follow(...): ...

A single operator on its recorded inputs is the business of `tapml.carving.reference`. Here source and float64 run side by side,
operator by operator, each from its own values and its own states; tokens are the source's (teacher forcing), so both see the
same text. A round is one call of each prompt: the calls of `tapml.carving.late.check_calls`. All prompts advance
together, so a weight is cast once an operator and round, whatever the number of prompts.

One run may be exact by luck. So a third goes along: the source once more, with each operator's outputs moved by a rounding, up,
down or not at all. That is what another right implementation amounts to, and its distance from float64 says what becomes of such
differences further on. What is reported is the larger of the two.

Elements that the source cannot decide (see `tapml.carving.tolerance`) are left out of its error and counted; so are the few that
rounding pushed over a jump, whose error stands far above all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tapml.carving.distance import errors_of, straddling, undecided
from tapml.carving.executor import first_content
from tapml.carving.reference import moved_by_a_rounding
from tapml.operators.execute import body_function, host_from_tensor, tensor_from_host
from tapml.operators.graph import Body, Graph, Operator
from tapml.runtime.protocol import Call
from tapml.runtime.walk import Walk
from tapml.tensors import TensorSpec, dtype_name

DTYPE = torch.float64

# Prompts that are followed together; more are followed in further groups, so memory stays bounded.
GROUP = 8


@dataclass(frozen=True)
class OutputLine:
    """End-to-end error of one call: for each graph output the source's distance from float64, how many elements were left out
    because the two disagree about finite or equal, how many because they straddle a jump, and the root mean square of its
    errors."""

    prompt: int
    step: int
    graph: str
    source_error: dict[str, float]
    excluded: dict[str, int]
    straddling: dict[str, int]
    spread: dict[str, float]

    def to_json(self) -> dict[str, object]:
        return {
            "prompt": self.prompt, "step": self.step, "graph": self.graph,
            "source_error": self.source_error, "excluded": self.excluded, "straddling": self.straddling,
            "spread": self.spread,
        }  # fmt: skip


@dataclass(frozen=True)
class OperatorLine:
    """Compound error of one operator at one call of the first prompt: for each output the source's distance from float64, with
    everything before it in float64 too."""

    operator: str
    step: int
    source_error: tuple[float, ...]
    spread: tuple[float, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "operator": self.operator, "step": self.step, "source_error": list(self.source_error), "spread": list(self.spread),
        }  # fmt: skip


def follow(
    graphs: Sequence[Graph],
    operators: Sequence[Operator],
    bodies: Mapping[str, Body],
    weights: Mapping[str, torch.Tensor],
    states: Mapping[str, TensorSpec | torch.Tensor],
    generations: Sequence[Sequence[Call]],
    progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[OutputLine | OperatorLine]:
    """Runs the calls of each generation on the source and in float64, and yields the errors: operators for the first
    generation, outputs for all."""
    device = next((t.device for t in weights.values()), torch.device("cpu"))
    plans = {g.name: _Plan(Walk(g, [o for o in operators if o.graph == g.name])) for g in graphs}
    functions = {s: _Pair(body, device) for s, body in bodies.items()}
    total = sum(len(calls) for calls in generations)
    done = 0
    for start in range(0, len(generations), GROUP):
        group = [_Run(start + k, calls, states, device) for k, calls in enumerate(generations[start : start + GROUP])]
        for step in range(max(len(run.calls) for run in group)):
            active = [run for run in group if step < len(run.calls)]
            for name in dict.fromkeys(run.calls[step].graph for run in active):
                together = [run for run in active if run.calls[step].graph == name]
                yield from plans[name].round(together, step, functions, weights)
                done += len(together)
                if progress is not None:
                    progress("oracle: end to end", done, total)


class _Pair:
    """A body in the source's dtype and in float64."""

    def __init__(self, body: Body, device: torch.device) -> None:
        self.source = body_function(body, device=device)
        self.exact = body_function(body, DTYPE, device=device)


class _Run:
    """One generation: its states and values on the source, in float64, and on the source with roundings added."""

    def __init__(
        self, prompt: int, calls: Sequence[Call], states: Mapping[str, TensorSpec | torch.Tensor], device: torch.device
    ) -> None:
        self.prompt = prompt
        self.calls = calls
        self.device = device
        self.states = {key: first_content(value, device) for key, value in states.items()}
        self.exact_states = {key: exact(tensor) for key, tensor in self.states.items()}
        self.near_states = dict(self.states)
        self.values: dict[str, torch.Tensor] = {}
        self.exact_values: dict[str, torch.Tensor] = {}
        self.near_values: dict[str, torch.Tensor] = {}


class _Plan:
    """One graph."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self._generator = torch.Generator(device="cpu").manual_seed(0)

    def round(
        self, runs: Sequence[_Run], number: int, functions: Mapping[str, _Pair], weights: Mapping[str, torch.Tensor]
    ) -> Iterator[OutputLine | OperatorLine]:
        """One call of this graph for each run."""
        for run in runs:
            given = {key: tensor_from_host(array, run.device) for key, array in run.calls[number].inputs.items()}
            run.values, run.near_values = self.walk.begin(given, run.states), self.walk.begin(given, run.near_states)
            run.exact_values = self.walk.begin({key: exact(tensor) for key, tensor in given.items()}, run.exact_states)
        for step in self.walk.steps:
            pair = functions[step.operator.signature]
            exact_held = {key: exact(weights[key]) for key in step.weights if key is not None}
            for run in runs:
                with torch.inference_mode():
                    made = pair.source(step.read(run.values, weights.__getitem__))
                    exact_made = pair.exact(step.read(run.exact_values, exact_held.__getitem__))
                    near = pair.source(step.read(run.near_values, weights.__getitem__))
                    near = tuple(moved_by_a_rounding(t, self._generator) for t in near)
                step.done(run.values, made)
                step.done(run.exact_values, exact_made)
                step.done(run.near_values, near)
                if run.prompt == 0:
                    found = [_larger(_error(a, x), _error(n, x)) for a, n, x in zip(made, near, exact_made, strict=True)]
                    yield OperatorLine(step.operator.name, number, tuple(e.error for e in found), tuple(e.spread for e in found))
        for run in runs:
            yield self._finish(run, number, weights)

    def _finish(self, run: _Run, number: int, weights: Mapping[str, torch.Tensor]) -> OutputLine:
        graph = self.walk.graph
        found: dict[str, _Error] = {}
        for key, name in zip(graph.output_keys, graph.outputs, strict=True):
            if name in self.walk.weights:
                continue  # a weight that is handed out as it is
            found[key] = _larger(*(_error(values[name], run.exact_values[name]) for values in (run.values, run.near_values)))
        run.states |= self.walk.advanced(run.values, weights.__getitem__)
        run.near_states |= self.walk.advanced(run.near_values, weights.__getitem__)
        run.exact_states |= self.walk.advanced(run.exact_values, lambda key: exact(weights[key]))
        for values in (run.values, run.exact_values, run.near_values):
            values.clear()
        return OutputLine(
            run.prompt, number, graph.name, {k: e.error for k, e in found.items()}, {k: e.excluded for k, e in found.items()},
            {k: e.straddling for k, e in found.items()}, {k: e.spread for k, e in found.items()},
        )


@dataclass(frozen=True)
class _Error:
    """How far one output is from float64, and how many elements were left out."""

    error: float
    excluded: int
    straddling: int
    spread: float


def _larger(one: _Error, near: _Error) -> _Error:
    """Of the source's own run and the one with roundings added."""
    return _Error(
        max(one.error, near.error), one.excluded, max(one.straddling, near.straddling), max(one.spread, near.spread),
    )  # fmt: skip


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64; integers and booleans stay."""
    return tensor.to(DTYPE) if tensor.is_floating_point() else tensor


def _error(source: torch.Tensor, oracle: torch.Tensor) -> _Error:
    values, reference = host_from_tensor(source), host_from_tensor(oracle)
    mask = undecided(values, reference)
    left = 0 if mask is None else int(mask.sum())
    if not source.is_floating_point():
        return _Error(0.0, left, 0, 0.0)
    errors = errors_of(values, reference)
    if mask is not None:
        errors = errors[~mask]
    count = straddling(errors, dtype_name(values))
    ordinary = np.sort(errors, axis=None)[: errors.size - count] if count else errors
    spread = float(np.sqrt(np.mean(np.minimum(ordinary, 1.0) ** 2))) if ordinary.size else 0.0
    return _Error(float(ordinary.max(initial=0.0)), left, count, spread)
