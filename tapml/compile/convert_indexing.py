"""Operators that move elements: slices, gathers, scatters, index updates, embeddings, shape changes.

An update (`index_copy`, `index_put`, `scatter`) is written as a question each element of the result asks: which of the new
values, if any, is mine? The last that claims it wins, as when PyTorch writes them in order. That needs no atomic writes, and
costs a loop over the indices for each element, which is short where models use it (one row of a key-value cache, or a
chunk of them).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from tvm import relax, te, tirx

from tapml.compile.convert_reduction import product
from tapml.compile.convert_scan import scan
from tapml.compile.node_arguments import axis, output, read
from tapml.compile.tensor_expressions import (
    broadcast,
    compute,
    constant,
    dtype_of,
    is_float,
    is_true,
    key_dtype,
    key_of,
    literal,
    long,
    of_key,
    project,
    reduce,
    reshape,
    shape_of,
    to,
    wide,
)

Convert = Callable[[Any, Any], Any]


def _index(element: Any, extent: int) -> Any:
    """An index from data: int64, negative ones counted from the end."""
    value = to(element, "int64")
    return tirx.Select(value < long(0), value + long(extent), value)


def _slice_range(importer: Any, node: Any, at: int, extent: int) -> tuple[int, int, int]:
    """start, end and step of a slice, clamped to the dimension as Python clamps them."""
    start, end, step = (read(importer, node, at + k, n, d) for k, (n, d) in enumerate(
        (("start", None), ("end", None), ("step", 1))))
    start = 0 if start is None else max(min(start, sys.maxsize), -sys.maxsize)
    end = extent if end is None else max(min(end, sys.maxsize), -sys.maxsize)
    first, last, _ = slice(start, end, 1).indices(extent)
    return first, max(last, first), step


def _slice(importer: Any, node: Any) -> Any:
    x = read(importer, node, 0, "self")
    shape = shape_of(x)
    dim = axis(read(importer, node, 1, "dim", 0), len(shape))
    first, last, step = _slice_range(importer, node, 2, shape[dim])
    if (first, last, step) == (0, shape[dim], 1):
        return x

    def element(load: Any, *at: Any) -> Any:
        return load(*[i * step + first if j == dim else i for j, i in enumerate(at)])

    return compute(importer, output(node).shape, dtype_of(x), element, x, name="slice")


def _select(importer: Any, node: Any) -> Any:
    x = read(importer, node, 0, "self")
    shape = shape_of(x)
    dim, index = axis(read(importer, node, 1, "dim"), len(shape)), read(importer, node, 2, "index")
    index = index + shape[dim] if index < 0 else index
    return compute(
        importer, output(node).shape, dtype_of(x), lambda load, *at: load(*at[:dim], long(index), *at[dim:]), x, name="select"
    )


def _select_scatter(importer: Any, node: Any) -> Any:
    """A copy of x in which one index along `dim` is replaced."""
    x, new = read(importer, node, 0, "self"), read(importer, node, 1, "src")
    shape = shape_of(x)
    dim, index = axis(read(importer, node, 2, "dim"), len(shape)), read(importer, node, 3, "index")
    index = index + shape[dim] if index < 0 else index

    def element(load: Any, fresh: Any, *at: Any) -> Any:
        rest = [i for j, i in enumerate(at) if j != dim]
        return tirx.Select(tirx.EQ(at[dim], long(index)), to(fresh(*rest), dtype_of(x)), load(*at))

    return compute(importer, shape, dtype_of(x), element, x, new)


def _slice_scatter(importer: Any, node: Any) -> Any:
    """A copy of x in which a slice is replaced."""
    x, new = read(importer, node, 0, "self"), read(importer, node, 1, "src")
    shape = shape_of(x)
    dim = axis(read(importer, node, 2, "dim", 0), len(shape))
    first, last, step = _slice_range(importer, node, 3, shape[dim])

    def element(load: Any, fresh: Any, *at: Any) -> Any:
        offset = at[dim] - long(first)
        inside = tirx.all(at[dim] >= long(first), at[dim] < long(last), tirx.EQ(tirx.floormod(offset, long(step)), long(0)))
        source = [tirx.floordiv(offset, long(step)) if j == dim else i for j, i in enumerate(at)]
        return tirx.if_then_else(inside, to(fresh(*source), dtype_of(x)), load(*at))

    return compute(importer, shape, dtype_of(x), element, x, new)


def _embedding(importer: Any, node: Any) -> Any:
    weight, indices = read(importer, node, 0, "weight"), read(importer, node, 1, "indices")
    rows = shape_of(weight)[0]
    return compute(
        importer, output(node).shape, dtype_of(weight),
        lambda load, where, *at: load(_index(where(*at[:-1]), rows), at[-1]), weight, indices, name="embedding",
    )


def _index_select(importer: Any, node: Any) -> Any:
    x, dim, indices = (read(importer, node, k, n) for k, n in enumerate(("self", "dim", "index")))
    shape = shape_of(x)
    dim = axis(dim, len(shape))

    def element(load: Any, where: Any, *at: Any) -> Any:
        return load(*[_index(where(i), shape[dim]) if j == dim else i for j, i in enumerate(at)])

    return compute(importer, output(node).shape, dtype_of(x), element, x, indices, name="index_select")


def _gather(importer: Any, node: Any) -> Any:
    x, dim, indices = (read(importer, node, k, n) for k, n in enumerate(("self", "dim", "index")))
    shape = shape_of(x)
    dim = axis(dim, len(shape))

    def element(load: Any, where: Any, *at: Any) -> Any:
        return load(*[_index(where(*at), shape[dim]) if j == dim else i for j, i in enumerate(at)])

    return compute(importer, output(node).shape, dtype_of(x), element, x, indices, name="gather")


def _places(shape: tuple[int, ...], given: list[Any]) -> tuple[list[int], tuple[int, ...], int]:
    """For advanced indexing: the indexed dimensions, the broadcast shape of the indices, and where in the result
    its dimensions go (in place of the first index when the indexed dimensions are adjacent, else in front)."""
    dims = [j for j, g in enumerate(given) if g is not None]
    rank = max(len(shape_of(given[j])) for j in dims)
    padded = [(1,) * (rank - len(shape_of(given[j]))) + shape_of(given[j]) for j in dims]
    common = tuple(max(n) for n in zip(*padded, strict=True))
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    return dims, common, dims[0] if adjacent else 0


def _as_numbers(importer: Any, given: list[Any]) -> list[Any]:
    """Boolean index tensors choose a number of elements that depends on the data: refused, since shapes are static."""
    for g in given:
        if g is not None and dtype_of(g) == "bool":
            raise ValueError("indexing with a boolean tensor gives a shape that depends on the data")
    return given


def _index_tensor(importer: Any, node: Any) -> Any:
    """x[i, :, j, …] with integer tensors that broadcast together."""
    x = read(importer, node, 0, "self")
    given = _as_numbers(importer, read(importer, node, 1, "indices"))
    shape = shape_of(x)
    dims, common, front = _places(shape, given)
    tensors = [given[j] for j in dims]

    def element(load: Any, *rest: Any) -> Any:
        loads, at = rest[: len(tensors)], rest[len(tensors) :]
        inner = at[front : front + len(common)]
        outer = iter([*at[:front], *at[front + len(common) :]])
        chosen = iter([load_index(*project(inner, shape_of(t))) for load_index, t in zip(loads, tensors, strict=True)])
        return load(*[_index(next(chosen), shape[j]) if j in dims else next(outer) for j in range(len(shape))])

    return compute(importer, output(node).shape, dtype_of(x), element, x, *tensors, name="index")


def _update(importer: Any, x: Any, values: Any, count: list[int], matches: Any, source: Any, tensors: list[Any],
            accumulate: bool) -> Any:
    """x with `values` written where `matches(loads, at, k)`, or added there. `k` runs over `count`; `source(at, k)` gives the
    indices of the new value."""
    shape, dtype = shape_of(x), dtype_of(x)
    total = math.prod(count)

    def split(flat: Any) -> list[Any]:
        parts: list[Any] = []
        for n in reversed(count):
            parts.insert(0, tirx.floormod(flat, long(n)))
            flat = tirx.floordiv(flat, long(n))
        return parts

    if accumulate:
        kind = wide(dtype)

        def share(load_v: Any, *rest: Any) -> Any:
            loads, (at, k) = rest[:-2], rest[-2:]
            parts = split(k[0])
            return tirx.if_then_else(
                matches(loads, at, parts), to(load_v(*project(source(at, parts), shape_of(values))), kind), constant(0, kind)
            )

        added = reduce(importer, shape, kind, [total], share, values, *tensors, name="added")
        return broadcast(importer, shape, dtype, lambda e, a: to(e, kind) + a, x, added)

    def claim(*rest: Any) -> Any:
        loads, (at, k) = rest[:-2], rest[-2:]
        return tirx.Select(matches(loads, at, split(k[0])), tirx.Cast("int32", k[0]), tirx.const(-1, "int32"))

    def element(load: Any, load_v: Any, *rest: Any) -> Any:
        if total == 1:
            loads, at = rest[: len(tensors)], rest[len(tensors) :]
            parts = [long(0) for _ in count]
            mine = matches(loads, at, parts)
        else:
            at = rest[1:]
            parts = split(tirx.Cast("int64", tirx.max(rest[0](*at), tirx.const(0, "int32"))))
            mine = rest[0](*at) >= tirx.const(0, "int32")
        new = load_v(*project(source(at, parts), shape_of(values)))
        return tirx.if_then_else(mine, to(new, dtype), load(*at))

    if total == 1:
        return compute(importer, shape, dtype, element, x, values, *tensors, name="updated")
    owner = reduce(importer, shape, "int32", [total], claim, *tensors, combine=te.max, name="owner")
    return compute(importer, shape, dtype, element, x, values, owner, name="updated")


def _index_copy(importer: Any, node: Any) -> Any:
    """x with rows along `dim` replaced: x[…, index[k], …] = source[…, k, …]. The owner of a row is found once a row."""
    x, dim, index, source = (read(importer, node, k, n) for k, n in enumerate(("self", "dim", "index", "source")))
    shape, dtype = shape_of(x), dtype_of(x)
    dim = axis(dim, len(shape))
    count = max(math.prod(shape_of(index)), 1)
    if node.target.__name__.startswith("index_add"):
        alpha, kind = node.kwargs.get("alpha", 1), wide(dtype)

        def share(load_i: Any, load_s: Any, at: Any, k: Any) -> Any:
            place = [k[0] if j == dim else i for j, i in enumerate(at)]
            mine = tirx.EQ(_index(load_i(*([k[0]] if shape_of(index) else [])), shape[dim]), at[dim])
            return tirx.if_then_else(mine, to(load_s(*place), kind) * literal(alpha, kind), constant(0, kind))

        added = reduce(importer, shape, kind, [count], share, index, source, name="added")
        return broadcast(importer, shape, dtype, lambda e, a: to(e, kind) + a, x, added)

    if count == 1:
        def single(load: Any, load_i: Any, load_s: Any, *at: Any) -> Any:
            mine = tirx.EQ(_index(load_i(*[long(0) for _ in shape_of(index)]), shape[dim]), at[dim])
            return tirx.if_then_else(mine, to(load_s(*[long(0) if j == dim else i for j, i in enumerate(at)]), dtype), load(*at))

        return compute(importer, shape, dtype, single, x, index, source, name="updated")

    def claim(load_i: Any, at: Any, k: Any) -> Any:
        return tirx.Select(tirx.EQ(_index(load_i(k[0]), shape[dim]), at[0]), tirx.Cast("int32", k[0]), tirx.const(-1, "int32"))

    owner = reduce(importer, (shape[dim],), "int32", [count], claim, index, combine=te.max, name="owner")

    def element(load: Any, mine: Any, load_s: Any, *at: Any) -> Any:
        k = mine(at[dim])
        safe = tirx.Cast("int64", tirx.max(k, tirx.const(0, "int32")))
        new = load_s(*[safe if j == dim else i for j, i in enumerate(at)])
        return tirx.if_then_else(k >= tirx.const(0, "int32"), to(new, dtype), load(*at))

    return compute(importer, shape, dtype, element, x, owner, source, name="updated")


def _index_fill(importer: Any, node: Any) -> Any:
    x, dim, index, value = (read(importer, node, k, n) for k, n in enumerate(("self", "dim", "index", "value")))
    shape, dtype = shape_of(x), dtype_of(x)
    dim = axis(dim, len(shape))

    def hit(load_i: Any, at: Any, k: Any) -> Any:
        return to(tirx.EQ(_index(load_i(*([k[0]] if shape_of(index) else [])), shape[dim]), at[0]), "int32")

    count = max(math.prod(shape_of(index)), 1)
    hits = reduce(importer, (shape[dim],), "int32", [count], hit, index, combine=te.max, name="hits")
    return compute(
        importer, shape, dtype,
        lambda load, h, *at: tirx.Select(h(at[dim]) > tirx.const(0, "int32"), constant(value, dtype), load(*at)), x, hits,
    )


def _index_put(importer: Any, node: Any) -> Any:
    """x with x[i, :, j, …] = values (or += with `accumulate`), for integer tensors that broadcast together."""
    x, given, values = (read(importer, node, k, n) for k, n in enumerate(("self", "indices", "values")))
    accumulate = bool(read(importer, node, 3, "accumulate", False))
    if len([g for g in given if g is not None]) == 1:
        first, mask = next((j, g) for j, g in enumerate(given) if g is not None)
        if dtype_of(mask) == "bool" and math.prod(shape_of(values)) == 1:
            return _masked(importer, x, mask, first, values, accumulate)
    given = _as_numbers(importer, given)
    shape = shape_of(x)
    dims, common, front = _places(shape, given)
    tensors = [given[j] for j in dims]

    def matches(loads: Any, at: Any, k: list[Any]) -> Any:
        hits = [
            tirx.EQ(_index(load(*project(k, shape_of(t))), shape[j]), at[j])
            for load, t, j in zip(loads, tensors, dims, strict=True)
        ]
        return tirx.all(*hits)

    def source(at: Any, k: list[Any]) -> list[Any]:
        rest = [i for j, i in enumerate(at) if j not in dims]
        return [*rest[:front], *k, *rest[front:]]

    return _update(importer, x, values, list(common), matches, source, tensors, accumulate)


def _masked(importer: Any, x: Any, mask: Any, first: int, value: Any, accumulate: bool) -> Any:
    """One value where the mask, which lies on the dimensions from `first` on, is true."""
    rank = len(shape_of(mask))

    def element(load: Any, load_m: Any, load_v: Any, *at: Any) -> Any:
        single = to(load_v(*[long(0) for _ in shape_of(value)]), dtype_of(x))
        new = load(*at) + single if accumulate else single
        return tirx.Select(is_true(load_m(*at[first : first + rank])), new, load(*at))

    return compute(importer, shape_of(x), dtype_of(x), element, x, mask, value)


def _scatter(importer: Any, node: Any) -> Any:
    """x with x[…, index[p], …] = source[p] (or += for `scatter_add`) for all p in index's shape, along `dim`."""
    x, dim, index, source = (read(importer, node, k, n) for k, n in enumerate(("self", "dim", "index", "src")))
    number = node.kwargs.get("value", source) if isinstance(source, int | float) or source is None else None
    shape, dtype, extents = shape_of(x), dtype_of(x), shape_of(index)
    dim = axis(dim, len(shape))
    accumulate = node.target.__name__.startswith("scatter_add")

    def place(at: Any, k: Any) -> list[Any]:
        """The place in index that may write to `at`, clamped to index's shape, which may be smaller than x's."""
        return [k if j == dim else tirx.min(i, long(extents[j] - 1)) for j, i in enumerate(at)]

    def mine(load_i: Any, at: Any, k: Any) -> Any:
        inside = [i < long(extents[j]) for j, i in enumerate(at) if j != dim and extents[j] < shape[j]]
        return tirx.all(tirx.EQ(_index(load_i(*place(at, k)), shape[dim]), at[dim]), *inside)

    if accumulate:
        kind = wide(dtype)

        def share(load_i: Any, load_s: Any, at: Any, k: Any) -> Any:
            return tirx.if_then_else(mine(load_i, at, k[0]), to(load_s(*place(at, k[0])), kind), constant(0, kind))

        added = reduce(importer, shape, kind, [extents[dim]], share, index, source, name="added")
        return broadcast(importer, shape, dtype, lambda e, a: to(e, kind) + a, x, added)

    def claim(load_i: Any, at: Any, k: Any) -> Any:
        return tirx.Select(mine(load_i, at, k[0]), tirx.Cast("int32", k[0]), tirx.const(-1, "int32"))

    owner = reduce(importer, shape, "int32", [extents[dim]], claim, index, combine=te.max, name="owner")

    def element(load: Any, owners: Any, *rest: Any) -> Any:
        at = rest[len(rest) - len(shape) :]
        k = owners(*at)
        safe = tirx.Cast("int64", tirx.max(k, tirx.const(0, "int32")))
        new = constant(number, dtype) if number is not None else to(rest[0](*place(at, safe)), dtype)
        return tirx.if_then_else(k >= tirx.const(0, "int32"), new, load(*at))

    return compute(importer, shape, dtype, element, x, owner, *([] if number is not None else [source]), name="updated")


def _scatter_reduce(importer: Any, node: Any) -> Any:
    """x joined with source[p] at x[…, index[p], …] for all p in index's shape, along `dim`: by their sum, product, mean or
    extreme. x's own element is among them, or (`include_self` false) stays only where no other is. `index_reduce` has one index a
    row."""
    x, dim, index, source, how = (
        read(importer, node, k, n) for k, n in enumerate(("self", "dim", "index", "src", "reduce"))
    )
    with_self = bool(read(importer, node, 5, "include_self", True))
    shape, dtype = shape_of(x), dtype_of(x)
    dim = axis(dim, len(shape))
    rows = node.target.__name__.startswith("index_reduce")
    extents = tuple(math.prod(shape_of(index)) if j == dim else n for j, n in enumerate(shape)) if rows else shape_of(index)
    extreme = how in ("amax", "amin")
    largest = how == "amax"
    kind = key_dtype(dtype) if extreme else wide(dtype)
    if extreme:
        neutral = tirx.min_value(kind) if largest else tirx.max_value(kind)
        combine: Any = te.max if largest else te.min
    else:
        neutral = constant(1 if how == "prod" else 0, kind)
        combine = product if how == "prod" else te.sum

    def place(at: Any, k: Any) -> list[Any]:
        return [k if j == dim else tirx.min(i, long(extents[j] - 1)) for j, i in enumerate(at)]

    def mine(load_i: Any, at: Any, k: Any) -> Any:
        inside = [i < long(extents[j]) for j, i in enumerate(at) if j != dim and extents[j] < shape[j]]
        found = load_i(*([k] if shape_of(index) else [])) if rows else load_i(*place(at, k))
        return tirx.all(tirx.EQ(_index(found, shape[dim]), at[dim]), *inside)

    def as_kind(e: Any) -> Any:
        return key_of(e, largest) if extreme else to(e, kind)

    def share(load_i: Any, load_s: Any, at: Any, k: Any) -> Any:
        return tirx.if_then_else(mine(load_i, at, k[0]), as_kind(load_s(*place(at, k[0]))), neutral)

    def hit(load_i: Any, at: Any, k: Any) -> Any:
        return to(mine(load_i, at, k[0]), "int32")

    joined = reduce(importer, shape, kind, [extents[dim]], share, index, source, combine=combine, name="joined")
    hits = reduce(importer, shape, "int32", [extents[dim]], hit, index, name="hits")

    def element(e: Any, joint: Any, count: Any) -> Any:
        own = as_kind(e)
        if with_self:
            both = {"amax": tirx.max, "amin": tirx.min, "prod": lambda a, b: a * b}.get(how, lambda a, b: a + b)(own, joint)
        else:
            both = joint
        if how == "mean":
            number = to(count, kind) + constant(1 if with_self else 0, kind)
            safe = tirx.max(number, constant(1, kind))
            both = both / safe if is_float(kind) else tirx.floordiv(both, safe)
        value = of_key(both, dtype) if extreme else to(both, dtype)
        return tirx.Select(count > tirx.const(0, "int32"), value, e)

    return broadcast(importer, shape, dtype, element, x, joined, hits)


def _masked_scatter(importer: Any, node: Any) -> Any:
    """The elements of `source`, in order, where the mask is true: the k-th true one gets the k-th element."""
    x, mask, source = (read(importer, node, k, n) for k, n in enumerate(("self", "mask", "source")))
    shape, count = shape_of(x), math.prod(shape_of(x))
    mask = broadcast(importer, shape, "bool", lambda m: is_true(m), mask)
    ones = broadcast(importer, (count,), "int32", lambda m: to(m, "int32"), reshape(importer, mask, (count,)))
    before = reshape(importer, scan(importer, ones, 0, "int32", te.sum, lambda a, b: a + b, 0), shape)
    flat = reshape(importer, source, (math.prod(shape_of(source)),))
    last = math.prod(shape_of(source)) - 1

    def element(load: Any, load_m: Any, load_b: Any, load_s: Any, *at: Any) -> Any:
        index = tirx.max(tirx.min(to(load_b(*at), "int64") - long(1), long(last)), long(0))
        return tirx.Select(is_true(load_m(*at)), to(load_s(index), dtype_of(x)), load(*at))

    return compute(importer, shape, dtype_of(x), element, x, mask, before, flat)


def _take(importer: Any, node: Any) -> Any:
    """x[i] with x as one row."""
    x, index = read(importer, node, 0, "self"), read(importer, node, 1, "index")
    count = math.prod(shape_of(x))
    flat = reshape(importer, x, (count,))
    if count == 1:  # no index is read then
        return compute(importer, shape_of(index), dtype_of(x), lambda load, *at: load(long(0)), flat, name="take")

    def element(load: Any, load_i: Any, *at: Any) -> Any:
        return load(_index(load_i(*at), count))

    return compute(importer, shape_of(index), dtype_of(x), element, flat, index, name="take")


def _reshape(importer: Any, node: Any) -> Any:
    x, shape = read(importer, node, 0, "self"), output(node).shape
    return x if shape_of(x) == shape else reshape(importer, x, shape)


def _one_hot(importer: Any, node: Any) -> Any:
    x, spec = read(importer, node, 0, "self"), output(node)
    return compute(
        importer, spec.shape, spec.dtype, lambda load, *at: to(tirx.EQ(to(load(*at[:-1]), "int64"), at[-1]), spec.dtype), x
    )


def _triangle(lower: bool) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x, diagonal, spec = read(importer, node, 0, "self"), read(importer, node, 1, "diagonal", 0), output(node)

        def element(load: Any, *at: Any) -> Any:
            offset = at[-1] - at[-2]
            keep = offset <= long(diagonal) if lower else offset >= long(diagonal)
            return tirx.Select(keep, load(*at), constant(0, spec.dtype))

        return compute(importer, spec.shape, spec.dtype, element, x)

    return convert


def _repeat_interleave(importer: Any, node: Any) -> Any:
    x, repeats, dim = (read(importer, node, k, n) for k, n in enumerate(("self", "repeats", "dim")))
    if dim is None:
        x, dim = reshape(importer, x, (math.prod(shape_of(x)),)), 0
    dim = axis(dim, len(shape_of(x)))

    def element(load: Any, *at: Any) -> Any:
        return load(*[tirx.floordiv(i, long(repeats)) if j == dim else i for j, i in enumerate(at)])

    return compute(importer, output(node).shape, dtype_of(x), element, x)


def _permute(importer: Any, node: Any) -> Any:
    x, spec = read(importer, node, 0, "self"), output(node)
    rank, name = len(spec.shape), node.target.__name__
    order = list(range(rank))
    if name == "permute.default":
        order = [axis(d, rank) for d in read(importer, node, 1, "dims")]
    elif rank > 1:
        a, b = (0, 1) if name == "t.default" else (
            axis(read(importer, node, 1, "dim0"), rank), axis(read(importer, node, 2, "dim1"), rank))
        order[a], order[b] = order[b], order[a]
    inverse = [order.index(j) for j in range(rank)]
    return compute(
        importer, spec.shape, dtype_of(x), lambda load, *at: load(*[at[k] for k in inverse]), x, name="transpose"
    )


def _expand(importer: Any, node: Any) -> Any:
    return broadcast(importer, output(node).shape, output(node).dtype, lambda e: e, read(importer, node, 0, "self"))


# As many inputs as a kernel of the WebGPU default limits can read beside its output.
_PARTS = 7


def _joined(operation: Callable[..., Any]) -> Convert:
    """`cat` and `stack`: parts of several dtypes take the result's; a part without elements only had a say in that. Many parts
    are joined in groups, so that no kernel has to read more buffers than a device binds."""

    def convert(importer: Any, node: Any) -> Any:
        spec = output(node)
        parts = read(importer, node, 0, "tensors")
        parts = [part for part in parts if 0 not in shape_of(part)] or parts
        same = [
            part if dtype_of(part) == spec.dtype else broadcast(importer, shape_of(part), spec.dtype, lambda e: e, part)
            for part in parts
        ]
        along = axis(read(importer, node, 1, "dim", 0), len(spec.shape))
        join = operation
        while len(same) > _PARTS:
            groups = [same[k : k + _PARTS] for k in range(0, len(same), _PARTS)]
            same = [importer.block_builder.emit(join(group, axis=along)) for group in groups]
            join = relax.op.concat
        return importer.block_builder.emit(join(same, axis=along))

    return convert


INDEXING: dict[str, Convert] = {
    "cat.default": _joined(relax.op.concat),
    "stack.default": _joined(relax.op.stack),
    "slice.Tensor": _slice,
    "select.int": _select,
    "select_scatter.default": _select_scatter,
    "slice_scatter.default": _slice_scatter,
    "embedding.default": _embedding,
    "index_select.default": _index_select,
    "gather.default": _gather,
    "index.Tensor": _index_tensor,
    "index_copy.default": _index_copy,
    "index_add.default": _index_copy,
    **{f"index_put{u}.default": _index_put for u in ("", "_")},
    **{f"scatter.{kind}": _scatter for kind in ("src", "value")},
    "scatter_add.default": _scatter,
    "scatter_reduce.two": _scatter_reduce,
    "index_reduce.default": _scatter_reduce,
    "masked_scatter.default": _masked_scatter,
    "take.default": _take,
    "index_fill.int_Scalar": _index_fill,
    **{f"{name}.default": _reshape for name in ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze")},
    **{f"squeeze.{kind}": _reshape for kind in ("dim", "dims")},
    "flatten.using_ints": _reshape,
    "unflatten.int": _reshape,
    "one_hot.default": _one_hot,
    "tril.default": _triangle(lower=True),
    "triu.default": _triangle(lower=False),
    "repeat_interleave.self_int": _repeat_interleave,
    "permute.default": _permute,
    "transpose.int": _permute,
    "t.default": _permute,
    "expand.default": _expand,
}
