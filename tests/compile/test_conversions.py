"""Every operator that this package converts itself, on the real drivers, against PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from tapml.compile.build import build
from tapml.compile.importer import ConversionError
from tapml.operators.graph import Body, Node
from tapml.targets.known import TARGETS
from tapml.tensors import TensorSpec
from tests.compile.bodies import Made, Result, call, chain, check


def floats(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def ints(*shape: int, low: int = 0, high: int = 8) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(len(shape)))


def bools(*shape: int) -> torch.Tensor:
    return floats(*shape) > 0


def attention(rows: int, mask: str | None, **kwargs: object) -> Made:
    masks = {None: None, "bool": torch.ones(rows, 16, dtype=torch.bool).tril(3), "float": floats(1, 1, rows, 16)}
    heads = 2 if kwargs.get("enable_gqa") else 4
    q, k, v = floats(1, 4, rows, 8), floats(1, heads, 16, 8, seed=1), floats(1, heads, 16, 8, seed=2)
    return call("aten.scaled_dot_product_attention.default", q, k, v, masks[mask], **kwargs)


X = floats(2, 3, 8)
HALF = torch.float16
INF = float("inf")

CASES: dict[str, Callable[[], Made]] = {
    # arithmetic
    "add with alpha": lambda: call("aten.add.Tensor", X, floats(3, 1), alpha=2),
    "add int and number": lambda: call("aten.add.Tensor", ints(4), 1.5),
    "rsub": lambda: call("aten.rsub.Scalar", X, 1.0, 2),
    "mul by itself": lambda: call("aten.mul.Tensor", X, X),
    "div int": lambda: call("aten.div.Tensor", ints(4, high=9), 2),
    "div floor": lambda: call("aten.div.Tensor_mode", ints(6, low=-9, high=9), 4, rounding_mode="floor"),
    "floor divide": lambda: call("aten.floor_divide.default", ints(6, low=-9, high=9), 4),
    "remainder": lambda: call("aten.remainder.Scalar", X, 0.7),
    "pow 2 of negatives": lambda: call("aten.pow.Tensor_Scalar", X, 2),
    "pow 3": lambda: call("aten.pow.Tensor_Scalar", X, 3.0),
    "pow of a number": lambda: call("aten.pow.Scalar", 10000.0, X),
    "maximum": lambda: call("aten.maximum.default", X, floats(3, 8)),
    "clamp": lambda: call("aten.clamp.default", X, -0.5, None),
    "clamp min": lambda: call("aten.clamp_min.default", X, 0.1),
    "where of a number beyond float16": lambda: call(
        "aten.where.ScalarOther", bools(3, 8), floats(2, 3, 8, dtype=HALF), -1e9),
    "where": lambda: call("aten.where.self", bools(3, 8), X, floats(1)),
    "masked fill with -inf": lambda: call("aten.masked_fill.Scalar", X, bools(3, 8), -INF),
    "compare int with number": lambda: call("aten.gt.Scalar", ints(6), 2.5),
    "eq": lambda: call("aten.eq.Tensor", ints(6), ints(6)),
    "and of booleans": lambda: call("aten.bitwise_and.Tensor", bools(6), torch.tensor([True] * 3 + [False] * 3)),
    "or of ints": lambda: call("aten.bitwise_or.Tensor", ints(6), ints(6, high=30)),
    "not of ints": lambda: call("aten.bitwise_not.default", ints(6)),
    "logical not": lambda: call("aten.logical_not.default", bools(7)),
    "gelu": lambda: call("aten.gelu.default", X * 3),
    "gelu tanh": lambda: call("aten.gelu.default", X * 30, approximate="tanh"),
    "tanh of large": lambda: call("aten.tanh.default", X * 100),
    "tanh of small": lambda: call("aten.tanh.default", X * 0.05),
    "silu": lambda: call("aten.silu.default", X),
    "softplus": lambda: call("aten.softplus.default", X * 20),
    "softplus of very negative": lambda: call("aten.softplus.default", X - 9),
    "softplus with beta": lambda: call("aten.softplus.default", X * 20, 0.5, 3),
    "log1p near 0": lambda: call("aten.log1p.default", X * 0.001),
    "log1p": lambda: call("aten.log1p.default", torch.linspace(-0.999, 9.0, 200)),
    "expm1 near 0": lambda: call("aten.expm1.default", X * 0.001),
    "expm1": lambda: call("aten.expm1.default", torch.linspace(-20.0, 20.0, 200)),
    "elu": lambda: call("aten.elu.default", torch.cat([X, X * 0.01]), 1.3, 1.05, 0.7),
    "erf": lambda: call("aten.erf.default", X * 2),
    "cos of large": lambda: call("aten.cos.default", torch.arange(0, 300, dtype=torch.float32)),
    "sin": lambda: call("aten.sin.default", X),
    "sin near its zeros": lambda: call("aten.sin.default", torch.arange(-20, 20) * torch.pi + 1e-3),
    "sin of large": lambda: call("aten.sin.default", torch.arange(-40000, 40000, 773, dtype=torch.float32)),
    "cos of half": lambda: call("aten.cos.default", (X * 5).to(HALF)),
    "cast to bool": lambda: call("aten._to_copy.default", ints(6, high=3), dtype=torch.bool),
    "cast to int": lambda: call("aten._to_copy.default", X * 9, dtype=torch.int64),
    "arange": lambda: call("aten.arange.start_step", 2, 20, 3),
    "full of float16 inf": lambda: call("aten.full.default", [3, 2], INF, dtype=HALF),
    "full of inf": lambda: call("aten.full.default", [3, 2], -INF),
    # contractions
    "linear": lambda: call("aten.linear.default", floats(1, 5, 24), floats(12, 24), floats(12)),
    "tanh in float16": lambda: call("aten.tanh.default", X.to(HALF)),
    "gelu in float16": lambda: call("aten.gelu.default", X.to(HALF), approximate="tanh"),
    "linear in float16": lambda: call("aten.linear.default", floats(1, 5, 256, dtype=HALF), floats(12, 256, dtype=HALF)),
    "addmm": lambda: call("aten.addmm.default", floats(12), floats(5, 24), floats(24, 12), beta=0.5, alpha=2),
    "baddbmm": lambda: call("aten.baddbmm.default", floats(3, 5, 4), floats(3, 5, 8), floats(3, 8, 4)),
    "matmul broadcasting": lambda: call("aten.matmul.default", floats(2, 1, 5, 8), floats(3, 8, 4)),
    "matmul with a vector": lambda: call("aten.matmul.default", floats(2, 5, 8), floats(8)),
    "attention": lambda: attention(4, None),
    "attention with a boolean mask": lambda: attention(4, "bool"),
    "attention with a float mask": lambda: attention(4, "float", scale=0.3),
    "attention, causal": lambda: attention(16, None, is_causal=True),
    "attention, grouped": lambda: attention(1, "bool", enable_gqa=True),
    "softmax": lambda: call("aten.softmax.int", X * 4, 1),
    "softmax in float16": lambda: call("aten._softmax.default", floats(3, 40, dtype=HALF), -1, False),
    "softmax over -inf": lambda: call("aten.softmax.int", X.masked_fill(X < 0, -INF), -1),
    "log softmax": lambda: call("aten._log_softmax.default", X, -1, False),
    # reductions
    "sum": lambda: call("aten.sum.dim_IntList", X, [0, 2], True),
    "sum of booleans": lambda: call("aten.sum.default", bools(3, 8)),
    "mean": lambda: call("aten.mean.dim", X, [-1], True),
    "variance": lambda: call("aten.var.correction", X + 100, [1], correction=1),
    "variance and mean": lambda: call("aten.var_mean.correction", X, [-1], correction=0, keepdim=True),
    "amax": lambda: call("aten.amax.default", X, [1]),
    "amax of -inf": lambda: call("aten.amax.default", torch.full((3, 8), -INF), [1]),
    "amin of inf in float16": lambda: call("aten.amin.default", torch.full((3, 8), INF, dtype=HALF), [1]),
    "amax of float32's lowest": lambda: call("aten.amax.default", torch.full((3, 8), torch.finfo(torch.float32).min), [1]),
    "max with indices of -inf": lambda: call("aten.max.dim", torch.cat([X, torch.full((1, 3, 8), -INF)]), 2),
    "max pool of -inf": lambda: call("aten.max_pool2d.default", torch.full((1, 3, 8, 8), -INF), [2, 2], [2, 2]),
    "any": lambda: call("aten.any.dim", bools(3, 8), 1),
    "all": lambda: call("aten.all.default", bools(3, 8)),
    "max with indices": lambda: call("aten.max.dim", X, 1),
    "argmax over all": lambda: call("aten.argmax.default", X),
    "argmin": lambda: call("aten.argmin.default", X, 2, True),
    "topk": lambda: call("aten.topk.default", floats(3, 12), 4),
    "sort": lambda: call("aten.sort.default", floats(3, 12), -1, True),
    "cumsum": lambda: call("aten.cumsum.default", ints(3, 12), 1),
    "layer norm": lambda: call("aten.layer_norm.default", X * 3 + 50, [8], floats(8), floats(8, seed=1)),
    "layer norm in float16": lambda: call("aten.layer_norm.default", floats(3, 64, dtype=HALF), [64], floats(64, dtype=HALF)),
    "native layer norm": lambda: call("aten.native_layer_norm.default", X, [3, 8], None, None, 1e-5),
    "rms norm of bfloat16 without eps": lambda: call(
        "aten.rms_norm.default", floats(3, 8, dtype=torch.bfloat16) * 0.002, [8], None, None),
    "rms norm": lambda: call("aten.rms_norm.default", X, [8], floats(8), 1e-6),
    "group norm": lambda: call("aten.group_norm.default", floats(2, 6, 4, 3), 3, floats(6), floats(6, seed=1)),
    "vector norm": lambda: call("aten.linalg_vector_norm.default", X, 2, [1]),
    # indexing
    "slice with a huge end": lambda: call("aten.slice.Tensor", X, 2, 1, 2**63 - 1, 2),
    "slice from the end": lambda: call("aten.slice.Tensor", X, 2, -3),
    "select": lambda: call("aten.select.int", X, 1, -1),
    "select scatter": lambda: call("aten.select_scatter.default", X, floats(2, 8), 1, 1),
    "slice scatter": lambda: call("aten.slice_scatter.default", X, floats(2, 3, 3), 2, 1, 7, 2),
    "embedding": lambda: call("aten.embedding.default", floats(8, 5), ints(2, 3)),
    "index select": lambda: call("aten.index_select.default", X, 2, ints(4)),
    "gather": lambda: call("aten.gather.default", X, 2, ints(2, 3, 5)),
    "index": lambda: call("aten.index.Tensor", floats(6, 4, 8), [ints(3, high=6), None, ints(2, 1)]),
    "index adjacent": lambda: call("aten.index.Tensor", floats(5, 6, 8), [None, ints(3, high=6), ints(3)]),
    "index negative": lambda: call("aten.index.Tensor", X, [None, torch.tensor([-1, 0])]),
    "index copy of one": lambda: call("aten.index_copy.default", floats(1, 2, 9, 4), 2, torch.tensor([5]), floats(1, 2, 1, 4)),
    "index copy of some": lambda: call(
        "aten.index_copy.default", floats(1, 2, 9, 4), 2, torch.tensor([3, 4, 5]), floats(1, 2, 3, 4)),
    "index put": lambda: call("aten.index_put.default", floats(2, 9, 4), [None, torch.tensor([3, 1])], floats(2, 2, 4)),
    "index put two": lambda: call(
        "aten.index_put.default", floats(6, 9), [torch.tensor([3, 1]), torch.tensor([8, 0])], floats(2)),
    "index put accumulate": lambda: call(
        "aten.index_put.default", floats(6, 4), [torch.tensor([3, 1, 3])], floats(3, 4), True),
    "index put of one number by a mask": lambda: call(
        "aten.index_put.default", X[:, :, :3], [None, torch.tensor([True, False, True])], torch.tensor(7.0)),
    "index put accumulate by a mask": lambda: call("aten.index_put.default", X, [X > 0], torch.tensor(7.0), True),
    "index add": lambda: call("aten.index_add.default", floats(6, 4), 0, torch.tensor([3, 1, 3]), floats(3, 4)),
    "scatter": lambda: call("aten.scatter.src", floats(3, 6), 1, torch.tensor([[0, 5], [2, 1], [4, 3]]), floats(3, 2)),
    "scatter of a number": lambda: call("aten.scatter.value", floats(3, 6), 1, torch.tensor([[0], [2], [4]]), 1.0),
    "scatter add": lambda: call("aten.scatter_add.default", floats(3, 6), 1, ints(3, 6, high=6), floats(3, 6, seed=1)),
    "tril": lambda: call("aten.tril.default", floats(2, 5, 5), 1),
    "one hot": lambda: call("aten.one_hot.default", ints(3, 4), 8),
    "permute": lambda: call("aten.permute.default", X, [2, 0, 1]),
    "expand": lambda: call("aten.expand.default", floats(3, 1), [2, -1, 4]),
    "repeat interleave": lambda: call("aten.repeat_interleave.self_int", X, 2, 1),
    "unsafe view": lambda: call("aten._unsafe_view.default", X, [6, 8]),
    "cat": lambda: call("aten.cat.default", [X, floats(2, 1, 8)], 1),
    "cat of several dtypes": lambda: call("aten.cat.default", [ints(2, 3, 8), X], -1),
    "cat beside nothing": lambda: call("aten.cat.default", [X, floats(2, 3, 0)], -1),
    "cat of nothing": lambda: call("aten.cat.default", [floats(2, 0), floats(3, 0)], 0),
    "stack": lambda: call("aten.stack.default", [X, floats(2, 3, 8, dtype=torch.float64)], -1),
    "nothing": lambda: call("aten.exp.default", floats(4, 0)),
    "sum of nothing": lambda: call("aten.sum.dim_IntList", floats(4, 0), [1]),
    # TVM's importer
    "split": lambda: call("aten.split_with_sizes.default", X, [3, 5], 2),
    "conv2d": lambda: call("aten.conv2d.default", floats(1, 3, 9, 9), floats(4, 3, 3, 3), floats(4), [2, 2], [1, 1]),
    "depthwise conv1d": lambda: call("aten.conv1d.default", floats(1, 6, 9), floats(6, 1, 4), None, [1], [3], [1], 6),
    "conv2d in float16": lambda: call(
        "aten.conv2d.default", floats(1, 3, 9, 9, dtype=HALF), floats(4, 3, 3, 3, dtype=HALF), floats(4, dtype=HALF)),
    "conv1d in bfloat16": lambda: call(
        "aten.conv1d.default", *(floats(*s, dtype=torch.bfloat16) for s in ((1, 3, 9), (4, 3, 3), (4,)))),
    "mean of many": lambda: call("aten.mean.default", floats(8, 1024)),
    "sum of many": lambda: call("aten.sum.default", floats(70_000)),
    "any of many": lambda: call("aten.any.default", floats(64, 128) > 9),
    "max pool": lambda: call("aten.max_pool2d.default", floats(1, 3, 8, 8), [2, 2], [2, 2]),
    "adaptive average pool": lambda: call("aten.adaptive_avg_pool2d.default", floats(1, 3, 8, 8), [1, 1]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_operator(name: str, target: str) -> None:
    check(CASES[name](), target, "simple")


IN_C = ("softmax over -inf", "index copy of some", "topk", "gelu", "cast to bool", "linear", "full of inf", "stack", "nothing",
        "amax of -inf", "max with indices of -inf")


@pytest.mark.parametrize("name", IN_C)
def test_operator_in_plain_c(name: str) -> None:
    check(CASES[name](), "cpu", "serial")


@pytest.mark.parametrize("name", ["sin", "cos of large"])
def test_no_drivers_own_sine(name: str) -> None:
    """A hardware driver's sine was off by 1.5e-6, far more than a rotary table's source."""
    program = check(CASES[name](), "vulkan", "simple")
    assert not re.search(r"\b(sin|cos)\(", "".join(kernel.source for kernel in program.kernels))


def test_an_input_passed_through_has_no_kernel() -> None:
    made = call("aten.clone.default", X)
    program = check(made, "opencl", "simple")
    assert program.kernels == () and program.forwards == ((0, 0),)


def test_a_boolean_between_two_kernels() -> None:
    """What stays a buffer after inlining is stored as an integer: WGSL has no boolean in memory."""
    mask = ("aten.gt.Tensor", (Result(0), floats(2, 1)), {})
    made = chain([("aten.sum.dim_IntList", (X, [-1]), {}), mask, ("aten.any.dim", (Result(1), 1, True), {})])
    check(made, "vulkan", "simple")


def test_an_operator_that_nobody_converts_is_named() -> None:
    square = TensorSpec((4, 4), "float32")
    node = Node("n0", "aten.cholesky.default", ({"ref": "i0"},), {}, (square,))
    body = Body("cholesky", (square,), ("value",), (node,), ("n0",))
    with pytest.raises(ConversionError, match=r"aten.cholesky.default"):
        build(body, TARGETS["opencl"], "simple", lambda stage: None)


def test_a_shape_that_differs_from_pytorchs_is_refused() -> None:
    made = call("aten.cat.default", [X, X], 1)
    node = made.body.nodes[0]
    wrong = Node(node.name, node.target, node.args, node.kwargs, (TensorSpec((2, 3, 8), "float32"),))
    body = Body("cat", made.body.inputs, made.body.roles, (wrong,), made.body.outputs)
    with pytest.raises(ConversionError, match=r"shape \[2, 6, 8\], PyTorch \[2, 3, 8\]"):
        build(body, TARGETS["opencl"], "simple", lambda stage: None)


def test_attention_whose_heads_do_not_fit_is_refused() -> None:
    made = attention(5, None)
    _, k, v = made.body.inputs
    wrong = Body("attention", (TensorSpec((1, 6, 5, 8), "float32"), k, v), made.body.roles, made.body.nodes, made.body.outputs)
    with pytest.raises(ConversionError, match="leading dimensions differ"):
        build(wrong, TARGETS["opencl"], "simple", lambda stage: None)
