"""Operators that reduce along dimensions: sums, products, extremes, variances, norms.

Sums of half precision are in float32. Variances are taken in two passes (mean first), as the one-pass form loses digits.
Extremes are those of keys (`tensor_expressions.key_of`), so that NaN and rows of -inf come out as in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from tapml.compile.convert_power import power
from tapml.compile.node_arguments import axis, output, read
from tapml.compile.tensor_expressions import (
    broadcast,
    compute,
    constant,
    dtype_of,
    hidden,
    is_true,
    key_dtype,
    key_of,
    of_key,
    project,
    reduce,
    reshape,
    shape_of,
    to,
    wide,
)
from tapml.operators.normalise import rms_norm_eps

Convert = Callable[[Any, Any], Any]


def _dims(value: Any, rank: int) -> list[int]:
    """The dimensions to reduce, sorted: all for None or an empty list."""
    if value is None or value == [] or rank == 0:
        return list(range(rank))
    return sorted(axis(d, rank) for d in (value if isinstance(value, list | tuple) else [value]))


def along(importer: Any, x: Any, dims: Sequence[int], dtype: str, f: Callable[..., Any], combine: Any, *others: Any) -> Any:
    """`f(x's element, other loads …, kept indices)` combined over `dims`; these dimensions are gone from the result."""
    shape = shape_of(x)
    kept = tuple(n for j, n in enumerate(shape) if j not in dims)

    def element(load: Any, *rest: Any) -> Any:
        *loads, at, k = rest
        outer, inner = iter(at), iter(k)
        full = [next(inner) if j in dims else next(outer) for j in range(len(shape))]
        return f(load(*full), *[o(*at) for o in loads])

    return reduce(importer, kept, dtype, [shape[j] for j in dims], element, x, *others, combine=combine)


def _finish(importer: Any, node: Any, value: Any, f: Callable[[Any], Any] = lambda e: e, k: int = 0) -> Any:
    """`f` over a reduced tensor, in the recorded shape (dimensions of 1 put back) and dtype."""
    spec = output(node, k)
    shape = shape_of(value)
    done = broadcast(importer, shape, spec.dtype, f, value)
    return done if shape == spec.shape else reshape(importer, done, spec.shape)


def _reduction(dim_at: int | None, dtype: Callable[[str], str], f: Callable[[Any, str], Any], combine: Any) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        dims = _dims(None if dim_at is None else read(importer, node, dim_at, "dim"), len(shape_of(x)))
        kind = dtype(output(node).dtype)
        found = along(importer, x, dims, kind, lambda e: f(e, kind), combine)
        # The largest of nothing is the least number: of truths, then, what is above 0.
        above = output(node).dtype == "bool"
        return _finish(importer, node, found, (lambda e: e > constant(0, kind)) if above else (lambda e: e))

    return convert


def _mean(importer: Any, node: Any) -> Any:
    x = read(importer, node, 0, "self")
    dims = _dims(read(importer, node, 1, "dim") if node.target.__name__ == "mean.dim" else None, len(shape_of(x)))
    dtype = wide(output(node).dtype)
    return _finish(importer, node, mean(importer, x, dims, dtype))


def mean(importer: Any, x: Any, dims: Sequence[int], dtype: str, whole: bool = False, divided: bool = False) -> Any:
    """Σ x / n. With `whole` it is the mean also where the sum would overflow, as each x is first divided by a power of 2.
    `divided` sees to it that compilers of WGSL do not divide the sum instead, which costs a little."""
    count = math.prod(shape_of(x)[j] for j in dims)
    if whole and count > 1:
        power_of_2 = 2 ** math.ceil(math.log2(count))
        small = constant(1 / power_of_2, dtype)

        def part(e: Any) -> Any:
            value = to(e, dtype) * small
            return hidden(value) if divided else value

        total = along(importer, x, dims, dtype, part, te.sum)
        return broadcast(importer, shape_of(total), dtype, lambda e: e * constant(power_of_2 / count, dtype), total)
    total = along(importer, x, dims, dtype, lambda e: to(e, dtype), te.sum)
    if not count:
        return compute(importer, shape_of(total), dtype, lambda *at: constant(math.nan, dtype), name="nothing")
    factor = constant(1 / count, dtype)
    return broadcast(importer, shape_of(total), dtype, lambda e: e * factor, total)


def variance(importer: Any, x: Any, dims: Sequence[int], dtype: str, middle: Any, correction: float = 0) -> Any:
    """Σ (x - mean)² / (n - correction)."""
    total = along(
        importer, x, dims, dtype, lambda e, m: (to(e, dtype) - m) * (to(e, dtype) - m), te.sum, middle
    )
    return _over(importer, total, math.prod(shape_of(x)[j] for j in dims) - correction, dtype)


def _over(importer: Any, total: Any, count: float, dtype: str) -> Any:
    """A sum divided by `count`, or by 0 if that is less."""
    if count <= 0:
        # 0/0 is NaN, and more than that by 0 is infinite.
        nothing, infinite, nan = (constant(v, dtype) for v in (0, math.inf, math.nan))
        return broadcast(importer, shape_of(total), dtype, lambda e: tirx.Select(e > nothing, infinite, nan), total)
    return broadcast(importer, shape_of(total), dtype, lambda e: e * constant(1 / count, dtype), total)


def _var(std: bool, with_mean: bool) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        dims = _dims(read(importer, node, 1, "dim"), len(shape_of(x)))
        correction = node.kwargs.get("correction", 1)
        dtype = wide(output(node).dtype)
        scaled = std and dtype == "float32"
        middle = mean(importer, x, dims, dtype, whole=True, divided=True)
        divisor = 1 if correction is None else correction
        if scaled:
            result = _finish(importer, node, _deviation(importer, x, dims, middle, divisor))
        else:
            spread = variance(importer, x, dims, dtype, middle, divisor)
            result = _finish(importer, node, spread, tirx.sqrt if std else lambda e: e)
        return [result, _finish(importer, node, middle, _defined(x, dims), k=1)] if with_mean else result

    return convert


def _defined(x: Any, dims: Sequence[int]) -> Callable[[Any], Any]:
    """A mean as PyTorch gives it beside a variance: of more than one number it is NaN where it would be infinite."""

    def f(middle: Any) -> Any:
        dtype = str(middle.ty)
        infinite = tirx.EQ(tirx.abs(middle), constant(math.inf, dtype))
        return tirx.Select(infinite, constant(math.nan, dtype), middle)

    return f if math.prod(shape_of(x)[j] for j in dims) > 1 else lambda middle: middle


def _deviation(importer: Any, x: Any, dims: Sequence[int], middle: Any, correction: float) -> Any:
    """√variance in float32. Squares overflow where the root does not, so what is squared is first divided by a power of 2 near
    the largest."""
    float32 = "float32"
    shape = shape_of(x)

    def difference(load: Any, m: Any, *at: Any) -> Any:
        return to(load(*at), float32) - m(*[i for j, i in enumerate(at) if j not in dims])

    apart = compute(importer, shape, float32, difference, x, middle, name="apart")
    largest = extreme(importer, apart, dims, True, tirx.abs)

    def exponent(top: Any) -> Any:
        bits = tirx.shift_right(tirx.reinterpret("int32", top), tirx.const(23, "int32"))
        return tirx.max(tirx.min(bits, tirx.const(253, "int32")), tirx.const(1, "int32"))

    def power_of_2(biased: Any) -> Any:
        return tirx.reinterpret(float32, tirx.shift_left(biased, tirx.const(23, "int32")))

    kept, both = shape_of(largest), tirx.const(254, "int32")
    shrink = broadcast(importer, kept, float32, lambda e: power_of_2(both - exponent(e)), largest)
    grow = broadcast(importer, kept, float32, lambda e: power_of_2(exponent(e)), largest)
    total = along(importer, apart, dims, float32, lambda e, s: (e * s) * (e * s), te.sum, shrink)
    spread = _over(importer, total, math.prod(shape[j] for j in dims) - correction, float32)
    return broadcast(importer, kept, float32, lambda e, g: tirx.sqrt(e) * g, spread, grow)


def _prims_var(importer: Any, node: Any) -> Any:
    """`prims.var`, in which torch writes some of its own; an `aten.var.default` is decomposed."""
    if not str(node.target).startswith("prims."):
        raise ValueError("written with var.correction")
    x, dims = (read(importer, node, k, n) for k, n in ((0, "inp"), (1, "dims")))
    correction = read(importer, node, 2, "correction", 1)
    axes = _dims(dims, len(shape_of(x)))
    dtype = wide(output(node).dtype)
    return _finish(importer, node, variance(importer, x, axes, dtype, mean(importer, x, axes, dtype, True), correction))


def _layer_norm(importer: Any, node: Any) -> Any:
    """(x - mean) / √(variance + eps) · weight + bias over the last dimensions; `native_layer_norm` also gives mean and 1/√."""
    x, normalized, weight, bias, eps = (
        read(importer, node, k, n) for k, n in enumerate(("input", "normalized_shape", "weight", "bias", "eps"))
    )
    spec = output(node)
    rank = len(spec.shape)
    dims = list(range(rank - len(normalized), rank))
    dtype = wide(spec.dtype)
    middle = mean(importer, x, dims, dtype, whole=True)
    scale = _inverse_deviation(importer, variance(importer, x, dims, dtype, middle), 1e-5 if eps is None else eps, dtype)
    y = _normalised(importer, spec, dtype, x, middle, scale, rank - len(normalized), weight, bias, len(normalized))
    if node.target.__name__ == "layer_norm.default":
        return y
    return [y, _finish(importer, node, middle, _defined(x, dims), k=1), _finish(importer, node, scale, k=2)]


def _inverse_deviation(importer: Any, spread: Any, eps: float, dtype: str) -> Any:
    return broadcast(importer, shape_of(spread), dtype, lambda e: tirx.rsqrt(e + constant(eps, dtype)), spread)


def _normalised(
    importer: Any, spec: Any, dtype: str, x: Any, middle: Any, scale: Any, outer: int, weight: Any, bias: Any, inner: int
) -> Any:
    factors = [t for t in (weight, bias) if t is not None]

    def element(load: Any, m: Any, s: Any, *rest: Any) -> Any:
        at = rest[len(factors) :]
        loads = list(rest[: len(factors)])
        value = (to(load(*at), dtype) - m(*at[:outer])) * s(*at[:outer])
        last = at[len(at) - inner :]
        if weight is not None:
            value = value * to(loads.pop(0)(*last), dtype)
        return value + to(loads.pop(0)(*last), dtype) if bias is not None else value

    return compute(importer, spec.shape, spec.dtype, element, x, middle, scale, *factors, name="normalised")


def _rms_norm(importer: Any, node: Any) -> Any:
    """x / √(mean x² + eps) · weight over the last dimensions (arXiv:1910.07467)."""
    names = ("input", "normalized_shape", "weight", "eps")
    x, normalized, weight, eps = (read(importer, node, k, n) for k, n in enumerate(names))
    spec = output(node)
    dtype = wide(spec.dtype)
    outer = len(spec.shape) - len(normalized)
    dims = list(range(outer, len(spec.shape)))
    count = math.prod(spec.shape[outer:])
    total = along(importer, x, dims, dtype, lambda e: to(e, dtype) * to(e, dtype), te.sum)
    floor = rms_norm_eps(spec.dtype) if eps is None else eps
    scale = broadcast(
        importer, shape_of(total), dtype, lambda e: tirx.rsqrt(e * constant(1 / count, dtype) + constant(floor, dtype)), total
    )

    def element(load: Any, s: Any, *rest: Any) -> Any:
        loads, at = rest[: len(rest) - len(spec.shape)], rest[len(rest) - len(spec.shape) :]
        value = to(load(*at), dtype) * s(*at[:outer])
        return value * to(loads[0](*at[outer:]), dtype) if loads else value

    y = compute(importer, spec.shape, spec.dtype, element, x, scale, *([] if weight is None else [weight]), name="normalised")
    return y if node.target.__name__ == "rms_norm.default" else [y, _finish(importer, node, scale, k=1)]


def _group_norm(importer: Any, node: Any) -> Any:
    """Layer normalisation over groups of channels: x [N, C, …] as [N, groups, C / groups · …]."""
    native = node.target.__name__.startswith("native")
    x = read(importer, node, 0, "input")
    if native:
        weight, bias, groups, eps = (read(importer, node, k, "") for k in (1, 2, 6, 7))
    else:
        groups, weight, bias = (read(importer, node, k, n) for k, n in ((1, "num_groups"), (2, "weight"), (3, "bias")))
        eps = read(importer, node, 4, "eps", 1e-5)
    spec = output(node)
    dtype = wide(spec.dtype)
    n, channels, *rest = spec.shape
    size = channels // groups
    flat = reshape(importer, x, (n, groups, size * math.prod(rest)))
    middle = mean(importer, flat, [2], dtype, whole=True)
    scale = _inverse_deviation(importer, variance(importer, flat, [2], dtype, middle), eps, dtype)
    factors = [t for t in (weight, bias) if t is not None]

    def element(load: Any, m: Any, s: Any, *others: Any) -> Any:
        at = others[len(factors) :]
        loads = list(others[: len(factors)])
        group = [at[0], tirx.floordiv(at[1], tirx.const(size, "int64"))]
        value = (to(load(*at), dtype) - m(*group)) * s(*group)
        if weight is not None:
            value = value * to(loads.pop(0)(at[1]), dtype)
        return value + to(loads.pop(0)(at[1]), dtype) if bias is not None else value

    y = compute(importer, spec.shape, spec.dtype, element, x, middle, scale, *factors, name="normalised")
    return [y, _finish(importer, node, middle, _defined(flat, [2]), k=1), _finish(importer, node, scale, k=2)] if native else y


def _batch_norm(importer: Any, node: Any) -> Any:
    """(x - mean) / √(variance + eps) · weight + bias a channel, by the running mean and variance."""
    names = ("input", "weight", "bias", "running_mean", "running_var")
    x, *channelwise = (read(importer, node, k, name) for k, name in enumerate(names))
    whole = node.target.__name__ == "batch_norm.default"
    if whole and read(importer, node, 5, "training"):
        raise ValueError("batch normalisation by the batch's own statistics")
    eps = read(importer, node, 7 if whole else 6, "eps")
    spec = output(node)
    dtype, rank = wide(spec.dtype), len(spec.shape)
    weight, bias, middle, spread = (
        None if t is None else reshape(importer, t, (shape_of(t)[0], *[1] * (rank - 2))) for t in channelwise
    )

    def element(e: Any, m: Any, v: Any, *rest: Any) -> Any:
        factors = list(rest)
        value = (to(e, dtype) - to(m, dtype)) * tirx.rsqrt(to(v, dtype) + constant(eps, dtype))
        if weight is not None:
            value = value * to(factors.pop(0), dtype)
        return value + to(factors.pop(0), dtype) if bias is not None else value

    y = broadcast(importer, spec.shape, spec.dtype, element, x, middle, spread, *[t for t in (weight, bias) if t is not None])
    return y if whole else [y, None, None]


def _vector_norm(importer: Any, node: Any) -> Any:
    """(Σ |x|^order)^(1/order); the largest and smallest |x| for ±inf, the number of non-zeros for 0."""
    x, order = read(importer, node, 0, "self"), read(importer, node, 1, "ord", 2)
    dims = _dims(read(importer, node, 2, "dim"), len(shape_of(x)))
    dtype = wide(output(node).dtype)
    if math.isinf(order):
        top = extreme(importer, x, dims, order > 0, lambda e: tirx.abs(to(e, dtype)), dtype)
        return _finish(importer, node, top)

    def power_of(e: Any) -> Any:
        if order == 0:
            return to(is_true(e), dtype)
        return tirx.abs(to(e, dtype)) if single else power(tirx.abs(to(e, dtype)), order, dtype)

    # The norm of a single number is its magnitude, also where its power overflows.
    single = order != 0 and math.prod(shape_of(x)[j] for j in dims) == 1
    total = along(importer, x, dims, dtype, power_of, te.sum)
    return _finish(importer, node, total, lambda e: e if single or order in (0, 1) else power(e, 1 / order, dtype))


def _cdist(importer: Any, node: Any) -> Any:
    """The distance of each row of one matrix from each of another's: (Σ |a - b|^p)^(1/p)."""
    a, b, order = (read(importer, node, k, n, 2.0) for k, n in enumerate(("x1", "x2", "p")))
    spec = output(node)
    dtype, size = wide(spec.dtype), shape_of(a)[-1]
    batch = len(spec.shape) - 2

    def apart(load: Any, load_b: Any, at: Any, k: Any) -> Any:
        one = to(load(*project(at[:batch], shape_of(a)[:-2]), at[batch], *k), dtype)
        two = to(load_b(*project(at[:batch], shape_of(b)[:-2]), at[batch + 1], *k), dtype)
        return tirx.abs(one - two)

    if math.isinf(order):
        top = reduce(
            importer, spec.shape, "int32", [size], lambda *x: key_of(apart(*x)), a, b, combine=te.max, name="distance"
        )
        return broadcast(importer, spec.shape, spec.dtype, lambda e: of_key(e, dtype), top)

    def power_of(*x: Any) -> Any:
        return to(is_true(apart(*x)), dtype) if order == 0 else power(apart(*x), order, dtype)

    total = reduce(importer, spec.shape, dtype, [size], power_of, a, b, name="distance")
    return broadcast(importer, spec.shape, spec.dtype, lambda e: e if order in (0, 1) else power(e, 1 / order, dtype), total)


def extreme(
    importer: Any, x: Any, dims: Sequence[int], largest: bool, f: Callable[[Any], Any] = lambda e: e, dtype: str | None = None,
) -> Any:
    """The largest or smallest of `f(x)` over `dims`, which are gone from the result; NaN if there is one. `dtype` is that of
    what `f` gives, x's own without."""
    kind = dtype_of(x) if dtype is None else dtype
    combine = te.max if largest else te.min
    top = along(importer, x, dims, key_dtype(kind), lambda e: key_of(f(e), largest), combine)
    return broadcast(importer, shape_of(top), kind, lambda e: of_key(e, kind), top)


def _extreme(largest: bool, dim_at: int | None) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        dims = _dims(None if dim_at is None else read(importer, node, dim_at, "dim"), len(shape_of(x)))
        return _finish(importer, node, extreme(importer, x, dims, largest))

    return convert


def _prod(dim_at: int | None) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        dims = _dims(None if dim_at is None else read(importer, node, dim_at, "dim"), len(shape_of(x)))
        dtype = wide(output(node).dtype)
        return _finish(importer, node, along(importer, x, dims, dtype, lambda e: to(e, dtype), product))

    return convert


product = te.comm_reducer(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype), name="product")


def _truth(e: Any, dtype: str) -> Any:
    return to(is_true(e), dtype)


def _int32(dtype: str) -> str:
    return "int32"


_sum = (wide, lambda e, dtype: to(e, dtype), te.sum)

REDUCTION: dict[str, Convert] = {
    "sum.default": _reduction(None, *_sum),
    "sum.dim_IntList": _reduction(1, *_sum),
    "amax.default": _extreme(largest=True, dim_at=1),
    "amin.default": _extreme(largest=False, dim_at=1),
    "max.default": _extreme(largest=True, dim_at=None),
    "min.default": _extreme(largest=False, dim_at=None),
    "prod.default": _prod(None),
    "prod.dim_int": _prod(1),
    **{f"any.{kind}": _reduction(at, _int32, _truth, te.max) for kind, at in (("default", None), ("dim", 1), ("dims", 1))},
    **{f"all.{kind}": _reduction(at, _int32, _truth, te.min) for kind, at in (("default", None), ("dim", 1), ("dims", 1))},
    "mean.default": _mean,
    "mean.dim": _mean,
    "var.correction": _var(std=False, with_mean=False),
    "std.correction": _var(std=True, with_mean=False),
    "var_mean.correction": _var(std=False, with_mean=True),
    "std_mean.correction": _var(std=True, with_mean=True),
    "layer_norm.default": _layer_norm,
    "native_layer_norm.default": _layer_norm,
    "rms_norm.default": _rms_norm,
    "_fused_rms_norm.default": _rms_norm,
    "group_norm.default": _group_norm,
    "native_group_norm.default": _group_norm,
    "batch_norm.default": _batch_norm,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "linalg_vector_norm.default": _vector_norm,
    "cdist.default": _cdist,
    "_cdist_forward.default": _cdist,
    "var.default": _prims_var,
}

