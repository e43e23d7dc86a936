"""Half precision is computed in float32 and rounded once, where it is stored.

The reference is float64. A result must be the float64 result rounded to the output's dtype, where it is clear which number that
is: within 32 roundings of float32 there may be a boundary between two. They are counted in the unit of the element, or of its
tensor's root mean square where that is larger, but for bodies that cancel nothing. Where the device stores half precision as
float32, the number must be within as much.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tapml.compile.build import build
from tapml.operators.execute import host_function
from tapml.targets.known import TARGETS
from tapml.tensors import HostArray
from tests.compile.bodies import Made, Result, call, chain, compiled, platform, run
from tests.compile.test_conversions import floats
from tests.compile.test_ownership import decode

HALF = torch.float16
Body = Callable[[torch.dtype], Made]


def gated(dtype: torch.dtype) -> Made:
    gate, up = floats(3, 200, dtype=dtype) * 3, floats(3, 200, dtype=dtype, seed=1)
    return chain([("aten.silu.default", (gate,), {}), ("aten.mul.Tensor", (Result(0), up), {})])


def written_out_norm(dtype: torch.dtype) -> Made:
    """An RMS norm as models write it: squares, mean, root, in float32 or not."""
    x, weight = floats(5, 96, dtype=dtype) * 4, floats(96, dtype=dtype, seed=2)
    return chain([
        ("aten.pow.Tensor_Scalar", (x, 2), {}),
        ("aten.mean.dim", (Result(0), [-1], True), {}),
        ("aten.add.Tensor", (Result(1), 1e-5), {}),
        ("aten.rsqrt.default", (Result(2),), {}),
        ("aten.mul.Tensor", (x, Result(3)), {}),
        ("aten.mul.Tensor", (Result(4), weight), {}),
    ])


def cast_norm(dtype: torch.dtype) -> Made:
    """The same with its casts: to float32 at the beginning, back before the weight."""
    x, weight = floats(5, 96, dtype=dtype) * 4, floats(96, dtype=dtype, seed=2)
    return chain([
        ("aten._to_copy.default", (x,), {"dtype": torch.float32}),
        ("aten.rms_norm.default", (Result(0), [96], None, 1e-6), {}),
        ("aten._to_copy.default", (Result(1),), {"dtype": dtype}),
        ("aten.mul.Tensor", (Result(2), weight), {}),
    ])


def rotary(dtype: torch.dtype) -> Made:
    """x · cos + (-x₂, x₁) · sin."""
    x, cos, sin = floats(1, 2, 7, 32, dtype=dtype), floats(1, 1, 7, 32, dtype=dtype), floats(1, 1, 7, 32, dtype=dtype, seed=3)
    return chain([
        ("aten.slice.Tensor", (x, 3, 0, 16), {}),
        ("aten.slice.Tensor", (x, 3, 16, 2**63 - 1), {}),
        ("aten.neg.default", (Result(1),), {}),
        ("aten.cat.default", ([Result(2), Result(0)], -1), {}),
        ("aten.mul.Tensor", (x, cos), {}),
        ("aten.mul.Tensor", (Result(3), sin), {}),
        ("aten.add.Tensor", (Result(4), Result(5)), {}),
    ])


def several_outputs(dtype: torch.dtype) -> Made:
    return call("aten.var_mean.correction", floats(6, 150, dtype=dtype) + 3, [-1], correction=0)


BODIES: dict[str, Body] = {
    "gelu": lambda d: call("aten.gelu.default", floats(500, dtype=d) * 2),
    "gelu tanh": lambda d: call("aten.gelu.default", floats(500, dtype=d) * 2, approximate="tanh"),
    "silu times up": gated,
    "softmax": lambda d: call("aten.softmax.int", floats(4, 130, dtype=d) * 3, -1),
    "log softmax": lambda d: call("aten.log_softmax.int", floats(4, 130, dtype=d) * 3, -1),
    "softmax, then more": lambda d: chain([
        ("aten.softmax.int", (floats(4, 50, dtype=d), -1), {}), ("aten.mul.Tensor", (Result(0), 3.3), {}),
        ("aten.exp.default", (Result(1),), {})]),
    "rms norm": lambda d: call("aten.rms_norm.default", floats(5, 96, dtype=d) * 4, [96], floats(96, dtype=d), 1e-6),
    "rms norm written out": written_out_norm,
    "rms norm with casts": cast_norm,
    "layer norm": lambda d: call(
        "aten.layer_norm.default", floats(5, 96, dtype=d) + 1, [96], floats(96, dtype=d), floats(96, dtype=d, seed=1)),
    "linear with a bias": lambda d: call(
        "aten.linear.default", floats(1, 5, 64, dtype=d), floats(40, 64, dtype=d), floats(40, dtype=d)),
    "linear, then gelu": lambda d: chain([
        ("aten.linear.default", (floats(1, 1, 67, dtype=d), floats(33, 67, dtype=d) * 0.1, floats(33, dtype=d)), {}),
        ("aten.gelu.default", (Result(0),), {})]),
    "attention": lambda d: decode(4, 2, 37, 16, d, rows=3),
    "attention of one row": lambda d: decode(4, 2, 37, 16, d),
    "mean": lambda d: call("aten.mean.dim", floats(30, 300, dtype=d) + 0.3, [-1]),
    "sum that is read again": lambda d: chain([
        ("aten.sum.dim_IntList", (floats(30, 200, dtype=d), [-1]), {}), ("aten.tanh.default", (Result(0),), {})]),
    "variance and mean": several_outputs,
    "cumulative sum": lambda d: call("aten.cumsum.default", floats(4, 90, dtype=d), 1),
    "rotary": rotary,
    "convolution": lambda d: call(
        "aten.conv2d.default", floats(1, 3, 9, 9, dtype=d), floats(4, 3, 3, 3, dtype=d), floats(4, dtype=d)),
    "average pool": lambda d: call("aten.avg_pool2d.default", floats(1, 3, 12, 12, dtype=d), [3, 3], [3, 3]),
}


def exact(made: Made) -> list[HostArray]:
    return [np.asarray(e) for e in host_function(made.body, "float64")(made.inputs)]


NOTHING_CANCELS = ("silu times up", "softmax")


def margin(name: str, reference: HostArray) -> HostArray:
    """32 float32 roundings of each element."""
    least = 0.0 if name in NOTHING_CANCELS else np.sqrt(np.mean(reference**2))
    return np.asarray(32 * 2.0**-24 * np.maximum(np.abs(reference), least))


def hold_rounded_once(name: str, target: str, schedule: str) -> None:
    made = BODIES[name](HALF)
    for actual, reference in zip(run(compiled(made, target, schedule), made, target), exact(made), strict=True):
        low, high = ((reference + s * margin(name, reference)).astype(actual.dtype) for s in (-1, 1))
        wrong = ~((low <= actual) & (actual <= high))
        assert not wrong.any(), f"{wrong.sum()} of {wrong.size} are not {reference[wrong][0]} rounded, but {actual[wrong][0]}"
        assert np.mean(low == high) > 0.8, "too many near a boundary: nothing was shown"


def hold_before_rounding(name: str, dtype: torch.dtype, target: str, schedule: str) -> None:
    made = BODIES[name](dtype)
    program = compiled(made, target, schedule)
    assert all(s.dtype == "float32" for s in program.outputs)
    for actual, reference in zip(platform(target)[1].run_once(program, made.inputs, poison=True), exact(made), strict=True):
        off = np.abs(actual.reshape(reference.shape) - reference) / margin(name, reference)
        assert off.max() <= 1, f"{off.max():.3g} times 32 float32 roundings"


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("schedule", ["simple", "dlight"])
def test_float16_is_rounded_once(name: str, schedule: str) -> None:
    hold_rounded_once(name, "vulkan", schedule)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
def test_half_precision_stored_as_float32_is_not_rounded(name: str, dtype: torch.dtype) -> None:
    hold_before_rounding(name, dtype, "opencl", "simple")


@pytest.mark.parametrize("name", ["attention of one row", "linear, then gelu", "linear with a bias"])
def test_float16_is_rounded_once_in_register_blocks(name: str) -> None:
    hold_rounded_once(name, "vulkan", "blocked")


def test_what_overflows_becomes_infinite_only_where_it_is_stored() -> None:
    x = torch.tensor([60000.0, 300.0, -2.0, 0.0], dtype=HALF)
    squared = call("aten.mul.Tensor", x, x)
    assert run(compiled(squared, "vulkan", "simple"), squared, "vulkan")[0].tolist() == [np.inf, np.inf, 4.0, 0.0]
    root = chain([("aten.mul.Tensor", (x, x), {}), ("aten.sqrt.default", (Result(0),), {})])
    assert run(compiled(root, "vulkan", "simple"), root, "vulkan")[0].tolist() == [60000.0, 300.0, 2.0, 0.0]


LARGEST = {
    "amax": ("aten.amax.default", (Result(0), [2, 3])),
    "max pool": ("aten.max_pool2d.default", (Result(0), [2, 2], [2, 2])),
}


@pytest.mark.parametrize("name", LARGEST)
@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_the_largest_of_what_float16_does_not_hold(name: str, target: str) -> None:
    """A search for the largest number begins below every number of float32, not at float16's lowest."""
    operator, arguments = LARGEST[name]
    made = chain([("aten.mul.Tensor", (torch.full((1, 1, 4, 4), -400.0, dtype=HALF), 300.0), {}), (operator, arguments, {}),
                  ("aten.mul.Tensor", (Result(1), 0.01), {})])
    assert (run(compiled(made, target, "simple"), made, target)[0] == -1200).all()


def test_values_that_are_moved_only_keep_their_bits() -> None:
    """Also the smallest ones, which a driver may take for zero when it computes with them."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(HALF)
    x = torch.where(torch.isnan(x), torch.zeros((), dtype=HALF), x)
    made = chain([("aten.view.default", (x, [256, 256]), {}), ("aten.transpose.int", (Result(0), 0, 1), {})])
    actual = run(compiled(made, "vulkan", "simple"), made, "vulkan")[0]
    assert (actual.view(np.uint16) == made.outputs[0].view(np.uint16)).all()


@pytest.mark.parametrize(("target", "entry"), [("cuda", "__global__"), ("metal", "kernel void")])
def test_half_is_only_read_and_written(target: str, entry: str) -> None:
    program = build(gated(HALF).body, TARGETS[target], "simple", lambda stage: None)
    (kernel,) = program.kernels
    body = kernel.source[kernel.source.rindex(entry) :]
    body = body[body.index("{") :]
    assert [s.dtype for s in program.outputs] == ["float16"]
    assert body.count("half") == 1 and "(half)" in body and "hexp" not in body
