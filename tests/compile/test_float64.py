"""float64: NaN and infinities in order, also where it is stored in float32; what float32 has no number for is a mismatch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tapml.carving.reference import ReferenceMaker
from tapml.migrate.judging import judged
from tests.compile.bodies import Made, call, compiled, run

INF, NAN = float("inf"), float("nan")
LAST = torch.finfo(torch.float32).max
X = torch.tensor([
    [1.0, NAN, -2.0, INF, 4.0], [NAN, 6.0, 0.0, -INF, 1.0], [3.0, 2.0, 1.0, 0.5, -1.0], [-INF, INF, LAST, -LAST, NAN],
    [5.0, -7.0, 2.5, 2.25, 0.0],
], dtype=torch.float64)  # fmt: skip
CALLS: dict[str, Callable[[], Made]] = {
    **{f"sort {down}": lambda down=down: call("aten.sort.default", X, -1, down) for down in (False, True)},
    **{f"topk {largest}": lambda largest=largest: call("aten.topk.default", X, 3, -1, largest) for largest in (False, True)},
    **{name: lambda name=name: call(f"aten.{name}", X, 1)
       for name in ("max.dim", "min.dim", "argmax.default", "argmin.default", "cummax.default", "cummin.default", "median.dim",
                    "nanmedian.dim", "amax.default")},
    "max": lambda: call("aten.max.default", X),
    "maximum": lambda: call("aten.maximum.default", X, X.flip(0)),
    "clamp": lambda: call("aten.clamp.default", X, -1, 1),
    "max_pool1d": lambda: call("aten.max_pool1d.default", X[None], [2], [1]),
    "isnan": lambda: call("aten.isnan.default", X),
    "is itself": lambda: call("aten.eq.Tensor", X, X),
}  # fmt: skip


@pytest.mark.parametrize(("target", "schedule"), [("opencl", "blocked"), ("vulkan", "simple")])
def test_order(target: str, schedule: str) -> None:
    wrong = {}
    for name, make in CALLS.items():
        made = make()
        for actual, expected in zip(run(compiled(made, target, schedule), made, target), made.outputs, strict=True):
            if not np.array_equal(actual, expected, equal_nan=True):
                wrong[name] = f"{actual} instead of {expected}"
    assert wrong == {}


@pytest.mark.parametrize(("number", "passes"), [(0.5, True), (-INF, True), (0.1, False), (1e300, False)])
def test_float64_in_float32_is_right_or_a_mismatch(number: float, passes: bool) -> None:
    made = call("aten.flip.default", torch.tensor([1.0, number], dtype=torch.float64), [0])
    references = ReferenceMaker(made.body).on_host(made.inputs, made.outputs)
    (found,) = judged(run(compiled(made, "vulkan", "simple"), made, "vulkan"), references)
    assert found.passed == passes
