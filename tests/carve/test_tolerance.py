"""The unit of comparison, the bound, and elements on which the source is no judge."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tapml.carve import tolerance
from tapml.carve.tolerance import FACTOR, FLOOR, bound, compare, distance, undecided
from tapml.tensors import EPSILON, HostArray

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
    whole = compare(y, r, 1e-7)
    monkeypatch.setattr(tolerance, "_CHUNK", 64)
    parts = compare(y, r, 1e-7)
    assert parts.index == whole.index and parts.over == whole.over > 0
    assert parts.error == pytest.approx(whole.error, rel=1e-12)


def test_one_wrong_element_is_found_and_named() -> None:
    r = np.linspace(-3, 3, 600, dtype=np.float32).reshape(20, 30)
    y = r.copy()
    y[7, 11] += 0.5
    seen = compare(y, r, 1e-7)
    assert not seen.passed and seen.index == (7, 11) and seen.over == 1
    assert seen.actual == float(y[7, 11]) and seen.expected == float(r[7, 11])
    assert "[7, 11]" in seen.describe() and "beyond" in seen.describe()


def test_an_outlier_does_not_hide_errors_in_the_rest() -> None:
    r = np.full(1000, 1.0, np.float32)
    r[0] = 1e4
    y = r.copy()
    y[5] = 1.5
    assert distance(y, r) > 0.04
    assert not compare(y, r, 1e-6).passed


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
    assert bound(0.0, "int64") == 0.0
    assert compare(r, r, 0.0).passed and not compare(1 - r.astype(np.int64), r, 0.0).passed


def test_bfloat16_and_float16() -> None:
    r = np.linspace(1, 2, 64).astype(ml_dtypes.bfloat16)
    assert compare(r.astype(np.float32), r, 0.0).passed
    assert not compare(r.astype(np.float32) * 1.5, r, 0.0).passed
    assert bound(0.0, "bfloat16") == FLOOR * EPSILON["bfloat16"]


def test_bound_follows_the_source_with_a_floor() -> None:
    assert bound(1e-3, "float32") == FACTOR * 1e-3
    assert bound(0.0, "float32") == FLOOR * EPSILON["float32"]
    with pytest.raises(ValueError, match="undecided"):
        bound(math.inf, "float32")


def test_a_target_that_is_better_than_the_source_passes() -> None:
    source = np.array([1.0, math.inf, math.nan, 4.0], np.float16)
    oracle = np.array([1.0, 70000.0, 5.0, 4.0])
    target = oracle.astype(np.float32)
    assert distance(target, source) == math.inf
    mask = undecided(source, oracle)
    assert mask is not None and mask.tolist() == [False, True, True, False]
    judged = compare(target, np.ma.MaskedArray(source, mask), 0.0)
    assert judged.passed and judged.excluded == 2
    target[3] = 5.0
    assert not compare(target, np.ma.MaskedArray(source, mask), 0.0).passed


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
    assert compare(np.zeros(0, np.float32), np.zeros(0, np.float32), 0.0).passed
    assert compare(np.float32(2.0).reshape(()), np.float32(2.0).reshape(()), 0.0).passed
