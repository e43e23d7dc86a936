"""A TIR function in the dtypes that a target stores and computes in.

The function comes in the model's dtypes: int64 indices, booleans, half precision. `Target.storage` says what each
becomes in the buffers that others see, `computed` what it becomes everywhere else. Where int64 goes, all of it goes, loop
variables included. Booleans stay booleans inside an expression; in a buffer they are the stored integer, 0 or 1. An int64 number
of the graph beyond int32 is compared as what it is; int64's own limits become int32's, as in "until the end" and in masks; any
other one raises DoesNotFit.

Half precision is stored, not computed in: `IN_FLOAT32`. What is loaded from a parameter is widened at once, every intermediate
and the scratch between kernels is float32, and a value is rounded once, where it is stored in an output: `rounded_last` gives
an output that is summed up or read again a float32 buffer in front of it. So a kernel's result is the exact one but for the
errors of float32 and one rounding; beyond 65504 an output is infinite, an intermediate is not. A cast to half precision in the
midst of a graph is no rounding either: it is dropped, where PyTorch rounds once more.

Narrow integers that are stored in 32 bits wrap as they do in their own width: whatever can leave their range (arithmetic, casts)
is brought back into it, so that an element holds at every moment what PyTorch's does.

Infinities: WGSL has no literal for one. `tapml.compile.emit` writes them; here they stay as they are.

    function = legalize(rounded_last(function), {"int64": "int32"}, IN_FLOAT32)
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.ir import PrimType
from tvm.s_tir import SBlock, SBlockRealize

from tapml.compile.tensor_expressions import is_nan, long
from tapml.errors import DoesNotFit
from tapml.targets.known import REFERENCE

_BINARY = (
    tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max, tirx.EQ, tirx.NE, tirx.LT,
    tirx.LE, tirx.GT, tirx.GE, tirx.And, tirx.Or, tirx.BitwiseAnd, tirx.BitwiseOr, tirx.BitwiseXor, tirx.LShift, tirx.RShift,
)
_UNARY = (tirx.Not, tirx.BitwiseNot)
_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_INT64_LIMITS = (-(2**63), 2**63 - 1)
_COMPARISONS = {
    tirx.EQ: operator.eq, tirx.NE: operator.ne, tirx.LT: operator.lt, tirx.LE: operator.le, tirx.GT: operator.gt,
    tirx.GE: operator.ge,
}
_ORDERED = (*_COMPARISONS, tirx.Min, tirx.Max)
_FLOAT16_MAX, _FLOAT32_MAX = 65504.0, (2 - 2**-23) * 2.0**127
IN_FLOAT32 = {"float16": "float32", "bfloat16": "float32"}

# Bits of the integers that may be stored in a wider one, and the nodes whose result may not fit the dtype of their operands.
_NARROW = {"int8": 8, "int16": 16, "uint8": 8}
_LEAVING = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.FloorDiv, tirx.LShift, tirx.BitwiseNot)
# Calls that give one of their operands, or nothing new.
_CHOOSING = ("tirx.if_then_else", "tirx.likely")
_BEYOND = (
    "the number {} does not fit int32, in which this target stores int64; a target with 64-bit integers can take it, such as "
    f"{REFERENCE.name}"
)


def legalize(function: Any, storage: Mapping[str, str], computed: Mapping[str, str] | None = None) -> Any:
    """The same function with every dtype replaced by what `storage` says it becomes in its parameters. In other buffers and in
    expressions `computed` goes first."""
    inside = {**storage, **(computed or {})}
    scalar = {k: v for k, v in inside.items() if k != "bool"}
    if not inside:
        return function
    buffers: dict[Any, Any] = {}
    parameters_before = list(function.params)

    def renamed(dtype: str) -> str:
        return scalar.get(dtype, dtype)

    def stored(buffer: Any) -> Any:
        """The buffer that takes the place of `buffer`; the same one for each use of it."""
        if buffer not in buffers:
            kept = str(buffer.dtype)
            dtype = (storage if any(buffer.same_as(p) for p in parameters_before) else inside).get(kept, kept)
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
    return _made_anew(function, [variable(p) for p in function.params], body)


def _made_anew(function: Any, parameters: list[Any], body: Any) -> Any:
    made = tirx.PrimFunc(parameters, body, function.ret_type)
    for key, value in (function.attrs or {}).items():
        made = made.with_attr(key, value)
    return made


def rounded_last(function: Any) -> Any:
    """The same function with a buffer of its own in front of each half precision output that a single element-wise block does
    not write once and for all; a block at the end copies it. The buffer then can have another dtype than the output."""
    apart = [p for p in function.params if str(p.dtype) in IN_FLOAT32 and _is_worked_on(function.body, p)]
    if not apart:
        return function
    table = {p: tirx.decl_buffer(list(p.shape), p.dtype, f"{p.name}_wide") for p in apart}
    body = tvm_ffi.structural_map(function.body, [(ir.Var, lambda v: table.get(v, v))])
    root = body.block
    nests = list(root.body.seq) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    copies = [_copy(wide, p) for p, wide in table.items()]
    block = SBlock(
        list(root.iter_vars), list(root.reads), list(root.writes), root.name_hint, tirx.SeqStmt([*nests, *copies]), root.init,
        [*root.alloc_buffers, *table.values()], list(root.match_buffers), root.annotations,
    )
    return _made_anew(function, list(function.params), SBlockRealize(list(body.iter_values), body.predicate, block))


def _is_worked_on(body: Any, buffer: Any) -> bool:
    """Whether the buffer is written, and also read, or written by a reduction or in several places."""
    stores: list[Any] = []
    others: list[Any] = []

    def block(b: Any) -> None:
        if b.init is not None and any(w.source.same_as(buffer) for w in b.writes):
            others.append(b)

    tvm_ffi.structural_walk(body, [
        (tirx.BufferStore, lambda s: stores.append(s) if s.buffer.same_as(buffer) else None),
        (ir.TensorLoad, lambda e: others.append(e) if e.source.same_as(buffer) else None),
        (SBlock, block),
    ])
    return len(stores) > 1 or bool(stores and others)


def _copy(source: Any, target: Any) -> Any:
    """A nest that copies one buffer to another of its shape."""
    shape = [int(n) for n in target.shape]
    axes = [tirx.IterVar(ir.Range.from_min_extent(long(0), long(n)), tirx.Var(f"v{k}", "int64"), tirx.IterVar.DataPar)
            for k, n in enumerate(shape)]
    at = [a.var for a in axes]
    point = [ir.Range.from_min_extent(v, long(1)) for v in at]
    block = SBlock(
        axes, [tirx.BufferRegion(source, point)], [tirx.BufferRegion(target, point)], f"{target.name}_rounded",
        tirx.BufferStore(target, tirx.BufferLoad(source, at), at),
    )
    loops = [tirx.Var(f"r{k}", "int64") for k in range(len(shape))]
    nest: Any = SBlockRealize(list(loops), True, block)
    for loop, n in reversed(list(zip(loops, shape, strict=True))):
        nest = tirx.For(loop, long(0), long(n), tirx.ForKind.SERIAL, nest)
    return nest


def _is_beyond(number: Any) -> bool:
    """Whether an integer is none of int32."""
    return not _INT32_MIN <= int(number.value) <= _INT32_MAX


def _shifted(node: type, value: Any, by: Any) -> Any:
    """An int64 that is stored in 32 bits, shifted by 0 to 63: by more than 31 the sign is left, or nothing."""
    last = tirx.const(31, "int32")
    moved = node(value, tirx.Select(by > last, last, by))
    return moved if node is tirx.RShift else tirx.Select(by > last, tirx.const(0, "int32"), moved)


def _constant_shape(extent: Any, renamed: Callable[[str], str]) -> Any:
    return tirx.const(int(extent), renamed(str(extent.ty)))


class _Rewriter:
    """Rebuilds expressions from the leaves up, so that every node derives its dtype anew from its operands."""

    def __init__(self, renamed: Callable[[str], str], variable: Any, stored: Any, storage: Mapping[str, str]) -> None:
        self.renamed, self.variable, self.stored, self.storage = renamed, variable, stored, storage
        self.first = False  # inside what a reduction begins with
        self.decided = False  # a comparison came out without looking at its operands

    def expression(self, e: Any) -> Any:
        x = self.expression
        if isinstance(e, tirx.IntImm):
            return self._integer(e)
        if isinstance(e, ir.StringImm):
            return e
        if isinstance(e, tirx.FloatImm):
            dtype = str(e.ty)
            return e if self.renamed(dtype) == dtype else tirx.FloatImm(self.renamed(dtype), self._number(e.value, dtype))
        if isinstance(e, ir.Var):
            return self.variable(e)
        if isinstance(e, _BINARY):
            if (known := self._decided(e)) is not None:
                return known
            if isinstance(e, tirx.LShift | tirx.RShift) and str(e.ty) == "int64" and self.renamed("int64") == "int32":
                return _shifted(type(e), x(e.a), x(e.b))
            made = type(e)(x(e.a), x(e.b))
            return self._wrapped(made, str(e.ty)) if isinstance(e, _LEAVING) else made
        if isinstance(e, _UNARY):
            made = type(e)(x(e.a))
            return self._wrapped(made, str(e.ty)) if isinstance(e, _LEAVING) else made
        if isinstance(e, tirx.Select):
            return tirx.Select(x(e.condition), x(e.true_value), x(e.false_value))
        if isinstance(e, tirx.Cast):
            made = self._cast(x(e.value), self.renamed(str(e.ty)))
            return made if str(e.value.ty) == "bool" else self._wrapped(made, str(e.ty))
        if isinstance(e, ir.TensorLoad):
            return self._load(e)
        if isinstance(e, ir.Call):
            if e.op.same_as(ir.Op.get("tirx.isnan")) and self.renamed(str(e.args[0].ty)) == "float32":
                return is_nan(x(e.args[0]))
            ty = str(e.ty.dtype) if isinstance(e.ty, PrimType) else None
            kept = e.ty if ty is None else PrimType(self.renamed(ty))
            made = ir.Call(e.op, [x(a) if isinstance(a, ir.Expr) else a for a in e.args], e.attrs, list(e.ty_args), None, kept)
            return made if ty is None or getattr(e.op, "name", "") in _CHOOSING else self._wrapped(made, ty)
        if isinstance(e, tirx.Let):
            return tirx.Let(self.variable(e.var), x(e.value), x(e.body))
        raise TypeError(f"legalize has no rule for the expression {type(e).__name__}")

    def _integer(self, e: Any) -> Any:
        dtype = str(e.ty)
        new = self.renamed(dtype)
        if new == dtype:
            return e
        if new == "int32" and _is_beyond(e) and int(e.value) not in _INT64_LIMITS:
            raise DoesNotFit(_BEYOND.format(int(e.value)))
        return tirx.IntImm(new, max(min(int(e.value), _INT32_MAX), _INT32_MIN) if new == "int32" else int(e.value))

    def _decided(self, e: Any) -> Any:
        """A comparison with a number beyond what int64 is stored in, which comes out the same for each number stored; else None.
        Raises DoesNotFit for one that is calculated with."""
        sides = [s for s in (e.a, e.b) if isinstance(s, tirx.IntImm) and str(s.ty) == "int64" and _is_beyond(s)]
        if not sides or self.renamed("int64") != "int32":
            return None
        if not isinstance(e, _ORDERED):
            raise DoesNotFit(_BEYOND.format(int(sides[0].value)))
        compared = _COMPARISONS.get(type(e))
        if compared is None or int(sides[0].value) in _INT64_LIMITS:
            return None
        a, b = (int(s.value) if isinstance(s, tirx.IntImm) else 0 for s in (e.a, e.b))
        self.decided = True
        return tirx.const(compared(a, b), "bool")

    def _number(self, value: float, dtype: str) -> float:
        """float16's largest number is where a search for the smallest one begins: in float32 that is float32's. Of float64 what
        float32 has no number for is infinite, and its largest number the largest one."""
        if dtype == "float64" and abs(value) > _FLOAT32_MAX:
            return math.copysign(_FLOAT32_MAX if abs(value) == sys.float_info.max else math.inf, value)
        return math.copysign(_FLOAT32_MAX, value) if dtype == "float16" and abs(value) == _FLOAT16_MAX and self.first else value

    def _cast(self, value: Any, dtype: str) -> Any:
        """A cast, or nothing where both dtypes became one, or where the value was widened just before. A boolean is cast by
        choosing 1 or 0."""
        have = str(value.ty)
        if have == dtype:
            return value
        if isinstance(value, tirx.Cast) and str(value.value.ty) == dtype and (dtype, have) in IN_FLOAT32.items():
            return value.value
        if have == "bool":
            return tirx.Select(value, tirx.const(1, dtype), tirx.const(0, dtype))
        return tirx.NE(value, tirx.const(0, have)) if dtype == "bool" else tirx.Cast(dtype, value)

    def _wrapped(self, value: Any, dtype: str) -> Any:
        """The value modulo 2ⁿ, where `dtype` is an integer of n bits that is stored in more."""
        bits = _NARROW.get(dtype)
        if bits is None or self.renamed(dtype) == dtype:
            return value
        stored = str(value.ty)
        low = tirx.BitwiseAnd(value, tirx.const(2**bits - 1, stored))
        if dtype.startswith("u"):
            return low
        sign = tirx.const(2 ** (bits - 1), stored)
        return tirx.Sub(tirx.BitwiseXor(low, sign), sign)

    def _load(self, e: Any) -> Any:
        value = tirx.BufferLoad(self.stored(e.source), [self.expression(i) for i in e.indices])
        dtype = str(e.source.dtype)
        if dtype == "bool":
            return tirx.NE(value, tirx.const(0, self.storage["bool"])) if "bool" in self.storage else value
        return self._cast(value, self.renamed(dtype))

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
            buffer = self.stored(s.buffer)
            return tirx.BufferStore(buffer, self._cast(x(s.value), str(buffer.dtype)), [x(i) for i in s.indices])
        if isinstance(s, tirx.IfThenElse):
            return tirx.IfThenElse(x(s.condition), self.statement(s.then_case), self.statement(s.else_case))
        raise TypeError(f"legalize has no rule for the statement {type(s).__name__}")

    def _block(self, block: Any) -> Any:
        axes = [tirx.IterVar(self._range(v.dom), self.variable(v.var), v.iter_type, v.thread_tag) for v in block.iter_vars]
        assert not block.match_buffers, "a tensor expression does not match buffers"
        self.first = True
        init = self.statement(block.init)
        self.first = False
        body = self.statement(block.body)
        reads = [self._region(r) for r in block.reads]
        if self.decided and not block.alloc_buffers:
            # A comparison that was decided may no longer read what it read.
            loaded: list[Any] = []
            tvm_ffi.structural_walk(body, [(ir.TensorLoad, lambda load: loaded.append(load.source))])
            reads = [r for r in reads if any(r.source.same_as(b) for b in loaded)]
        return SBlock(
            axes, reads, [self._region(r) for r in block.writes], block.name_hint, body, init,
            [self.stored(b) for b in block.alloc_buffers], [], block.annotations,
        )

    def _region(self, r: Any) -> Any:
        return tirx.BufferRegion(self.stored(r.source), [self._range(each) for each in r.region])

    def _range(self, r: Any) -> Any:
        return ir.Range.from_min_extent(self.expression(r.min), self.expression(r.extent))
