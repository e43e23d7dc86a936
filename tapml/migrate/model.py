"""The model of a run as testing and migrating need it: its data, the source's functions, what stays on the source, and what makes
references.

    model = Model.of(run)
    outputs = model.function(signature)(inputs)          the source runs one operator, numpy in and out
    exact = model.function(signature, "float64")(inputs)
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from tapml.carving.reference import ReferenceMaker
from tapml.operators.execute import host_function
from tapml.operators.graph import Operator
from tapml.operators.stays import why_it_stays
from tapml.runtime.engine import HostFunction
from tapml.runtime.model import ModelData
from tapml.source.parts import offer
from tapml.tensors import NUMPY

if TYPE_CHECKING:
    from tapml.carving.folder import RunFolder


class Model(ModelData):
    """See the module's docstring. What is made for a signature is made once."""

    @staticmethod
    def of(run: RunFolder) -> Model:
        """The model of a run."""
        if code := run.manifest.get("code"):
            offer(code, str(run.path))
        return Model(run.graphs, run.operators, run.bodies, run.weight, run.initial_states)

    @cached_property
    def _stays(self) -> dict[str, str]:
        return {}

    @cached_property
    def _makers(self) -> dict[str, ReferenceMaker]:
        return {}

    @cached_property
    def _functions(self) -> dict[tuple[str, str | None], HostFunction]:
        return {}

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
