"""A body as a Relax function: TVM's own importer for exported programs, with this package's conversions on top.

Every value that a conversion gives is held against the spec that PyTorch recorded for it: another shape is an error, another
dtype is cast. So a conversion that misreads its arguments is found here, by name, and not as wrong numbers later. Dtypes are the
model's here; `tapml.compile.legalize` turns them into those of the target.

    module, outputs = import_body(body)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from tapml.compile.conversions import CONVERSIONS
from tapml.compile.node_arguments import Refusal
from tapml.compile.tensor_expressions import cast, compute, dtype_of, shape_of
from tapml.operators.decompose import NoDecomposition, decomposed, overload_of
from tapml.operators.graph import Body
from tapml.operators.to_fx import to_fx
from tapml.tensors import TensorSpec

# Of TVM's conversions those that give what PyTorch gives, for every argument. No other is used: many misread an argument.
_TRUSTED = frozenset((
    "as_strided.default", "broadcast_to.default", "chunk.default", "concat.default", "constant_pad_nd.default",
    "conv1d.default", "conv2d.default", "conv3d.default",
    "convolution.default", "diagonal.default", "expand_as.default", "flip.default", "getitem", "linspace.default",
    "narrow.default", "repeat.default", "reshape_as.default", "roll.default", "split.Tensor", "split_with_sizes.default",
    "tile.default", "unbind.int",
))


class ConversionError(Exception):
    """An operator that cannot be converted; the message names it. `nodes` are those of the body that it is about; `final` says
    that what torch decomposes it into would be wrong too."""

    def __init__(self, message: str, nodes: tuple[str, ...] = (), final: bool = False) -> None:
        super().__init__(message)
        self.nodes = nodes
        self.final = final


@dataclass(frozen=True)
class Imported:
    """`module` has one function "main" from all inputs to a tuple of the computed outputs; `computed` says which outputs of
    the body these are, `forwards` pairs (output, input) for the rest, which are inputs unchanged."""

    module: tvm.IRModule
    computed: tuple[int, ...]
    forwards: tuple[tuple[int, int], ...]


def _biased(name: str) -> Callable[..., Any]:
    """TVM's convolution of that name, which gives float32 whatever the model's dtype is, with a bias fit for that."""
    convolution: Callable[..., Any] = getattr(ExportedProgramImporter, name)

    def convert(self: Any, x: Any, weight: Any, bias: Any, *rest: Any, **named: Any) -> Any:
        return convolution(self, x, weight, bias if self._is_no_bias(bias) else cast(self, bias, "float32"), *rest, **named)

    return convert


class BodyImporter(ExportedProgramImporter):  # type: ignore[misc]
    """TVM's conversions by name ("add.Tensor" → function of the node), over which CONVERSIONS go first."""

    _conv1d_impl = _biased("_conv1d_impl")
    _conv2d_impl = _biased("_conv2d_impl")
    _conv3d_impl = _biased("_conv3d_impl")

    def run(self, body: Body) -> Imported:
        """Raises ConversionError."""
        graph = to_fx(body)
        self.block_builder = relax.BlockBuilder()
        inputs = [relax.Var(f"i{k}", relax.TensorType(s.shape, s.dtype)) for k, s in enumerate(body.inputs)]
        with self.block_builder.function("main", inputs):
            with self.block_builder.dataflow():
                values = self._values(graph, inputs)
                forwards: list[tuple[int, int]] = []
                computed: dict[int, Any] = {}
                taken: list[Any] = []
                for k, value in enumerate(values):
                    source = next((i for i, p in enumerate(inputs) if p.same_as(value)), None)
                    if source is not None:
                        forwards.append((k, source))
                        continue
                    if any(value.same_as(t) for t in taken):
                        value = compute(self, shape_of(value), dtype_of(value), lambda load, *at: load(*at), value)
                    taken.append(value)
                    computed[k] = value
                result = self.block_builder.emit_output(relax.Tuple(list(computed.values())))
            self.block_builder.emit_func_output(result)
        return Imported(self.block_builder.get(), tuple(computed), tuple(forwards))

    def _values(self, graph: Any, inputs: list[Any]) -> list[Any]:
        names = iter(inputs)
        for node in graph.nodes:
            if node.op == "placeholder":
                self.env[node] = next(names)
            elif node.op == "output":
                return [self.env[n] for n in node.args[0]]
            else:
                self.env[node] = self._convert(node)
        raise AssertionError("an fx graph without output")

    def _convert(self, node: Any) -> Any:
        name = node.target.__name__
        function: Callable[..., Any] | None = CONVERSIONS.get(name)
        if function is None and (name not in _TRUSTED or name not in self.convert_map):
            raise ConversionError(f"no conversion of {node.target}, and PyTorch does not decompose it", (node.name,))
        try:
            value = function(self, node) if function else self.convert_map[name](node)
            return self._checked(value, node.meta["specs"])
        except ConversionError as error:
            raise ConversionError(f"{node.target}: {error}", (node.name,)) from error
        except Refusal as error:
            raise ConversionError(f"{node.target}: {error}", (node.name,), final=True) from error
        except Exception as error:
            raise ConversionError(f"{node.target}: {type(error).__name__}: {error}", (node.name,)) from error

    def _checked(self, value: Any, specs: tuple[TensorSpec, ...]) -> Any:
        if isinstance(value, list | tuple):
            return [v if v is None else self._checked(v, (s,)) for v, s in zip(value, specs, strict=False)]
        if isinstance(value, relax.Expr) and isinstance(value.ty, relax.TupleType):
            return [self._checked(self.block_builder.emit(relax.TupleGetItem(value, k)), (s,)) for k, s in enumerate(specs)]
        if not isinstance(value, relax.Var):
            value = self.block_builder.emit(value)
        spec = specs[0]
        if shape_of(value) != spec.shape:
            raise ConversionError(f"TVM's importer gives the shape {list(shape_of(value))}, PyTorch {list(spec.shape)}")
        return cast(self, value, spec.dtype)


def import_body(body: Body, on_note: Callable[[str], None] = lambda note: None) -> Imported:
    """The body as a Relax module. An operator that has no conversion, or none for its arguments, is written with operators that
    have one, as torch decomposes it; a note says which. Raises ConversionError naming the operator that has no conversion."""
    refused: set[str] = set()

    def known(overload: str) -> bool:
        return (overload in CONVERSIONS or overload in _TRUSTED) and overload not in refused

    simpler = body
    for node in body.nodes:
        if node.target != "getitem" and not known(overload_of(node)):
            with suppress(NoDecomposition):
                simpler = decomposed(simpler, (node.name,), known)
                on_note(f"{node.target} as torch decomposes it")
    while True:
        try:
            return BodyImporter().run(simpler)
        except ConversionError as error:
            if error.final:
                raise
            (node,) = [n for n in simpler.nodes if n.name in error.nodes]
            refused.add(overload_of(node))
            try:
                simpler = decomposed(simpler, error.nodes, known)
            except NoDecomposition:
                raise error from None
            on_note(f"{node.target} as torch decomposes it")
