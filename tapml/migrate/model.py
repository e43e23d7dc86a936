"""The model as the migration needs it: graphs, operators in order, weights and first states on the host, and the source's
functions, each made once.

    model = Model.of(run)
    outputs = model.function(signature)(inputs)          the source runs one operator, numpy in and out
    exact = model.function(signature, "float64")(inputs)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tapml.carving.reference import ReferenceMaker
from tapml.operators.execute import HostFunction, host_function
from tapml.operators.graph import Body, Graph, Operator
from tapml.operators.stays import why_it_stays
from tapml.source.parts import offer
from tapml.tensors import NUMPY, HostArray

if TYPE_CHECKING:
    from tapml.carving.folder import RunFolder


class Model:
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
        self._functions: dict[tuple[str, str | None], HostFunction] = {}
        self._makers: dict[str, ReferenceMaker] = {}
        self._stays: dict[str, str] = {}

    @staticmethod
    def of(run: RunFolder) -> Model:
        """The model of a run."""
        if code := run.manifest.get("code"):
            offer(code, str(run.path))
        return Model(run.graphs, run.operators, run.bodies, run.weight, run.initial_states)

    @cached_property
    def operators_of(self) -> dict[str, tuple[Operator, ...]]:
        """Operators by graph."""
        return {name: tuple(o for o in self.operators if o.graph == name) for name in self.graphs}

    @cached_property
    def named(self) -> dict[str, Operator]:
        return {operator.name: operator for operator in self.operators}

    @cached_property
    def _weight_keys(self) -> dict[str, dict[str, str]]:
        return {name: {p.name: p.key for p in graph.weights} for name, graph in self.graphs.items()}

    @cached_property
    def dtypes(self) -> frozenset[str]:
        """Those of all values, inside of operators too, but for those that only the source has."""
        bodies = self.bodies.values()
        specs = [spec for body in bodies for spec in (*body.inputs, *(s for node in body.nodes for s in node.outputs))]
        return frozenset(spec.dtype for spec in specs if spec.dtype in NUMPY)

    def why_it_stays(self, operator: Operator) -> str:
        """Why an operator stays on the source whatever the target; "" for one that may move."""
        if operator.signature not in self._stays:
            self._stays[operator.signature] = why_it_stays(self.bodies[operator.signature])
        return self._stays[operator.signature]

    def weight_keys(self, operator: Operator) -> tuple[str | None, ...]:
        """For each input of an operator: the key of the weight that it is, or None."""
        keys = self._weight_keys[operator.graph]
        return tuple(keys.get(name) for name in operator.inputs)

    def weight(self, key: str) -> HostArray:
        if key not in self._weights:
            self._weights[key] = self._read(key)
        return self._weights[key]

    def references(self, signature: str) -> ReferenceMaker:
        """What makes references of the operator's calls."""
        if signature not in self._makers:
            self._makers[signature] = ReferenceMaker(self.bodies[signature])
        return self._makers[signature]

    def function(self, signature: str, dtype: str | None = None) -> HostFunction:
        """The operator's computation on the source, as it is or with every float in `dtype`."""
        key = (signature, dtype)
        if key not in self._functions:
            self._functions[key] = host_function(self.bodies[signature], dtype)
        return self._functions[key]
