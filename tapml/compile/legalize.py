"""A TIR function in the dtypes that a target stores and computes in.

The function comes in the model's dtypes: int64 indices, booleans, half precision. `Target.storage` says what each
becomes. Where int64 goes, all of it goes, loop variables included. Booleans stay booleans inside an expression; in a
buffer they are the stored integer, 0 or 1. Saturating: an int64 constant beyond int32 becomes the nearest int32.

Infinities: WGSL has no literal for one. `tapml.compile.emit` writes them; here they stay as they are.

    function = legalize(function, {"int64": "int32", "bool": "int32"})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import ir, tirx
from tvm.ir import PrimType
from tvm.s_tir import SBlock, SBlockRealize

_BINARY = (
    tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max, tirx.EQ, tirx.NE, tirx.LT,
    tirx.LE, tirx.GT, tirx.GE, tirx.And, tirx.Or, tirx.BitwiseAnd, tirx.BitwiseOr, tirx.BitwiseXor, tirx.LShift, tirx.RShift,
)
_UNARY = (tirx.Not, tirx.BitwiseNot)
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1


def legalize(function: Any, storage: Mapping[str, str]) -> Any:
    """The same function with every dtype replaced by what `storage` says it becomes."""
    scalar = {k: v for k, v in storage.items() if k != "bool"}
    if not storage:
        return function
    buffers: dict[Any, Any] = {}

    def renamed(dtype: str) -> str:
        return scalar.get(dtype, dtype)

    def stored(buffer: Any) -> Any:
        """The buffer that takes the place of `buffer`; the same one for each use of it."""
        if buffer not in buffers:
            kept = str(buffer.dtype)
            dtype = storage.get(kept, kept)
            shape = [_constant_shape(n, renamed) for n in buffer.shape]
            buffers[buffer] = tirx.decl_buffer(shape, dtype, buffer.name, scope=buffer.scope())
        return buffers[buffer]

    variables: dict[Any, Any] = {}

    def variable(var: Any) -> Any:
        if tirx.is_buffer_var(var):
            return stored(var)
        if not isinstance(var.ty, PrimType) or renamed(str(var.ty.dtype)) == str(var.ty.dtype):
            return var
        if var not in variables:
            variables[var] = tirx.Var(var.name, renamed(str(var.ty.dtype)))
        return variables[var]

    rewrite = _Rewriter(renamed, variable, stored, storage)
    body = rewrite.statement(function.body)
    parameters = [variable(p) for p in function.params]
    made = tirx.PrimFunc(parameters, body, function.ret_type)
    for key, value in (function.attrs or {}).items():
        made = made.with_attr(key, value)
    return made


def _constant_shape(extent: Any, renamed: Callable[[str], str]) -> Any:
    return tirx.const(int(extent), renamed(str(extent.ty)))


class _Rewriter:
    """Rebuilds expressions from the leaves up, so that every node derives its dtype anew from its operands."""

    def __init__(self, renamed: Callable[[str], str], variable: Any, stored: Any, storage: Mapping[str, str]) -> None:
        self.renamed, self.variable, self.stored, self.storage = renamed, variable, stored, storage

    def expression(self, e: Any) -> Any:
        x = self.expression
        if isinstance(e, tirx.IntImm):
            return self._integer(e)
        if isinstance(e, tirx.FloatImm):
            dtype = str(e.ty)
            return e if self.renamed(dtype) == dtype else tirx.FloatImm(self.renamed(dtype), e.value)
        if isinstance(e, ir.Var):
            return self.variable(e)
        if isinstance(e, _BINARY):
            return type(e)(x(e.a), x(e.b))
        if isinstance(e, _UNARY):
            return type(e)(x(e.a))
        if isinstance(e, tirx.Select):
            return tirx.Select(x(e.condition), x(e.true_value), x(e.false_value))
        if isinstance(e, tirx.Cast):
            return self._cast(x(e.value), self.renamed(str(e.ty)))
        if isinstance(e, ir.TensorLoad):
            return self._load(e)
        if isinstance(e, ir.Call):
            ty = str(e.ty.dtype) if isinstance(e.ty, PrimType) else None
            kept = e.ty if ty is None else PrimType(self.renamed(ty))
            return ir.Call(e.op, [x(a) if isinstance(a, ir.Expr) else a for a in e.args], e.attrs, list(e.ty_args), None, kept)
        if isinstance(e, tirx.Let):
            return tirx.Let(self.variable(e.var), x(e.value), x(e.body))
        raise TypeError(f"legalize has no rule for the expression {type(e).__name__}")

    def _integer(self, e: Any) -> Any:
        dtype = str(e.ty)
        new = self.renamed(dtype)
        if new == dtype:
            return e
        return tirx.IntImm(new, max(min(int(e.value), _INT32_MAX), _INT32_MIN) if new == "int32" else int(e.value))

    def _cast(self, value: Any, dtype: str) -> Any:
        """A cast, or nothing where both dtypes became one. A boolean is cast by choosing 1 or 0."""
        have = str(value.ty)
        if have == dtype:
            return value
        if have == "bool":
            return tirx.Select(value, tirx.const(1, dtype), tirx.const(0, dtype))
        return tirx.NE(value, tirx.const(0, have)) if dtype == "bool" else tirx.Cast(dtype, value)

    def _load(self, e: Any) -> Any:
        value = tirx.BufferLoad(self.stored(e.source), [self.expression(i) for i in e.indices])
        if str(e.source.dtype) == "bool" and "bool" in self.storage:
            return tirx.NE(value, tirx.const(0, self.storage["bool"]))
        return value

    def statement(self, s: Any) -> Any:
        """The same statement over the new buffers and variables. Knows what tensor expressions are made of before they
        are scheduled: blocks, serial loops, stores, sequences and conditions."""
        x = self.expression
        if s is None:
            return None
        if isinstance(s, tirx.SeqStmt):
            return tirx.SeqStmt([self.statement(t) for t in s.seq])
        if isinstance(s, tirx.For):
            return tirx.For(self.variable(s.loop_var), x(s.min), x(s.extent), s.kind, self.statement(s.body))
        if isinstance(s, SBlockRealize):
            return SBlockRealize([x(v) for v in s.iter_values], x(s.predicate), self._block(s.block))
        if isinstance(s, tirx.BufferStore):
            value = x(s.value)
            if str(s.buffer.dtype) == "bool" and "bool" in self.storage:
                value = self._cast(value, self.storage["bool"])
            return tirx.BufferStore(self.stored(s.buffer), value, [x(i) for i in s.indices])
        if isinstance(s, tirx.IfThenElse):
            return tirx.IfThenElse(x(s.condition), self.statement(s.then_case), self.statement(s.else_case))
        raise TypeError(f"legalize has no rule for the statement {type(s).__name__}")

    def _block(self, block: Any) -> Any:
        axes = [tirx.IterVar(self._range(v.dom), self.variable(v.var), v.iter_type, v.thread_tag) for v in block.iter_vars]
        assert not block.match_buffers, "a tensor expression does not match buffers"
        return SBlock(
            axes, [self._region(r) for r in block.reads], [self._region(r) for r in block.writes], block.name_hint,
            self.statement(block.body), self.statement(block.init), [self.stored(b) for b in block.alloc_buffers], [],
            block.annotations,
        )

    def _region(self, r: Any) -> Any:
        return tirx.BufferRegion(self.stored(r.source), [self._range(each) for each in r.region])

    def _range(self, r: Any) -> Any:
        return ir.Range.from_min_extent(self.expression(r.min), self.expression(r.extent))
