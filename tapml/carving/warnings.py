"""What a carve says besides its facts: NaN and infinities in the weights, the inputs and the recorded answers.

    executor = WatchedExecutor(graphs, operators, bodies, weights, states)      a GraphExecutor that counts bad answers
    weight_warnings(model, exported)                                            a line a weight, the worst first
    answer_warnings(executor, operators, bodies, dtype)                         how many answers, and what made the first

A source that answers NaN is carved all the same, since the trouble may be what is looked for; nobody shall take its recording for
a right one. Infinities inside of a model are no trouble by themselves: attention masks are made of -inf. So operators are looked
at only when an answer (a graph's output) is bad, and from that answer backwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tapml.carving.executor import GraphExecutor
from tapml.operators.graph import Body, Graph, Operator
from tapml.source.export import Exported
from tapml.source.model import LoadedModel

LISTED = 3

_LARGEST = {"float16": "65,504", "bfloat16": "3.4e38", "float32": "3.4e38"}


@dataclass(frozen=True)
class _BadCall:
    """A call with a bad answer, with all that is needed to make it again."""

    graph: str
    inputs: dict[str, torch.Tensor]
    states: dict[str, torch.Tensor]
    number: int


class WatchedExecutor(GraphExecutor):
    """While its hook is set (so while recording), counts calls and those with NaN or infinities in an output."""

    calls = 0
    bad_calls = 0
    first_bad: _BadCall | None = None

    def step_tensors(self, graph: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        before = dict(self.states)
        outputs = super().step_tensors(graph, inputs)
        if self.hook is not None:
            self.calls += 1
            if any(bad(tensor) for tensor in outputs.values()):
                self.bad_calls += 1
                if self.first_bad is None:
                    self.first_bad = _BadCall(graph, {k: t.clone() for k, t in inputs.items()}, before, self.calls)
        return outputs


def bad(tensor: torch.Tensor) -> bool:
    """Whether it holds NaN or an infinity."""
    return tensor.is_floating_point() and not bool(tensor.isfinite().all())


def amount(tensor: torch.Tensor) -> str:
    """ "3 NaN and 1 infinity"; "" for a tensor without."""
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    words = [f"{nan:,} NaN"] if nan else []
    if inf:
        words.append(f"{inf:,} " + ("infinity" if inf == 1 else "infinities"))
    return " and ".join(words)


def weight_warnings(model: LoadedModel, exported: Exported) -> list[str]:
    """Of the weights that the graphs use: NaN in any, infinities in parameters (buffers and constants hold masks of them)."""
    parameters = {name for name, _ in model.module.named_parameters(remove_duplicate=False)}
    found = []
    for key, tensor in exported.tensors.items():
        if bad(tensor) and (key in parameters or bool(tensor.isnan().any())):
            found.append(f"weight {key} holds {amount(tensor)} among {tensor.numel():,} numbers")
    for key, tensor in exported.examples.items():
        if bad(tensor):
            found.append(f"input {key} holds {amount(tensor)} among {tensor.numel():,} numbers")
    if len(found) > LISTED:
        found[LISTED:] = [f"… and {len(found) - LISTED} more weights or inputs hold NaN or infinities"]
    return found


def answer_warnings(
    executor: WatchedExecutor, graphs: Sequence[Graph], operators: Sequence[Operator], bodies: Mapping[str, Body], dtype: str
) -> list[str]:
    """One line where recorded answers hold NaN or infinities. The call is made again, to see which operator made the first."""
    call = executor.first_bad
    if call is None:
        return []
    graph = next(g for g in graphs if g.name == call.graph)
    made_by: dict[str, Operator] = {}
    values: dict[str, torch.Tensor] = {}
    given: dict[str, dict[str, torch.Tensor]] = {}

    def hook(operator: Operator, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        given[operator.name] = {n: t for n, t in zip(operator.inputs, inputs, strict=True) if bad(t)}
        for name, tensor in zip(operator.outputs, outputs, strict=True):
            made_by[name] = operator
            if bad(tensor):
                values[name] = tensor

    after, executor.states, executor.hook = executor.states, dict(call.states), None
    try:
        executor.hook = hook
        GraphExecutor.step_tensors(executor, call.graph, call.inputs)
    finally:
        executor.states, executor.hook = after, None
    text = f"{executor.bad_calls} of {executor.calls} recorded answers hold NaN or infinities"
    start = next((name for name in graph.outputs if name in values), None)
    if start is None:
        return [f"{text}. Check the inputs."]
    if _masks(bodies[made_by[start].signature]) and not _worse_than_masked(values[start]):
        return []  # -inf where the model puts it on purpose
    value, operator, why = _walk(start, made_by, values, given, bodies, {p.name: p for p in graph.placeholders})
    largest = _LARGEST.get(dtype, "")
    advice = f"{dtype} ends at {largest}: try --dtype bfloat16 or float32" if dtype == "float16" else "check weights and inputs"
    return [
        f"{text}; the first came from {operator.name} ({amount(value)} among {value.numel():,} numbers, {why}). Agreement "
        f"with such a recording proves nothing; {advice}"
    ]


def _walk(
    start: str,
    made_by: Mapping[str, Operator],
    values: Mapping[str, torch.Tensor],
    given: Mapping[str, Mapping[str, torch.Tensor]],
    bodies: Mapping[str, Body],
    placeholders: Mapping[str, Any],
) -> tuple[torch.Tensor, Operator, str]:
    """From a bad value back to the operator that made the first one: (its value, the operator, out of what)."""
    name = start
    while True:
        operator = made_by[name]
        inputs = given[operator.name]
        before = [
            n for n in inputs if n in made_by and not (_masks(bodies[made_by[n].signature]) and not _worse_than_masked(inputs[n]))
        ]
        if not before:
            held = [placeholders[n] for n in inputs if n in placeholders]
            deliberate = any(n in made_by for n in inputs)
            if held:
                return values[name], operator, f"whose {held[0].role} {held[0].key} holds {amount(inputs[held[0].name])}"
            return values[name], operator, "out of a mask of infinities" if deliberate else "out of finite numbers"
        # NaN comes from infinities more often than the other way round, so the NaN is followed first.
        name = max(before, key=lambda n: (bool(inputs[n].isnan().any()), bool((inputs[n] == torch.inf).any())))


def _masks(body: Body) -> bool:
    """Whether an operator puts -inf somewhere on purpose: it is written in its code."""
    return "-inf" in str([[node.args, node.kwargs] for node in body.nodes])


def _worse_than_masked(tensor: torch.Tensor) -> bool:
    return bool(tensor.isnan().any() or (tensor == torch.inf).any())


def nothing_to_move(operators: Sequence[Operator]) -> list[str]:
    """A line for a model in which nothing is computed."""
    if operators:
        return []
    return ["nothing to move: in evaluation mode the model returns its inputs or weights unchanged, so it has no operators"]
