"""Targets: the text that names one, and what becomes of it on a device."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tapml.devices.interface import DeviceInfo
from tapml.errors import TargetError
from tapml.languages import LANGUAGES
from tapml.limits import Limits
from tapml.targets import TARGETS, Target, TargetChoice, parse, resolve
from tapml.targets.pytorch import DTYPES
from tapml.targets.schedules import SCHEDULES
from tapml.tensors import FLOATS, NUMPY

GPU = DeviceInfo(
    "vulkan", "a GPU", "its driver", software=False,
    limits=Limits(
        max_workgroup_invocations=128,
        max_workgroup_memory_bytes=8192,
        max_workgroups_per_dimension=65535,
        max_binding_bytes=2**20,
        max_storage_buffers=2**20,
    ),
)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("opencl", TargetChoice("opencl")),
        (" vulkan ", TargetChoice("vulkan")),
        ("vulkan:f16=0", TargetChoice("vulkan", {"f16": "0"})),
        ("opencl:device=1, schedule=simple", TargetChoice("opencl", {"device": "1", "schedule": "simple"})),
    ],
)
def test_parse(text: str, choice: TargetChoice) -> None:
    assert parse(text) == choice
    assert parse(str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vulcan", "no target 'vulcan'. Did you mean vulkan?"),
        ("", "no target ''. Known: cpu, cuda, metal, opencl, ort, rocm, torch, vulkan, webgpu"),
        ("Vulkan", "Did you mean vulkan"),
        ("opencl:", "ends in a colon"),
        ("opencl:f61=1", "no option 'f61'. Did you mean f16"),
        ("opencl:f16", "option f16 has no value"),
        ("opencl:f16=", "option f16 has no value"),
        ("opencl:f16=2", "neither 0 nor 1"),
        ("opencl:f16=0,f16=1", "given twice"),
        ("opencl:schedule=dlite", "no schedule 'dlite'. Did you mean dlight"),
        ("opencl:f16=1,", "no option ''"),
    ],
)
def test_parse_refuses(text: str, says: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse(text)
    assert says in str(caught.value)


def test_options_are_read() -> None:
    assert parse("vulkan").f16 is None
    assert parse("vulkan:f16=0").f16 is False
    choice = parse("vulkan:f16=1,schedule=blocked,device=llvm")
    assert (choice.f16, choice.schedule, choice.device) == (True, "blocked", "llvm")


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_targets_are_sound_data(target: Target) -> None:
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
    assert set(target.storage) | set(target.storage.values()) <= set(NUMPY)
    assert set(target.schedules) <= set(SCHEDULES) or not LANGUAGES[target.language].generated
    for dtype in NUMPY:
        assert target.stored(target.stored(dtype)) == target.stored(dtype), "what a dtype is stored as must be storable itself"


def test_limits_shrink_to_the_device_and_never_grow() -> None:
    target = resolve(parse("vulkan"), GPU)
    whole = TARGETS["vulkan"].limits
    assert target.limits == replace(GPU.limits, max_storage_buffers=whole.max_storage_buffers)
    assert target.tvm["max_num_threads"] == 128 and target.tvm["max_shared_memory_per_block"] == 8192
    assert resolve(parse("vulkan"), replace(GPU, limits=Limits())).limits == whole
    assert TARGETS["vulkan"].tvm["max_num_threads"] == 256, "the target itself stays as it is"


@pytest.mark.parametrize("name", ["opencl", "vulkan", "webgpu"])
def test_float16_follows_the_device_and_the_option(name: str) -> None:
    with_f16 = replace(GPU, features=("float16",))
    assert resolve(parse(name)).stored("float16") == "float32"
    assert resolve(parse(name), GPU).stored("float16") == "float32"
    assert resolve(parse(name), with_f16).stored("float16") == "float16"
    assert resolve(parse(f"{name}:f16=0"), with_f16).stored("float16") == "float32"
    assert resolve(parse(f"{name}:f16=1"), with_f16).stored("float16") == "float16"
    assert resolve(parse(f"{name}:f16=1")).stored("float16") == "float16"
    with pytest.raises(TargetError, match="a GPU cannot compute in float16"):
        resolve(parse(f"{name}:f16=1"), GPU)


def test_f16_on_the_processor() -> None:
    assert resolve(parse("cpu")).stored("float16") == "float32"
    with pytest.raises(TargetError, match="cannot compute in float16"):
        resolve(parse("cpu:f16=1"))


def test_float64_is_for_those_who_have_it() -> None:
    with_f64 = replace(GPU, features=("float64",))
    assert resolve(parse("opencl"), with_f64).stored("float64") == "float64"
    assert resolve(parse("opencl"), GPU).stored("float64") == "float32"
    assert resolve(parse("vulkan"), with_f64).stored("float64") == "float32"
    assert resolve(parse("cpu"), GPU).stored("float64") == "float64"


def test_integers_and_bfloat16() -> None:
    for name in ("opencl", "vulkan", "webgpu", "cuda", "metal", "rocm"):
        target = resolve(parse(name), GPU)
        assert [target.stored(d) for d in ("int64", "bool", "bfloat16")] == ["int32", "int32", "float32"]
    assert TARGETS["vulkan"].stored("uint8") == "int32"


def test_schedules() -> None:
    soft = replace(GPU, software=True)
    assert resolve(parse("opencl"), GPU).schedules == ("dlight", "simple")
    assert resolve(parse("opencl"), soft).schedules == ("blocked", "dlight", "simple")
    assert resolve(parse("cpu"), soft).schedules == ("serial",)
    assert resolve(parse("opencl:schedule=simple"), soft).schedules == ("simple",)


def test_keys_tell_apart_what_compiles_apart() -> None:
    plain = resolve(parse("vulkan"), GPU)
    assert plain.key == resolve(parse("vulkan:device=1"), GPU).key
    others = [
        resolve(parse("vulkan"), replace(GPU, software=True)),
        resolve(parse("vulkan"), replace(GPU, features=("float16",))),
        resolve(parse("vulkan"), replace(GPU, limits=Limits())),
        resolve(parse("webgpu"), GPU),
    ]
    assert len({t.key for t in (plain, *others)}) == 5


def test_the_dtypes_that_pytorch_may_be_asked_for_are_all_floats() -> None:
    assert set(DTYPES) == set(FLOATS)
