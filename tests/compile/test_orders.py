"""Putting elements in order: long rows, equal elements, NaN among them, and searches by few questions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from tapml.compile.convert_sorting import _stages
from tests.compile.bodies import Made, call, check
from tests.compile.test_conversions import INF, floats, ints
from tests.compile.test_ordinary import NAN, SPECIAL


def sorted_by(x: torch.Tensor, dim: int = -1, descending: bool = False) -> Callable[[], Made]:
    return lambda: call("aten.sort.stable", x, stable=True, dim=dim, descending=descending)


def troubled(count: int) -> torch.Tensor:
    """Numbers with NaN, infinities and both zeros among them, most of them several times."""
    x = ints(1, count, low=-40, high=40).float()
    for k, value in enumerate((NAN, INF, -INF, 0.0, -0.0)):
        x[0, k :: 7 + k] = value
    return x


EDGES = torch.arange(700).float() / 100

CASES: dict[str, Callable[[], Made]] = {
    "sort of many, the largest first": sorted_by(troubled(2600), descending=True),
    "sort of many with nan": sorted_by(troubled(2600), 1),
    "sort in the first dimension": sorted_by(ints(2100, 2, low=-999, high=999), 0),
    "sort of the largest integers": sorted_by(torch.tensor([2**31 - 1, -(2**31), 0, 5]).int().repeat(600), descending=True),
    "sort in float16": sorted_by(ints(300).half()),
    "sort of one number": lambda: call("aten.sort.default", torch.tensor(3.0)),
    "sort of nothing": lambda: call("aten.sort.default", floats(3, 0)),
    "no element at the top": lambda: call("aten.topk.default", floats(3, 5), 0),
    "topk of many": lambda: call("aten.topk.default", floats(9000), 5),
    "topk 300": lambda: call("aten.topk.default", floats(1, 8400), 300, -1, False),
    "kthvalue of many": lambda: call("aten.kthvalue.default", floats(2500, 2), 777, 0, True),
    "nanmedian": lambda: call("aten.nanmedian.dim", SPECIAL, 1),
    "mode": lambda: call("aten.mode.default", ints(3, 12)),
    "cummax of many": lambda: call("aten.cummax.default", troubled(3000), -1),
    "cummin of many": lambda: call("aten.cummin.default", troubled(3000), -1),
    "bucketize of many": lambda: call("aten.bucketize.Tensor", ints(1, 300).float(), EDGES, right=True),
    "bucketize among nothing": lambda: call("aten.bucketize.Tensor", floats(9), torch.tensor([])),
    "searchsorted of many": lambda: call("aten.searchsorted.Tensor", floats(2, 900).sort(-1)[0], floats(2, 5)),
    "searchsorted with a sorter": lambda: call(
        "aten.searchsorted.Tensor", EDGES.flip(0), floats(5), sorter=torch.arange(699, -1, -1)),
}


@pytest.mark.parametrize("name", CASES)
def test_order(name: str) -> None:
    check(CASES[name](), "opencl", "simple")


@pytest.mark.parametrize("name", ["sort of many with nan", "topk of many", "cummax of many", "searchsorted of many"])
def test_order_on_vulkan(name: str) -> None:
    check(CASES[name](), "vulkan", "simple")


@pytest.mark.parametrize("extent", [1, 2048, 2049, 8400, 32_000, 100_000, 1_000_003])
@pytest.mark.parametrize("count", [1, 5, 300, 700, 10**9])
def test_the_work_of_a_sort_is_far_from_quadratic(extent: int, count: int) -> None:
    count = min(count, extent)
    stages = _stages(extent, count)
    assert stages[-1].found == count
    assert all(after.extent == before.found for before, after in itertools.pairwise(stages))
    ranking = sum(2 * s.filled * s.group for s in stages if not s.merges)
    merging = sum(s.found * 256 for s in stages if s.merges)
    assert ranking + merging <= extent * 8192
    assert len(stages) <= 14
