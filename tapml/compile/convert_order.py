"""Operators that order elements, or find them in an order: arguments of extremes, sorting, order statistics, searches, running
extremes.

All compare keys (`tensor_expressions.key_of`), by which NaN is larger than anything and equal to itself. How elements are put in
order is in `convert_sorting.py`. Of equal elements the first comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tapml.compile.convert_scan import scan
from tapml.compile.convert_sorting import counted, in_order
from tapml.compile.node_arguments import axis, output, read
from tapml.compile.tensor_expressions import (
    broadcast,
    compute,
    dtype_of,
    is_float,
    key_dtype,
    key_of,
    key_of_nan,
    long,
    of_key,
    reduce,
    reshape,
    shape_of,
    to,
)

Convert = Callable[[Any, Any], Any]


def _keys(importer: Any, x: Any, largest: bool = True) -> Any:
    return broadcast(importer, shape_of(x), key_dtype(dtype_of(x)), lambda e: key_of(e, largest), x)


def _finish(importer: Any, node: Any, value: Any, k: int = 0) -> Any:
    """A tensor in the recorded shape (dimensions of 1 put back) and dtype."""
    spec = output(node, k)
    shape = shape_of(value)
    done = broadcast(importer, shape, spec.dtype, lambda e: e, value)
    return done if shape == spec.shape else reshape(importer, done, spec.shape)


def _ordered(importer: Any, x: Any, dim: int, first: int, count: int, largest: bool) -> list[Any]:
    """`count` elements along `dim` from the one of rank `first` on, and their indices, with `dim` kept."""
    shape = shape_of(x)
    others = [n for j, n in enumerate(shape) if j != dim]
    dtype = key_dtype(dtype_of(x))

    def key(load: Any, *at: Any) -> Any:
        found = key_of(load(*at[:dim], *at[-1:], *at[dim:-1]) if shape else load())
        return (tirx.bitwise_not(found) if dtype != "float64" else -found) if largest else found

    keys = compute(importer, (*others, shape[dim] if shape else 1), dtype, key, x, name="keys")
    rows = reshape(importer, keys, (math.prod(others), shape_of(keys)[-1]))
    places = in_order(importer, rows, first + count)
    places = reshape(importer, places, (*others, first + count))

    def index(load: Any, *at: Any) -> Any:
        return load(*at[:dim], *at[dim + 1 :], at[dim] + long(first)) if shape else load(long(0))

    short = (*shape[:dim], count, *shape[dim + 1 :]) if shape else ()
    indices = compute(importer, short, "int64", index, places, name="indices")
    return [_taken(importer, x, dim, indices), indices]


def _taken(importer: Any, x: Any, dim: int, indices: Any) -> Any:
    def element(load: Any, where: Any, *at: Any) -> Any:
        return load(*[where(*at) if j == dim else i for j, i in enumerate(at)])

    return compute(importer, shape_of(indices), dtype_of(x), element, x, indices, name="ordered")


def _topk(importer: Any, node: Any) -> Any:
    x, count, dim, largest = (read(importer, node, k, n, d) for k, (n, d) in enumerate(
        (("self", None), ("k", None), ("dim", -1), ("largest", True))))
    return _ordered(importer, x, axis(dim, len(shape_of(x))), 0, count, largest)


def _sort(importer: Any, node: Any) -> Any:
    x = read(importer, node, 0, "self")
    shift = 1 if node.target.__name__ == "sort.stable" else 0
    dim = read(importer, node, 1, "dim", -1) if not shift else node.kwargs.get("dim", -1)
    descending = read(importer, node, 2, "descending", False) if not shift else node.kwargs.get("descending", False)
    dim = axis(dim, len(shape_of(x)))
    both = _ordered(importer, x, dim, 0, shape_of(x)[dim] if shape_of(x) else 1, bool(descending))
    return both[1] if node.target.__name__.startswith("argsort") else both


def _kthvalue(importer: Any, node: Any) -> Any:
    x, k, dim = (read(importer, node, p, n, d) for p, (n, d) in enumerate((("self", None), ("k", None), ("dim", -1))))
    value, index = _ordered(importer, x, axis(dim, len(shape_of(x))), k - 1, 1, False)
    return [_finish(importer, node, value), _finish(importer, node, index, 1)]


def _median(importer: Any, node: Any) -> Any:
    """The lower of the two in the middle; NaN where there is one. Over all elements without a dimension, and then no index."""
    x, dim = read(importer, node, 0, "self"), read(importer, node, 1, "dim")
    whole = dim is None
    if whole:
        x, dim = reshape(importer, x, (math.prod(shape_of(x)),)), 0
    dim = axis(dim, len(shape_of(x)))
    shape = shape_of(x)
    keys = _keys(importer, x)
    nan = key_of_nan(dtype_of(x))
    kept = tuple(1 if j == dim else n for j, n in enumerate(shape))
    index = _ordered(importer, x, dim, (shape[dim] - 1) // 2, 1, False)[1]
    if is_float(dtype_of(x)):
        def first_nan(load: Any, at: Any, k: Any) -> Any:
            full = [k[0] if j == dim else i for j, i in enumerate(at)]
            return tirx.Select(tirx.EQ(load(*full), nan), k[0], long(shape[dim]))

        where = reduce(importer, kept, "int64", [shape[dim]], first_nan, keys, combine=te.min, name="first_nan")
        index = broadcast(importer, kept, "int64", lambda w, i: tirx.Select(w < long(shape[dim]), w, i), where, index)
    value = _finish(importer, node, _taken(importer, x, dim, index))
    return value if whole else [value, _finish(importer, node, index, 1)]


def _nanmedian(importer: Any, node: Any) -> Any:
    """The median of what is no NaN; NaN where there is nothing else."""
    x, dim = read(importer, node, 0, "self"), read(importer, node, 1, "dim")
    whole = dim is None
    if whole or not shape_of(x):
        x, dim = reshape(importer, x, (math.prod(shape_of(x)),)), 0
    dim = axis(dim, len(shape_of(x)))
    shape = shape_of(x)
    kept = tuple(1 if j == dim else n for j, n in enumerate(shape))
    nan = key_of_nan(dtype_of(x))
    order = _ordered(importer, x, dim, 0, shape[dim], False)[1]

    def number(load: Any, at: Any, k: Any) -> Any:
        here = load(*[k[0] if j == dim else i for j, i in enumerate(at)])
        return tirx.Select(tirx.EQ(here, nan), long(0), long(1)) if is_float(dtype_of(x)) else long(1)

    numbers = reduce(importer, kept, "int64", [shape[dim]], number, _keys(importer, x), name="numbers")

    def middle(load: Any, load_n: Any, *at: Any) -> Any:
        k = tirx.floordiv(tirx.max(load_n(*at) - long(1), long(0)), long(2))
        return load(*[k if j == dim else i for j, i in enumerate(at)])

    index = compute(importer, kept, "int64", middle, order, numbers, name="middle")
    value = _finish(importer, node, _taken(importer, x, dim, index))
    return value if whole else [value, _finish(importer, node, index, 1)]


def _mode(importer: Any, node: Any) -> Any:
    """The element that is there most often, the smallest of several, and where it last is. Each NaN is an element of its own."""
    x = read(importer, node, 0, "self")
    if not shape_of(x):
        x = reshape(importer, x, (1,))
    shape = shape_of(x)
    dim = axis(read(importer, node, 1, "dim", -1), len(shape))
    count = shape[dim]
    kept = tuple(1 if j == dim else n for j, n in enumerate(shape))
    nan = key_of_nan(dtype_of(x))
    values, order = _ordered(importer, x, dim, 0, count, False)
    keys = _keys(importer, values)

    def along(at: Any, k: Any) -> list[Any]:
        return [k if j == dim else i for j, i in enumerate(at)]

    def upto(load: Any, at: Any, j: Any) -> Any:
        return load(*along(at, tirx.min(j, long(count - 1)))) <= load(*at)

    def below(load: Any, at: Any, j: Any) -> Any:
        return load(*along(at, tirx.min(j, long(count - 1)))) < load(*at)

    last, first = (counted(importer, shape, count, holds, keys) for holds in (upto, below))

    def often(key: Any, end: Any, begin: Any) -> Any:
        equal = end - begin
        return tirx.Select(tirx.EQ(key, nan), tirx.const(1, "int32"), equal) if is_float(dtype_of(x)) else equal

    times = broadcast(importer, shape, "int32", often, keys, last, first)
    most = reduce(importer, kept, "int32", [count], lambda load, at, k: load(*along(at, k[0])), times, combine=te.max)

    def candidate(load: Any, load_m: Any, at: Any, k: Any) -> Any:
        return tirx.Select(tirx.EQ(load(*along(at, k[0])), load_m(*at)), k[0], long(count - 1))

    where = reduce(importer, kept, "int64", [count], candidate, times, most, combine=te.min, name="where_first")

    def index(load: Any, load_w: Any, load_t: Any, *at: Any) -> Any:
        begin = load_w(*at)
        return load(*along(at, begin + to(load_t(*along(at, begin)), "int64") - long(1)))

    chosen = compute(importer, kept, "int64", index, order, where, times, name="mode")
    return [_finish(importer, node, _taken(importer, x, dim, chosen)), _finish(importer, node, chosen, 1)]


def _extreme(largest: bool, indices_only: bool) -> Convert:
    """The largest or smallest element along a dimension and where it first is; over all elements without a dimension."""

    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        dim = read(importer, node, 1, "dim")
        if dim is None:
            x, dim = reshape(importer, x, (math.prod(shape_of(x)),)), 0
        dim = axis(dim, len(shape_of(x)))
        shape = shape_of(x)
        kept = tuple(n for j, n in enumerate(shape) if j != dim)
        kind = key_dtype(dtype_of(x))

        def key(load: Any, at: Any, k: Any) -> Any:
            return key_of(load(*at[:dim], k[0], *at[dim:]), largest)

        top = reduce(importer, kept, kind, [shape[dim]], key, x, combine=te.max if largest else te.min, name="extreme")

        def candidate(load: Any, t: Any, at: Any, k: Any) -> Any:
            return tirx.Select(tirx.EQ(key(load, at, k), t(*at)), k[0], long(shape[dim] - 1))

        where = reduce(importer, kept, "int64", [shape[dim]], candidate, x, top, combine=te.min, name="where_first")
        if indices_only:
            return _finish(importer, node, where)
        value = broadcast(importer, kept, dtype_of(x), lambda e: of_key(e, dtype_of(x)), top)
        return [_finish(importer, node, value), _finish(importer, node, where, 1)]

    return convert


def _running(largest: bool) -> Convert:
    """The largest or smallest element up to each one, and where it last is."""

    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        shape, kind = shape_of(x), key_dtype(dtype_of(x))
        if not shape:
            return [x, broadcast(importer, (), "int64", lambda e: long(0), x)]
        dim = axis(read(importer, node, 1, "dim"), len(shape))
        combine, join = (te.max, tirx.max) if largest else (te.min, tirx.min)
        none = (-1 if largest else 1) * (math.inf if kind == "float64" else 2 ** (63 if kind == "int64" else 31))
        keys = _keys(importer, x, largest)
        top = scan(importer, keys, dim, kind, combine, join, none if largest else none - 1)

        def candidate(load: Any, t: Any, *at: Any) -> Any:
            return tirx.Select(tirx.EQ(load(*at), t(*at)), at[dim], long(0))

        here = compute(importer, shape, "int64", candidate, keys, top, name="candidates")
        where = scan(importer, here, dim, "int64", te.max, tirx.max, 0)
        value = broadcast(importer, shape, dtype_of(x), lambda e: of_key(e, dtype_of(x)), top)
        return [value, where]

    return convert


def _search(importer: Any, x: Any, edges: Any, node: Any, right: bool) -> Any:
    """How many of the sorted `edges` (its last dimension; the others as x's, or none) are below x, or not above it."""
    one = len(shape_of(edges)) == 1

    def below(load: Any, load_e: Any, at: Any, j: Any) -> Any:
        k = tirx.min(j, long(shape_of(edges)[-1] - 1))
        mine, edge = key_of(load(*at)), key_of(load_e(k) if one else load_e(*at[:-1], k))
        return edge <= mine if right else edge < mine

    same = dtype_of(x) if key_dtype(dtype_of(x)) == key_dtype(dtype_of(edges)) else "float32"
    x, edges = (broadcast(importer, shape_of(t), same, lambda e: to(e, same), t) if dtype_of(t) != same and
                key_dtype(dtype_of(t)) != key_dtype(same) else t for t in (x, edges))
    return _finish(importer, node, counted(importer, shape_of(x), shape_of(edges)[-1], below, x, edges))


def _bucketize(importer: Any, node: Any) -> Any:
    x, edges = read(importer, node, 0, "self"), read(importer, node, 1, "boundaries")
    return _search(importer, x, edges, node, bool(node.kwargs.get("right", False)))


def _searchsorted(importer: Any, node: Any) -> Any:
    edges, x = read(importer, node, 0, "sorted_sequence"), read(importer, node, 1, "self")
    sorter = read(importer, node, 6, "sorter")
    if sorter is not None:
        edges = _taken(importer, edges, len(shape_of(edges)) - 1, sorter)
    right = node.kwargs.get("right", False) or node.kwargs.get("side") == "right"
    return _search(importer, x, edges, node, bool(right))


ORDER: dict[str, Convert] = {
    "topk.default": _topk,
    "sort.default": _sort,
    "sort.stable": _sort,
    "argsort.default": _sort,
    "argsort.stable": _sort,
    "kthvalue.default": _kthvalue,
    "median.default": _median,
    "median.dim": _median,
    "nanmedian.default": _nanmedian,
    "nanmedian.dim": _nanmedian,
    "mode.default": _mode,
    "max.dim": _extreme(largest=True, indices_only=False),
    "min.dim": _extreme(largest=False, indices_only=False),
    "argmax.default": _extreme(largest=True, indices_only=True),
    "argmin.default": _extreme(largest=False, indices_only=True),
    "cummax.default": _running(largest=True),
    "cummin.default": _running(largest=False),
    "bucketize.Tensor": _bucketize,
    "searchsorted.Tensor": _searchsorted,
}
