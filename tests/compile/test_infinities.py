"""Infinities, NaN and numbers near the largest, where real numbers have rules that floats have not: 0 · ∞, ∞ - ∞, x + 1 - x.

TVM's simplifier and the compilers of WGSL go by the rules of real numbers, unless what they would go by is hidden from them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.compile.bodies import Made, Result, call, chain, compiled, run

INF, NAN = float("inf"), float("nan")
ROWS = torch.tensor([
    [1.0, 2.0, -3.0, 0.5], [INF, 1.0, 2.0, 3.0], [NAN, 1.0, 2.0, 3.0], [-INF, 0.0, 1.0, 2.0], [INF, -INF, 0.0, 1.0],
    [-INF, -INF, -INF, -INF], [0.0, -0.0, 0.0, 0.0], [1e20, 1e20, -1e20, 1e19],
])  # fmt: skip
LARGE = torch.tensor([[1e38, -1e38, 3e38, 1e38], [3e38, 3e38, 3e38, 3.1e38], [1e20, 1e20, -1e20, 1e19], [2.0, 0.0, 1.0, 5.0]])
SINGLE = torch.cat([ROWS, LARGE]).reshape(-1, 1)
Q, K, V = (torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))


def of_result(first: str, numbers: tuple[object, ...], second: str, *args: object) -> Made:
    return chain([(f"aten.{first}", (ROWS, *numbers), {}), (f"aten.{second}", args, {})])


def with_nan(x: torch.Tensor) -> torch.Tensor:
    """NaN in the last key of the first head."""
    changed = x.clone()
    changed[0, 0, 3, 1] = NAN
    return changed


def attention(k: torch.Tensor, mask: torch.Tensor) -> Made:
    return call("aten.scaled_dot_product_attention.default", Q, k, V, mask)


# No calls of which PyTorch's own answer hangs on the order of its sums.
CALLS: dict[str, Callable[[], Made]] = {
    "x - x": lambda: call("aten.sub.Tensor", ROWS, ROWS),
    "x + 1 - x": lambda: of_result("add.Scalar", (1.0,), "sub.Tensor", Result(0), ROWS),
    "x + 12582912 - 12582912": lambda: of_result("add.Scalar", (12582912.0,), "sub.Scalar", Result(0), 12582912.0),
    "x · 0": lambda: call("aten.mul.Scalar", ROWS, 0.0),
    "x · -0": lambda: call("aten.mul.Scalar", ROWS, -0.0),
    "x · zeros": lambda: of_result("zeros_like.default", (), "mul.Tensor", ROWS, Result(0)),
    "x · a tensor of 0": lambda: chain([("aten.full.default", ([4], 0.0), {}), ("aten.mul.Tensor", (ROWS, Result(0)), {})]),
    "1 / x · 0": lambda: of_result("reciprocal.default", (), "mul.Scalar", Result(0), 0.0),
    "x + 0 · x": lambda: call("aten.add.Tensor", ROWS, ROWS, alpha=0),
    "x + 0 · x · x": lambda: call("aten.addcmul.default", ROWS, ROWS, ROWS, value=0),
    "x + 0 · (y - x)": lambda: call("aten.lerp.Scalar", ROWS, ROWS.flip(0), 0.0),
    "zeros / x": lambda: of_result("zeros_like.default", (), "div.Tensor", Result(0), ROWS),
    "zeros are no NaN": lambda: of_result("zeros_like.default", (), "isnan.default", Result(0)),
    "x / 0": lambda: call("aten.div.Scalar", ROWS, 0.0),
    "softmax of one": lambda: call("aten.softmax.int", SINGLE, -1),
    "softmax of a number": lambda: call("aten.softmax.int", torch.tensor(INF), -1),
    "softmax": lambda: call("aten.softmax.int", ROWS, -1),
    "log_softmax": lambda: call("aten.log_softmax.int", ROWS, -1),
    "logsumexp": lambda: call("aten.logsumexp.default", ROWS, [-1]),
    "mean": lambda: call("aten.mean.dim", ROWS, [-1]),
    "std": lambda: call("aten.std.correction", torch.cat([ROWS, LARGE]), [-1], correction=1),
    "std_mean": lambda: call("aten.std_mean.correction", torch.cat([ROWS, LARGE[2:]]), [-1], correction=0),
    "var_mean": lambda: call("aten.var_mean.correction", torch.cat([ROWS, LARGE[:1]]), [-1], correction=0),
    "var_mean of one": lambda: call("aten.var_mean.correction", SINGLE, [-1], correction=0),
    **{f"norm {order} of one": lambda order=order: call("aten.linalg_vector_norm.default", SINGLE, order, [-1])
       for order in (0.5, 1, 2, 3)},
    "layer_norm of one": lambda: call("aten.layer_norm.default", ROWS.reshape(-1, 1)[:-4], [1], torch.ones(1), torch.ones(1)),
    "group_norm of one": lambda: call("aten.group_norm.default", ROWS[:-1], 4),
    "attention to nothing": lambda: attention(K, torch.zeros(4, 4).bool()),
    "attention to nothing, added": lambda: attention(K, torch.full((4, 4), -INF)),
    "attention to NaN behind a mask": lambda: attention(with_nan(K), torch.tril(torch.ones(4, 4)).bool()),
    "index_add of 0 times": lambda: call("aten.index_add.default", ROWS, 0, torch.tensor([0, 5]), ROWS[1:3].clone(), alpha=0),
}  # fmt: skip


@pytest.mark.parametrize(("target", "schedule"), [("opencl", "blocked"), ("vulkan", "simple")])
def test_floats_are_no_real_numbers(target: str, schedule: str) -> None:
    wrong = {}
    for name, make in CALLS.items():
        made = make()
        for actual, expected in zip(run(compiled(made, target, schedule), made, target), made.outputs, strict=True):
            if not np.allclose(actual, expected, rtol=2e-5, atol=1e-37, equal_nan=True):
                wrong[name] = f"{actual} instead of {expected}"
    assert wrong == {}


def test_zeros_keep_their_signs() -> None:
    made = call("aten.add.Scalar", torch.tensor([0.0, -0.0]), 0.0)
    (actual,) = run(compiled(made, "opencl", "simple"), made, "opencl")
    assert np.signbit(actual).tolist() == [False, False]
