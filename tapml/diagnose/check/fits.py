"""How an array of another engine may lie over a value of the model: the same elements in another order of axes, in another shape,
without the padding that the run's graph has.

    for fit in fits(theirs.shape, ours.shape, {64: 12}):      an axis of 64 positions, of which 12 are real
        fit.taken(theirs)              in the shape of the part of ours that it covers
        fit.part(ours)                 that part

A reshape alone keeps the order of elements. Axes are tried in other orders too: an engine may hold [batch, position, heads ×
size] where the model has [batch, head, position, size]. Where the model keeps the last position only, it is taken of all of an
engine's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np

from tapml.tensors import HostArray

# Axes of more than one element beyond which orders of axes are not tried.
MOST_AXES = 5


@dataclass(frozen=True)
class Fit:
    """`region`: how many elements of each axis of ours are covered, from the start. `shape`: theirs reshaped; `order`: its axes
    then in ours' order. `last`: the axis of theirs of which the last element alone is taken."""

    region: tuple[int, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...]
    last: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the elements are in the same order."""
        return self.order == tuple(range(len(self.order)))

    def taken(self, theirs: HostArray) -> HostArray:
        if self.last is not None:
            theirs = theirs.take(theirs.shape[self.last] - 1, self.last)
        return theirs.reshape(self.shape).transpose(self.order).reshape(self.region)

    def part(self, ours: HostArray) -> HostArray:
        return ours[tuple(slice(0, n) for n in self.region)]

    def over(self, ours: HostArray, theirs: HostArray) -> HostArray:
        """Ours, with theirs in the part that it covers."""
        taken = self.taken(theirs).astype(ours.dtype, copy=False)
        if self.region == ours.shape:
            return np.ascontiguousarray(taken)
        made = ours.copy()
        made[tuple(slice(0, n) for n in self.region)] = taken
        return made


def fits(theirs: Sequence[int], ours: Sequence[int], real: Mapping[int, int]) -> Iterator[Fit]:
    """Those in which elements keep their order come first. `real`: of axes of this many positions, how many are no padding."""
    size = math.prod(theirs)
    for region in regions(ours, real):
        if math.prod(region) == size and size:
            yield from _orders(tuple(theirs), region)
    for axis, n in enumerate(theirs):
        if n > 1 and n in real.values() and math.prod(ours) * n == size:
            rest = (*theirs[:axis], *theirs[axis + 1 :])
            yield from (replace(fit, last=axis) for fit in _orders(rest, tuple(ours)))


def regions(ours: Sequence[int], real: Mapping[int, int]) -> Iterator[tuple[int, ...]]:
    """The parts of ours, from the start of each axis, that may be all but padding; those that leave out most come first."""
    choices = [(n, real[n]) if real.get(n, n) != n else (n,) for n in ours]
    yield from dict.fromkeys(reversed(list(product(*choices))))


def _orders(theirs: tuple[int, ...], region: tuple[int, ...]) -> Iterator[Fit]:
    axes = tuple(n for n in region if n != 1)
    squeezed = tuple(n for n in theirs if n != 1)
    plain = tuple(range(len(axes)))
    for order in permutations(plain) if len(axes) <= MOST_AXES else [plain]:
        # Theirs has the axes of ours in this order: `shape` is what it is like then, and the inverse leads back.
        shape = tuple(axes[k] for k in order)
        if _merged(squeezed, shape):
            yield Fit(region, shape, tuple(order.index(k) for k in plain))


def _merged(coarse: tuple[int, ...], fine: tuple[int, ...]) -> bool:
    """Whether neighbouring axes of one shape make the axes of the other, so that a reshape between them keeps what axes mean."""
    a, b = sorted((coarse, fine), key=len)
    place = 0
    for n in a:
        made = 1
        while made < n and place < len(b):
            made *= b[place]
            place += 1
        if made != n:
            return False
    return place == len(b)
