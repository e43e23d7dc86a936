"""The model of a run as testing and migrating need it: its data, the source's functions, what stays on the source, and what makes
references.

    model = Model.of(run)
    outputs = model.source(signature)(inputs)            the source runs one operator, arrays in and out
    exact = model.exact(signature)(inputs)               in float64
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from tapml.backends.source import Functions, Source
from tapml.carving.reference import ReferenceMaker
from tapml.operators.graph import Operator
from tapml.operators.stays import why_it_stays
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
    def source(self) -> Functions:
        """The operators in PyTorch, as the model has them."""
        return Functions(Source(), self.bodies)

    @cached_property
    def exact(self) -> Functions:
        """The operators in float64."""
        return Functions(Source("float64"), self.bodies)

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
