"""References of single calls: exact values, how exact the source is, and the elements at jumps of the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tapml.carving.folder import reference_arrays
from tapml.carving.jumps import JumpFinder
from tapml.carving.reference import ReferenceMaker
from tapml.carving.tolerance import Reference, compare
from tapml.tensors import HostArray, spec_of
from tests.compile.bodies import Made, Result, call, chain

HALVES = (torch.float16, torch.bfloat16)


def references(made: Made) -> list[Reference]:
    return ReferenceMaker(made.body).on_host(made.inputs)


def floor_of_tenths(x: torch.Tensor) -> Made:
    return chain([("aten.div.Tensor", (x, 0.1), {}), ("aten.floor.default", (Result(0),), {})])


def rounded_steps(x: torch.Tensor, step: float = 12.7) -> Made:
    """As fake quantisation does."""
    return chain([
        ("aten.mul.Tensor", (x, step), {}), ("aten.round.default", (Result(0),), {}), ("aten.div.Tensor", (Result(1), step), {}),
    ])  # fmt: skip


def altered(reference: Reference, change: Callable[[np.ndarray], np.ndarray]) -> HostArray:
    return np.asarray(change(reference.values.astype(np.float64)).astype(reference.values.dtype))


def test_one_element_at_a_jump_does_not_loosen_the_bound() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(4000), torch.tensor([0.3, 0.6, 0.7])])
    (reference,) = references(floor_of_tenths(x))
    assert reference.bound < 1e-5 and reference.either is not None and reference.either[0][-3:].all()
    assert compare(reference.values, reference).passed
    assert not compare(altered(reference, lambda y: y + 1), reference).passed
    one = reference.values.copy()
    one[0] += 1
    assert not compare(one, reference).passed


def test_every_element_at_a_jump_is_still_checked() -> None:
    (reference,) = references(floor_of_tenths(torch.arange(64).float() * 0.1))
    right = compare(reference.values, reference)
    assert right.passed and right.checked and right.straddling > 50
    assert compare(altered(reference, lambda y: np.floor(y)), reference).passed
    assert not compare(altered(reference, lambda y: y + 1), reference).passed
    assert not compare(altered(reference, lambda y: y - 1), reference).passed


def test_a_scalar_is_kept_as_an_array() -> None:
    (reference,) = references(chain([("aten.sum.default", (torch.linspace(0, 1, 1000),), {})]))
    kept = reference_arrays(0, reference)["r0"]
    assert isinstance(kept, np.ndarray) and kept.shape == () and kept.dtype == np.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_in_half_precision_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    (reference,) = references(rounded_steps(torch.randn(128, 64).to(dtype)))
    right = compare(reference.values, reference)
    assert right.passed and 0 < right.excluded < right.elements / 4 and reference.bound < 1e-5
    assert not compare(altered(reference, lambda y: y + 1 / 12.7), reference).passed


@pytest.mark.parametrize("dtype", HALVES)
def test_a_kernel_that_rounds_only_at_the_end_passes_at_jumps(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.randn(128, 64).to(dtype)
    (reference,) = references(rounded_steps(x))
    unrounded = (torch.round(x.float() * 12.7) / 12.7).to(dtype).float().numpy().astype(reference.values.dtype)
    assert (unrounded != reference.values).any()
    assert compare(unrounded, reference).passed


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("sign", [("aten.sub.Tensor", 0.3), ("aten.sign.default",)]),
        ("ceil", [("aten.mul.Tensor", 3.3), ("aten.ceil.default",)]),
        ("trunc", [("aten.mul.Tensor", 3.3), ("aten.trunc.default",)]),
        ("to_int8", [("aten.mul.Tensor", 3.3), ("aten._to_copy.default", "int8")]),
        ("choice", [("aten.mul.Tensor", 3.3), ("aten.gt.Scalar", 0.99)]),
    ],
)
def test_kinds_of_jumps_are_known(name: str, calls: list[tuple[Any, ...]]) -> None:
    x = torch.cat([torch.linspace(-1, 1, 2001), torch.tensor([0.3, 1 / 3.3, 2 / 3.3])])
    steps: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    for k, (target, *rest) in enumerate(calls):
        first = x if k == 0 else Result(k - 1)
        if rest == ["int8"]:
            steps.append((target, (first,), {"dtype": torch.int8}))
        else:
            steps.append((target, (first, *rest), {}))
    made = chain(steps)
    assert JumpFinder(made.body).jumps == (1,)
    (reference,) = references(made)
    found = compare(reference.values, reference)
    assert found.passed and 0 < found.excluded < 20, name
    flipped = ~reference.values if reference.dtype == "bool" else reference.values + reference.values.dtype.type(1)
    assert not compare(flipped, reference).passed


def test_what_is_only_moved_or_clipped_is_the_same_everywhere() -> None:
    made = chain([("aten.relu.default", (torch.randn(8, 8),), {}), ("aten.floor.default", (Result(0),), {})])
    assert JumpFinder(made.body).jumps == ()
    integers = call("aten.gt.Tensor", torch.arange(8), torch.arange(8).flip(0))
    assert JumpFinder(integers.body).jumps == ()


def test_decisions_that_add_up_are_excluded() -> None:
    """A sum over rounded values hangs on many decisions: no two sides, so such elements are left out."""
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    x[0, 0] = 0.5 / 12.7
    made = chain([
        ("aten.mul.Tensor", (x, 12.7), {}), ("aten.round.default", (Result(0),), {}),
        ("aten.sum.dim_IntList", (Result(1), [1]), {}),
    ])  # fmt: skip
    (reference,) = references(made)
    assert reference.either is None and reference.excluded is not None and reference.excluded[0]
    assert int(reference.excluded.sum()) < 8 and reference.bound < 1e-5
    assert not compare(altered(reference, lambda y: y + 1), reference).passed


def test_few_elements_are_measured_on_calls_nearby() -> None:
    """One element may be exact by luck: 7 divided by 7 is, its neighbours are not."""
    made = chain([("aten.div.Tensor", (torch.tensor([7.0]), 7.0), {}), ("aten.mul.Tensor", (Result(0), 1.5), {})])
    many, one = references(made)[0], ReferenceMaker(made.body, most=1).on_host(made.inputs)[0]
    assert one.accuracy.error == 0.0 and one.exact == 1.5
    assert many.accuracy.error > 0.0 and many.exact == 1.5


def test_a_half_precision_source_that_sums_in_float32_leaves_no_room_for_5_percent() -> None:
    torch.manual_seed(0)
    for dtype in HALVES:
        x, w, b = torch.randn(8, 64).to(dtype), torch.randn(64, 64).to(dtype), torch.randn(64).to(dtype)
        made = chain([("aten.linear.default", (x, w, b), {}), ("aten.gelu.default", (Result(0),), {})])
        (reference,) = references(made)
        right = torch.nn.functional.gelu(torch.nn.functional.linear(x.float(), w.float(), b.float())).to(dtype).float().numpy()
        assert compare(right.astype(reference.values.dtype), reference).passed
        assert not compare(altered(reference, lambda y: 1.05 * y), reference).passed
        without = torch.nn.functional.gelu(torch.nn.functional.linear(x.float(), w.float())).to(dtype).float().numpy()
        assert not compare(without.astype(reference.values.dtype), reference).passed


@pytest.mark.parametrize("dtype", HALVES)
def test_a_gelu_by_tanh_in_place_of_erf_is_found(dtype: torch.dtype) -> None:
    """The two differ by 5e-4 at most, less than a rounding of the largest values, and by several roundings of small ones."""
    torch.manual_seed(0)
    gate, up = (torch.randn(48, 256) * 3).to(dtype), torch.randn(48, 256).to(dtype)
    (reference,) = references(chain([("aten.gelu.default", (gate,), {}), ("aten.mul.Tensor", (Result(0), up), {})]))
    for approximate, passes in (("none", True), ("tanh", False)):
        made = torch.nn.functional.gelu(gate.float(), approximate=approximate) * up.float()
        assert compare(made.to(dtype).float().numpy().astype(reference.values.dtype), reference).passed is passes


@pytest.mark.parametrize("dtype", HALVES)
def test_a_kernel_that_rounds_as_the_source_does_passes(dtype: torch.dtype) -> None:
    """Twenty inputs, each with other roundings than those that the bound was measured on: sums that cancel among them."""
    for seed in range(20):
        torch.manual_seed(seed)
        a, b = torch.randn(32, 64).to(dtype), torch.randn(32, 64).to(dtype)
        made = chain([
            ("aten.mul.Tensor", (a, b), {}), ("aten.mul.Tensor", (b, 0.7), {}), ("aten.sub.Tensor", (Result(0), Result(1)), {}),
            ("aten.sigmoid.default", (Result(2),), {}), ("aten.mul.Tensor", (Result(3), Result(2)), {}),
        ])  # fmt: skip
        (reference,) = references(made)
        other = ((a.double() * b.double()).to(dtype).double() - 0.7 * b.double()).to(dtype)  # one rounding fewer
        values = (other.double() * torch.sigmoid(other.double())).to(dtype)
        found = compare(values.float().numpy().astype(reference.values.dtype), reference)
        assert found.passed, (seed, found.describe())


def test_all_overflowing_leaves_nothing_to_compare() -> None:
    (reference,) = references(call("aten.mul.Tensor", torch.full((4, 64), 300.0).half(), torch.full((4, 64), 300.0).half()))
    found = compare(np.zeros((4, 64), np.float16), reference)
    assert found.excluded == 256 and not found.checked


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_what_a_case_keeps_gives_the_same_judgement(dtype: torch.dtype) -> None:
    from tapml.carving.folder import _reference

    torch.manual_seed(0)
    for made in (floor_of_tenths(torch.arange(64).to(dtype) * 0.1), call("aten.softmax.int", torch.randn(4, 9).to(dtype), -1)):
        (reference,) = references(made)
        kept = {"o0": reference.values, **reference_arrays(0, reference)}
        again = _reference(0, kept, reference.accuracy, spec_of(reference.values))
        for change in (0.0, 1e-6, 1e-3, 1.0):
            y = (reference.values.astype(np.float64) * (1 + change)).astype(reference.values.dtype)
            a, b = compare(y, reference), compare(y, again)
            assert (a.passed, a.excluded, a.straddling) == (b.passed, b.excluded, b.straddling)
            assert a.error == pytest.approx(b.error, rel=1e-5, abs=1e-10)


def test_bfloat16_reads_back() -> None:
    assert np.dtype(ml_dtypes.bfloat16) == references(call("aten.exp.default", torch.randn(4).bfloat16()))[0].values.dtype
