"""How far two arrays are from each other, element by element and together; what that may be is for `tapml.carving.tolerance`.

    distance(y, r)                       the largest difference, in the unit below
    undecided(source, oracle)            elements on which two answers differ in kind
    Scan(y, values, exact, skip).carry_out(limit)      all that a comparison needs, in one pass

The unit. For floats, `distance(y, r)` is the largest |y - r| / (|r| + s) over the elements, where s is the mean of |r| over
the elements that are finite, not zero, and below half of the dtype's largest number.

- |r| alone in the denominator would blow up at zeros and after cancellation, where no rounding error is relative to the element;
  s gives such elements the scale of their neighbours.
- max |r| instead of the mean would let one outlier hide errors in all the others: activations of language models hold
  values a thousand times the usual. Zeros (padding, an empty part of a cache) and the limits of the dtype (masks) say nothing
  about the scale of a value, so they stay out of the mean. If nothing is left, s is 1 and the unit is absolute.
- The unit never falls below the dtype's smallest normal number: below that, numbers are evenly spaced, and a difference is
  measured in steps.
- NaN, inf and -inf must stand where the reference has them, each in kind, else the distance is inf. Integers and booleans must be
  equal: the distance is 0.0 or inf.

Needs numpy only. Computes in float64, a chunk at a time, so memory stays bounded for any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tapml.tensors import EPSILON, FLOATS, NUMPY, HostArray, dtype_name

HALF = ("float16", "bfloat16")

# How many roundings of the dtype that is computed in are always allowed.
FLOOR = 16.0

# Which elements straddle a jump (of the output's shape), and for each of those, in order, the least and the greatest right value.
Either = tuple[NDArray[np.bool_], HostArray, HostArray]

CHUNK = 1 << 18


def distance(actual: HostArray, reference: HostArray) -> float:
    """How far `actual` is from `reference`, in the unit of the module's docstring. Same shape, any dtypes; masked
    elements of the reference are not looked at. 0.0 for empty arrays. Raises ValueError on another shape."""
    mask = np.ma.getmask(reference)
    skip = None if mask is np.ma.nomask else np.asarray(mask)
    return Scan(actual, np.ma.getdata(reference), None, skip).carry_out(math.inf).worst


def undecided(source: HostArray, oracle: HostArray) -> NDArray[np.bool_] | None:
    """Elements that the source cannot decide: it and float64 disagree about NaN, inf, -inf or finite, or about an
    integer. None when there are none."""
    if dtype_name(source) not in FLOATS:
        differs = np.asarray(source != oracle)
    else:
        differs = np.zeros(source.shape, bool)
        seen, left, right = differs.reshape(-1), flat(source), flat(oracle)
        for part in _parts(seen.size):
            seen[part] = _differs_in_kind(wide(left[part]), wide(right[part]))
    return differs if differs.any() else None


def straddling(errors: NDArray[np.float64], dtype: str) -> int:
    """How many of an output's errors stand so far above all others that no rounding made them: the last is a thousand times the
    next, and they are at most a twentieth of all. 0 where there is no such gap."""
    errors = np.sort(errors[np.isfinite(errors)].reshape(-1))[::-1]
    most = errors.size // 20
    for count in range(1, most + 1):
        if errors[count - 1] > 1000 * max(errors[count], EPSILON[dtype]):
            return count
    return 0


def errors_of(actual: HostArray, reference: HostArray) -> NDArray[np.float64]:
    """The distance of each element."""
    scale = _scale(flat(reference), None, _largest(actual, reference))
    found = _errors(flat(actual), flat(reference), scale, _smallest(actual, reference))
    return found.reshape(reference.shape)


class Scan:
    """One pass over two arrays, a chunk at a time. With `exact`, an element's error is what lies beyond half a step of the
    reference's dtype around the exact value, and statistics are gathered; else it is the distance from `values`."""

    def __init__(
        self, actual: HostArray, values: HostArray, exact: HostArray | None, skip: NDArray[np.bool_] | None, slack: float = 0.0,
        either: Either | None = None, kinds: bool = True,
    ) -> None:
        if actual.shape != values.shape:
            raise ValueError(f"cannot compare shape {actual.shape} with {values.shape}")
        self.shape = values.shape
        self.dtype = dtype_name(values)
        self.floating = self.dtype in FLOATS
        self.actual, self.values = flat(actual), flat(values)
        self.exact = flat(exact) if exact is not None and self.floating else None
        self.skip = None if skip is None else skip.reshape(-1)
        self.judge = self.values if self.exact is None else self.exact
        self.scale = _scale(self.judge, self.skip, _largest(actual, values)) if self.floating else 1.0
        self.smallest = _smallest(actual, values) if self.floating else 0.0
        self.slack = slack
        self.either: NDArray[np.bool_] | None = None
        if either is not None:
            self.either = either[0].reshape(-1)
            self.between = np.stack([wide(either[1].reshape(-1)), wide(either[2].reshape(-1))])
            self.ordinal = np.cumsum(self.either) - 1
        self.worst, self.within, self.over = 0.0, 0.0, 0
        self.clipped = 0.0
        self.as_source = self.as_exact = 0
        self.original, self.kinds = actual, kinds
        self.relative = 0.0
        self.relative_position: int | None = None
        # So much of the scale that sums in float32 amount to no more than a quarter of a rounding in this unit.
        self.sliver = 4 * FLOOR * EPSILON["float32"] / EPSILON[self.dtype] * self.scale if self.floating else 0.0
        self.position: int | None = None
        self.count, self.sum, self.products, self.squares, self.power = 0, 0.0, 0.0, 0.0, 0.0

    def carry_out(self, limit: float) -> Scan:
        for part in _parts(self.values.size):
            errors = self._part(part)
            if self.either is not None and self.either[part].any():
                errors[self.either[part]] = self._outside(part)
            if self.skip is not None:
                errors[self.skip[part]] = 0.0
            top = int(errors.argmax())
            if errors[top] > self.worst:
                self.worst, self.position = float(errors[top]), part.start + top
            self.clipped += float((np.minimum(errors, 1.0) ** 2).sum())
            beyond = errors > limit
            self.over += int(beyond.sum())
            self.within = max(self.within, float(errors[~beyond].max(initial=0.0)))
        return self

    def each(self) -> NDArray[np.float64]:
        found = np.zeros(self.values.size)
        for part in _parts(self.values.size):
            errors = self._part(part)
            if self.either is not None and self.either[part].any():
                errors[self.either[part]] = self._outside(part)
            found[part] = errors if self.skip is None else np.where(self.skip[part], math.nan, errors)
        return found.reshape(self.shape)

    @property
    def root_mean_square(self) -> float:
        """Of all errors, each at most 1."""
        return math.sqrt(self.clipped / self.values.size) if self.values.size else 0.0

    @property
    def index(self) -> tuple[int, ...] | None:
        return self._index(self.position)

    @property
    def relative_index(self) -> tuple[int, ...] | None:
        return self._index(self.relative_position)

    def _index(self, position: int | None) -> tuple[int, ...] | None:
        return None if position is None else tuple(int(n) for n in np.unravel_index(position, self.shape))

    @property
    def statistics(self) -> tuple[float, float, float]:
        """(bias, scale, spread) of the differences from the correctly rounded exact result; zeros where there are none."""
        if not self.count:
            return 0.0, 0.0, 0.0
        scale = self.products / self.squares if self.squares else 0.0
        return self.sum / self.count, scale, math.sqrt(self.power / self.count)

    def _part(self, part: slice) -> NDArray[np.float64]:
        if not self.floating:
            return np.where(self.actual[part] == self.values[part], 0.0, math.inf)
        if self.exact is None:
            return _errors(self.actual[part], self.values[part], self.scale, self.smallest)
        y, r, x = wide(self.actual[part]), wide(self.values[part]), wide(self.exact[part])
        unit = np.maximum(np.abs(x) + self.scale, self.smallest)
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.maximum(np.abs(y - x) - half_step(x, self.dtype), 0.0)
            errors: NDArray[np.float64] = off / unit
        both = np.isfinite(y) & np.isfinite(x) & np.isfinite(r)
        if not both.all():
            errors = np.where(both & ~np.isnan(errors), errors, 0.0)
            if self.kinds:
                errors[_differs_in_kind(y, r)] = math.inf
        if self.dtype in HALF:
            counts = both if self.skip is None else both & ~self.skip[part]
            if self.either is not None:
                counts = counts & ~self.either[part]
            own = np.where(counts, off / np.maximum(np.abs(x) + self.sliver, self.smallest), 0.0)
            top = int(own.argmax())
            if own[top] > self.relative:
                self.relative, self.relative_position = float(own[top]), part.start + top
            self._gather(y[counts], x[counts], unit[counts], errors[counts] > self.slack)
        return errors

    def _outside(self, part: slice) -> NDArray[np.float64]:
        """How far elements that straddle a jump lie outside of what either side gives."""
        places = np.flatnonzero(self.either[part]) + part.start  # type: ignore[index]
        low, high = self.between[:, self.ordinal[places]]
        y = wide(self.actual[places])
        off = np.maximum(np.maximum(low - y, y - high), 0.0)
        third = (high - low) / 3
        self.as_source += int((np.abs(y - wide(self.values[places])) < third).sum())
        if self.exact is not None:
            self.as_exact += int((np.abs(y - wide(self.exact[places])) < third).sum())
        if not self.floating:
            return np.where(off == 0.0, 0.0, math.inf)
        room = np.maximum(half_step(low, self.dtype), half_step(high, self.dtype))
        unit = np.maximum(np.maximum(np.abs(low), np.abs(high)) + self.scale, self.smallest)
        return np.where(np.isfinite(y), np.maximum(off - room, 0.0) / unit, math.inf)

    def _gather(
        self, y: NDArray[np.float64], x: NDArray[np.float64], unit: NDArray[np.float64], differs: NDArray[np.bool_]
    ) -> None:
        kind = NUMPY[self.dtype]
        with np.errstate(over="ignore", invalid="ignore"):
            off = np.where(differs, (wide(y.astype(kind)) - wide(x.astype(kind))) / unit, 0.0)
        finite = np.isfinite(off)
        off, share = off[finite], (x / unit)[finite]
        self.count += off.size
        self.sum += float(off.sum())
        self.products += float((off * share).sum())
        self.squares += float((share * share).sum())
        self.power += float((off * off).sum())


def scale_of(exact: HostArray, values: HostArray) -> float:
    """What |x| is added to in the unit of distance, for an output that is `values` in its own dtype."""
    return max(_scale(flat(exact), None, _largest(values, values)), _smallest(values, values))


def half_step(x: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Half the distance between neighbouring numbers of a dtype around each x: what rounding to it may be off by."""
    lowest = int(np.log2(float(ml_dtypes.finfo(NUMPY[dtype]).smallest_normal)))
    finite = np.where(np.isfinite(x), x, 0.0)
    exponent = np.where(finite == 0.0, lowest, np.frexp(finite)[1] - 1)
    return np.asarray(np.ldexp(EPSILON[dtype] / 2, np.maximum(exponent, lowest)), np.float64)


def _parts(size: int) -> Iterator[slice]:
    for start in range(0, size, CHUNK):
        yield slice(start, min(start + CHUNK, size))


def _errors(actual: HostArray, reference: HostArray, scale: float, smallest: float) -> NDArray[np.float64]:
    y, r = wide(actual), wide(reference)
    with np.errstate(invalid="ignore", over="ignore"):
        errors: NDArray[np.float64] = np.abs(y - r) / np.maximum(np.abs(r) + scale, smallest)
    if not np.isfinite(errors).all():
        both = np.isfinite(y) & np.isfinite(r)
        errors = np.where(both & ~np.isnan(errors), errors, 0.0)
        errors[_differs_in_kind(y, r)] = math.inf
    return errors


def _differs_in_kind(y: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.bool_]:
    same = (np.isfinite(y) & np.isfinite(r)) | (np.isnan(y) & np.isnan(r)) | (np.isinf(y) & (y == r))
    return np.asarray(~same)


def _scale(r: HostArray, skip: HostArray | None, largest: float) -> float:
    total, count = 0.0, 0
    for part in _parts(r.size):
        size = np.abs(wide(r[part]))
        counts = (size > 0) & (size < largest / 2)
        if skip is not None:
            counts &= ~skip[part]
        total += float(size[counts].sum())
        count += int(counts.sum())
    return total / count if count else 1.0


def _largest(actual: HostArray, reference: HostArray) -> float:
    """The largest number of the narrower of two dtypes: float64 results may hold a float32 mask."""
    return min(float(ml_dtypes.finfo(kind).max) for kind in _kinds(actual, reference))


def _smallest(actual: HostArray, reference: HostArray) -> float:
    """The smallest normal number of the narrower of two dtypes."""
    return max(float(ml_dtypes.finfo(kind).smallest_normal) for kind in _kinds(actual, reference))


def _kinds(actual: HostArray, reference: HostArray) -> list[np.dtype[Any]]:
    return [a.dtype for a in (actual, reference) if dtype_name(a) in FLOATS]


def flat(array: HostArray) -> HostArray:
    return np.ma.getdata(array).reshape(-1)


def wide(array: HostArray) -> NDArray[np.float64]:
    return array.astype(np.float64)


def scalar(array: HostArray, index: tuple[int, ...]) -> float:
    return float(np.ma.getdata(array)[index])
