"""Inputs for a smaller version of an operator: which rows, columns and heads of the recorded ones are kept.

    for inputs in smaller_inputs(inputs, extents, sizes, at): ...       several choices, the likeliest to fail first

For each extent a set of positions is kept, the same on every axis that the extent measures, in three ways: around the element
that was worst, those that hold the largest values, the first ones. Positions that an integer input names (token ids, cache
positions) are kept before others, so that what was looked up still is; `renumbered` makes indices fit what was kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tapml.operators.extents import Extent
from tapml.tensors import FLOATS, HostArray, dtype_name

Way = Literal["around the worst", "largest", "first"]
Kept = NDArray[np.int64]

_WAYS: tuple[Way, ...] = ("around the worst", "largest", "first")


def smaller_inputs(
    inputs: Sequence[HostArray], extents: Sequence[Extent], sizes: Sequence[int], worst: tuple[tuple[int, int], ...] = ()
) -> Iterator[tuple[list[HostArray], list[Kept | None]]]:
    """Distinct choices of inputs at these sizes, with the positions kept of each extent (None: all). `worst` holds (coordinate,
    length) for each axis of the output that is worst at that coordinate. A choice that does not come out at the sizes asked for
    (an axis with entangled extents) is left out."""
    seen: set[bytes] = set()
    for way in _WAYS:
        kept = _kept(inputs, extents, sizes, worst, way)
        made = _sliced(inputs, extents, kept)
        if made is None:
            continue
        key = b"".join(b"" if k is None else k.tobytes() + b"/" for k in kept)
        if key not in seen:
            seen.add(key)
            yield made, kept


def renumbered(inputs: Sequence[HostArray], kept: Sequence[Kept | None]) -> Iterator[list[HostArray]]:
    """The same inputs with their integers read as positions of one extent, numbered anew among those that were kept: for each
    extent whose kept positions hold all of them."""
    for positions in kept:
        if positions is None:
            continue
        place = {int(p): rank for rank, p in enumerate(positions)}
        made: list[HostArray] = []
        for array in inputs:
            named = np.unique(array).tolist() if array.dtype.kind == "i" else []
            if array.dtype.kind == "i" and all(n in place for n in named):
                made.append(np.array([place[int(n)] for n in array.reshape(-1)], array.dtype).reshape(array.shape))
            else:
                made.append(array)
        if any(a is not b for a, b in zip(made, inputs, strict=True)):
            yield made


def _kept(
    inputs: Sequence[HostArray], extents: Sequence[Extent], sizes: Sequence[int], worst: tuple[tuple[int, int], ...], way: Way
) -> list[Kept | None]:
    """Positions kept of each extent, in order. Extents of integer inputs are settled first, since what is left of
    those says which positions of the others are named."""
    kept: list[Kept | None] = [None] * len(extents)
    of_integers = [any(inputs[k].dtype.kind == "i" for k, _ in e.axes()) for e in extents]
    for integers_first in (True, False):
        named = _named(inputs, extents, kept)
        for number, (extent, size) in enumerate(zip(extents, sizes, strict=True)):
            if of_integers[number] is not integers_first or size == extent.size:
                continue
            order = _order(inputs, extent, size, worst, way)
            first = [] if integers_first else [n for n in named if n < extent.size]
            kept[number] = np.sort(np.array(list(dict.fromkeys([*first, *order]))[:size], np.int64))
    return kept


def _named(inputs: Sequence[HostArray], extents: Sequence[Extent], kept: Sequence[Kept | None]) -> list[int]:
    """The integers that are left in the inputs, none negative, in order."""
    left = _sliced(inputs, extents, kept, wanted=[k for k, a in enumerate(inputs) if a.dtype.kind == "i"])
    numbers = [np.unique(a) for a in left or () if a.dtype.kind == "i"]
    return [int(n) for n in np.unique(np.concatenate(numbers)) if n >= 0] if numbers else []


def _order(
    inputs: Sequence[HostArray], extent: Extent, size: int, worst: tuple[tuple[int, int], ...], way: Way
) -> list[int]:
    """All positions of an extent, those to keep first."""
    everything = list(range(extent.size))
    if way == "around the worst":
        middle = next((at for at, length in worst if length == extent.size), None)
        if middle is None:
            middle = next((at % extent.size for at, length in worst if length % extent.size == 0), 0)
        start = min(max(middle - size // 2, 0), extent.size - size)
        return [*range(start, start + size), *everything]
    if way == "largest":
        score = np.zeros(extent.size)
        for k, axis in extent.axes():
            array = inputs[k]
            if dtype_name(array) in FLOATS and array.size:
                with np.errstate(over="ignore", invalid="ignore"):
                    wide = np.nan_to_num(np.abs(array.astype(np.float32)))
                along = wide.max(axis=tuple(a for a in range(array.ndim) if a != axis))
                np.maximum.at(score, _coordinate(extent, array.shape[axis]), along)
        return [int(p) for p in np.argsort(-score, kind="stable")]
    return everything


def _coordinate(extent: Extent, length: int) -> NDArray[np.int64]:
    """For each element of an axis its position along the extent. An axis may hold the extent several times over; whether it is
    the outer or the inner part is told by its places in a view's sizes, which `find_extents` does not keep: it is taken as the
    inner one. Either gives inputs of the right shapes."""
    return np.arange(length, dtype=np.int64) % extent.size


def _sliced(
    inputs: Sequence[HostArray], extents: Sequence[Extent], kept: Sequence[Kept | None], wanted: Sequence[int] | None = None
) -> list[HostArray] | None:
    """The inputs with only the positions kept. Where several extents share an axis, one is applied after the other."""
    made = list(inputs)
    for extent, positions in zip(extents, kept, strict=True):
        if positions is None:
            continue
        for k, axis in extent.axes():
            if wanted is not None and k not in wanted:
                continue
            length = made[k].shape[axis]
            whole, rest = divmod(length * len(positions), extent.size)
            if rest:
                return None
            if length % extent.size == 0:
                chosen = np.flatnonzero(np.isin(_coordinate(extent, length), positions))
            else:
                chosen = np.arange(whole)
            made[k] = np.ascontiguousarray(np.take(made[k], chosen, axis=axis)).reshape(
                *made[k].shape[:axis], whole, *made[k].shape[axis + 1 :]
            )
    return made
