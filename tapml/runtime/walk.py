"""The walk over a graph, operator by operator: what each reads, what is alive until when, how states advance.

    walk = Walk(graph, operators)
    values = walk.begin(inputs, states)                        by name; inputs and states are given by key
    for step in walk.steps:
        made = run(step.operator, step.read(values, weight))   `weight` gives a weight by its key
        step.done(values, made)                                keeps what was made, lets go what nobody reads any more
    outputs, states = walk.outputs(values, weight), states | walk.advanced(values, weight)

A graph is functional: an operator that updates a state makes a new value, and all operators of a call see the old content. What
values are (arrays, tensors, digests) is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tapml.operators.graph import Graph, Operator

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """`weights[k]` is the key of input k of the operator where that is a weight, else None. `dead` are the values that nobody
    reads after it: weights, states and what the graph gives are never among them."""

    operator: Operator
    weights: tuple[str | None, ...]
    dead: tuple[str, ...]

    def read(self, values: Mapping[str, T], weight: Callable[[str], T]) -> list[T]:
        """The operator's inputs, in order."""
        names = zip(self.operator.inputs, self.weights, strict=True)
        return [values[name] if key is None else weight(key) for name, key in names]

    def done(self, values: dict[str, T], made: Iterable[T]) -> None:
        """The operator gave `made`, its outputs in order."""
        values.update(zip(self.operator.outputs, made, strict=True))
        for name in self.dead:
            del values[name]


class Walk:
    """See the module's docstring. `operators` are those of the graph, in execution order."""

    def __init__(self, graph: Graph, operators: Sequence[Operator]) -> None:
        self.graph = graph
        self.weights = {p.name: p.key for p in graph.weights}
        kept = {*graph.outputs, *graph.mutations.values(), *(p.name for p in graph.states), *self.weights}
        last = {name: index for index, o in enumerate(operators) for name in (*o.inputs, *o.outputs)}
        dead: list[list[str]] = [[] for _ in operators]
        for name, index in last.items():
            if name not in kept:
                dead[index].append(name)
        self.steps = tuple(
            Step(o, tuple(self.weights.get(name) for name in o.inputs), tuple(names))
            for o, names in zip(operators, dead, strict=True)
        )

    def begin(self, inputs: Mapping[str, T], states: Mapping[str, T]) -> dict[str, T]:
        """The values before the first operator."""
        return {p.name: inputs[p.key] for p in self.graph.inputs} | {p.name: states[p.key] for p in self.graph.states}

    def outputs(self, values: Mapping[str, T], weight: Callable[[str], T]) -> dict[str, T]:
        """What the graph gives, by key."""
        return {k: self.value(n, values, weight) for k, n in zip(self.graph.output_keys, self.graph.outputs, strict=True)}

    def advanced(self, values: Mapping[str, T], weight: Callable[[str], T]) -> dict[str, T]:
        """The content of the states that the call changed, by key, after it."""
        return {key: self.value(name, values, weight) for key, name in self.graph.mutations.items()}

    def value(self, name: str, values: Mapping[str, T], weight: Callable[[str], T]) -> T:
        """A value or a weight of the graph."""
        return values[name] if name in values else weight(self.weights[name])
