"""Operators that order elements, or find them in an order: arguments of extremes, sorting, order statistics, searches, running
extremes.

All compare keys (`tensor_expressions.key_of`), by which NaN is larger than anything and equal to itself. To sort is to count, for
each element, how many come before it: serial and quadratic in the dimension's length, free of barriers, and small for what
models do with it (choosing experts). Of equal elements the first comes first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tapml.compile.node_arguments import axis, output, read
from tapml.compile.tensor_expressions import (
    broadcast,
    compute,
    dtype_of,
    key_dtype,
    key_of,
    of_key,
    reduce,
    reshape,
    shape_of,
    to,
)

Convert = Callable[[Any, Any], Any]
_QUADRATIC_LIMIT = 8192


def _keys(importer: Any, x: Any, largest: bool = True) -> Any:
    return broadcast(importer, shape_of(x), key_dtype(dtype_of(x)), lambda e: key_of(e, largest), x)


def _finish(importer: Any, node: Any, value: Any, k: int = 0) -> Any:
    """A tensor in the recorded shape (dimensions of 1 put back) and dtype."""
    spec = output(node, k)
    shape = shape_of(value)
    done = broadcast(importer, shape, spec.dtype, lambda e: e, value)
    return done if shape == spec.shape else reshape(importer, done, spec.shape)


def _long(value: int) -> Any:
    return tirx.const(value, "int64")


def _ranks(importer: Any, keys: Any, dim: int, largest: bool) -> Any:
    """For each element, how many along `dim` come before it when sorted."""
    shape = shape_of(keys)
    if shape[dim] > _QUADRATIC_LIMIT:
        raise ValueError(f"ordering {shape[dim]} elements: TapML orders at most {_QUADRATIC_LIMIT} along a dimension")

    def before(load: Any, at: Any, k: Any) -> Any:
        other = [k[0] if j == dim else i for j, i in enumerate(at)]
        mine, theirs = load(*at), load(*other)
        ahead = theirs > mine if largest else theirs < mine
        return tirx.Select(tirx.Or(ahead, tirx.And(tirx.EQ(theirs, mine), k[0] < at[dim])),
                           tirx.const(1, "int32"), tirx.const(0, "int32"))

    return reduce(importer, shape, "int32", [shape[dim]], before, keys, name="ranks")


def _ordered(importer: Any, x: Any, dim: int, first: int, count: int, largest: bool) -> list[Any]:
    """`count` elements along `dim` from the one of rank `first` on, and their indices, with `dim` kept."""
    shape = shape_of(x)
    keys = _keys(importer, x)
    ranks = _ranks(importer, keys, dim, largest)
    short = (*shape[:dim], count, *shape[dim + 1 :])

    def place(load: Any, at: Any, k: Any) -> Any:
        full = [k[0] if j == dim else i for j, i in enumerate(at)]
        return tirx.Select(tirx.EQ(load(*full), tirx.Cast("int32", at[dim] + _long(first))), k[0], _long(0))

    indices = reduce(importer, short, "int64", [shape[dim]], place, ranks, name="places")
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
    both = _ordered(importer, x, dim, 0, shape_of(x)[dim], bool(descending))
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
    nan = key_of(tirx.const(math.nan, "float32"))
    kept = tuple(1 if j == dim else n for j, n in enumerate(shape))
    index = _ordered(importer, x, dim, (shape[dim] - 1) // 2, 1, False)[1]
    if dtype_of(x).startswith(("float", "bfloat")) and dtype_of(x) != "float64":
        def first_nan(load: Any, at: Any, k: Any) -> Any:
            full = [k[0] if j == dim else i for j, i in enumerate(at)]
            return tirx.Select(tirx.EQ(load(*full), nan), k[0], _long(shape[dim]))

        where = reduce(importer, kept, "int64", [shape[dim]], first_nan, keys, combine=te.min, name="first_nan")
        index = broadcast(importer, kept, "int64", lambda w, i: tirx.Select(w < _long(shape[dim]), w, i), where, index)
    value = _finish(importer, node, _taken(importer, x, dim, index))
    return value if whole else [value, _finish(importer, node, index, 1)]


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
            return tirx.Select(tirx.EQ(key(load, at, k), t(*at)), k[0], _long(shape[dim] - 1))

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
        shape = shape_of(x)
        dim = axis(read(importer, node, 1, "dim"), len(shape))
        kind = key_dtype(dtype_of(x))

        def upto(load: Any, at: Any, k: Any) -> Any:
            place = [tirx.min(k[0], at[dim]) if j == dim else i for j, i in enumerate(at)]
            return key_of(load(*place), largest)

        top = reduce(importer, shape, kind, [shape[dim]], upto, x, combine=te.max if largest else te.min, name="running")

        def candidate(load: Any, t: Any, at: Any, k: Any) -> Any:
            here = tirx.And(k[0] <= at[dim], tirx.EQ(upto(load, at, k), t(*at)))
            return tirx.Select(here, k[0], _long(0))

        where = reduce(importer, shape, "int64", [shape[dim]], candidate, x, top, combine=te.max, name="where_last")
        value = broadcast(importer, shape, dtype_of(x), lambda e: of_key(e, dtype_of(x)), top)
        return [value, where]

    return convert


def _search(importer: Any, x: Any, edges: Any, node: Any, right: bool) -> Any:
    """How many of the sorted `edges` (its last dimension; the others as x's, or none) are below x, or not above it."""
    shape, count = shape_of(x), shape_of(edges)[-1]
    one = len(shape_of(edges)) == 1

    def below(load: Any, load_e: Any, at: Any, k: Any) -> Any:
        mine = key_of(load(*at))
        edge = key_of(load_e(k[0]) if one else load_e(*at[:-1], k[0]))
        return tirx.Select(edge <= mine if right else edge < mine, tirx.const(1, "int32"), tirx.const(0, "int32"))

    same = dtype_of(x) if key_dtype(dtype_of(x)) == key_dtype(dtype_of(edges)) else "float32"
    x, edges = (broadcast(importer, shape_of(t), same, lambda e: to(e, same), t) if dtype_of(t) != same and
                key_dtype(dtype_of(t)) != key_dtype(same) else t for t in (x, edges))
    found = reduce(importer, shape, "int32", [count], below, x, edges, name="search")
    return _finish(importer, node, found)


def _bucketize(importer: Any, node: Any) -> Any:
    x, edges = read(importer, node, 0, "self"), read(importer, node, 1, "boundaries")
    return _search(importer, x, edges, node, bool(node.kwargs.get("right", False)))


def _searchsorted(importer: Any, node: Any) -> Any:
    edges, x = read(importer, node, 0, "sorted_sequence"), read(importer, node, 1, "self")
    if node.kwargs.get("sorter") is not None:
        raise ValueError("searchsorted with a sorter")
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
    "max.dim": _extreme(largest=True, indices_only=False),
    "min.dim": _extreme(largest=False, indices_only=False),
    "argmax.default": _extreme(largest=True, indices_only=True),
    "argmin.default": _extreme(largest=False, indices_only=True),
    "cummax.default": _running(largest=True),
    "cummin.default": _running(largest=False),
    "bucketize.Tensor": _bucketize,
    "searchsorted.Tensor": _searchsorted,
}
