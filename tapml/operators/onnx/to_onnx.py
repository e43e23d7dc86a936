"""A body as the text of an ONNX model, which an engine can be given as it is.

    text = onnx_text(body, "rms_norm_0")

    <ir_version: 10, opset_import: ["" : 21]>
    rms_norm_0 (float[1,16,64] i0, float[64] i1) => (float[1,16,64] o0)
    <
      float k0 = {2.0},
      …
    >
    {
      t0 = Pow (i0, k0)  # aten.pow.Tensor_Scalar
      …
    }

Weights are inputs like the others, or constants whose values are outside of the text: `float[64] i1 = ["location": "i1"]`. Each
ATen operator has a conversion in a table; one without, or whose conversion cannot say what its arguments ask for, is written with
the operators that it is made of (`tapml.operators.decompose`). Every value is held against the spec that PyTorch recorded:
another shape is an error, another dtype is cast. Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from tapml.errors import ModelError
from tapml.operators.decompose import NoDecomposition, decomposed, overload_of
from tapml.operators.graph import Body, Node
from tapml.operators.onnx.arithmetic import ARITHMETIC
from tapml.operators.onnx.contraction import CONTRACTION
from tapml.operators.onnx.creation import CREATION
from tapml.operators.onnx.elementwise import ELEMENTWISE
from tapml.operators.onnx.indexing import INDEXING
from tapml.operators.onnx.layers import LAYERS
from tapml.operators.onnx.order import ORDER
from tapml.operators.onnx.pooling import POOLING
from tapml.operators.onnx.reduction import REDUCTION
from tapml.operators.onnx.shapes import SHAPES
from tapml.operators.onnx.writer import TYPES, CannotSay, Value, Writer
from tapml.operators.overload import marked, overload
from tapml.tensors import TensorSpec

# By overload ("add.Tensor"): a function of the writer, the specs of what the call gives, and its arguments in the order of the
# operator's schema, all of them. A tensor is a Value, a dtype its name.
CONVERSIONS: dict[str, Callable[..., Any]] = (
    ARITHMETIC | ELEMENTWISE | CREATION | CONTRACTION | REDUCTION | ORDER | SHAPES | INDEXING | LAYERS | POOLING
)

Made: TypeAlias = Value | Sequence[Value | None]


class NoConversion(Exception):
    """The body cannot be written; the message names the operator, and why."""


def onnx_text(
    body: Body, entry: str, on_note: Callable[[str], None] = lambda note: None, constant: Collection[int] = ()
) -> str:
    """`entry` names the graph, `constant` are the numbers of the inputs that are constants. Outputs that are inputs unchanged are
    left out: the others are "o0", "o1", … in order. A note says which operator was written as torch decomposes it. Raises
    NoConversion."""
    refused: set[str] = set()

    def known(name: str) -> bool:
        return name in CONVERSIONS and name not in refused

    try:
        simpler = body
        for node in body.nodes:
            if node.target != "getitem" and not known(overload_of(node)):
                with suppress(NoDecomposition):
                    simpler = decomposed(simpler, (node.name,), known)
                    on_note(f"{node.target} as torch decomposes it")
        while True:
            try:
                return _Writing(simpler, entry).text(constant)
            except _Refused as error:
                refused.add(overload_of(error.node))
                try:
                    simpler = decomposed(simpler, (error.node.name,), known)
                except NoDecomposition:
                    raise NoConversion(f"{error.node.target}: {error}") from None
                on_note(f"{error.node.target} as torch decomposes it")
    except ModelError as error:
        raise NoConversion(str(error)) from error


class _Refused(Exception):
    def __init__(self, node: Node, why: str) -> None:
        super().__init__(why)
        self.node = node


class _Writing:
    def __init__(self, body: Body, entry: str) -> None:
        self.body = body
        for spec in body.inputs:
            if spec.dtype not in TYPES:
                raise NoConversion(f"an input is {spec}, a dtype that cannot be written")
        self.writer = Writer(entry, body.inputs)
        self.values: dict[str, Made] = {value.name: value for value in self.writer.inputs}

    def text(self, constant: Collection[int]) -> str:
        for node in self.body.nodes:
            self.writer.comment = node.target
            self.values[node.name] = self._converted(node)
        given = {f"i{k}" for k in range(len(self.body.inputs))}
        return self.writer.text([self._one(name) for name in self.body.outputs if name not in given], constant)

    def _converted(self, node: Node) -> Made:
        if node.target == "getitem":
            several = self.values[node.args[0]["ref"]]
            assert not isinstance(several, Value)
            index: int = node.args[1]
            found = several[index]
            if found is None and not node.outputs[0].elements:
                return self.writer.full(node.outputs[0].shape, 0, node.outputs[0].dtype)
            if found is None:
                raise _Refused(self._maker(node), f"output {index} of it is not written")
            return found
        function = CONVERSIONS.get(overload_of(node))
        if function is None:
            raise _Refused(node, "there is no conversion, and PyTorch does not decompose it")
        arguments = self._arguments(node)
        try:
            return self._checked(function(self.writer, node.outputs, *arguments), node.outputs)
        except CannotSay as error:
            raise _Refused(node, str(error)) from error
        except Exception as error:
            raise _Refused(node, f"its conversion failed ({type(error).__name__}: {error})") from error

    def _maker(self, node: Node) -> Node:
        return next(n for n in self.body.nodes if n.name == node.args[0]["ref"])

    def _arguments(self, node: Node) -> list[Any]:
        """In the order of the schema, with its defaults."""
        schema = overload(node.target)._schema.arguments
        named: Mapping[str, Any] = node.kwargs
        given = [self._argument(value) for value in node.args]
        for argument in schema[len(given) :]:
            given.append(self._argument(named[argument.name]) if argument.name in named else argument.default_value)
        return given

    def _argument(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._argument(item) for item in value]
        if not isinstance(value, dict):
            return value
        what, word = marked(value)
        if what == "ref":
            return self.values[word]
        return float(word) if what == "float" else word

    def _checked(self, made: Made, specs: tuple[TensorSpec, ...]) -> Made:
        if not isinstance(made, Value):
            return [None if value is None else self._held(value, spec) for value, spec in zip(made, specs, strict=False)]
        return self._held(made, specs[0])

    def _held(self, value: Value, spec: TensorSpec) -> Value:
        if value.shape != spec.shape:
            raise CannotSay(f"its conversion gives the shape {list(value.shape)}, PyTorch {list(spec.shape)}")
        if spec.dtype not in TYPES:
            raise CannotSay(f"it gives {spec.dtype}, which cannot be written")
        return self.writer.cast(value, spec.dtype)

    def _one(self, name: str) -> Value:
        value = self.values[name]
        assert isinstance(value, Value), name
        return value
