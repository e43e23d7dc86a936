"""Reading and writing at places that tensors name. Places may be negative, counted from the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tapml.operators.onnx.arithmetic import Operand, Specs, floor_divided, operand, widened
from tapml.operators.onnx.writer import CannotSay, Value, Writer
from tapml.operators.overload import named_dtype
from tapml.tensors import FLOATS


def _embedding(w: Writer, out: Specs, weight: Value, index: Value, *_: Any) -> Value:
    return w.gather(weight, index, 0)


def _index_select(w: Writer, out: Specs, x: Value, dim: int, index: Value) -> Value:
    if not x.rank:
        return x
    return w.reshape(w.gather(x, w.reshape(index, (index.elements,)), x.axis(dim)), out[0].shape)


def _take(w: Writer, out: Specs, x: Value, index: Value) -> Value:
    return w.gather(w.reshape(x, (x.elements,)), index, 0)


def _gather(w: Writer, out: Specs, x: Value, dim: int, index: Value, sparse: bool = False) -> Value:
    if not x.rank or not index.rank:
        return w.reshape(w.gather(w.reshape(x, (x.elements,)), w.reshape(index, (index.elements,)), 0), out[0].shape)
    if not index.elements:
        return w.full(index.shape, 0, x.dtype)
    return w.op("GatherElements", x, index, spec=(index.shape, x.dtype), axis=x.axis(dim))


def _places(w: Writer, x: Value, indices: Sequence[Value | None]) -> tuple[list[int], list[Value]]:
    """The axes that are indexed, and one tensor of places for each, all of one shape. CannotSay for masks."""
    axes = [k for k, index in enumerate(indices) if index is not None]
    given = [w.cast(index, "int64") for index in indices if index is not None and index.dtype not in ("bool", "uint8")]
    if len(given) < len(axes):
        raise CannotSay("a mask says which elements, so that their number depends on the data")
    shape = np.broadcast_shapes(*(index.shape for index in given))
    return axes, [w.expand(index, shape) for index in given]


def _index(w: Writer, out: Specs, x: Value, indices: Sequence[Value | None]) -> Value:
    axes, places = _places(w, x, indices)
    if len(axes) == 1:
        return w.gather(x, places[0], axes[0])
    rest = [k for k in range(x.rank) if k not in axes]
    shape = places[0].shape
    extents = [x.shape[k] for k in axes]
    flat = w.reshape(w.transpose(x, [*axes, *rest]), (math.prod(extents), *(x.shape[k] for k in rest)))
    found = w.gather(flat, _flat(w, places, extents), 0)
    if axes != list(range(axes[0], axes[0] + len(axes))):
        return found
    before, count = axes[0], len(shape)  # the axes of the places stand where those that were indexed stood
    order = [*range(count, count + before), *range(count), *range(count + before, found.rank)]
    return w.transpose(found, order)


def _flat(w: Writer, places: Sequence[Value], extents: Sequence[int]) -> Value:
    """The number of each place, in the order of memory."""
    total, step = None, 1
    for place, extent in reversed(list(zip(places, extents, strict=True))):
        place = w.where(w.compare("Less", place, 0), w.add(place, extent), place)
        part = place if step == 1 else w.mul(place, step)
        total = part if total is None else w.add(total, part)
        step *= extent
    assert total is not None
    return total


def _index_put(
    w: Writer, out: Specs, x: Value, indices: Sequence[Value | None], values: Value, add: bool = False, *_: Any
) -> Value:
    masks = [index for index in indices if index is not None and index.dtype == "bool"]
    if masks:
        return _put_by_mask(w, x, indices, values, add)
    axes, places = _places(w, x, indices)
    rest = [k for k in range(x.rank) if k not in axes]
    order = [*axes, *rest]
    shape = places[0].shape
    first = axes == list(range(axes[0], axes[0] + len(axes)))
    before = [x.shape[k] for k in rest if first and k < axes[0]]
    behind = [x.shape[k] for k in rest if not first or k > axes[0]]
    updates = w.expand(w.cast(values, x.dtype), (*before, *shape, *behind))
    count = len(shape)
    start, end = len(before), len(before) + count
    updates = w.transpose(updates, [*range(start, end), *range(start), *range(end, updates.rank)])
    where = w.concat([w.unsqueeze(place, count) for place in places], count)
    moved = _scattered(w, w.transpose(x, order), where, updates, add)
    return w.transpose(moved, [order.index(k) for k in range(x.rank)])


def _scattered(w: Writer, x: Value, where: Value, updates: Value, add: bool) -> Value:
    if not where.elements or not updates.elements:
        return x
    dtype = widened(x.dtype)
    made = w.op("ScatterND", w.cast(x, dtype), where, w.cast(updates, dtype), reduction="add" if add else "none")
    return w.cast(made, x.dtype)


def _put_by_mask(w: Writer, x: Value, indices: Sequence[Value | None], values: Value, add: bool) -> Value:
    """Where the mask is set; one value for all of them."""
    given = [(k, index) for k, index in enumerate(indices) if index is not None]
    if len(given) != 1 or values.elements != 1:
        raise CannotSay("a mask says where values go, one for each of the places")
    start, mask = given[0]
    mask = w.reshape(mask, (*(1,) * start, *mask.shape, *(1,) * (x.rank - start - mask.rank)))
    value = w.reshape(w.cast(values, x.dtype), ())
    return w.where(mask, w.add(x, value) if add else value, x)


def _along(w: Writer, x: Value, dim: int, index: Value, source: Value) -> tuple[Value, Value, int]:
    """Places for whole rows along an axis, as one for each element of `source`."""
    axis = x.axis(dim)
    shape = (*x.shape[:axis], index.elements, *x.shape[axis + 1 :])
    rows = w.reshape(index, [index.elements if k == axis else 1 for k in range(x.rank)])
    return w.expand(w.cast(rows, "int64"), shape), w.expand(w.reshape(source, source.shape or (1,) * x.rank), shape), axis


def _elements(w: Writer, x: Value, axis: int, index: Value, source: Value, reduction: str = "none") -> Value:
    """`source` at the places along an axis that `index` names, one for each of its elements."""
    if not index.elements:
        return x
    if not x.rank:
        vector, places, given = (w.reshape(v, (1,)) for v in (x, index, source))
        return w.reshape(_elements(w, vector, 0, places, given, reduction), ())
    dtype = widened(x.dtype)
    made = w.op("ScatterElements", w.cast(x, dtype), index, w.cast(source, dtype), axis=axis, reduction=reduction)
    return w.cast(made, x.dtype)


def _index_copy(w: Writer, out: Specs, x: Value, dim: int, index: Value, source: Value) -> Value:
    places, rows, axis = _along(w, x, dim, index, source)
    return _elements(w, x, axis, places, rows)


def _index_add(w: Writer, out: Specs, x: Value, dim: int, index: Value, source: Value, alpha: float = 1) -> Value:
    places, rows, axis = _along(w, x, dim, index, source if alpha == 1 else w.mul(source, alpha))
    return _elements(w, x, axis, places, rows, "add")


def _index_fill(w: Writer, out: Specs, x: Value, dim: int, index: Value, value: Operand) -> Value:
    places, rows, axis = _along(w, x, dim, index, operand(w, value, x.dtype))
    return _elements(w, x, axis, places, rows)


def _scatter(w: Writer, out: Specs, x: Value, dim: int, index: Value, source: Operand) -> Value:
    return _elements(w, x, x.axis(dim), index, _updates(w, x, index, source))


def _scatter_add(w: Writer, out: Specs, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _elements(w, x, x.axis(dim), index, _updates(w, x, index, source), "add")


_REDUCED = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}


def _scatter_reduce(
    w: Writer, out: Specs, x: Value, dim: int, index: Value, source: Value, how: str, whole: bool = True
) -> Value:
    axis, given = x.axis(dim), _updates(w, x, index, source)
    if not whole:  # what is written to begins with what changes nothing
        info: Any = torch.finfo(named_dtype(x.dtype)) if x.dtype in FLOATS else torch.iinfo(named_dtype(x.dtype))
        low, high = (-math.inf, math.inf) if x.dtype in FLOATS else (info.min, info.max)
        first = {"sum": 0, "mean": 0, "prod": 1, "amax": low, "amin": high}[how]
        start = _elements(w, x, axis, index, w.full(index.shape, first, x.dtype))
    else:
        start = x
    if how != "mean":
        return _elements(w, start, axis, index, given, _REDUCED[how])
    total = _elements(w, start, axis, index, given, "add")
    ones = w.full(index.shape, 1, x.dtype)
    count = _elements(w, w.full(x.shape, int(whole), x.dtype), axis, index, ones, "add")
    if not whole:
        count = w.binary("Max", count, w.constant(1, x.dtype))
    return w.div(total, count) if x.dtype in FLOATS else floor_divided(w, total, count)


def _updates(w: Writer, x: Value, index: Value, source: Operand) -> Value:
    """Of a source that is larger, the part that the places are for."""
    found = operand(w, source, x.dtype)
    if not isinstance(source, Value) or not found.rank:
        return w.expand(found, index.shape)
    for axis, extent in enumerate(index.shape):
        found = w.slice(found, axis, 0, extent)
    return found


def _select_scatter(w: Writer, out: Specs, x: Value, source: Value, dim: int, index: int) -> Value:
    axis = x.axis(dim)
    at = index % x.shape[axis]
    return _written(w, x, axis, w.unsqueeze(w.cast(source, x.dtype), axis), at, at + 1, 1)


def _slice_scatter(
    w: Writer, out: Specs, x: Value, source: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    axis = x.axis(dim)
    first, last, _ = slice(start, end, step).indices(x.shape[axis])
    part = (*x.shape[:axis], len(range(first, last, step)), *x.shape[axis + 1 :])
    return _written(w, x, axis, w.expand(w.cast(source, x.dtype), part), first, max(first, last), step)


def _written(w: Writer, x: Value, axis: int, source: Value, first: int, last: int, step: int) -> Value:
    if not source.elements:
        return x
    if step == 1:
        parts = [w.slice(x, axis, 0, first), source, w.slice(x, axis, last, x.shape[axis])]
        return w.concat([p for p in parts if p.shape[axis]], axis)
    rows = w.constant(list(range(first, last, step)), "int64", (source.shape[axis],))
    return _elements(w, x, axis, *_along(w, x, axis, rows, source)[:2])


def _one_hot(w: Writer, out: Specs, x: Value, classes: int = -1) -> Value:
    (count,) = out[0].shape[-1:]
    return w.cast(w.compare("Equal", w.unsqueeze(w.cast(x, "int64"), x.rank), w.counted(count)), out[0].dtype)


INDEXING: dict[str, Callable[..., Any]] = {
    "embedding.default": _embedding, "index_select.default": _index_select, "take.default": _take, "gather.default": _gather,
    "index.Tensor": _index, "_unsafe_index.Tensor": _index, "index_put.default": _index_put,
    "_unsafe_index_put.default": _index_put,
    "index_copy.default": _index_copy, "index_add.default": _index_add, "index_fill.int_Scalar": _index_fill,
    "index_fill.int_Tensor": _index_fill, "scatter.src": _scatter, "scatter.value": _scatter, "scatter_add.default": _scatter_add,
    "scatter_reduce.two": _scatter_reduce, "select_scatter.default": _select_scatter, "slice_scatter.default": _slice_scatter,
    "one_hot.default": _one_hot,
}  # fmt: skip
