"""How far two arrays are from each other, and how far they may be: the only place where numbers are judged.

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

The reference. An operator is judged against float64 (`Reference.exact`), not against the source's own answer, which is off
itself. Rounding once to the output's dtype is nobody's fault, so the error of an element is what lies beyond half a step of the
dtype at its exact value.

The bound on that error (`Accuracy.bound`) follows from the source, measured on the recorded call and on others whose inputs are
a rounding away (`tapml.carve.reference`):

- `FACTOR` times the error of the same computation with its sums in float32 (in the source's own dtype where that is wider), and
  at least `FLOOR` roundings of it: another order of summation, functions that a platform approximates to a few units in the last
  place (Vulkan allows 3 + 2|x| for exp, 2.5 for division), and the few elements on which the source was measured;
- in half precision, what the source's own roundings between its steps amount to: up to `FACTOR` times where that is small, and
  at most twice and a quarter of a rounding where it is not. A kernel that rounds where the source does is off by as much as the
  source.

In half precision that leaves room for an error that is small in every element and the same in all of them. So the elements are
also judged together, as differences from the correctly rounded exact result: their mean (`bias`), their regression on the output
(`scale`: 5% too large everywhere), and their root mean square (`spread`). An element that sums in float32 may round to the other
side of a tie counts as no difference. What is allowed is what the source shows itself, and what chance gives so many elements
(`CHANCE` standard errors).

The mean in the unit lets an error pass that is large for a small element. Half precision rounds each element in its own scale,
and where a body does not cancel, its small elements are as exact as its large ones. So errors are also measured in |x| plus a
sliver of s (`relative`), and held to what the source shows in that unit.

Where the source is no judge. An element that is non-finite in the source and finite in float64 (float16 overflows), or
the other way round, an integer on which the two disagree (top-k among equals), or an element that rounding pushes over a jump of
the function (floor at a whole number; `tapml.carve.jumps`) is excluded from comparison and counted. Where one jump alone decides,
the element must still lie between the two sides of it, and of many such elements at least a quarter (`SIDES`) on the side that
the source took, or float64. A comparison in which less than `LEAST` of the elements were left shows nothing
(`Comparison.checked`).

Where float64 is not at hand (a whole model after many steps) the reference is the source's answer alone, and the bound
`compound_bound` of the source's own error.

This module needs numpy only. It computes in float64, a chunk at a time, so memory stays bounded for any size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tapml.tensors import EPSILON, FLOATS, NUMPY, HostArray, dtype_name

# How many times the source's own error a target may differ. Two correct computations with errors e differ by up to 2e; the rest
# is for another order of summation and for the few elements on which the source was measured.
FACTOR = 8.0

# The same where many operators ran before in half precision: there the error is made of many roundings, of which the source's own
# run and the one with roundings added are two fair samples, and a right target is off from the source by about as much.
COMPOUND_FACTOR = 4.0

# How many roundings of the dtype that is computed in are always allowed.
FLOOR = 16.0

# How many standard errors a statistic over many elements may be off by chance.
CHANCE = 6.0

# The least share of an output's elements that must be compared for a comparison to show anything.
LEAST = 0.5

# Of the elements at a jump, the least share that must be on the source's side or on float64's, where there are so many of them.
SIDES = 0.25
MANY = 8

HALF = ("float16", "bfloat16")

_CHUNK = 1 << 18

Measure = Literal["element", "relative", "bias", "scale", "spread", "sides"]

# Which elements straddle a jump (of the output's shape), and for each of those, in order, the least and the greatest right value.
Either = tuple[NDArray[np.bool_], HostArray, HostArray]


@dataclass(frozen=True)
class Accuracy:
    """How exact the source is on one output, the largest of all calls that it was measured on; in the unit of `distance`, 0.0 for
    integers and booleans. `error` is the distance from float64, `beyond` what of it lies beyond rounding once to the
    output's dtype, `working` the same for the computation with its sums in float32 (of the source itself where its dtype is no
    half precision). `bias`, `scale`, `spread` and `relative` are those of the module's docstring, `relative_working` the last for
    sums in float32."""

    error: float = 0.0
    beyond: float = 0.0
    working: float = 0.0
    bias: float = 0.0
    scale: float = 0.0
    spread: float = 0.0
    relative: float = 0.0
    relative_working: float = 0.0

    def bound(self, dtype: str) -> float:
        """The largest error of an element that passes, for an output of this dtype: 0.0 for integers and booleans."""
        if dtype not in FLOATS:
            return 0.0
        if not all(0.0 <= e < math.inf for e in (self.beyond, self.working)):
            raise ValueError(f"a source error is a finite distance, not {self}; exclude undecided elements first")
        allowed = self.slack(dtype)
        if dtype in HALF:
            allowed = max(allowed, min(FACTOR * self.beyond, 2 * self.beyond + EPSILON[dtype] / 4))
        return allowed

    def largest(self, other: Accuracy) -> Accuracy:
        """The larger of each."""
        return Accuracy(*(max(a, b) for a, b in zip(self._all, other._all, strict=True)))

    def relative_bound(self, dtype: str) -> float:
        """The largest error of an element of half precision in the unit |x| + sliver."""
        step = EPSILON[dtype]
        own = 2 * self.relative + step / 4 if self.relative <= 2 * step else FACTOR * self.relative
        return max(step / 4, FACTOR * self.relative_working, min(FACTOR * self.relative, own))

    def slack(self, dtype: str) -> float:
        """What sums in float32 and approximated functions may be off by, in half precision before the result is rounded."""
        return max(FLOOR * working_epsilon(dtype), FACTOR * self.working)

    @property
    def _all(self) -> tuple[float, ...]:
        return (
            self.error, self.beyond, self.working, self.bias, self.scale, self.spread, self.relative, self.relative_working,
        )  # fmt: skip

    def to_json(self) -> list[float]:
        return list(self._all)

    @staticmethod
    def from_json(data: Sequence[float]) -> Accuracy:
        return Accuracy(*(float(x) for x in data))


@dataclass(frozen=True, eq=False)
class Reference:
    """What an output is judged by. `values` is what the source gave, `exact` the same computation in float64 (None where only the
    source's answer is known), `excluded` marks elements on which the source is no judge (None: none). `either` marks those that
    straddle a jump, with the least and the greatest value that is right for each of them. `straddling` says, where `exact` is
    None, how many elements of the source itself were pushed over a jump: so many may be off in a target too."""

    values: HostArray
    accuracy: Accuracy = Accuracy()
    exact: HostArray | None = None
    excluded: NDArray[np.bool_] | None = None
    either: Either | None = None
    straddling: int = 0

    @property
    def dtype(self) -> str:
        return dtype_name(self.values)

    @property
    def bound(self) -> float:
        if self.exact is None:
            return compound_bound(self.accuracy.error, self.dtype)
        return self.accuracy.bound(self.dtype)

    @property
    def compared(self) -> int:
        """How many elements are not excluded; those between two sides of a jump count."""
        return int(self.values.size) - (0 if self.excluded is None else int(self.excluded.sum()))


@dataclass(frozen=True)
class Comparison:
    """The outcome for one output. `index` is the worst element, `actual` and `expected` its values; None where all agree
    exactly. `over` counts the elements beyond the bound, `excluded` those on which the source is no judge, `straddling` those of
    them that lie at a jump and were held to its two sides. `measure` says what `error` and `bound` are of: the worst element, or
    one of the statistics over all of them where that is what failed."""

    error: float
    bound: float
    source_error: float
    index: tuple[int, ...] | None
    actual: float | None
    expected: float | None
    elements: int
    over: int
    excluded: int
    measure: Measure = "element"
    straddling: int = 0

    @property
    def passed(self) -> bool:
        """Nothing that was compared is beyond its bound; see `checked` for whether enough was."""
        return self.error <= self.bound

    @property
    def checked(self) -> bool:
        """Whether enough elements were compared, and within a bound that all zeros would not pass as well."""
        return self.bound < 1.0 and enough(self.elements - self.excluded + self.straddling, self.elements)

    @property
    def ratio(self) -> float:
        """Error over bound; inf where the bound is 0 and the error is not."""
        return self.error / self.bound if self.bound else math.inf if self.error else 0.0

    def describe(self) -> str:
        """One line: error against bound, and the worst element."""
        word = "within" if self.passed else "beyond"
        if self.bound == 0:
            text = "equal" if self.passed else "not equal"
        else:
            what = "error" if self.measure == "element" else _WORDS[self.measure]
            text = f"{what} {self.error:.3g} {word} {self.bound:.3g} (source's own {self.source_error:.3g})"
        if self.index is not None:
            text += f"; worst element {list(self.index)}: {self.actual!r}, expected {self.expected!r}"
        if self.over:
            text += f"; {self.over} of {self.elements} elements beyond the bound"
        if self.excluded:
            text += f"; {self.excluded} of {self.elements} excluded, where the source is no judge"
            if self.straddling:
                text += f" ({self.straddling} at a jump, held to its two sides)"
        return text

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


_WORDS: dict[str, str] = {
    "relative": "error of an element in its own scale",
    "bias": "mean error of all elements",
    "scale": "error in proportion to the output, over all elements,",
    "spread": "root mean square error of all elements",
    "sides": "share of the elements at a jump that take neither the source's side of it nor float64's,",
}


def enough(compared: int, elements: int) -> bool:
    """Whether comparing so many of an output's elements shows anything."""
    return elements == 0 or (compared > 0 and compared >= LEAST * elements)


def working_epsilon(dtype: str) -> float:
    """Machine epsilon of the dtype that a right kernel computes in: float32 for the half precisions."""
    return EPSILON["float32"] if dtype in HALF else EPSILON[dtype]


def compound_bound(source_error: float, dtype: str) -> float:
    """The largest distance from the source's own answer that passes where many operators ran before: `source_error` is the
    source's distance from float64 there. Both sides round to the dtype."""
    if dtype not in FLOATS:
        return 0.0
    if not 0.0 <= source_error < math.inf:
        raise ValueError(f"a source error is a finite distance, not {source_error}; exclude undecided elements first")
    if dtype in HALF:
        return max(COMPOUND_FACTOR * source_error, FLOOR * working_epsilon(dtype) + EPSILON[dtype])
    return max(FACTOR * source_error, FLOOR * EPSILON[dtype])


def of_source(values: HostArray, source_error: float, straddling: int = 0) -> Reference:
    """The source's answer alone as a reference, where many operators ran before."""
    return Reference(values, Accuracy(error=source_error), straddling=straddling)


def distance(actual: HostArray, reference: HostArray) -> float:
    """How far `actual` is from `reference`, in the unit of the module's docstring. Same shape, any dtypes; masked
    elements of the reference are not looked at. 0.0 for empty arrays. Raises ValueError on another shape."""
    mask = np.ma.getmask(reference)
    skip = None if mask is np.ma.nomask else np.asarray(mask)
    return _Scan(actual, np.ma.getdata(reference), None, skip).carry_out(math.inf).worst


def compare(actual: HostArray, reference: Reference) -> Comparison:
    """Judges one output of a target. Raises ValueError on another shape."""
    limit = reference.bound
    slack = reference.accuracy.slack(reference.dtype) if reference.dtype in FLOATS else 0.0
    scan = _Scan(actual, reference.values, reference.exact, reference.excluded, slack, reference.either).carry_out(limit)
    straddling = 0 if reference.either is None else int(reference.either[0].sum())
    own = reference.accuracy.error if reference.exact is None else reference.accuracy.beyond
    found = Comparison(
        error=scan.worst,
        bound=limit,
        source_error=own,
        index=scan.index,
        actual=None if scan.index is None else _scalar(actual, scan.index),
        expected=None if scan.index is None else _scalar(reference.values, scan.index),
        elements=int(reference.values.size),
        over=scan.over,
        excluded=int(reference.values.size) - reference.compared + straddling,
        straddling=straddling,
    )
    if reference.exact is None:
        return _but_for_straddling(found, reference, scan)
    return _with_statistics(_with_relative(_with_sides(found, scan), reference, scan), reference, scan)


def element_errors(actual: HostArray, reference: Reference) -> NDArray[np.float64]:
    """The error of each element as `compare` holds it against `Reference.bound`, of the output's shape; NaN for those that are
    excluded. What is judged of all elements together is not in it."""
    slack = reference.accuracy.slack(reference.dtype) if reference.dtype in FLOATS else 0.0
    return _Scan(actual, reference.values, reference.exact, reference.excluded, slack, reference.either).each()


def measure(
    output: HostArray, exact: HostArray, excluded: NDArray[np.bool_] | None, working: HostArray | float | None = None
) -> Accuracy:
    """How exact the source's output is; `excluded` elements are not looked at. `working` is the result of the same computation
    with its sums in float32, or its distance from float64; None where the output is that computation's."""
    dtype = dtype_name(output)
    if dtype not in FLOATS:
        return Accuracy()
    summed, summed_relative = 0.0, 0.0
    if isinstance(working, np.ndarray):
        off = undecided(working, exact)
        skip = excluded if off is None else off if excluded is None else off | excluded
        summed = distance(working, exact if skip is None else np.ma.MaskedArray(exact, skip))
        summed_relative = _Scan(working, output, exact, skip, kinds=False).carry_out(math.inf).relative
    elif working is not None:
        summed = float(working)
    scan = _Scan(output, output, exact, excluded, Accuracy(working=summed).slack(dtype)).carry_out(math.inf)
    bias, scale, spread = scan.statistics
    raw = distance(output, exact if excluded is None else np.ma.MaskedArray(exact, excluded))
    if working is None:
        summed = scan.worst
    return Accuracy(raw, scan.worst, summed, abs(bias), abs(scale), spread, scan.relative, summed_relative)


def undecided(source: HostArray, oracle: HostArray) -> NDArray[np.bool_] | None:
    """Elements on which the source is no judge: it and float64 disagree about NaN, inf, -inf or finite, or about an
    integer. None when there are none."""
    if dtype_name(source) not in FLOATS:
        differs = np.asarray(source != oracle)
    else:
        differs = np.zeros(source.shape, bool)
        flat, left, right = differs.reshape(-1), _flat(source), _flat(oracle)
        for part in _parts(flat.size):
            flat[part] = _differs_in_kind(_wide(left[part]), _wide(right[part]))
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
    scale = _scale(_flat(reference), None, _largest(actual, reference))
    found = _errors(_flat(actual), _flat(reference), scale, _smallest(actual, reference))
    return found.reshape(reference.shape)


def _but_for_straddling(found: Comparison, reference: Reference, scan: _Scan) -> Comparison:
    """Elements of the source that fell on the other side of a jump say that some of a target's may. Twice as many may be off."""
    if found.passed or not reference.straddling or not 0 < found.over <= 2 * reference.straddling:
        return found
    return replace(found, error=scan.within, excluded=found.excluded + found.over, over=0)


def _with_sides(found: Comparison, scan: _Scan) -> Comparison:
    """The same, or that the elements at a jump take neither side that is expected, each within its two sides."""
    if not found.passed or found.straddling < MANY:
        return found
    share = 1.0 - max(scan.as_source, scan.as_exact) / found.straddling
    return found if share <= 1.0 - SIDES else replace(found, error=share, bound=1.0 - SIDES, source_error=0.0, measure="sides")


def _with_relative(found: Comparison, reference: Reference, scan: _Scan) -> Comparison:
    """The same, or that an element is beyond what is allowed in its own scale."""
    if not found.passed or reference.dtype not in HALF:
        return found
    limit = reference.accuracy.relative_bound(reference.dtype)
    if scan.relative <= limit or scan.relative_index is None:
        return found
    index = scan.relative_index
    return replace(
        found, error=scan.relative, bound=limit, source_error=reference.accuracy.relative, measure="relative", index=index,
        actual=_scalar(scan.original, index), expected=_scalar(reference.values, index),
    )  # fmt: skip


def _with_statistics(found: Comparison, reference: Reference, scan: _Scan) -> Comparison:
    """The same, or the statistic that is farthest beyond what is allowed where all elements are within their bound."""
    dtype = reference.dtype
    if not found.passed or dtype not in HALF or not scan.count:
        return found
    source = reference.accuracy
    bias, scale, spread = scan.statistics
    floor = source.slack(dtype)
    chance = CHANCE * max(spread, source.spread)
    made: tuple[tuple[Measure, float, float, float], ...] = (
        ("bias", abs(bias), floor + FACTOR * source.bias + chance / math.sqrt(scan.count), source.bias),
        ("scale", abs(scale), floor + FACTOR * source.scale + chance / math.sqrt(max(scan.squares, 1e-300)), source.scale),
        ("spread", spread, floor + 2 * source.spread, source.spread),
    )
    name, value, limit, own = max(made, key=lambda m: m[1] / m[2])
    if value <= limit or (name == "spread" and scan.count < CHANCE**2):
        return found
    return replace(found, error=value, bound=limit, source_error=own, measure=name)


class _Scan:
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
        self.actual, self.values = _flat(actual), _flat(values)
        self.exact = _flat(exact) if exact is not None and self.floating else None
        self.skip = None if skip is None else skip.reshape(-1)
        self.judge = self.values if self.exact is None else self.exact
        self.scale = _scale(self.judge, self.skip, _largest(actual, values)) if self.floating else 1.0
        self.smallest = _smallest(actual, values) if self.floating else 0.0
        self.slack = slack
        self.either: NDArray[np.bool_] | None = None
        if either is not None:
            self.either = either[0].reshape(-1)
            self.between = np.stack([_wide(either[1].reshape(-1)), _wide(either[2].reshape(-1))])
            self.ordinal = np.cumsum(self.either) - 1
        self.worst, self.within, self.over = 0.0, 0.0, 0
        self.as_source = self.as_exact = 0
        self.original, self.kinds = actual, kinds
        self.relative = 0.0
        self.relative_position: int | None = None
        # So much of the scale that sums in float32 amount to no more than a quarter of a rounding in this unit.
        self.sliver = 4 * FLOOR * EPSILON["float32"] / EPSILON[self.dtype] * self.scale if self.floating else 0.0
        self.position: int | None = None
        self.count, self.sum, self.products, self.squares, self.power = 0, 0.0, 0.0, 0.0, 0.0

    def carry_out(self, limit: float) -> _Scan:
        for part in _parts(self.values.size):
            errors = self._part(part)
            if self.either is not None and self.either[part].any():
                errors[self.either[part]] = self._outside(part)
            if self.skip is not None:
                errors[self.skip[part]] = 0.0
            top = int(errors.argmax())
            if errors[top] > self.worst:
                self.worst, self.position = float(errors[top]), part.start + top
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
        y, r, x = _wide(self.actual[part]), _wide(self.values[part]), _wide(self.exact[part])
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
        y = _wide(self.actual[places])
        off = np.maximum(np.maximum(low - y, y - high), 0.0)
        third = (high - low) / 3
        self.as_source += int((np.abs(y - _wide(self.values[places])) < third).sum())
        if self.exact is not None:
            self.as_exact += int((np.abs(y - _wide(self.exact[places])) < third).sum())
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
            off = np.where(differs, (_wide(y.astype(kind)) - _wide(x.astype(kind))) / unit, 0.0)
        finite = np.isfinite(off)
        off, share = off[finite], (x / unit)[finite]
        self.count += off.size
        self.sum += float(off.sum())
        self.products += float((off * share).sum())
        self.squares += float((share * share).sum())
        self.power += float((off * off).sum())


def scale_of(exact: HostArray, values: HostArray) -> float:
    """What |x| is added to in the unit of distance, for an output that is `values` in its own dtype."""
    return max(_scale(_flat(exact), None, _largest(values, values)), _smallest(values, values))


def half_step(x: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Half the distance between neighbouring numbers of a dtype around each x: what rounding to it may be off by."""
    lowest = int(np.log2(float(ml_dtypes.finfo(NUMPY[dtype]).smallest_normal)))
    finite = np.where(np.isfinite(x), x, 0.0)
    exponent = np.where(finite == 0.0, lowest, np.frexp(finite)[1] - 1)
    return np.asarray(np.ldexp(EPSILON[dtype] / 2, np.maximum(exponent, lowest)), np.float64)


def _parts(size: int) -> Iterator[slice]:
    for start in range(0, size, _CHUNK):
        yield slice(start, min(start + _CHUNK, size))


def _errors(actual: HostArray, reference: HostArray, scale: float, smallest: float) -> NDArray[np.float64]:
    y, r = _wide(actual), _wide(reference)
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
        size = np.abs(_wide(r[part]))
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


def _flat(array: HostArray) -> HostArray:
    return np.ma.getdata(array).reshape(-1)


def _wide(array: HostArray) -> NDArray[np.float64]:
    return array.astype(np.float64)


def _scalar(array: HostArray, index: tuple[int, ...]) -> float:
    return float(np.ma.getdata(array)[index])
