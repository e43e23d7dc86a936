"""Simpler values for the inputs of a failing case: zeros, ones, equal, few, short. Pure: arrays and a predicate.

    simpler = simplify(inputs, fails, budget)            fails(inputs) -> bool

In this order, for the largest input first, and again until nothing changes:
1. an input as a whole becomes zeros, or ones;
2. as many elements as possible become zero, by delta debugging: blocks first, halved down to single elements;
3. all elements that are left get one value (1, or the largest among them); else all magnitudes do, with the signs kept;
4. all elements are rounded to one, two or three significant digits; else those elements for which it can be done.
Integers go to 0 or to 1 if they can, or else as near to it as halving gets. Booleans go all one way, or as far as they can.

Invariants: at each moment `fails` is true of the current arrays, and shapes and dtypes are those of the start. Every step that
is taken lowers the `complexity` of one array, which cannot fall for ever, so the search ends; the budget limits the calls of
`fails` besides. If `fails` is never true again, the arrays come back as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tapml.diagnose.minimise.budget import Budget
from tapml.tensors import FLOATS, HostArray, dtype_name

Arrays = list[HostArray]
Fails = Callable[[Arrays], bool]

# Elements beyond which an array is not gone through one by one.
_ONE_BY_ONE = 512

# Distinct values up to which the length of writing them is counted.
_WRITTEN = 4096

_DIGITS = (1, 2, 3, 5)


def simplify(inputs: Sequence[HostArray], fails: Fails, budget: Budget) -> Arrays:
    """The simplest arrays found for which `fails` is true, which it must be of `inputs`. Each call of it is taken from the
    budget."""
    search = _Search(list(inputs), fails, budget)
    while not budget.spent:
        before = [a.tobytes() for a in search.current]
        for k in sorted(range(len(inputs)), key=lambda k: -inputs[k].size):
            search.simplify(k)
        if [a.tobytes() for a in search.current] == before:
            break
    return search.current


class _Search:
    def __init__(self, current: Arrays, fails: Fails, budget: Budget) -> None:
        self.current = current
        self.fails = fails
        self.budget = budget

    def attempt(self, k: int, array: HostArray) -> bool:
        """Puts `array` in place of input k if the case still fails with it."""
        before = self.current[k]
        array = np.asarray(array).astype(before.dtype).reshape(before.shape)
        if not complexity(array) < complexity(before) or not self.budget.take():
            return False
        candidate = [array if i == k else a for i, a in enumerate(self.current)]
        if not self.fails(candidate):
            return False
        self.current = candidate
        return True

    def simplify(self, k: int) -> None:
        array = self.current[k]
        if array.size == 0 or self.attempt(k, np.zeros_like(array)) or not self.current[k].any():
            return
        if dtype_name(array) in FLOATS:
            if not (self.current[k] == 1).all() and self.attempt(k, np.ones_like(array)):
                return
            self.zero_blocks(k)
            self.equalise(k)
            self.shorten(k)
        else:
            self.zero_blocks(k)
            if array.dtype.kind != "b":
                self.lower(k)

    def zero_blocks(self, k: int) -> None:
        """Delta debugging over the elements that are not zero. Invariant: those in `chosen` are all that is not zero, and the
        case fails; a granularity at which no block can go is halved, down to one element."""
        chosen = np.flatnonzero(self.current[k].reshape(-1))
        block = chosen.size // 2
        while block >= 1 and not self.budget.spent:
            if block == 1 and chosen.size > _ONE_BY_ONE:
                return
            start = 0
            while start < chosen.size and chosen.size > 1:
                rest = np.delete(chosen, slice(start, start + block))
                flat = np.zeros_like(self.current[k]).reshape(-1)
                flat[rest] = self.current[k].reshape(-1)[rest]
                if rest.size and self.attempt(k, flat):
                    chosen = rest
                else:
                    start += block
            block //= 2

    def equalise(self, k: int) -> None:
        """One value, or one magnitude, for all elements that are not zero."""
        for value in self._values(k):
            array = self.current[k]
            if self.attempt(k, np.where(array == 0, 0, value)):
                return
        for value in self._values(k):
            array = self.current[k]
            if self.attempt(k, np.where(array == 0, 0, np.copysign(value, array.astype(np.float64)))):
                return

    def _values(self, k: int) -> Iterator[float]:
        flat = self.current[k].reshape(-1).astype(np.float64)
        flat = flat[np.isfinite(flat) & (flat != 0)]
        if flat.size:
            largest = float(np.abs(flat).max())
            yield from dict.fromkeys((1.0, 2.0, round_to(largest, 1), largest))

    def shorten(self, k: int) -> None:
        """Fewer digits: for all elements together, then for each that allows it."""
        for digits in _DIGITS:
            if self.attempt(k, _rounded(self.current[k], digits)):
                break
        if self.current[k].size > _ONE_BY_ONE:
            return
        for position in np.flatnonzero(self.current[k].reshape(-1)):
            for digits in (0, *_DIGITS):
                flat = self.current[k].reshape(-1).copy()
                value = float(flat[position])
                if digits and round_to(value, digits) == value:
                    break
                flat[position] = np.copysign(1.0, value) if digits == 0 else round_to(value, digits)
                if self.attempt(k, flat):
                    break

    def lower(self, k: int) -> None:
        """Integers towards zero: each by halving the way while the case fails."""
        if self.current[k].size > _ONE_BY_ONE:
            return
        for position in np.flatnonzero(self.current[k].reshape(-1)):
            value = int(self.current[k].reshape(-1)[position])
            low = 1 if value > 0 else -1
            for candidate in dict.fromkeys((low, *(value // 2**n for n in (3, 2, 1)), value - low)):
                flat = self.current[k].reshape(-1).copy()
                if abs(candidate) < abs(int(flat[position])):
                    flat[position] = candidate
                    self.attempt(k, flat)


def complexity(array: HostArray) -> tuple[float, ...]:
    """What every step lowers: how many elements are not zero; how many values and magnitudes differ; how many characters it
    takes to write those; how far they are from 1."""
    values = np.unique(array.reshape(-1).astype(np.float64)) if array.dtype.kind != "b" else np.unique(array).astype(np.float64)
    values = values[values != 0]
    characters = float(sum(len(f"{v:.9g}") for v in values)) if values.size <= _WRITTEN else math.inf
    with np.errstate(over="ignore"):
        far = float(np.abs(np.abs(values) - 1.0).sum())
    return float(np.count_nonzero(array)), float(values.size + np.unique(np.abs(values)).size), characters, far


def round_to(value: float, digits: int) -> float:
    """A number rounded to so many significant decimal digits."""
    return float(f"{value:.{digits - 1}e}") if np.isfinite(value) else value


def _rounded(array: HostArray, digits: int) -> HostArray:
    if array.size > 1 << 16:
        return array  # too many to go through
    return np.array([round_to(float(v), digits) for v in array.reshape(-1)]).reshape(array.shape)
