"""Arithmetic, comparisons, logic and casts. Numbers are promoted as PyTorch does, integers wrap, and division of integers rounds
as PyTorch's does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tapml.operators.onnx.writer import COMPUTED, CannotSay, Value, Writer
from tapml.operators.overload import named_dtype
from tapml.tensors import FLOATS, TensorSpec

Specs = tuple[TensorSpec, ...]
Operand = Value | float


def promoted(*operands: Operand) -> str:
    """The dtype in which PyTorch computes with these: tensors with axes count before those without, and these before numbers."""
    def stand_in(x: Operand) -> Any:
        return torch.empty(x.shape, dtype=named_dtype(x.dtype), device="meta") if isinstance(x, Value) else x

    first, *rest = operands
    found = stand_in(first)
    for operand in rest:
        dtype = torch.result_type(found, stand_in(operand))
        axes = [x.rank for x in (first, operand) if isinstance(x, Value)]
        found = torch.empty((1,) * max(axes, default=0), dtype=dtype, device="meta")
    return str(found.dtype).removeprefix("torch.")


def widened(dtype: str) -> str:
    """The dtype in which numbers of this one are computed."""
    return dtype if dtype in COMPUTED else "int32"


def operand(w: Writer, x: Operand, dtype: str) -> Value:
    return w.cast(x, dtype) if isinstance(x, Value) else w.constant(x, dtype)


def both(w: Writer, a: Operand, b: Operand, dtype: str) -> tuple[Value, Value]:
    return operand(w, a, widened(dtype)), operand(w, b, widened(dtype))


def _add(w: Writer, out: Specs, a: Operand, b: Operand, alpha: float = 1) -> Value:
    if out[0].dtype == "bool":
        return w.binary("Or", operand(w, a, "bool"), operand(w, b, "bool"))
    x, y = both(w, a, b, out[0].dtype)
    return w.add(x, y if alpha == 1 else w.mul(y, alpha))


def _sub(w: Writer, out: Specs, a: Operand, b: Operand, alpha: float = 1) -> Value:
    x, y = both(w, a, b, out[0].dtype)
    return w.sub(x, y if alpha == 1 else w.mul(y, alpha))


def _rsub(w: Writer, out: Specs, a: Operand, b: Operand, alpha: float = 1) -> Value:
    return _sub(w, out, b, a, alpha)


def _mul(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
    if out[0].dtype == "bool":
        return w.binary("And", operand(w, a, "bool"), operand(w, b, "bool"))
    return w.mul(*both(w, a, b, out[0].dtype))


def _div(w: Writer, out: Specs, a: Operand, b: Operand, mode: str | None = None) -> Value:
    x, y = both(w, a, b, out[0].dtype)
    if mode is None:
        return w.div(x, y)
    if mode == "floor":
        return floor_divided(w, x, y)
    return w.div(x, y) if x.dtype not in FLOATS else truncated(w, w.div(x, y))


def truncated(w: Writer, x: Value) -> Value:
    return w.where(w.compare("Less", x, 0), w.unary("Ceil", x), w.unary("Floor", x))


def floor_divided(w: Writer, x: Value, y: Value) -> Value:
    """As PyTorch does it: the rest first, so that the quotient of floats is whole; see `div_floor_floating` in c10."""
    if x.dtype not in FLOATS:
        quotient = w.div(x, y)
        rest = w.sub(x, w.mul(quotient, y))
        apart = w.binary("Xor", w.compare("Less", rest, 0), w.compare("Less", y, 0))
        lower = w.binary("And", w.negate(w.compare("Equal", rest, 0)), apart)
        return w.sub(quotient, w.cast(lower, x.dtype))
    rest = w.binary("Mod", x, y, fmod=1)
    quotient = w.div(w.sub(x, rest), y)
    apart = w.binary("Xor", w.compare("Less", rest, 0), w.compare("Less", y, 0))
    lower = w.binary("And", w.negate(w.compare("Equal", rest, 0)), apart)
    quotient = w.sub(quotient, w.cast(lower, x.dtype))
    floor = w.unary("Floor", quotient)
    floor = w.add(floor, w.cast(w.compare("Greater", w.sub(quotient, floor), 0.5), x.dtype))
    zero = w.mul(w.div(x, y), 0.0)  # a zero of the right sign, where it is finite
    found = w.where(w.compare("Equal", quotient, 0), zero, floor)
    return w.where(w.compare("Equal", y, 0), w.div(x, y), found)


def _floor_divide(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
    return floor_divided(w, *both(w, a, b, out[0].dtype))


def _remainder(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
    x, y = both(w, a, b, out[0].dtype)
    if x.dtype not in FLOATS:
        return w.binary("Mod", x, y)
    rest = w.binary("Mod", x, y, fmod=1)
    apart = w.binary("Xor", w.compare("Less", rest, 0), w.compare("Less", y, 0))
    other = w.binary("And", w.negate(w.compare("Equal", rest, 0)), apart)
    return w.where(other, w.add(rest, y), rest)


def _fmod(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
    return w.binary("Mod", *both(w, a, b, out[0].dtype), fmod=1)


def _pow(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
    x, y = both(w, a, b, out[0].dtype)
    return w.binary("Pow", x, y)


def _extreme(operation: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
        return w.binary(operation, *both(w, a, b, out[0].dtype))

    return convert


def _clamp(w: Writer, out: Specs, x: Value, least: Operand | None = None, most: Operand | None = None) -> Value:
    dtype = widened(out[0].dtype)
    found = operand(w, x, dtype)
    limits = [None if v is None else operand(w, v, dtype) for v in (least, most)]
    if all(v is None or not v.shape for v in limits):
        return w.op("Clip", found, *limits)
    for operation, limit in zip(("Max", "Min"), limits, strict=True):
        found = found if limit is None else w.binary(operation, found, limit)
    return found


def _clamp_max(w: Writer, out: Specs, x: Value, most: Operand) -> Value:
    return _clamp(w, out, x, None, most)


def _compared(operation: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
        dtype = promoted(a, b)
        if isinstance(b, int) and dtype not in (*FLOATS, "bool"):  # PyTorch takes the number in the tensor's dtype, and wraps it
            info = torch.iinfo(named_dtype(dtype))
            b = (b - int(info.min)) % 2**info.bits + int(info.min)
        return w.binary(operation, *both(w, a, b, dtype), "bool")

    return convert


def _not_equal(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
    return w.negate(_compared("Equal")(w, out, a, b))


def _logical(operation: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
        return w.binary(operation, operand(w, a, "bool"), operand(w, b, "bool"))

    return convert


def _logical_not(w: Writer, out: Specs, x: Value) -> Value:
    return w.negate(w.cast(x, "bool"))


def _bitwise(logical: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
        dtype = out[0].dtype
        if dtype == "bool":
            return w.binary(logical, operand(w, a, "bool"), operand(w, b, "bool"))
        return w.binary(f"Bitwise{logical}", *both(w, a, b, dtype))

    return convert


def _bitwise_not(w: Writer, out: Specs, x: Value) -> Value:
    return w.negate(x) if x.dtype == "bool" else w.unary("BitwiseNot", w.cast(x, widened(x.dtype)))


def _shifted(left: bool) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
        x, y = both(w, a, b, out[0].dtype)
        step = w.cast(w.binary("Pow", w.constant(2.0, "float64"), w.cast(y, "float64")), x.dtype)
        return w.mul(x, step) if left else floor_divided(w, x, step)

    return convert


def _where(w: Writer, out: Specs, condition: Value, a: Operand, b: Operand) -> Value:
    dtype = out[0].dtype
    return w.where(w.cast(condition, "bool"), operand(w, a, dtype), operand(w, b, dtype))


def _masked_fill(w: Writer, out: Specs, x: Value, mask: Value, value: Operand) -> Value:
    return w.where(mask, operand(w, value, x.dtype), x)


def _to_copy(w: Writer, out: Specs, x: Value, *_: Any) -> Value:
    return w.cast(x, out[0].dtype)


def _copy(w: Writer, out: Specs, x: Value, source: Value, *_: Any) -> Value:
    return w.expand(w.cast(source, x.dtype), x.shape)


def _addc(operation: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value, a: Value, b: Value, value: float = 1) -> Value:
        x, a, b = (operand(w, v, widened(out[0].dtype)) for v in (x, a, b))
        a = a if value == 1 else w.mul(a, value)
        return w.add(x, w.binary(operation, a, b))

    return convert


def _lerp(w: Writer, out: Specs, a: Value, b: Value, weight: Operand) -> Value:
    """From the nearer end, as PyTorch does."""
    weight = operand(w, weight, a.dtype)
    near = w.add(a, w.mul(weight, w.sub(b, a)))
    far = w.sub(b, w.mul(w.sub(b, a), w.sub(w.constant(1.0, a.dtype), weight)))
    return w.where(w.compare("Less", w.unary("Abs", weight), 0.5), near, far)


def _atan2(w: Writer, out: Specs, a: Value, b: Value) -> Value:
    """The angle of a point, from the arc of the quotient; at the origin zeros have no sign here."""
    y, x = both(w, a, b, out[0].dtype)
    pi = w.constant(math.pi, y.dtype)
    half = w.mul(w.unary("Sign", y), math.pi / 2)
    turned = w.where(w.compare("Less", y, 0), w.unary("Neg", pi), pi)
    arc = w.unary("Atan", w.div(y, x))
    left = w.where(w.compare("Less", x, 0), w.add(arc, turned), arc)
    return w.where(w.compare("Equal", x, 0), half, left)


def _signbit(w: Writer, out: Specs, x: Value) -> Value:
    if x.dtype in FLOATS:
        raise CannotSay("the sign of a zero cannot be asked for")
    return w.compare("Less", w.cast(x, widened(x.dtype)), 0)


# By operator, with the overloads that take the same arguments; those of prims, which decompositions end in, are "default".
_BINARY: dict[str, tuple[Callable[..., Value], str]] = {
    "add": (_add, "Tensor Scalar default"), "sub": (_sub, "Tensor Scalar default"), "rsub": (_rsub, "Tensor Scalar"),
    "mul": (_mul, "Tensor Scalar default"), "div": (_div, "Tensor Scalar Tensor_mode Scalar_mode"),
    "true_divide": (_div, "Tensor Scalar"), "floor_divide": (_floor_divide, "default Scalar"),
    "remainder": (_remainder, "Tensor Scalar Scalar_Tensor"), "fmod": (_fmod, "Tensor Scalar"),
    "pow": (_pow, "Tensor_Tensor Tensor_Scalar Scalar default"), "eq": (_compared("Equal"), "Tensor Scalar default"),
    "ne": (_not_equal, "Tensor Scalar default"), "lt": (_compared("Less"), "Tensor Scalar default"),
    "le": (_compared("LessOrEqual"), "Tensor Scalar default"), "gt": (_compared("Greater"), "Tensor Scalar default"),
    "ge": (_compared("GreaterOrEqual"), "Tensor Scalar default"), "__and__": (_bitwise("And"), "Tensor Scalar"),
    "__or__": (_bitwise("Or"), "Tensor Scalar"), "__xor__": (_bitwise("Xor"), "Tensor Scalar"),
    "bitwise_and": (_bitwise("And"), "Tensor Scalar Scalar_Tensor"),
    "bitwise_or": (_bitwise("Or"), "Tensor Scalar Scalar_Tensor"),
    "bitwise_xor": (_bitwise("Xor"), "Tensor Scalar Scalar_Tensor"), "__lshift__": (_shifted(True), "Tensor Scalar"),
    "__rshift__": (_shifted(False), "Tensor Scalar"),
    "bitwise_left_shift": (_shifted(True), "Tensor Tensor_Scalar Scalar_Tensor"),
    "bitwise_right_shift": (_shifted(False), "Tensor Tensor_Scalar Scalar_Tensor"),
}  # fmt: skip

ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"{name}.{which}": function for name, (function, overloads) in _BINARY.items() for which in overloads.split()
} | {
    "maximum.default": _extreme("Max"), "minimum.default": _extreme("Min"), "max.other": _extreme("Max"),
    "min.other": _extreme("Min"),
    "clamp.default": _clamp, "clamp.Tensor": _clamp, "clip.default": _clamp, "clamp_min.default": _clamp,
    "clamp_min.Tensor": _clamp, "clamp_max.default": _clamp_max, "clamp_max.Tensor": _clamp_max, "hardtanh.default": _clamp,
    "logical_and.default": _logical("And"), "logical_or.default": _logical("Or"), "logical_xor.default": _logical("Xor"),
    "logical_not.default": _logical_not, "bitwise_not.default": _bitwise_not,
    "where.self": _where, "where.ScalarOther": _where, "where.ScalarSelf": _where, "where.Scalar": _where,
    "where.default": _where,
    "masked_fill.Scalar": _masked_fill, "masked_fill.Tensor": _masked_fill,
    "copy.default": _copy, "convert_element_type.default": _to_copy, "_to_copy.default": _to_copy, "to.dtype": _to_copy,
    "type_as.default": _to_copy, "clone.default": _to_copy, "alias.default": _to_copy,
    "contiguous.default": _to_copy, "detach.default": _to_copy,
    "lift_fresh_copy.default": _to_copy, "dropout.default": _to_copy,
    "addcmul.default": _addc("Mul"), "addcdiv.default": _addc("Div"), "lerp.Scalar": _lerp, "lerp.Tensor": _lerp,
    "atan2.default": _atan2, "signbit.default": _signbit,
}  # fmt: skip
