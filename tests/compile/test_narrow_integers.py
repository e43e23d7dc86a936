"""Integers of 8 and 16 bits wrap as PyTorch's do, on targets that have them and on those that store them in 32 bits.

"32 bits" is OpenCL with the storage of WGSL: the kernels that Vulkan and WebGPU get, on the driver that is always here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from tapml.compile.build import build
from tapml.compile.legalize import _Rewriter
from tapml.kernels import Program
from tapml.targets.target import Target
from tapml.targets.webgpu import STORAGE
from tests.compile.bodies import Made, Result, call, chain, platform

EVERY_BYTE = torch.arange(256, dtype=torch.uint8)
EVERY_SIGNED = EVERY_BYTE.view(torch.int8)
WORDS = torch.tensor([0, 1, -1, 181, 182, -182, 255, 256, 32767, -32768, 20000, -20000], dtype=torch.int16)
FLOATS = torch.tensor(
    [0.0, -0.9, 127.5, 128.0, -128.9, -129.0, 255.0, 256.0, 300.0, -300.0, 65535.0, 70000.0, -40000.5, 3e9, -3e9]
)  # fmt: skip
LONG = torch.tensor([-1, 255, 256, 1000, -70000])

CASES: dict[str, Callable[[], Made]] = {
    "uint8 sum": lambda: call("aten.add.Tensor", EVERY_BYTE, EVERY_BYTE.flip(0).roll(7)),
    "uint8 difference": lambda: call("aten.sub.Tensor", EVERY_BYTE, EVERY_BYTE.flip(0)),
    "int8 sum": lambda: call("aten.add.Tensor", EVERY_SIGNED, EVERY_SIGNED),
    "int8 product": lambda: call("aten.mul.Tensor", EVERY_SIGNED, EVERY_SIGNED.roll(31)),
    "int8 of -128, negated": lambda: call("aten.neg.default", EVERY_SIGNED),
    "int8 of -128, without its sign": lambda: call("aten.abs.default", EVERY_SIGNED),
    "int8 power": lambda: call("aten.pow.Tensor_Scalar", EVERY_SIGNED, 3),
    "int16 product": lambda: call("aten.mul.Tensor", WORDS, WORDS.roll(5)),
    "int16 sum scaled": lambda: call("aten.add.Tensor", WORDS, WORDS.flip(0), alpha=3),
    "uint8 bits turned over": lambda: call("aten.bitwise_not.default", EVERY_BYTE),
    "int8 exclusive or": lambda: call("aten.bitwise_xor.Tensor", EVERY_SIGNED, EVERY_SIGNED.roll(1)),
    **{
        f"float to {dtype}".replace("torch.", ""): lambda dtype=dtype: call("aten._to_copy.default", FLOATS, dtype=dtype)
        for dtype in (torch.int8, torch.uint8, torch.int16)
    },
    "half to int8": lambda: call("aten._to_copy.default", FLOATS[:-2].half(), dtype=torch.int8),
    "int64 to uint8": lambda: call("aten._to_copy.default", LONG, dtype=torch.uint8),
    "uint8 to int8 to float": lambda: chain([
        ("aten._to_copy.default", (EVERY_BYTE,), {"dtype": torch.int8}),
        ("aten._to_copy.default", (Result(0),), {"dtype": torch.float32}),
    ]),
    "wraps within a chain": lambda: chain([
        ("aten.sub.Tensor", (EVERY_BYTE, EVERY_BYTE.flip(0)), {}),
        ("aten._to_copy.default", (Result(0),), {"dtype": torch.float32}),
        ("aten.div.Tensor", (Result(1), 255), {}),
    ]),
    "a masked sum": lambda: call(
        "aten.index_put.default", EVERY_SIGNED, [EVERY_SIGNED > 0], torch.tensor([100], dtype=torch.int8), True),
    "a matrix product": lambda: call("aten.mm.default", EVERY_SIGNED.reshape(16, 16), EVERY_SIGNED.reshape(16, 16).t()),
}  # fmt: skip


def target_of(where: str) -> Target:
    if where != "32 bits":
        return platform(where)[0]
    target = platform("opencl")[0]
    return replace(target, storage={**target.storage, **{d: STORAGE[d] for d in ("int8", "uint8", "int16")}})


def stored(made: Made, where: str) -> tuple[Program, list[np.ndarray]]:
    """What the device holds at the end, before anything on the host narrows it."""
    target = target_of(where)
    program = build(made.body, target, target.schedules[0], lambda stage: None)
    runner = platform("opencl" if where == "32 bits" else where)[1]
    return program, runner.run_once(program, made.inputs, poison=True)


@pytest.mark.parametrize("where", ["32 bits", "opencl", "cpu", "vulkan"])
@pytest.mark.parametrize("name", CASES)
def test_what_the_device_holds_is_what_pytorch_gives(name: str, where: str) -> None:
    made = CASES[name]()
    _, held = stored(made, where)
    for actual, expected in zip(held, made.outputs, strict=True):
        np.testing.assert_allclose(actual.reshape(expected.shape).astype(np.float64), expected.astype(np.float64), rtol=1e-6)


def test_without_the_wrap_the_device_holds_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other tests of this file can fail."""
    monkeypatch.setattr(_Rewriter, "_wrapped", lambda self, value, dtype: value)
    program, (held,) = stored(CASES["uint8 sum"](), "32 bits")
    assert program.outputs[0].dtype == "int32" and int(held.max()) > 255
