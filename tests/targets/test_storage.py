"""What a target computes otherwise than the model has it, in words: on every target, and only of dtypes that the model has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tapml.devices.interface import DeviceInfo
from tapml.targets import TARGETS, parse, resolve
from tapml.targets.storage import changes, not_checked
from tapml.tensors import FLOATS, NUMPY

PLAIN = DeviceInfo("p", "a GPU", "d", software=False)
HALF = replace(PLAIN, features=("float16",))


def said(target: str, info: DeviceInfo, *dtypes: str) -> tuple[str, ...]:
    choice = parse(target)
    return not_checked(choice, resolve(choice, info), info, dtypes)


@pytest.mark.parametrize(("target", "feature"), [("opencl", "cl_khr_fp16"), ("vulkan", "shader-f16"), ("webgpu", "shader-f16")])
def test_float16_without_the_feature(target: str, feature: str) -> None:
    assert said(target, PLAIN, "float16", "float32") == (
        f"float16 arithmetic: a GPU has no {feature}, so float16 was computed in float32",
    )
    assert said(target, HALF, "float16", "float32") == ()
    asked = said(f"{target}:f16=0", HALF, "float16")
    assert asked == (f"float16 arithmetic: {target}:f16=0 asks for float32, so float16 was computed in float32",)


def test_bfloat16_and_the_processor() -> None:
    assert said("opencl", HALF, "bfloat16") == ("bfloat16 arithmetic: opencl has none, so bfloat16 was computed in float32",)
    assert said("cpu", HALF, "float16") == ("float16 arithmetic: cpu has none, so float16 was computed in float32",)


def test_what_is_no_float_is_one_sentence() -> None:
    assert said("opencl", PLAIN, "int64", "bool", "float32") == ("bool and int64 as such: opencl stores them as int32",)
    assert said("cpu", PLAIN, "int64", "bool") == ()


@pytest.mark.parametrize("target", TARGETS)
def test_every_change_is_said_and_nothing_else(target: str) -> None:
    choice = parse(target)
    made = resolve(choice, PLAIN)
    found = changes(made, NUMPY)
    assert found == {dtype: made.stored(dtype) for dtype in sorted(NUMPY) if made.stored(dtype) != dtype}
    text = " ".join(not_checked(choice, made, PLAIN, NUMPY))
    assert all(dtype in text for dtype in found)
    assert not_checked(choice, made, PLAIN, [dtype for dtype in FLOATS if dtype not in found]) == ()
