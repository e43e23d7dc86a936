"""Resizing, in every way and dimension: ratios that are not whole, factors, aligned corners, sizes that stay or double."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tapml.compile.importer import ConversionError
from tests.compile.bodies import Made, call, check
from tests.compile.test_conversions import HALF, INF, floats, ints

IMAGE, ROW, SOLID = floats(1, 2, 6, 7), floats(1, 2, 9), floats(1, 2, 3, 4, 5)
SIZES = ([9, 5], [6, 7], [12, 14], [6, 9], [1, 1])
FACTORS = ([1.07, 1.03], [2.05, 0.53], [0.3, 1.0])
WEIGHTED = ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
NEAREST = ("upsample_nearest", "_upsample_nearest_exact")


def to_size(name: str, x: torch.Tensor, *rest: object) -> Callable[[], Made]:
    return lambda: call(f"aten.{name}.default", x, *rest)


def by_factor(name: str, x: torch.Tensor, *rest: object) -> Callable[[], Made]:
    return lambda: call(f"aten.{name}.vec", x, None, *rest)


CASES: dict[str, Callable[[], Made]] = {
    **{f"{name} to {size} corners={corners}": to_size(name, IMAGE, size, corners)
       for name in WEIGHTED for size in SIZES for corners in (False, True)},
    **{f"{name} by {factor} corners={corners}": by_factor(name, IMAGE, corners, factor)
       for name in WEIGHTED for factor in FACTORS for corners in (False, True)},
    **{f"{name} to a size with factors": to_size(name, IMAGE, [9, 8], False, 1.55, 1.2) for name in WEIGHTED},
    **{f"{name} with infinities": to_size(name, torch.where(IMAGE > 1.2, INF, IMAGE), [6, 9], False) for name in WEIGHTED},
    **{f"{name} in float16": to_size(name, floats(1, 2, 6, 7, dtype=HALF), [9, 5], False) for name in WEIGHTED[:2]},
    **{f"{name}2d to {size}": to_size(f"{name}2d", IMAGE, size) for name in NEAREST for size in SIZES},
    **{f"{name}2d by {factor}": by_factor(f"{name}2d", IMAGE, factor) for name in NEAREST for factor in FACTORS},
    **{f"{name}2d of bytes": to_size(f"{name}2d", ints(1, 2, 6, 7, high=255).to(torch.uint8), [9, 5]) for name in NEAREST},
    **{f"{name}1d by {factor}": by_factor(f"{name}1d", ROW, [factor]) for name in NEAREST for factor in (1.07, 2.05, 0.7, 30.0)},
    **{f"{name}3d by factors": by_factor(f"{name}3d", SOLID, [1.07, 2.05, 0.7]) for name in NEAREST},
    **{f"linear1d by {factor} corners={corners}": by_factor("upsample_linear1d", ROW, corners, [factor])
       for factor in (1.07, 2.5) for corners in (False, True)},
    **{f"trilinear3d corners={corners}": by_factor("upsample_trilinear3d", SOLID, corners, [1.07, 2.05, 0.7])
       for corners in (False, True)},
}


@pytest.mark.parametrize("name", CASES)
def test_resizing(name: str) -> None:
    check(CASES[name](), "cpu", "serial")


@pytest.mark.parametrize("name", [
    "upsample_nearest2d by [1.07, 1.03]", "upsample_bilinear2d by [1.07, 1.03] corners=False",
    "_upsample_bicubic2d_aa to [9, 5] corners=False", "_upsample_bilinear2d_aa by [0.3, 1.0] corners=False",
])
@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_resizing_on_a_driver(name: str, target: str) -> None:
    check(CASES[name](), target, "simple")


@pytest.mark.parametrize("name", WEIGHTED)
def test_bytes_are_refused_where_pytorch_rounds_in_a_way_of_its_own(name: str) -> None:
    made = to_size(name, ints(1, 2, 6, 7, high=255).to(torch.uint8), [9, 5], False)()
    with pytest.raises(ConversionError, match="resize in floating point"):
        check(made, "cpu", "serial")
