"""Ordinary operators that were wrong or refused, and special values: NaN, infinities, whole and negative powers, windows of -inf.

An operator that TapML does not convert itself is written as torch decomposes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tapml.compile.build import build
from tapml.compile.importer import import_body
from tapml.operators.decompose import NoDecomposition, decomposed
from tapml.operators.graph import Body, Node
from tapml.targets.known import TARGETS
from tapml.tensors import TensorSpec
from tests.compile.bodies import Made, Result, call, chain, check
from tests.compile.test_conversions import HALF, INF, X, floats, ints

NAN = float("nan")
SPECIAL = torch.tensor([[1.0, NAN, -2.0, INF], [NAN, NAN, 0.0, -INF], [3.0, 2.0, 1.0, 0.5]])
NOTHING = torch.tensor([[-INF] * 4, [1.0, -INF, 2.0, 0.0]])
BASES = torch.tensor([-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 2.0, 3.0, INF, -INF])
IMAGE = floats(1, 4, 6, 6)


def unary(name: str, x: torch.Tensor) -> Callable[[], Made]:
    return lambda: call(f"aten.{name}.default", x)


def power(exponent: float) -> Callable[[], Made]:
    return lambda: call("aten.pow.Tensor_Scalar", BASES, exponent)


def resized(kind: str, *rest: object) -> Callable[[], Made]:
    return lambda: call(f"aten.upsample_{kind}.default", IMAGE, [9, 5], *rest)


def reduced(how: str, include_self: bool) -> Callable[[], Made]:
    return lambda: call(
        "aten.scatter_reduce.two", floats(3, 6), 1, ints(3, 6, high=6), floats(3, 6, seed=1), how, include_self=include_self
    )


def bags(how: int) -> Callable[[], Made]:
    """Of rows, one bag without any, in the end of which one row does not count. Only the first result is of use."""

    def made() -> Made:
        whole = call(
            "aten.embedding_bag.padding_idx", floats(8, 5), ints(10, high=4), torch.tensor([0, 4, 4, 10]), False, how, False,
            floats(10, seed=2) if how == 0 else None, True, 2)
        body = replace(whole.body, outputs=whole.body.outputs[:1])
        return Made(body, whole.inputs, whole.outputs[:1])

    return made


CASES: dict[str, Callable[[], Made]] = {
    # NaN
    **{f"{name} of nan": unary(name, SPECIAL) for name in ("relu", "relu6", "hardtanh", "tanh", "erf", "gelu", "sign", "isnan",
                                                           "isinf", "isfinite", "sort")},
    "clamp of nan": lambda: call("aten.clamp.default", SPECIAL, -1, 1),
    "maximum with nan": lambda: call("aten.maximum.default", SPECIAL, SPECIAL.flip(1)),
    "fmin with nan": lambda: call("aten.fmin.default", SPECIAL, SPECIAL.flip(0)),
    "x equals x": lambda: call("aten.eq.Tensor", SPECIAL, SPECIAL),
    "x is not x": lambda: call("aten.ne.Tensor", SPECIAL, SPECIAL),
    "amax of nan": lambda: call("aten.amax.default", SPECIAL, [1]),
    "min of nan": lambda: call("aten.min.dim", SPECIAL, 1),
    "argmax of nan": lambda: call("aten.argmax.default", SPECIAL, 1),
    "topk of nan": lambda: call("aten.topk.default", SPECIAL[::2], 2),
    "median of nan": lambda: call("aten.median.dim", SPECIAL, 1),
    "max pool of nan": lambda: call("aten.max_pool2d.default", SPECIAL.reshape(1, 1, 3, 4), [2, 2], [1, 1]),
    "nan to num": lambda: call("aten.nan_to_num.default", SPECIAL, 1.0, 2.0, -3.0),
    "nan in float16": lambda: call("aten.amax.default", SPECIAL.to(HALF), [1]),
    # rows of -inf
    "max of nothing but -inf": lambda: call("aten.max.dim", NOTHING, 1),
    "max pool of -inf": lambda: call("aten.max_pool2d_with_indices.default", torch.full((1, 1, 4, 4), -INF), [2, 2]),
    "logsumexp of -inf": lambda: call("aten.logsumexp.default", NOTHING, [-1]),
    "logaddexp of -inf": lambda: call("aten.logaddexp.default", NOTHING, NOTHING),
    # powers
    **{f"power {e}": power(e) for e in (0, 3, 9, -3, 0.5, -0.5, 1 / 3, 2.5, INF)},
    "powers of tensors": lambda: call(
        "aten.pow.Tensor_Tensor", BASES.repeat(7).reshape(7, 10), torch.tensor([[0.0], [1], [2], [3], [-1], [0.5], [-3]])),
    "integer powers": lambda: call("aten.pow.Tensor_Tensor", ints(9, low=-5), ints(9)),
    "integer to 11": lambda: call("aten.pow.Tensor_Scalar", ints(9, low=-5, high=5), 11),
    # functions that drivers lack
    **{name: unary(name, floats(7, 9)) for name in ("tan", "atan", "sinh", "cosh", "asinh", "log_sigmoid", "mish")},
    **{name: unary(name, torch.linspace(-1, 1, 101)) for name in ("asin", "acos", "erfinv")},
    "atanh": unary("atanh", torch.linspace(-0.999, 0.999, 101)),
    "acosh": unary("acosh", torch.linspace(1, 900, 101)),
    "atan2": lambda: call("aten.atan2.default", floats(9, 8), floats(8)),
    "hypot": lambda: call("aten.hypot.default", floats(9, 8) * 1e20, floats(8)),
    "celu": lambda: call("aten.celu.default", X * 5, 2.0),
    # bits
    "left shift": lambda: call("aten.bitwise_left_shift.Tensor", ints(9, high=99).int(), ints(9, high=5).int()),
    "right shift of negatives": lambda: call("aten.__rshift__.Scalar", ints(9, low=-99, high=99), 2),
    "shift in 8 bits": lambda: call("aten.bitwise_left_shift.Tensor_Scalar", ints(9, low=-99, high=99).to(torch.int8), 3),
    # reductions and scans
    "prod": lambda: call("aten.prod.dim_int", X, -1),
    "std": lambda: call("aten.std.dim", X, [-1], False),
    "largest of booleans": lambda: call("aten.max.dim", X > 0, 1),
    "norm 3": lambda: call("aten.linalg_vector_norm.default", X, 3, [-1]),
    "norm inf": lambda: call("aten.linalg_vector_norm.default", X, INF, [-1]),
    "cumprod": lambda: call("aten.cumprod.default", X, 1),
    "cummax": lambda: call("aten.cummax.default", SPECIAL, -1),
    "cumsum of many": lambda: call("aten.cumsum.default", floats(2, 5000), -1),
    "kthvalue": lambda: call("aten.kthvalue.default", floats(3, 12), 3),
    "bucketize": lambda: call("aten.bucketize.Tensor", X, torch.tensor([-1.0, 0.0, 0.5]), right=True),
    "searchsorted": lambda: call("aten.searchsorted.Tensor", floats(2, 3, 9).sort(-1)[0], X),
    # normalisation
    "instance norm": lambda: call(
        "aten.instance_norm.default", IMAGE, floats(4), floats(4, seed=1), None, None, True, 0.1, 1e-5, False),
    "batch norm": lambda: call(
        "aten.batch_norm.default", IMAGE, floats(4), floats(4, seed=1), floats(4, seed=2), floats(4).abs(), False, 0.1, 1e-5,
        False),
    # pooling and resizing
    "avg pool with a divisor": lambda: call("aten.avg_pool2d.default", IMAGE, [3, 3], [2, 2], [1, 1], False, True, 5),
    "avg pool that counts what is inside": lambda: call("aten.avg_pool2d.default", IMAGE, [3, 3], [2, 2], [1, 1], True, False),
    "avg pool in float16": lambda: call("aten.avg_pool2d.default", floats(1, 2, 32, 32, dtype=HALF) * 100, [16, 16]),
    "max pool with indices": lambda: call("aten.max_pool2d_with_indices.default", IMAGE, [3, 3], [2, 2], [1, 1]),
    "adaptive average pool": lambda: call("aten.adaptive_avg_pool2d.default", IMAGE, [4, 5]),
    "adaptive max pool": lambda: call("aten.adaptive_max_pool2d.default", IMAGE, [4, 3]),
    "resize nearest": resized("nearest2d"),
    "resize bilinear": resized("bilinear2d", False),
    "resize bilinear by corners": resized("bilinear2d", True),
    "resize bicubic": resized("bicubic2d", False),
    "resize in one dimension": lambda: call("aten.upsample_linear1d.default", floats(1, 2, 9), [13], False),
    "resize by a factor": lambda: call("aten.upsample_nearest2d.vec", IMAGE, None, [1.57, 0.8]),
    "resize nearest-exact": lambda: call("aten._upsample_nearest_exact2d.default", IMAGE, [9, 5]),
    "pixel shuffle": lambda: call("aten.pixel_shuffle.default", IMAGE, 2),
    "grid sample": lambda: call("aten.grid_sampler.default", IMAGE, floats(1, 3, 5, 2) * 0.8, 0, 0, False),
    "fold": lambda: call("aten.col2im.default", floats(1, 8, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1]),
    "unfold": lambda: call("aten.im2col.default", IMAGE, [2, 2], [1, 1], [1, 1], [1, 1]),
    # convolutions
    "padding same": lambda: call("aten.conv2d.padding", IMAGE, floats(3, 4, 3, 3), None, [1, 1], "same"),
    "unbatched transposed convolution": lambda: call("aten.conv_transpose2d.input", IMAGE[0], floats(4, 3, 2, 2)),
    "transposed convolution, dilated and in groups": lambda: call(
        "aten.conv_transpose1d.default", floats(2, 2, 4).to(HALF), floats(2, 2, 4).to(HALF), floats(4).to(HALF), [3], [1], [2], 2,
        [4]),
    "transposed convolution in three dimensions": lambda: call(
        "aten.conv_transpose3d.input", floats(1, 4, 3, 3, 3), floats(4, 3, 2, 2, 2), floats(6), [1, 2, 1], [0, 0, 1], [0, 1, 0],
        2, [2, 1, 1]),
    # scatter
    **{f"scatter {how}{'' if own else ' alone'}": reduced(how, own) for how in ("sum", "prod", "mean", "amax", "amin")
       for own in (True, False)},
    "index reduce": lambda: call(
        "aten.index_reduce.default", floats(6, 4), 0, torch.tensor([3, 1, 3]), floats(3, 4), "amax", include_self=False),
    "masked scatter": lambda: call("aten.masked_scatter.default", X, X > 0, floats(2, 3, 8, seed=3)),
    "integers of a number": lambda: call("aten._to_copy.default", torch.tensor([3.7, -3.7, 1e10, -1e10]), dtype=torch.int32),
    "times 0": lambda: call("aten.mul.Scalar", torch.tensor([NAN, INF, -INF, 0.2]), 0.0),
    "take of one": lambda: call("aten.take.default", torch.tensor([1.5]), torch.tensor([0, 0])),
    "copy": lambda: call("aten.copy.default", floats(3, 4), floats(4)),
    "copy of floats into integers": lambda: call("aten.copy.default", ints(3, 4), floats(3, 1) * 3),
    "powers in float64": lambda: chain([
        ("aten.float_power.Tensor_Tensor", (floats(9).abs(), floats(9)), {}),
        ("aten._to_copy.default", (Result(0),), {"dtype": torch.float32})]),
    "indices of a triangle": lambda: call("aten.tril_indices.default", 20, 21, 7),
    "integers divided": lambda: call("aten.floor_divide.default", ints(40, low=-9).int(), ints(40, 1, low=1)[:, 0].int()),
    "rest of negatives": lambda: call("aten.remainder.Scalar", ints(9, low=-9, high=9).int(), 4),
    "softmax of nothing": lambda: call("aten._safe_softmax.default", NOTHING, -1),
    "gelu far out": lambda: call("aten.gelu.default", torch.tensor([-INF, INF, NAN, -1e5, 1e5, -4.0, 4.0, -3.99])),
    # written here, since torch has no decomposition
    "memory in steps": lambda: call("aten.as_strided.default", X, [3, 4], [2, 5], 1),
    "windows": lambda: call("aten.unfold.default", X, 1, 2, 1),
    "put": lambda: call("aten.put.default", X, torch.tensor([3, 3, -1]), floats(3), True),
    "scatter with a product": lambda: call(
        "aten.scatter.value_reduce", floats(3, 6), 1, ints(3, 6, high=6), 2.0, reduce="multiply"),
    "sum of products": lambda: call("aten.addbmm.default", floats(3, 5), floats(2, 3, 8), floats(2, 8, 5), beta=0.5, alpha=2),
    "bilinear": lambda: call("aten.bilinear.default", floats(4, 5), floats(4, 6), floats(3, 5, 6), floats(3)),
    "distances of all pairs": lambda: call("aten.pdist.default", floats(4, 8)),
    "covariance": lambda: call(
        "aten.cov.default", floats(3, 8), fweights=ints(8, low=1, high=4), aweights=floats(8, seed=1).abs()),
    "correlation": lambda: call("aten.corrcoef.default", floats(3, 8)),
    "histogram": lambda: call("aten.histc.default", torch.tensor([NAN, 0.5, -INF, INF, 2.0, -1.0, 1.0]), 5, -1, 1),
    "histogram from least to greatest": lambda: call("aten.histc.default", X, 7),
    "angle": lambda: call("aten.angle.default", torch.tensor([NAN, -1.0, 0.0, -0.0, 2.0, -INF])),
    "into a diagonal": lambda: call("aten.diagonal_scatter.default", floats(5, 4), floats(3), 1),
    "into memory in steps": lambda: call("aten.as_strided_scatter.default", floats(5, 4), floats(3, 2), [3, 2], [4, 1], 2),
    "batch norm by the batch": lambda: call(
        "aten.batch_norm.default", floats(2, 4, 3, 3, dtype=HALF), floats(4, dtype=HALF), None, None, None, True, 0.1, 1e-5,
        False),
    "largest of one": lambda: call("aten.max.dim", torch.tensor(3.0), 0),
    **{f"bags, {how}": bags(how) for how in (0, 1, 2)},
    **{f"determinant of {n} rows": lambda n=n: call("aten.linalg_det.default", floats(2, n, n)) for n in (1, 2, 3)},  # type: ignore[misc]
    **{f"inverse of {n} rows": lambda n=n: call(  # type: ignore[misc]
        "aten.linalg_inv.default", floats(2, n, n) + 2 * torch.eye(n)) for n in (1, 2, 3)},
    **{f"the first {count} of what is not zero": lambda count=count: call(  # type: ignore[misc]
        "aten.nonzero_static.default", X > 0, size=count) for count in (10, 40)},
    "take": lambda: call("aten.take.default", X, torch.tensor([3, -1, 40])),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:index_reduce")
def test_operator(name: str) -> None:
    """On one of two targets, in turn: what torch decomposes is compiled from operators that both are tested with."""
    check(CASES[name](), ("opencl", "vulkan")[list(CASES).index(name) % 2], "simple")


@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_a_power_of_2_beyond_float32_is_no_zero_and_no_infinity(target: str) -> None:
    numbers, powers = torch.tensor([1e38, -INF, 0.0, 3e38]), torch.tensor([[-149], [-140], [20], [130], [-160]])
    check(call("aten.ldexp.Tensor", numbers, powers), target, "simple")


def test_a_note_says_what_torch_decomposed() -> None:
    notes: list[str] = []
    build(call("aten.mish.default", X).body, TARGETS["opencl"], "simple", lambda stage: None, notes.append)
    assert "aten.mish.default as torch decomposes it" in notes


def test_a_decomposition_that_gives_another_tensor_is_none() -> None:
    made = call("aten.mish.default", X)
    (node,) = made.body.nodes
    wrong = Node(node.name, node.target, node.args, node.kwargs, (TensorSpec((2, 3, 9), "float32"),))
    body = Body("mish", made.body.inputs, made.body.roles, (wrong,), made.body.outputs)
    with pytest.raises(NoDecomposition, match=r"gives .*8.*, not .*9"):
        decomposed(body, {node.name}, lambda overload: overload != "mish.default")


def test_an_unknown_operator_among_known_ones_keeps_them() -> None:
    made = call("aten.mish.default", X)
    (node,) = made.body.nodes
    after = Node("n1", "aten.neg.default", ({"ref": node.name},), {}, node.outputs)
    body = Body("mish", made.body.inputs, made.body.roles, (node, after), ("n1",))
    simpler = decomposed(body, {node.name}, lambda overload: overload != "mish.default")
    assert simpler.nodes[-1].target == "aten.neg.default" and simpler.outputs == ("n1",)
    assert all(n.target != "aten.mish.default" for n in simpler.nodes)
    import_body(body)
