"""Resizing over one, two or three dimensions, as PyTorch's kernels for processors do it, a dimension at a time.

Element `o` of the result takes a few elements of the input, each with a weight: one (nearest), two (linear), four (cubic), or
with antialiasing as many as its window covers. Where it looks follows from a scale in float32: 1 over the factor where one is
given, the ratio of the sizes where not, that of the distances between first and last element where corners are aligned. As in
PyTorch's kernels, a dimension whose size stays is left alone, whatever factor is given, but for cubic and nearest-exact resizing
and for nearest in one and three dimensions; and nearest in two dimensions halves the index where the size doubles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from tapml.compile.node_arguments import Refusal, output, read
from tapml.compile.tensor_expressions import broadcast, compute, constant, dtype_of, is_float, long, reduce, shape_of, to, wide

Convert = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class _Taps:
    """`place(o, k)` is the index of tap k of `count` in the input, `weight(o, k)` its share of 1. Where there is `inside(o, k)`,
    only the taps for which it holds are taken, and the share is of the sum of their weights."""

    count: int
    place: Callable[[Any, Any], Any]
    weight: Callable[[Any, Any], Any]
    inside: Callable[[Any, Any], Any] | None = None


def _number(value: float) -> Any:
    return constant(float(np.float32(value)), "float32")


def _scale(size: int, wanted: int, corners: bool, factor: float | None) -> float:
    if corners:
        return float(np.float32(size - 1) / np.float32(wanted - 1)) if wanted > 1 else 0.0
    return float(np.float32(1 / factor) if factor else np.float32(size) / np.float32(wanted))


def _source(o: Any, scale: float, corners: bool) -> Any:
    """Where between the input's elements an element of the result is."""
    position = tirx.Cast("float32", o)
    if corners:
        return position * _number(scale)
    return (position + _number(0.5)) * _number(scale) - _number(0.5)


def _nearest(rank: int, exact: bool) -> Convert:
    shortcuts = rank == 2 and not exact

    def index(o: Any, size: int, wanted: int, scale: float) -> Any:
        if shortcuts and wanted == size:
            return o
        if shortcuts and wanted == 2 * size:
            return tirx.floordiv(o, long(2))
        position = tirx.Cast("float32", o) + _number(0.5) if exact else tirx.Cast("float32", o)
        return tirx.min(tirx.Cast("int64", tirx.floor(position * _number(scale))), long(size - 1))

    def convert(importer: Any, node: Any) -> Any:
        x, spec = read(importer, node, 0, "input"), output(node)
        sizes, outputs = shape_of(x)[-rank:], spec.shape[-rank:]
        factors = _factors(importer, node, rank, 2)
        scales = [_scale(n, m, False, f) for n, m, f in zip(sizes, outputs, factors, strict=True)]

        def element(load: Any, *at: Any) -> Any:
            return load(*at[:-rank], *map(index, at[-rank:], sizes, outputs, scales))

        return compute(importer, spec.shape, dtype_of(x), element, x, name="nearest")

    return convert


def _factors(importer: Any, node: Any, rank: int, at: int) -> list[float | None]:
    """The factors that are given, from argument `at` on: one list in the form that computes the sizes from them."""
    if node.target.__name__.endswith("vec"):
        return read(importer, node, at, "scale_factors") or [None] * rank
    names = ("scales",) if rank == 1 else ("scales_d", "scales_h", "scales_w")[-rank:]
    return [read(importer, node, at + k, name) for k, name in enumerate(names)]


def _linear(size: int, wanted: int, corners: bool, factor: float | None) -> _Taps:
    scale = _scale(size, wanted, corners, factor)

    def first(o: Any) -> tuple[Any, Any]:
        if size == wanted:
            return o, _number(0)
        position = tirx.max(_source(o, scale, corners), _number(0))
        index = tirx.min(tirx.Cast("int64", position), long(size - 1))
        return index, tirx.max(tirx.min(position - tirx.Cast("float32", index), _number(1)), _number(0))

    def place(o: Any, k: Any) -> Any:
        return o if size == wanted else tirx.min(first(o)[0] + k, long(size - 1))

    def weight(o: Any, k: Any) -> Any:
        return tirx.Select(tirx.EQ(k, long(0)), _number(1) - first(o)[1], first(o)[1])

    return _Taps(2, place, weight)


def _cubic(size: int, wanted: int, corners: bool, factor: float | None) -> _Taps:
    scale = _scale(size, wanted, corners, factor)

    def first(o: Any) -> tuple[Any, Any]:
        position = _source(o, scale, corners)
        index = tirx.min(tirx.Cast("int64", tirx.floor(position)), long(size - 1))
        return index, tirx.max(tirx.min(position - tirx.Cast("float32", index), _number(1)), _number(0))

    def place(o: Any, k: Any) -> Any:
        return tirx.max(tirx.min(first(o)[0] + k - long(1), long(size - 1)), long(0))

    def weight(o: Any, k: Any) -> Any:
        return keys_spline(tirx.abs(first(o)[1] + _number(1) - tirx.Cast("float32", k)), -0.75)

    return _Taps(4, place, weight)


def keys_spline(x: Any, a: float) -> Any:
    """The cubic convolution of Keys, at the distance x, which is not negative."""
    near = ((_number(a + 2) * x - _number(a + 3)) * x) * x + _number(1)
    far = ((x * _number(a) - _number(5 * a)) * x + _number(8 * a)) * x - _number(4 * a)
    return tirx.Select(x <= _number(1), near, tirx.Select(x < _number(2), far, _number(0)))


def _triangle(x: Any) -> Any:
    return tirx.max(_number(1) - x, _number(0))


def _antialiased(reach: int, shape: Callable[[Any], Any]) -> Callable[..., _Taps]:
    """`shape` is the weight at a distance, zero from `reach` / 2 on; it is stretched where the image shrinks."""

    def taps(size: int, wanted: int, corners: bool, factor: float | None) -> _Taps:
        scale = _scale(size, wanted, corners, factor)
        support = float(np.float32(reach / 2) * np.float32(max(scale, 1.0)))
        count = 2 * math.ceil(support) + 1

        def window(o: Any) -> tuple[Any, Any, Any]:
            middle = (tirx.Cast("float32", o) + _number(0.5)) * _number(scale)
            begin = tirx.max(tirx.Cast("int64", middle - _number(support) + _number(0.5)), long(0))
            end = tirx.min(tirx.Cast("int64", middle + _number(support) + _number(0.5)), long(size))
            return middle, begin, end

        def place(o: Any, k: Any) -> Any:
            return tirx.min(window(o)[1] + k, long(size - 1))

        def weight(o: Any, k: Any) -> Any:
            middle, begin, _ = window(o)
            distance = tirx.abs(tirx.Cast("float32", begin + k) - middle + _number(0.5)) * _number(1 / max(scale, 1.0))
            return shape(distance)

        def inside(o: Any, k: Any) -> Any:
            _, begin, end = window(o)
            return begin + k < end

        return _Taps(min(count, size), place, weight, inside)

    return taps


def _along(importer: Any, x: Any, dim: int, wanted: int, taps: _Taps) -> Any:
    """x with `wanted` elements along `dim`."""
    shape, dtype = shape_of(x), wide(dtype_of(x))
    shorter = (*shape[:dim], wanted, *shape[dim + 1 :])
    inside, totals = taps.inside, []
    if inside is not None:
        def part(at: Any, k: Any) -> Any:
            return tirx.Select(inside(at[0], k[0]), taps.weight(at[0], k[0]), _number(0))

        totals = [reduce(importer, (wanted,), "float32", [taps.count], part, name="weights")]

    def share(load: Any, *rest: Any) -> Any:
        *others, at, k = rest
        weight = taps.weight(at[dim], k[0])
        if others:
            weight = weight / others[0](at[dim])
        value = to(load(*at[:dim], taps.place(at[dim], k[0]), *at[dim + 1 :]), dtype) * to(weight, dtype)
        return value if inside is None else tirx.Select(inside(at[dim], k[0]), value, constant(0, dtype))

    return reduce(importer, shorter, dtype, [taps.count], share, x, *totals, name="resized")


def _separable(rank: int, taps: Callable[..., _Taps], antialiased: bool = False) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x, spec = read(importer, node, 0, "input"), output(node)
        if not is_float(spec.dtype):
            raise Refusal(f"PyTorch resizes {spec.dtype} in integers of its own; resize in floating point, or to the nearest")
        outer = len(spec.shape) - rank
        corners = bool(read(importer, node, 2, "align_corners"))
        factors = _factors(importer, node, rank, 3)
        for k in reversed(range(rank)):
            size, wanted = shape_of(x)[outer + k], spec.shape[outer + k]
            if size == wanted and antialiased:
                continue
            x = _along(importer, x, outer + k, wanted, taps(size, wanted, corners, factors[k]))
        return broadcast(importer, spec.shape, spec.dtype, lambda e: e, x)

    return convert


RESIZING: dict[str, Convert] = {
    f"{name}{rank}d.{kind}": convert
    for kind in ("default", "vec")
    for name, rank, convert in (
        *[("upsample_nearest", rank, _nearest(rank, exact=False)) for rank in (1, 2, 3)],
        *[("_upsample_nearest_exact", rank, _nearest(rank, exact=True)) for rank in (1, 2, 3)],
        ("upsample_linear", 1, _separable(1, _linear)),
        ("upsample_bilinear", 2, _separable(2, _linear)),
        ("upsample_trilinear", 3, _separable(3, _linear)),
        ("upsample_bicubic", 2, _separable(2, _cubic)),
    )
} | {
    f"_upsample_{name}2d_aa.{kind}": _separable(2, _antialiased(reach, shape), antialiased=True)
    for kind in ("default", "vec")
    for name, reach, shape in (("bilinear", 2, _triangle), ("bicubic", 4, lambda x: keys_spline(x, -0.5)))
}
