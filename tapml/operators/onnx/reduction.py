"""Sums, means, extremes and their places, norms, and sums along an axis. Integers are summed in int64, booleans counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tapml.operators.onnx.arithmetic import Specs, widened
from tapml.operators.onnx.writer import CannotSay, Value, Writer

Dims = Sequence[int] | int | None


def _sum(w: Writer, out: Specs, x: Value, dims: Dims = None, keep: bool = False, dtype: str | None = None) -> Value:
    return w.reduce("ReduceSum", w.cast(x, widened(out[0].dtype)), x.axes(dims), keep)


def _sum_all(w: Writer, out: Specs, x: Value, dtype: str | None = None) -> Value:
    return _sum(w, out, x)


def _mean(w: Writer, out: Specs, x: Value, dims: Dims = None, keep: bool = False, dtype: str | None = None) -> Value:
    x, axes = w.cast(x, out[0].dtype), x.axes(dims)
    if not x.elements:
        return w.div(w.reduce("ReduceSum", x, axes, keep), math.prod(x.shape[k] for k in axes))
    return w.reduce("ReduceMean", x, axes, keep)


def _mean_all(w: Writer, out: Specs, x: Value, dtype: str | None = None) -> Value:
    return _mean(w, out, x)


def _prod(w: Writer, out: Specs, x: Value, dim: int | None = None, keep: bool = False, dtype: str | None = None) -> Value:
    return w.reduce("ReduceProd", w.cast(x, widened(out[0].dtype)), x.axes(dim), keep)


def _prod_all(w: Writer, out: Specs, x: Value, dtype: str | None = None) -> Value:
    return _prod(w, out, x)


def spread(w: Writer, x: Value, axes: Sequence[int], correction: float) -> tuple[Value, Value]:
    """Variance and mean, their axes kept."""
    mean = w.reduce("ReduceMean", x, axes, True)
    off = w.sub(x, mean)
    total = w.reduce("ReduceSum", w.mul(off, off), axes, True)
    count = math.prod(x.shape[k] for k in axes) - correction
    return w.div(total, max(count, 0)), mean


def _variance(w: Writer, out: Specs, x: Value, dims: Dims = None, correction: float | None = 1, keep: bool = False) -> Value:
    found, _ = spread(w, x, x.axes(dims), 1 if correction is None else correction)
    return w.reshape(found, out[0].shape)


def _variance_mean(
    w: Writer, out: Specs, x: Value, dims: Dims = None, correction: float | None = 1, keep: bool = False
) -> list[Value]:
    found = spread(w, x, x.axes(dims), 1 if correction is None else correction)
    return [w.reshape(value, spec.shape) for value, spec in zip(found, out, strict=True)]


def _deviation(w: Writer, out: Specs, x: Value, dims: Dims = None, correction: float | None = 1, keep: bool = False) -> Value:
    return w.unary("Sqrt", _variance(w, out, x, dims, correction, keep))


def _extreme(operation: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value, dims: Dims = None, keep: bool = False) -> Value:
        return extreme(w, operation, x, x.axes(dims), keep)

    return convert


def extreme(w: Writer, operation: str, x: Value, axes: Sequence[int], keep: bool) -> Value:
    return w.reduce(operation, w.cast(x, widened(x.dtype)), axes, keep)


def _place(operation: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value, dim: int | None = None, keep: bool = False) -> Value:
        """The first of equals; over all elements without an axis."""
        if dim is None or not x.rank:
            flat = w.reshape(x, (x.elements,))
            return w.reshape(place(w, operation, flat, 0, False), out[0].shape)
        return place(w, operation, x, x.axis(dim), keep)

    return convert


def place(w: Writer, operation: str, x: Value, axis: int, keep: bool) -> Value:
    dtype = "float32" if x.dtype in ("float16", "bfloat16") else widened(x.dtype)
    shape = [1 if k == axis else n for k, n in enumerate(x.shape) if keep or k != axis]
    return w.op(operation, w.cast(x, dtype), spec=(shape, "int64"), axis=axis, keepdims=int(keep))


def _with_place(most: str) -> Callable[..., list[Value]]:
    def convert(w: Writer, out: Specs, x: Value, dim: int, keep: bool = False) -> list[Value]:
        if not x.rank:
            return [x, w.constant(0, "int64")]
        axis = x.axis(dim)
        return [extreme(w, f"Reduce{most}", x, (axis,), keep), place(w, f"Arg{most}", x, axis, keep)]

    return convert


def _all_of(operation: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value) -> Value:
        return extreme(w, operation, x, x.axes(None), False)

    return convert


def _both_extremes(w: Writer, out: Specs, x: Value, dim: int | None = None, keep: bool = False) -> list[Value]:
    return [extreme(w, operation, x, x.axes(dim), keep) for operation in ("ReduceMin", "ReduceMax")]


def _any(w: Writer, out: Specs, x: Value, dims: Dims = None, keep: bool = False) -> Value:
    true = w.cast(w.cast(x, "bool"), "int32")
    return w.compare("Greater", w.reduce("ReduceSum", true, x.axes(dims), keep), 0)


def _all(w: Writer, out: Specs, x: Value, dims: Dims = None, keep: bool = False) -> Value:
    false = w.cast(w.negate(w.cast(x, "bool")), "int32")
    return w.compare("Equal", w.reduce("ReduceSum", false, x.axes(dims), keep), 0)


def _norm(w: Writer, out: Specs, x: Value, order: float = 2, dims: Dims = None, keep: bool = False, dtype: Any = None) -> Value:
    axes, x = x.axes(dims), w.cast(x, out[0].dtype)
    if order in (1, 2):
        return w.reduce(f"ReduceL{int(order)}", x, axes, keep)
    if order in (math.inf, -math.inf):
        return w.reduce("ReduceMax" if order > 0 else "ReduceMin", w.unary("Abs", x), axes, keep)
    if order == 0:
        raise CannotSay("it counts what is not zero")
    power = w.binary("Pow", w.unary("Abs", x), w.constant(order, x.dtype))
    return w.binary("Pow", w.reduce("ReduceSum", power, axes, keep), w.constant(1 / order, x.dtype))


def _logsumexp(w: Writer, out: Specs, x: Value, dims: Dims, keep: bool = False) -> Value:
    """Around the largest, which is 0 where it is infinite, so that infinities come out as they are."""
    x, axes = w.cast(x, out[0].dtype), x.axes(dims)
    most = w.reduce("ReduceMax", x, axes, True)
    most = w.where(w.compare("Equal", w.unary("Abs", most), math.inf), w.constant(0, x.dtype), most)
    found = w.add(w.unary("Log", w.reduce("ReduceSum", w.unary("Exp", w.sub(x, most)), axes, True)), most)
    return w.reshape(found, out[0].shape)


def _cumsum(w: Writer, out: Specs, x: Value, dim: int, dtype: str | None = None) -> Value:
    x = w.cast(x, widened(out[0].dtype))
    return w.op("CumSum", x, w.constant(x.axis(dim), "int64")) if x.rank else x


REDUCTION: dict[str, Callable[..., Any]] = {
    "sum.default": _sum_all, "sum.dim_IntList": _sum, "mean.default": _mean_all, "mean.dim": _mean, "prod.default": _prod_all,
    "prod.dim_int": _prod, "var.correction": _variance, "var_mean.correction": _variance_mean, "std.correction": _deviation,
    "amax.default": _extreme("ReduceMax"), "amin.default": _extreme("ReduceMin"), "max.default": _all_of("ReduceMax"),
    "min.default": _all_of("ReduceMin"), "max.dim": _with_place("Max"), "min.dim": _with_place("Min"),
    "argmax.default": _place("ArgMax"), "argmin.default": _place("ArgMin"), "aminmax.default": _both_extremes,
    "any.default": _any, "any.dim": _any, "any.dims": _any, "all.default": _all, "all.dim": _all, "all.dims": _all,
    "linalg_vector_norm.default": _norm, "logsumexp.default": _logsumexp, "cumsum.default": _cumsum,
}  # fmt: skip

