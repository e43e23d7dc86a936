"""Pooling over one, two or three dimensions: the largest or the mean of the elements in a window, which may reach over the edge.

A window of `max_pool` holds only what is inside the input, one of `avg_pool` zeros outside. An adaptive window of output `o` goes
from ⌊o·n/m⌋ to ⌈(o+1)·n/m⌉.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from tapml.compile.node_arguments import output, read
from tapml.compile.tensor_expressions import (
    broadcast,
    compute,
    constant,
    dtype_of,
    is_float,
    key_dtype,
    key_of,
    key_of_nan,
    long,
    of_key,
    reduce,
    shape_of,
    to,
    wide,
)

Convert = Callable[[Any, Any], Any]


def _each(value: Any, rank: int, default: Any = None) -> list[int]:
    """One number a dimension, from a list, a list of one, a number or nothing."""
    if value is None or value == []:
        value = default
    found = list(value) if isinstance(value, list | tuple) else [value]
    return found * rank if len(found) == 1 else found


@dataclass(frozen=True)
class _Windows:
    """`extent` is the longest window a dimension; `place(at, k)` the element k of the window at `at`, and whether it is inside of
    the input."""

    sizes: tuple[int, ...]
    extent: list[int]
    place: Callable[[Sequence[Any], Sequence[Any]], tuple[list[Any], Any]]


def _sliding(sizes: tuple[int, ...], kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> _Windows:
    def place(at: Sequence[Any], k: Sequence[Any]) -> tuple[list[Any], Any]:
        found = [i * long(s) - long(p) + j * long(d) for i, j, s, p, d in zip(at, k, stride, padding, dilation, strict=True)]
        inside = [tirx.And(f >= long(0), f < long(n)) for f, n in zip(found, sizes, strict=True)]
        return [tirx.max(tirx.min(f, long(n - 1)), long(0)) for f, n in zip(found, sizes, strict=True)], tirx.all(*inside)

    return _Windows(sizes, kernel, place)


def _ends(n: int, m: int, o: Any) -> tuple[Any, Any]:
    """Where the window of the o-th of m results begins and ends among n elements."""
    return tirx.floordiv(o * long(n), long(m)), tirx.floordiv((o + long(1)) * long(n) + long(m - 1), long(m))


def _adaptive(sizes: tuple[int, ...], outputs: Sequence[int]) -> _Windows:
    def place(at: Sequence[Any], k: Sequence[Any]) -> tuple[list[Any], Any]:
        spans = [_ends(n, m, o) for n, m, o in zip(sizes, outputs, at, strict=True)]
        found = [tirx.min(first + j, long(n - 1)) for (first, _), j, n in zip(spans, k, sizes, strict=True)]
        return found, tirx.all(*[first + j < last for (first, last), j in zip(spans, k, strict=True)])

    extent = [max(-(-(o + 1) * n // m) - o * n // m for o in range(m)) for n, m in zip(sizes, outputs, strict=True)]
    return _Windows(sizes, extent, place)


def _largest(importer: Any, node: Any, x: Any, windows: _Windows, with_indices: bool) -> Any:
    """The largest element of each window, and its place in the input's last dimensions counted in one number."""
    shape, rank = output(node).shape, len(windows.sizes)
    dtype = dtype_of(x)
    kind = key_dtype(dtype)
    lowest = tirx.min_value(kind)
    outer = len(shape) - rank

    def key(load: Any, at: Any, k: Any) -> Any:
        place, inside = windows.place(at[outer:], k)
        return tirx.Select(inside, key_of(load(*at[:outer], *place)), lowest)

    top = reduce(importer, shape, kind, windows.extent, key, x, combine=te.max, name="largest")
    value = broadcast(importer, shape, dtype, lambda e: of_key(e, dtype), top)
    if not with_indices:
        return value
    total = math.prod(windows.sizes)

    def candidate(load: Any, t: Any, at: Any, k: Any) -> Any:
        place, inside = windows.place(at[outer:], k)
        flat = long(0)
        for i, n in zip(place, windows.sizes, strict=True):
            flat = flat * long(n) + i
        mine = tirx.And(inside, tirx.EQ(key_of(load(*at[:outer], *place)), t(*at)))
        return tirx.Select(mine, turned(flat, t(*at)), long(total - 1))

    def turned(flat: Any, key: Any) -> Any:
        """Of equal elements the first is meant, of several NaN the last."""
        if not is_float(dtype):
            return flat
        return tirx.Select(tirx.EQ(key, key_of_nan(dtype)), long(total - 1) - flat, flat)

    where = reduce(importer, shape, "int64", windows.extent, candidate, x, top, combine=te.min, name="where_largest")
    return [value, broadcast(importer, shape, "int64", turned, where, top)]


def _max_pool(rank: int, with_indices: bool) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        kernel = _each(read(importer, node, 1, "kernel_size"), rank)
        stride = _each(read(importer, node, 2, "stride"), rank, kernel)
        padding, dilation = (_each(read(importer, node, k, n, d), rank, d) for k, n, d in ((3, "padding", 0), (4, "dilation", 1)))
        windows = _sliding(shape_of(x)[-rank:], kernel, stride, padding, dilation)
        return _largest(importer, node, x, windows, with_indices)

    return convert


def _adaptive_max_pool(rank: int) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        return _largest(importer, node, x, _adaptive(shape_of(x)[-rank:], output(node).shape[-rank:]), with_indices=True)

    return convert


def _mean(importer: Any, node: Any, x: Any, windows: _Windows, count: Callable[[Sequence[Any]], Any]) -> Any:
    """The sum of each window over `count(at)`, in the wide form of the dtype."""
    spec = output(node)
    dtype, outer = wide(spec.dtype), len(spec.shape) - len(windows.sizes)

    def element(load: Any, at: Any, k: Any) -> Any:
        place, inside = windows.place(at[outer:], k)
        return tirx.Select(inside, to(load(*at[:outer], *place), dtype), constant(0, dtype))

    total = reduce(importer, spec.shape, dtype, windows.extent, element, x, name="window_sum")
    return compute(importer, spec.shape, spec.dtype, lambda load, *at: load(*at) / to(count(at[outer:]), dtype), total)


def _avg_pool(rank: int) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        kernel = _each(read(importer, node, 1, "kernel_size"), rank)
        stride = _each(read(importer, node, 2, "stride"), rank, kernel)
        padding = _each(read(importer, node, 3, "padding", 0), rank, 0)
        with_padding = read(importer, node, 5, "count_include_pad", True)
        divisor = read(importer, node, 6, "divisor_override")
        sizes = shape_of(x)[-rank:]

        def count(at: Sequence[Any]) -> Any:
            if divisor is not None:
                return long(divisor)
            product = long(1)
            for i, n, k, s, p in zip(at, sizes, kernel, stride, padding, strict=True):
                first = i * long(s) - long(p)
                last = tirx.min(first + long(k), long(n + p))
                inside = tirx.min(last, long(n)) - tirx.max(first, long(0))
                product = product * (last - first if with_padding else inside)
            return product

        return _mean(importer, node, x, _sliding(sizes, kernel, stride, padding, [1] * rank), count)

    return convert


def _adaptive_avg_pool(rank: int) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        sizes, outputs = shape_of(x)[-rank:], output(node).shape[-rank:]

        def count(at: Sequence[Any]) -> Any:
            product = long(1)
            for o, n, m in zip(at, sizes, outputs, strict=True):
                first, last = _ends(n, m, o)
                product = product * (last - first)
            return product

        return _mean(importer, node, x, _adaptive(sizes, outputs), count)

    return convert


POOLING: dict[str, Convert] = {
    **{f"max_pool{r}d.default": _max_pool(r, with_indices=False) for r in (1, 2, 3)},
    **{f"max_pool{r}d_with_indices.default": _max_pool(r, with_indices=True) for r in (1, 2, 3)},
    **{f"adaptive_max_pool{r}d.default": _adaptive_max_pool(r) for r in (1, 2, 3)},
    **{f"avg_pool{r}d.default": _avg_pool(r) for r in (1, 2, 3)},
    **{f"{u}adaptive_avg_pool{r}d.default": _adaptive_avg_pool(r) for r in (1, 2, 3) for u in ("", "_")},
}
