"""Sampling by a grid in every mode, with places that are no numbers or far outside, unpooling, shuffling of channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.compile.bodies import Made, call, check
from tests.compile.test_conversions import HALF, INF, floats
from tests.compile.test_ordinary import NAN, SPECIAL

IMAGE, SOLID = floats(1, 4, 6, 7), floats(1, 2, 4, 5, 6)
PADDING = ("zeros", "border", "reflection")


def strange(grid: torch.Tensor) -> torch.Tensor:
    """A grid with places that are NaN, infinite, or far outside."""
    flat = grid.reshape(-1).clone()
    flat[[0, 7, 14, 20, 25]] = torch.tensor([NAN, INF, -INF, 40.0, -33.0])
    return flat.reshape(grid.shape)


FLAT, DEEP = strange(floats(1, 3, 5, 2) * 1.2), strange(floats(1, 3, 3, 2, 3) * 1.2)
POOLED, WHERE = torch.ops.aten.max_pool2d_with_indices(IMAGE, [3, 3], [2, 2], [1, 1])
SMALLER, PLACES = torch.ops.aten.max_pool3d_with_indices(SOLID, [2, 2, 2])

CASES: dict[str, Callable[[], Made]] = {
    **{f"{kind} in two dimensions, {padding}, corners={corners}": (lambda m=m, p=p, corners=corners: call(
        "aten.grid_sampler_2d.default", IMAGE, FLAT, m, p, corners))
       for m, kind in enumerate(("bilinear", "nearest", "bicubic")) for p, padding in enumerate(PADDING)
       for corners in (False, True)},
    **{f"{kind} in three dimensions, {padding}, corners={corners}": (lambda m=m, p=p, corners=corners: call(
        "aten.grid_sampler_3d.default", SOLID, DEEP, m, p, corners))
       for m, kind in enumerate(("bilinear", "nearest")) for p, padding in enumerate(PADDING) for corners in (False, True)},
    "unpooling": lambda: call("aten.max_unpool2d.default", POOLED, WHERE, [6, 7]),
    "unpooling without a batch": lambda: call("aten.max_unpool2d.default", POOLED[0], WHERE[0], [6, 7]),
    "unpooling in three dimensions": lambda: call(
        "aten.max_unpool3d.default", SMALLER, PLACES, [4, 5, 6], [2, 2, 2], [0, 0, 0]),
    "indices of a pool of nan": lambda: call(
        "aten.max_pool2d_with_indices.default", SPECIAL.reshape(1, 1, 3, 4), [2, 2], [1, 1]),
    "channel shuffle": lambda: call("aten.channel_shuffle.default", IMAGE, 2),
    "native channel shuffle": lambda: call("aten.native_channel_shuffle.default", floats(2, 6, 5, dtype=HALF), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_sampling(name: str) -> None:
    check(CASES[name](), "cpu", "serial")


@pytest.mark.parametrize("name", [
    "bilinear in two dimensions, zeros, corners=False", "bicubic in two dimensions, reflection, corners=True",
    "bilinear in three dimensions, border, corners=False", "unpooling",
])
@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_sampling_on_a_driver(name: str, target: str) -> None:
    check(CASES[name](), target, "simple")
