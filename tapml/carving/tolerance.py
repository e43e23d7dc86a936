"""How far two arrays are from each other, and how far they may be: the only place where numbers are judged.

The unit of `distance`, and what it takes to compare two arrays, stand in `tapml.carving.distance`.

The reference. An operator is judged against float64 (`Reference.exact`), not against the source's own answer, which is off
itself. Rounding once to the output's dtype is nobody's fault, so the error of an element is what lies beyond half a step of the
dtype at its exact value.

The bound on that error (`Accuracy.bound`) follows from the source, measured on the recorded call and on others whose inputs are
a rounding away (`tapml.carving.reference`):

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

Where the source cannot decide. An element that is non-finite in the source and finite in float64 (float16 overflows), or
the other way round, an integer on which the two disagree (top-k among equals), or an element that rounding pushes over a jump
of the function (floor at a whole number; `tapml.carving.jumps`) is excluded from comparison and counted. Where one jump alone
decides, the element must still lie between the two sides of it, and of many such elements at least a quarter (`SIDES`) on the
side that the source took, or float64. A comparison in which less than `LEAST` of the elements were left shows nothing
(`Comparison.checked`).

Where float64 is not at hand (a whole model after many steps) the reference is the source's answer alone. Errors that went through
many operators have long tails: a few elements hang on differences of large numbers, and are off by any amount in a right
implementation too. So there the root mean square of all errors, each at most 1, is held to `FACTOR` times the source's own, in
half precision to `COMPOUND_FACTOR` times (`spread`), and single elements to `compound_bound`; with `FEW`, one in a thousand may
be beyond that. Where all zeros would pass, nothing is shown (`Comparison.vacuous`).

This module needs numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tapml import strict
from tapml.carving.distance import FLOOR, HALF, Either, Scan, distance, scalar, undecided
from tapml.carving.ties import as_good
from tapml.tensors import EPSILON, FLOATS, HostArray, dtype_name

# How many times the source's own error a target may differ. Two correct computations with errors e differ by up to 2e; the rest
# is for another order of summation and for the few elements on which the source was measured.
FACTOR = 8.0

# The same in half precision where many operators ran before: there the error is made of many roundings, of which the source's own
# run and the one with roundings added are two fair samples, and a right target is off from the source by about as much.
COMPOUND_FACTOR = 4.0

# The share of elements whose compound error may be any, where the whole is judged by its root mean square.
FEW = 0.001

# How many standard errors a statistic over many elements may be off by chance.
CHANCE = 6.0

# The least share of an output's elements that must be compared for a comparison to show anything.
LEAST = 0.5

# Of the elements at a jump, the least share that must be on the source's side or on float64's, where there are so many of them.
SIDES = 0.25
MANY = 8

Measure = Literal["element", "relative", "bias", "scale", "spread", "sides", "sum"]


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
        found = Accuracy(*(float(strict.real(data, k)) for k in range(len(strict.fixed(data, 8)))))
        if not all(0.0 <= e < math.inf for e in (found.beyond, found.working)):
            raise ValueError("a source error is no finite distance")
        return found


@dataclass(frozen=True, eq=False)
class Reference:
    """What an output is judged by. `values` is what the source gave, `exact` the same computation in float64 (None where only the
    source's answer is known), `excluded` marks elements that the source cannot decide (None: none). `either` marks those that
    straddle a jump, with the least and the greatest value that is right for each of them. `straddling` says, where `exact` is
    None, how many elements of the source itself were pushed over a jump: so many may be off in a target too. `spread` is, where
    `exact` is None and it is known, the root mean square of the source's own errors, and `few` the share of elements that may be
    beyond the bound. `led`: what indices lead to and along which dimension, where there are equal values among it."""

    values: HostArray
    accuracy: Accuracy = Accuracy()
    exact: HostArray | None = None
    excluded: NDArray[np.bool_] | None = None
    either: Either | None = None
    straddling: int = 0
    spread: float | None = None
    few: float = 0.0
    led: tuple[HostArray, int] | None = None

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
    exactly. `over` counts the elements beyond the bound, `excluded` those that the source cannot decide, `straddling` those of
    them that lie at a jump and were held to its two sides. `measure` says what `error` and `bound` are of: the worst element, or
    one of the statistics over all of them where that is what failed. `vacuous`: all zeros would be within the bound too."""

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
    vacuous: bool = False

    @property
    def passed(self) -> bool:
        """Nothing that was compared is beyond its bound; see `checked` for whether enough was."""
        return self.error <= self.bound

    @property
    def checked(self) -> bool:
        """Whether enough elements were compared, and within a bound that all zeros would not pass as well."""
        return not self.vacuous and enough(self.elements - self.excluded + self.straddling, self.elements)

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
            text += f"; {self.excluded} of {self.elements} excluded, where the source cannot decide"
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
    "sum": "error of the sum, as a share of what the elements' bounds allow it,",
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


def of_source(
    values: HostArray, source_error: float, straddling: int = 0, spread: float | None = None, few: float = 0.0
) -> Reference:
    """The source's answer alone as a reference, where many operators ran before."""
    return Reference(values, Accuracy(error=source_error), straddling=straddling, spread=spread, few=few)


def spread_bound(spread: float, dtype: str) -> float:
    """The largest root mean square of compound errors that passes, for a source whose own is `spread`."""
    if dtype in HALF:
        return max(COMPOUND_FACTOR * spread, FLOOR * working_epsilon(dtype) + EPSILON[dtype])
    return max(FACTOR * spread, FLOOR * EPSILON[dtype])


def compare(actual: HostArray, reference: Reference) -> Comparison:
    """Judges one output of a target. Raises ValueError on another shape."""
    if reference.led is not None and actual.shape == reference.values.shape:
        actual = np.where(as_good(actual, reference.values, *reference.led), reference.values, actual)
    limit = reference.bound
    slack = reference.accuracy.slack(reference.dtype) if reference.dtype in FLOATS else 0.0
    scan = Scan(actual, reference.values, reference.exact, reference.excluded, slack, reference.either).carry_out(limit)
    straddling = 0 if reference.either is None else int(reference.either[0].sum())
    own = reference.accuracy.error if reference.exact is None else reference.accuracy.beyond
    found = Comparison(
        error=scan.worst,
        bound=limit,
        source_error=own,
        index=scan.index,
        actual=None if scan.index is None else scalar(actual, scan.index),
        expected=None if scan.index is None else scalar(reference.values, scan.index),
        elements=int(reference.values.size),
        over=scan.over,
        excluded=int(reference.values.size) - reference.compared + straddling,
        straddling=straddling,
        vacuous=limit >= 1.0,
    )
    if reference.exact is None:
        return _with_spread(_but_for_straddling(found, reference, scan), reference, scan)
    return _with_statistics(_with_relative(_with_sides(found, scan), reference, scan), reference, scan)


def element_errors(actual: HostArray, reference: Reference) -> NDArray[np.float64]:
    """The error of each element as `compare` holds it against `Reference.bound`, of the output's shape; NaN for those that are
    excluded. What is judged of all elements together is not in it."""
    slack = reference.accuracy.slack(reference.dtype) if reference.dtype in FLOATS else 0.0
    return Scan(actual, reference.values, reference.exact, reference.excluded, slack, reference.either).each()


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
        summed_relative = Scan(working, output, exact, skip, kinds=False).carry_out(math.inf).relative
    elif working is not None:
        summed = float(working)
    scan = Scan(output, output, exact, excluded, Accuracy(working=summed).slack(dtype)).carry_out(math.inf)
    bias, scale, spread = scan.statistics
    raw = distance(output, exact if excluded is None else np.ma.MaskedArray(exact, excluded))
    if working is None:
        summed = scan.worst
    return Accuracy(raw, scan.worst, summed, abs(bias), abs(scale), spread, scan.relative, summed_relative)


def _but_for_straddling(found: Comparison, reference: Reference, scan: Scan) -> Comparison:
    """Elements of the source that fell on the other side of a jump say that some of a target's may. Twice as many may be off."""
    if found.passed or not reference.straddling or not 0 < found.over <= 2 * reference.straddling:
        return found
    return replace(found, error=scan.within, excluded=found.excluded + found.over, over=0)


def _with_spread(found: Comparison, reference: Reference, scan: Scan) -> Comparison:
    """Compound errors as a whole. Where few elements may be off, the whole is what is reported unless more of them are."""
    if reference.spread is None or reference.dtype not in FLOATS or not found.elements:
        return found
    limit = spread_bound(reference.spread, reference.dtype)
    whole = replace(
        found, error=scan.root_mean_square, bound=limit, source_error=reference.spread, measure="spread", vacuous=limit >= 1.0,
    )  # fmt: skip
    if math.isinf(found.error) or not whole.passed:
        return found if math.isinf(found.error) else whole
    if found.over <= reference.few * found.elements:
        return replace(whole, over=0)
    return replace(found, vacuous=whole.vacuous)


def _with_sides(found: Comparison, scan: Scan) -> Comparison:
    """The same, or that the elements at a jump take neither side that is expected, each within its two sides."""
    if not found.passed or found.straddling < MANY:
        return found
    share = 1.0 - max(scan.as_source, scan.as_exact) / found.straddling
    return found if share <= 1.0 - SIDES else replace(found, error=share, bound=1.0 - SIDES, source_error=0.0, measure="sides")


def _with_relative(found: Comparison, reference: Reference, scan: Scan) -> Comparison:
    """The same, or that an element is beyond what is allowed in its own scale."""
    if not found.passed or reference.dtype not in HALF:
        return found
    limit = reference.accuracy.relative_bound(reference.dtype)
    if scan.relative <= limit or scan.relative_index is None:
        return found
    index = scan.relative_index
    return replace(
        found, error=scan.relative, bound=limit, source_error=reference.accuracy.relative, measure="relative", index=index,
        actual=scalar(scan.original, index), expected=scalar(reference.values, index),
    )  # fmt: skip


def _with_statistics(found: Comparison, reference: Reference, scan: Scan) -> Comparison:
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


