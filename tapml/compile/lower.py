"""From a Relax module to one TIR function that holds the whole operator.

1. numbers that the importer left as constants become tensor expressions, so that no kernel needs a constant's buffer;
2. `LegalizeOps`: each Relax operator becomes a TIR function;
3. all of them are merged into one function by `FuseTIR`, with intermediate tensors as its allocations.

What is inlined into what, and what becomes a kernel of its own, is then a question of scheduling (`tapml.compile.schedules`)
and no longer of the graph. The function's parameters are the inputs, then the computed outputs, in order.

    function = lower(module, "softmax")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from tapml.compile.tensor_expressions import literal

_MAIN = "main"
_WHOLE = "whole"
_LARGEST_TABLE = 4096


@mutator
class _ConstantsToExpressions(PyExprMutator):  # type: ignore[misc]
    """A constant of one repeated number becomes a tensor expression; a small table becomes a chain of selections."""

    def visit_generic_const_(self, op: Any) -> Any:
        table = op.value.numpy()
        dtype = str(op.ty.dtype)
        shape = tuple(int(n) for n in table.shape)
        flat = table.reshape(-1).tolist()
        if all(v == flat[0] or v != v for v in flat):
            return self._emit(lambda: te.compute(_extents(shape), lambda *at: literal(flat[0], dtype), name="constant"))
        if table.size > _LARGEST_TABLE:
            raise ValueError(f"a constant table of {table.size} elements inside an operator; expected it as a weight")
        strides = [int(np.prod(shape[k + 1 :], dtype=np.int64)) for k in range(len(shape))]

        def element(*at: Any) -> Any:
            place = sum((i * s for i, s in zip(at, strides, strict=True)), tirx.const(0, "int64"))
            value = literal(flat[0], dtype)
            for k, each in enumerate(flat[1:], 1):
                value = tirx.Select(tirx.EQ(place, tirx.const(k, "int64")), literal(each, dtype), value)
            return value

        return self._emit(lambda: te.compute(_extents(shape), element, name="table"))

    def _emit(self, expression: Any) -> Any:
        return self.builder_.emit_te(expression, primfunc_name_hint="constant")


def _extents(shape: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(tirx.const(n, "int64") for n in shape)


def lower(module: tvm.IRModule, on_converted: Callable[[Any], Any] = lambda module: module) -> Any:
    """The module's "main" as one `tirx.PrimFunc`. `on_converted` may give another module once each Relax operator is a TIR
    function. Raises what TVM raises for an operator that it cannot legalise."""
    rewriter = _ConstantsToExpressions(module)
    for name, function in list(module.functions.items()):
        if isinstance(function, relax.Function):
            rewriter.builder_.update_func(name, rewriter.visit_expr(function))
    module = on_converted(relax.transform.LegalizeOps()(rewriter.builder_.get()))
    module = relax.transform.FuseTIR()(_as_one_primitive(module))
    return module[_WHOLE]


def _as_one_primitive(module: tvm.IRModule) -> tvm.IRModule:
    """A "main" that does nothing but call the old one, which FuseTIR is to merge into one function."""
    body = module[_MAIN]
    del module[_MAIN]
    builder = relax.BlockBuilder(module)
    if "global_symbol" in (body.attrs or {}):
        body = body.without_attr("global_symbol")
    whole = builder.add_func(body.with_attr("Primitive", True), _WHOLE)
    parameters = [relax.Var(p.name, p.ty) for p in body.params]
    with builder.function(_MAIN, parameters):
        with builder.dataflow():
            result = builder.emit_output(relax.Call(whole, parameters))
        builder.emit_func_output(result)
    return builder.get()
