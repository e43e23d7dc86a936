"""Small vocabulary in which the conversions write what an operator computes, element by element.

`compute(importer, shape, dtype, f, *tensors)` emits one tensor expression: `f` gets a load function for each tensor, then
the output's indices, and returns the element. `broadcast` does the same over tensors and numbers that broadcast together.
All tensors are Relax variables with static shapes; dtypes are TapML's names.

TVM's simplifier takes floats for real numbers: for it x - x is 0, x + y - x is y, x · 0 is 0. With infinities, NaN and rounding
they are not, so what it would go by is `hidden` from it: the second operand of each difference, and zeros.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm_ffi
from tvm import ir, relax, te, tirx
from tvm.ir import PrimType

from tapml.tensors import NUMPY

Shape = tuple[int, ...]
Element = Any
# The bits of float32's infinity, and of a NaN; the key of NaN. TVM's simplifier takes `x == -2³¹` for false.
_INFINITE, _NAN, _LAST = 0x7F800000, 0x7FC00000, 2**31 - 1
Load = Callable[..., Element]
# The annotation of a block that `pieces.prepare` does not inline.
APART = "tapml.apart"


def shape_of(value: Any) -> Shape:
    return tuple(int(n) for n in value.ty.shape)


def dtype_of(value: Any) -> str:
    return str(value.ty.dtype)


def is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def wide(dtype: str) -> str:
    """The dtype to accumulate in: float32 for the half precisions, int32 or int64 for integers and booleans."""
    if dtype in ("float16", "bfloat16"):
        return "float32"
    return dtype if is_float(dtype) or dtype == "int64" else "int32"


def constant(value: float | int | bool, dtype: str) -> Element:
    if dtype == "bool":
        return tirx.const(bool(value), "bool")
    if is_float(dtype):
        with np.errstate(over="ignore"):
            rounded = float(np.float64(value).astype(NUMPY[dtype]))
        # TVM refuses a literal beyond the dtype's largest number; PyTorch takes it for an infinity.
        return tirx.const(rounded if math.isinf(rounded) else float(value), dtype)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} as {dtype}")
    return tirx.const(int(value), dtype)


def hidden(element: Element) -> Element:
    """The same element, as TVM's simplifier cannot see through it: the bits of a number as a number of the same dtype.
    `shown` takes it away again, before code is generated."""
    return ir.Call(ir.Op.get("tirx.reinterpret"), [element], None, [], None, PrimType(str(element.ty)))


def is_hidden(node: Any) -> bool:
    return isinstance(node, ir.Call) and node.op.same_as(ir.Op.get("tirx.reinterpret")) and str(node.ty) == str(node.args[0].ty)


def shown(statement: Any) -> Any:
    """A statement or an expression without what hides parts of it."""
    return tvm_ffi.structural_map(statement, [(ir.Call, lambda call: call.args[0] if is_hidden(call) else call)])


def literal(value: float | int | bool, dtype: str) -> Element:
    """A number of the model. Unlike `constant`, a zero of floats is hidden: not all is 0 times it, and -0 plus it is 0."""
    made = constant(value, dtype)
    return hidden(made) if is_float(dtype) and value == 0 else made


def _differences_kept(element: Element) -> Element:
    """The same element, of which no difference of floats is simplified away."""

    def kept(difference: Any) -> Any:
        if not is_float(str(difference.ty)) or is_hidden(difference.b):
            return difference
        return tirx.Sub(difference.a, hidden(difference.b))

    return tvm_ffi.structural_map(element, [(tirx.Sub, kept)])


def to(element: Element, dtype: str) -> Element:
    """The element in another dtype, with PyTorch's meaning: anything non-zero is true; floats are cut towards zero, and into an
    integer of less than 32 bits they wrap, as on x86: 300.0 is 44 in 8 bits. What no int32 holds, NaN included, is 0 there."""
    have = str(element.ty.dtype if hasattr(element.ty, "dtype") else element.ty)
    if have == dtype:
        return element
    if dtype == "bool":
        return is_true(element) if is_float(have) else tirx.NE(element, constant(0, have))
    if have == "bool":
        return tirx.Select(element, constant(1, dtype), constant(0, dtype))
    if is_float(have) and dtype in ("int8", "uint8", "int16"):
        # A cast of a float that does not fit is undefined in most languages; of an integer it is not.
        limit = constant(2.0**31, have)
        inside = tirx.And(element > -limit, element < limit)
        return tirx.Cast(dtype, tirx.Select(inside, tirx.Cast("int32", element), tirx.const(0, "int32")))
    return tirx.Cast(dtype, element)


def is_true(element: Element) -> Element:
    """Whether a number is not 0; NaN is not, which is told by its bits."""
    dtype = str(element.ty)
    if not is_float(dtype):
        return to(element, "bool")
    return tirx.Or(tirx.NE(element, constant(0, dtype)), is_nan(element))


def is_nan(element: Element) -> Element:
    """By its bits: compilers may take `x != x` for false, and WGSL lets them."""
    dtype = str(element.ty)
    if dtype == "float64":
        return tirx.isnan(element)
    bits = tirx.bitwise_and(tirx.reinterpret("int32", to(element, "float32")), tirx.const(0x7FFFFFFF, "int32"))
    return bits > tirx.const(_INFINITE, "int32")


def rounded_to(element: Element, dtype: str) -> Element:
    """A whole number in float32 rounded to what float16 or bfloat16 can hold, ties to even; beyond float16 it is infinite."""
    shift = {"float16": 13, "bfloat16": 16}[dtype]
    bits = tirx.reinterpret("int32", element)
    odd = tirx.bitwise_and(tirx.shift_right(bits, tirx.const(shift, "int32")), tirx.const(1, "int32"))
    nearest = tirx.bitwise_and(bits + tirx.const(2 ** (shift - 1) - 1, "int32") + odd, tirx.const(-(2**shift), "int32"))
    value = tirx.reinterpret("float32", nearest)
    if dtype == "bfloat16":
        return value
    infinite = tirx.const(math.inf, "float32")
    value = tirx.Select(value > tirx.const(65504.0, "float32"), infinite, value)
    return tirx.Select(value < tirx.const(-65504.0, "float32"), -infinite, value)


def key_of(element: Element, largest: bool = True) -> Element:
    """An int32 (an integer of 64 bits for one) that orders elements as PyTorch does. Numbers compare as their keys do, -0 with 0
    apart; NaN is beyond all of them: above where the largest is looked for, else below. Of a float64 it is a float64: half of it,
    which leaves room for NaN."""
    dtype = str(element.ty)
    if dtype == "float64":
        infinite, last = constant(math.inf, dtype), constant(sys.float_info.max, dtype)
        half = element * constant(0.5, dtype)
        key = tirx.Select(tirx.EQ(element, infinite), last, tirx.Select(tirx.EQ(element, -infinite), -last, half))
        return tirx.Select(is_nan(element), infinite if largest else -infinite, key)
    if not is_float(dtype):
        return to(element, wide(dtype))
    bits = tirx.reinterpret("int32", to(element, "float32"))
    ones = tirx.const(0x7FFFFFFF, "int32")
    magnitude = tirx.bitwise_and(bits, ones)
    # Of negative numbers the larger magnitude is the smaller number; both zeros have the key 0.
    ordered = tirx.Select(bits < tirx.const(0, "int32"), tirx.const(0, "int32") - magnitude, magnitude)
    beyond = tirx.const(_LAST if largest else -_LAST, "int32")
    return tirx.Select(magnitude > tirx.const(_INFINITE, "int32"), beyond, ordered)


def of_key(key: Element, dtype: str) -> Element:
    """The element that has the key, in `dtype`."""
    if not is_float(dtype):
        return to(key, dtype)
    if dtype == "float64":
        infinite, last = constant(math.inf, dtype), constant(sys.float_info.max, dtype)
        number = tirx.Select(key >= last, infinite, tirx.Select(key <= -last, -infinite, key * constant(2, dtype)))
        return tirx.Select(tirx.EQ(tirx.abs(key), infinite), constant(math.nan, dtype), number)
    nan = tirx.Or(tirx.EQ(key, tirx.const(_LAST, "int32")), tirx.EQ(key, tirx.const(-_LAST, "int32")))
    negative = key < tirx.const(0, "int32")
    bits = tirx.Select(negative, tirx.const(0, "int32") - key, key)
    magnitude = tirx.reinterpret("float32", tirx.Select(nan, tirx.const(_NAN, "int32"), bits))
    return to(tirx.Select(negative, -magnitude, magnitude), dtype)


def key_of_nan(dtype: str) -> Element:
    """The key of NaN where the largest is looked for, of elements of a floating point dtype."""
    return constant(math.inf, dtype) if dtype == "float64" else tirx.const(_LAST, "int32")


def key_dtype(dtype: str) -> str:
    """The dtype of the keys of a dtype."""
    return dtype if dtype == "float64" else "int32" if is_float(dtype) else wide(dtype)


def larger(a: Element, b: Element) -> Element:
    """The larger of two of one dtype, NaN if either is."""
    if not is_float(str(a.ty)):
        return tirx.max(a, b)
    return tirx.Select(is_nan(a), a, tirx.Select(is_nan(b), b, tirx.max(a, b)))


def smaller(a: Element, b: Element) -> Element:
    """The smaller of two of one dtype, NaN if either is."""
    if not is_float(str(a.ty)):
        return tirx.min(a, b)
    return tirx.Select(is_nan(a), a, tirx.Select(is_nan(b), b, tirx.min(a, b)))


def compute(
    importer: Any, shape: Sequence[int], dtype: str, f: Callable[..., Element], *tensors: Any, name: str = "value",
    apart: bool = False,
) -> Any:
    """One tensor, in `dtype`: element at `i` is `f(load_0, load_1, …, *i)`. Returns its Relax variable. `apart`: it is computed
    once, and never again in what reads it."""

    distinct, places = _distinct(tensors)

    def expression(*arguments: Any) -> Any:
        loads = [_load(arguments[p]) for p in places]
        attrs = {APART: True} if apart else None
        return te.compute(_long_shape(shape), lambda *at: _differences_kept(to(f(*loads, *at), dtype)), name=name, attrs=attrs)

    return importer.block_builder.emit_te(expression, *distinct, primfunc_name_hint=name)


def _distinct(tensors: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Each tensor once, and the place of each argument in that list."""
    found: list[Any] = []
    places: list[int] = []
    for tensor in tensors:
        place = next((k for k, t in enumerate(found) if t.same_as(tensor)), len(found))
        if place == len(found):
            found.append(tensor)
        places.append(place)
    return found, places


def _load(tensor: Any) -> Load:
    def load(*at: Any) -> Element:
        return tensor(*at)

    return load


def reduce(
    importer: Any, shape: Sequence[int], dtype: str, extents: Sequence[int], f: Callable[..., Element], *tensors: Any,
    combine: Callable[..., Element] = te.sum, name: str = "reduction",
) -> Any:
    """One tensor, in `dtype`: element at `i` combines `f(load_0, …, i, k)` over all `k` in `extents`; `i` and `k` are tuples.
    One number is computed as a tensor of one element, since a block without any axis of the result cannot be cut in two."""
    if not shape:
        one = reduce(importer, (1,), dtype, extents, lambda *a: f(*a[:-2], (), a[-1]), *tensors, combine=combine, name=name)
        return reshape(importer, one, ())

    distinct, places = _distinct(tensors)

    def expression(*arguments: Any) -> Any:
        loads = [_load(arguments[p]) for p in places]
        axes = [te.reduce_axis((tirx.const(0, "int64"), tirx.const(n, "int64")), name=f"k{j}") for j, n in enumerate(extents)]
        inner = tuple(axis.var for axis in axes)

        def element(*at: Any) -> Element:
            return combine(_differences_kept(to(f(*loads, tuple(at), inner), dtype)), axis=axes)

        return te.compute(_long_shape(shape), element, name=name)

    return importer.block_builder.emit_te(expression, *distinct, primfunc_name_hint=name)


def _long_shape(shape: Sequence[int]) -> tuple[Any, ...]:
    return tuple(tirx.const(n, "int64") for n in shape)


def broadcast(importer: Any, shape: Sequence[int], dtype: str, f: Callable[..., Element], *operands: Any) -> Any:
    """`f(a, b, …)` over the elements of operands that broadcast to `shape`; numbers are passed to `f` as they are."""
    tensors = [o for o in operands if isinstance(o, relax.Expr)]
    shapes = [shape_of(t) for t in tensors]

    def element(*arguments: Any) -> Element:
        loads, at = arguments[: len(tensors)], arguments[len(tensors) :]
        values = iter([load(*project(at, s, tuple(shape))) for load, s in zip(loads, shapes, strict=True)])
        return f(*[next(values) if isinstance(o, relax.Expr) else o for o in operands])

    return compute(importer, shape, dtype, element, *tensors)


def project(at: Sequence[Any], shape: Shape, whole: Shape | None = None) -> list[Any]:
    """The indices of an operand of `shape` for the output's indices, under broadcasting. Where the output's shape `whole`
    is given, a dimension of 1 in both keeps its index, which lets the scheduler see that both have the same layout."""
    last = list(at)[len(at) - len(shape) :]
    extents = (0,) * len(shape) if whole is None else whole[len(whole) - len(shape) :]
    return [tirx.const(0, "int64") if n == 1 and e != 1 else i for i, n, e in zip(last, shape, extents, strict=True)]


def cast(importer: Any, value: Any, dtype: str) -> Any:
    """The value itself where it is of that dtype."""
    if dtype_of(value) == dtype:
        return value
    return compute(importer, shape_of(value), dtype, lambda load, *at: load(*at), value, name="cast")


def reshape(importer: Any, value: Any, shape: Sequence[int]) -> Any:
    return importer.block_builder.emit(relax.op.reshape(value, list(shape)))


def intrinsic(name: str, element: Element) -> Element:
    """A unary mathematical function by TVM's name, in the element's dtype."""
    found: Callable[[Element], Element] = getattr(tirx, name)
    return found(element)


def long(value: int) -> Element:
    """A whole number as an index has it."""
    return tirx.const(value, "int64")
