"""How far two arrays are from each other, and how far they may be: the only place where numbers are judged.

The unit. For floats, `distance(y, r)` is the largest |y - r| / (|r| + s) over the elements, where s is the mean of |r| over
the elements that are finite, not zero, and below half of the dtype's largest number.

- |r| alone in the denominator would blow up at zeros and after cancellation, where no rounding error is relative to the element;
  s gives such elements the scale of their neighbours.
- max |r| instead of the mean would let one outlier hide errors in all the others: activations of language models hold
  values a thousand times the usual. Zeros (padding, an empty part of a cache) and the limits of the dtype (masks) say nothing
  about the scale of a value, so they stay out of the mean. If nothing is left, s is 1 and the unit is absolute.
- NaN, inf and -inf must stand where the reference has them, each in kind, else the distance is inf. Integers and booleans must be
  equal: the distance is 0.0 or inf.

The bound. The source is not exact either. Its distance from the same computation in float64 (`tapml.carve.oracle`) is the
`source_error`, and a target passes within `FACTOR` of it, or within `FLOOR` roundings of the dtype where the source was
exact by luck or by nature (`bound`).

Where the source is no judge. An element that is non-finite in the source and finite in float64 (float16 overflows), or
the other way round, or an integer on which the two disagree (top-k among equals), is excluded from comparison and
counted: a target that is better than the source must not fail. Such a reference is a `numpy.ma.MaskedArray`, masked at
the excluded elements (`undecided` says which).

This module needs numpy only. It computes in float64, a chunk at a time, so memory stays bounded for any size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tapml.tensors import EPSILON, FLOATS, HostArray, dtype_name

# How many times the source's own error a target may differ from the source. Two correct computations with errors e differ
# by up to 2e; the rest is for another order of summation and for the few elements on which the source was measured.
FACTOR = 8.0

# How many roundings of the output's dtype are always allowed: platforms approximate exp, rsqrt and division to a few units in the
# last place (Vulkan allows 3 + 2|x| for exp, 2.5 for division), and an operator is several such steps.
FLOOR = 16.0

_CHUNK = 1 << 18


@dataclass(frozen=True)
class Comparison:
    """The outcome for one output. `index` is the worst element, `actual` and `expected` its values; None where all agree
    exactly. `over` counts the elements beyond the bound, `excluded` those on which the source is no judge."""

    error: float
    bound: float
    source_error: float
    index: tuple[int, ...] | None
    actual: float | None
    expected: float | None
    elements: int
    over: int
    excluded: int

    @property
    def passed(self) -> bool:
        return self.error <= self.bound

    def describe(self) -> str:
        """One line: error against bound, and the worst element."""
        word = "within" if self.passed else "beyond"
        text = f"error {self.error:.3g} {word} {self.bound:.3g} (source's own {self.source_error:.3g})"
        if self.index is not None:
            text += f"; worst element {list(self.index)}: {self.actual!r}, expected {self.expected!r}"
        if self.over:
            text += f"; {self.over} of {self.elements} elements beyond the bound"
        if self.excluded:
            text += f"; {self.excluded} excluded, where the source disagrees with float64 about finite or equal"
        return text

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def bound(source_error: float, dtype: str) -> float:
    """The largest distance that passes, for an output of this dtype: 0.0 for integers and booleans."""
    if dtype not in FLOATS:
        return 0.0
    if not 0.0 <= source_error < math.inf:
        raise ValueError(f"a source error is a finite distance, not {source_error}; exclude undecided elements first")
    return max(FACTOR * source_error, FLOOR * EPSILON[dtype])


def distance(actual: HostArray, reference: HostArray) -> float:
    """How far `actual` is from `reference`, in the unit of the module's docstring. Same shape, any dtypes; masked
    elements of the reference are not looked at. 0.0 for empty arrays. Raises ValueError on another shape."""
    return _scan(actual, reference, math.inf)[0]


def compare(actual: HostArray, reference: HostArray, source_error: float) -> Comparison:
    """Judges one output of a target against the recorded one; the bound follows from the reference's dtype."""
    limit = bound(source_error, dtype_name(reference))
    error, position, over = _scan(actual, reference, limit)
    mask = np.ma.getmask(reference)
    index = None if position is None else tuple(int(n) for n in np.unravel_index(position, reference.shape))
    return Comparison(
        error=error,
        bound=limit,
        source_error=source_error,
        index=index,
        actual=None if index is None else _scalar(actual, index),
        expected=None if index is None else _scalar(reference, index),
        elements=int(reference.size),
        over=over,
        excluded=0 if mask is np.ma.nomask else int(mask.sum()),
    )


def undecided(source: HostArray, oracle: HostArray) -> NDArray[np.bool_] | None:
    """Elements on which the source is no judge: it and float64 disagree about NaN, inf, -inf or finite, or about an
    integer. None when there are none."""
    if dtype_name(source) not in FLOATS:
        differs = np.asarray(source != oracle)
    else:
        differs = np.zeros(source.shape, bool)
        flat, left, right = differs.reshape(-1), _flat(source), _flat(oracle)
        for start in range(0, flat.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            flat[part] = _differs_in_kind(_wide(left[part]), _wide(right[part]))
    return differs if differs.any() else None


def source_error(source: HostArray, oracle: HostArray) -> tuple[float, NDArray[np.bool_] | None]:
    """The source's distance from float64, and the elements on which it is no judge (None: it is on all). Integers and
    booleans must be equal on a target, so their error is 0.0."""
    mask = undecided(source, oracle)
    if dtype_name(source) not in FLOATS:
        return 0.0, mask
    return distance(source, oracle if mask is None else np.ma.MaskedArray(oracle, mask)), mask


def as_reference(source: HostArray, oracle: HostArray) -> tuple[HostArray, float]:
    """The source's output as a reference, masked where it is no judge, and its distance from float64."""
    error, mask = source_error(source, oracle)
    return source if mask is None else np.ma.MaskedArray(source, mask), error


def _scan(actual: HostArray, reference: HostArray, limit: float) -> tuple[float, int | None, int]:
    """(distance, flat index of the worst element, how many are beyond `limit`)."""
    if actual.shape != reference.shape:
        raise ValueError(f"cannot compare shape {actual.shape} with {reference.shape}")
    y, r = _flat(actual), _flat(reference)
    mask = np.ma.getmask(reference)
    skip = None if mask is np.ma.nomask else np.asarray(mask).reshape(-1)
    floating = dtype_name(reference) in FLOATS
    scale = _scale(r, skip, _largest(actual, reference)) if floating else 1.0
    worst, position, over = 0.0, None, 0
    for start in range(0, r.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        errors = _errors(y[part], r[part], scale) if floating else np.where(y[part] == r[part], 0.0, math.inf)
        if skip is not None:
            errors[skip[part]] = 0.0
        top = int(errors.argmax())
        if errors[top] > worst:
            worst, position = float(errors[top]), start + top
        over += int((errors > limit).sum())
    return worst, position, over


def _errors(actual: HostArray, reference: HostArray, scale: float) -> NDArray[np.float64]:
    y, r = _wide(actual), _wide(reference)
    with np.errstate(invalid="ignore", over="ignore"):
        errors: NDArray[np.float64] = np.abs(y - r) / (np.abs(r) + scale)
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
    for start in range(0, r.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        size = np.abs(_wide(r[part]))
        counts = (size > 0) & (size < largest / 2)
        if skip is not None:
            counts &= ~skip[part]
        total += float(size[counts].sum())
        count += int(counts.sum())
    return total / count if count else 1.0


def _largest(actual: HostArray, reference: HostArray) -> float:
    """The largest number of the narrower of two dtypes: float64 results may hold a float32 mask."""
    kinds = [a.dtype for a in (actual, reference) if dtype_name(a) in FLOATS]
    return min(float(ml_dtypes.finfo(kind).max) for kind in kinds)


def _flat(array: HostArray) -> HostArray:
    return np.ma.getdata(array).reshape(-1)


def _wide(array: HostArray) -> NDArray[np.float64]:
    return array.astype(np.float64)


def _scalar(array: HostArray, index: tuple[int, ...]) -> float:
    return float(np.ma.getdata(array)[index])
