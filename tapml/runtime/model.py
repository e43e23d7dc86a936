"""The data of a split model: graphs, operators in order, weights and first states on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from tapml.operators.graph import Body, Graph, Operator
from tapml.runtime.walk import Walk
from tapml.tensors import HostArray


class ModelData:
    """`operators` are those of all graphs, each graph's in execution order. `weight(key)` gives a weight as the model holds it
    (usually a memory map of the model's file). Arrays that are handed out must not be written to."""

    def __init__(
        self,
        graphs: Sequence[Graph],
        operators: Sequence[Operator],
        bodies: Mapping[str, Body],
        weight: Callable[[str], HostArray],
        initial_states: Mapping[str, HostArray],
    ) -> None:
        self.graphs = {graph.name: graph for graph in graphs}
        self.operators = tuple(operators)
        self.bodies = dict(bodies)
        self.initial_states = dict(initial_states)
        self._read = weight
        self._weights: dict[str, HostArray] = {}

    @cached_property
    def operators_of(self) -> dict[str, tuple[Operator, ...]]:
        """Operators by graph."""
        return {name: tuple(o for o in self.operators if o.graph == name) for name in self.graphs}

    @cached_property
    def walks(self) -> dict[str, Walk]:
        """By graph."""
        return {name: Walk(graph, self.operators_of[name]) for name, graph in self.graphs.items()}

    @cached_property
    def named(self) -> dict[str, Operator]:
        return {operator.name: operator for operator in self.operators}

    def weight_keys(self, operator: Operator) -> tuple[str | None, ...]:
        """For each input of an operator: the key of the weight that it is, or None."""
        keys = self.walks[operator.graph].weights
        return tuple(keys.get(name) for name in operator.inputs)

    def weight(self, key: str) -> HostArray:
        if key not in self._weights:
            self._weights[key] = self._read(key)
        return self._weights[key]
