"""The unit of comparison, the bound, statistics over elements, and elements that the source cannot decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tapml.carving.distance import FLOOR, distance, half_step, straddling, undecided
from tapml.carving.tolerance import FACTOR, Accuracy, Reference, compare, compound_bound, enough, measure, of_source
from tapml.tensors import EPSILON, NUMPY, HostArray

floats = arrays_of.arrays(
    np.float32, arrays_of.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
)


def by_the_formula(y: HostArray, r: HostArray) -> float:
    y, r = y.astype(np.float64), r.astype(np.float64)
    scale = np.abs(r[r != 0]).mean() if (r != 0).any() else 1.0
    return float((np.abs(y - r) / (np.abs(r) + scale)).max(initial=0.0))


@given(floats, st.floats(-1.0, 1.0, width=32))
def test_distance_is_the_documented_formula(r: HostArray, change: float) -> None:
    y = r + np.float32(change)
    assert distance(y, r) == pytest.approx(by_the_formula(y, r), rel=1e-12)
    assert distance(r, r) == 0.0


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    r = generator.standard_normal((37, 41)).astype(np.float32)
    y = r + generator.standard_normal(r.shape).astype(np.float32) * 1e-5
    whole = compare(y, of_source(r, 1e-7))
    monkeypatch.setattr("tapml.carving.distance.CHUNK", 64)
    parts = compare(y, of_source(r, 1e-7))
    assert parts.index == whole.index and parts.over == whole.over > 0
    assert parts.error == pytest.approx(whole.error, rel=1e-12)


def test_one_wrong_element_is_found_and_named() -> None:
    r = np.linspace(-3, 3, 600, dtype=np.float32).reshape(20, 30)
    y = r.copy()
    y[7, 11] += 0.5
    seen = compare(y, of_source(r, 1e-7))
    assert not seen.passed and seen.index == (7, 11) and seen.over == 1
    assert seen.actual == float(y[7, 11]) and seen.expected == float(r[7, 11])
    assert "[7, 11]" in seen.describe() and "beyond" in seen.describe()


def test_an_outlier_does_not_hide_errors_in_the_rest() -> None:
    r = np.full(1000, 1.0, np.float32)
    r[0] = 1e4
    y = r.copy()
    y[5] = 1.5
    assert distance(y, r) > 0.04
    assert not compare(y, of_source(r, 1e-6)).passed


def test_masks_and_zeros_do_not_set_the_scale() -> None:
    lowest = np.finfo(np.float32).min
    r = np.array([0.0] * 50 + [lowest] * 50 + [1.0, 2.0], np.float32)
    y = r.copy()
    y[-1] = 2.1
    assert distance(y, r) == pytest.approx(0.1 / 3.5, rel=1e-5)
    y = r.copy()
    y[0] = 0.3
    assert distance(y, r) == pytest.approx(0.2, rel=1e-6)


def test_all_zeros_are_judged_absolutely() -> None:
    assert distance(np.full(4, 0.25, np.float32), np.zeros(4, np.float32)) == 0.25


@pytest.mark.parametrize(
    ("actual", "reference", "same"),
    [
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (-math.inf, math.inf, False),
        (math.nan, math.inf, False),
        (1.0, math.inf, False),
        (math.nan, 1.0, False),
        (math.inf, 1.0, False),
    ],
)
def test_non_finite_values_agree_in_kind(actual: float, reference: float, same: bool) -> None:
    y, r = np.array([1.0, actual], np.float32), np.array([1.0, reference], np.float32)
    assert distance(y, r) == (0.0 if same else math.inf)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.bool_])
def test_integers_must_be_equal(dtype: type) -> None:
    r = np.array([0, 1, 1], dtype)
    assert distance(r.astype(np.int32), r) == 0.0
    assert distance(1 - r.astype(np.int32), r) == math.inf
    assert Accuracy().bound("int64") == 0.0 and compound_bound(0.0, "int64") == 0.0
    assert compare(r, Reference(r)).passed and not compare(1 - r.astype(np.int64), Reference(r)).passed


def test_the_bound_follows_the_source_with_a_floor() -> None:
    assert Accuracy(working=1e-3).bound("float32") == FACTOR * 1e-3
    assert Accuracy().bound("float32") == FLOOR * EPSILON["float32"]
    # In half precision the floor is that of sums in float32; the source's own roundings between steps count twice.
    assert Accuracy().bound("float16") == Accuracy().bound("bfloat16") == FLOOR * EPSILON["float32"]
    assert Accuracy(beyond=1e-5).bound("float16") == FACTOR * 1e-5
    assert Accuracy(beyond=4e-3).bound("bfloat16") == 2 * 4e-3 + EPSILON["bfloat16"] / 4
    with pytest.raises(ValueError, match="undecided"):
        Accuracy(working=math.inf).bound("float32")
    with pytest.raises(ValueError, match="undecided"):
        compound_bound(math.inf, "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_half_a_step_is_what_rounding_may_be_off_by(dtype: str) -> None:
    generator = np.random.default_rng(3)
    x = generator.standard_normal(5000) * 10.0 ** generator.uniform(-9, 4, 5000)
    rounded = x.astype(NUMPY[dtype]).astype(np.float64)
    room = half_step(x, dtype)
    assert (np.abs(rounded - x) <= room).all()
    assert (np.abs(rounded - x) > 0.9 * room).any()


def exact_values(dtype: str, size: int = 8192) -> tuple[np.ndarray, Reference]:
    """Values and the reference of a source that rounds them once."""
    x = np.random.default_rng(5).standard_normal(size)
    values = x.astype(NUMPY[dtype])
    return x, Reference(values, measure(values, x, None, 1e-7), x)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_once_passes_and_a_small_systematic_error_does_not(dtype: str) -> None:
    x, reference = exact_values(dtype)
    right = (x * (1 + 3e-7)).astype(NUMPY[dtype])
    assert compare(right, reference).passed
    assert compare(x.astype(np.float32), reference).passed  # a target that keeps it in float32
    for wrong in (x * 1.05, x * 1.005, x + 0.01, x * (1 + EPSILON[dtype])):
        assert not compare(wrong.astype(NUMPY[dtype]), reference).passed


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_small_in_each_element_and_the_same_in_all_is_found(dtype: str) -> None:
    """The source rounds between its steps, so single elements may be off by a rounding; all of them together may not."""
    x, _ = exact_values(dtype)
    x = x + np.sign(x)  # none of them near 0
    kind, generator = NUMPY[dtype], np.random.default_rng(6)

    def steps(values: np.ndarray, noise: np.random.Generator) -> HostArray:
        """Rounded, then scaled by what differs from call to call, and rounded again: a source with a step in between."""
        factor = noise.uniform(1.0, 1.9, values.shape)
        return np.asarray(((values * factor).astype(kind).astype(np.float64) / factor).astype(kind))

    source = steps(x, generator)
    reference = Reference(source, measure(source, x, None, 1e-7), x)
    for seed in range(20):
        again = compare(steps(x, np.random.default_rng(seed)), reference)
        assert again.passed, again.describe()
    small = EPSILON[dtype] / 8
    scaled = compare(steps(x * (1 + small), np.random.default_rng(30)), reference)
    shifted = compare(steps(x + small, np.random.default_rng(31)), reference)
    assert not scaled.passed and scaled.measure == "scale" and "in proportion" in scaled.describe()
    assert not shifted.passed and shifted.measure == "bias" and "mean error" in shifted.describe()
    noisy = x * (1 + EPSILON[dtype] * generator.uniform(-2.5, 2.5, x.shape))
    assert not compare(noisy.astype(kind), reference).passed


def test_subnormal_numbers_are_measured_in_steps() -> None:
    x = np.random.default_rng(1).uniform(0, 1.5e-7, 128)
    values = x.astype(np.float16)
    assert values.any()
    reference = Reference(values, measure(values, x, None, 1e-8), x)
    assert compare(values, reference).passed
    assert not compare(np.zeros(128, np.float16), reference).passed
    assert distance(np.zeros(128, np.float16), values) < 1.0


def test_float32_within_factor_of_the_source() -> None:
    x = np.random.default_rng(2).standard_normal(1000)
    source = (x * (1 + 1e-6)).astype(np.float32)
    reference = Reference(source, measure(source, x, None), x)
    assert compare((x * (1 - 4e-6)).astype(np.float32), reference).passed
    assert not compare((x * (1 + 3e-5)).astype(np.float32), reference).passed


def test_a_target_that_is_better_than_the_source_passes() -> None:
    source = np.array([1.0, math.inf, math.nan, 4.0], np.float16)
    oracle = np.array([1.0, 70000.0, 5.0, 4.0])
    target = oracle.astype(np.float32)
    assert distance(target, source) == math.inf
    mask = undecided(source, oracle)
    assert mask is not None and mask.tolist() == [False, True, True, False]
    judged = compare(target, Reference(source, excluded=mask))
    assert judged.passed and judged.excluded == 2 and judged.checked
    target[3] = 5.0
    assert not compare(target, Reference(source, excluded=mask)).passed


def test_comparing_less_than_half_shows_nothing() -> None:
    assert enough(0, 0) and enough(4, 8) and not enough(3, 8) and not enough(0, 1)
    source = np.arange(8, dtype=np.float32)
    mask = source > 2
    judged = compare(source, Reference(source, excluded=mask))
    assert judged.passed and not judged.checked and judged.excluded == 5


def test_an_element_at_a_jump_is_held_to_its_two_sides() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    at = np.array([False, True, False, True])
    reference = Reference(values, Accuracy(), values.astype(np.float64), None, (at, np.array([1.0, 3.0]), np.array([2.0, 4.0])))
    other_side = compare(np.array([1.0, 1.0, 3.0, 3.0], np.float32), reference)
    assert other_side.passed and other_side.checked and other_side.excluded == other_side.straddling == 2
    for wrong in ([1.0, 3.0, 3.0, 4.0], [1.0, 2.0, 3.0, 2.0], [2.0, 2.0, 3.0, 4.0], [1.0, math.nan, 3.0, 4.0]):
        assert not compare(np.array(wrong, np.float32), reference).passed
    integers = Reference(values.astype(np.int32), either=(at, np.array([1, 3]), np.array([2, 4])))
    assert compare(np.array([1, 1, 3, 4]), integers).passed and not compare(np.array([1, 0, 3, 4]), integers).passed


def test_errors_far_above_all_others_straddle_a_jump() -> None:
    errors = np.full(1000, 1e-7)
    assert straddling(errors, "float32") == 0
    errors[:3] = 0.5
    assert straddling(errors, "float32") == 3 and straddling(errors, "bfloat16") == 0
    errors[:200] = 0.5
    assert straddling(errors, "float32") == 0  # a fifth of all is no accident
    x = np.ones(1000, np.float32)
    two = x.copy()
    two[:2] = 2.0
    assert compare(two, of_source(x, 1e-7, straddling=1)).passed
    two[:3] = 2.0
    assert not compare(two, of_source(x, 1e-7, straddling=1)).passed


def test_many_operators_on_the_whole_is_judged_and_few_elements_may_be_off() -> None:
    generator = np.random.default_rng(3)
    r = generator.standard_normal(10_000).astype(np.float32)

    def off(by: float) -> HostArray:
        return np.asarray(r * (1 + by * generator.standard_normal(r.shape)), np.float32)

    judge = of_source(r, 2e-4, spread=2e-5, few=0.001)
    right = off(4e-5)
    assert compare(right, judge).passed and compare(right, judge).measure == "spread"
    right[:5] = 9.0
    assert not compare(right, judge).passed  # five of ten thousand make the whole too wrong in float32
    half = of_source(r.astype(np.float16), 0.5, spread=0.02, few=0.001)
    some = off(0.02).astype(np.float16)
    some[:9] = 9.0
    found = compare(some, half)
    assert found.passed and found.checked and found.bound == 4 * 0.02
    assert not compare(off(0.4).astype(np.float16), half).passed
    some[:100] = np.float16(r[:100] * 5)
    assert not compare(some, of_source(r.astype(np.float16), 0.1, spread=0.1, few=0.001)).passed
    hopeless = compare(some, of_source(r.astype(np.float16), 0.5, spread=0.3, few=0.001))
    assert hopeless.vacuous and not hopeless.checked
    assert not compare(np.full(10_000, np.nan, np.float16), half).passed


def test_where_source_and_oracle_agree_nothing_is_excluded() -> None:
    source = np.array([1.0, math.inf, -math.inf, math.nan], np.float32)
    assert undecided(source, source.astype(np.float64)) is None
    assert undecided(np.array([1, 2]), np.array([1, 2])) is None
    ties = undecided(np.array([1, 2]), np.array([1, 3]))
    assert ties is not None and ties.tolist() == [False, True]


def test_shapes_must_agree_and_empty_is_equal() -> None:
    with pytest.raises(ValueError, match="shape"):
        distance(np.zeros(3), np.zeros(4))
    assert distance(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)) == 0.0
    assert compare(np.zeros(0, np.float32), Reference(np.zeros(0, np.float32))).checked
    assert compare(np.float32(2.0).reshape(()), Reference(np.float32(2.0).reshape(()))).passed
