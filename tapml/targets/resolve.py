"""A target narrowed to the device that it will run on, or left as it is where there is none yet.

Limits become the smaller of the target's and the device's; dtypes that the device can compute in are no longer
stored in another one; a driver that emulates a GPU on the processor gets first the schedule that needs no barriers, since
barriers are what such drivers are slow at.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from tapml.errors import TargetError
from tapml.targets.known import TARGETS
from tapml.targets.parse import TargetChoice
from tapml.targets.target import Limits, Target

if TYPE_CHECKING:
    from tapml.devices.interface import DeviceInfo

# Names in DeviceInfo.limits for the fields of Limits.
DEVICE_LIMITS = {
    "workgroup_invocations": "max_workgroup_invocations",
    "workgroup_memory": "max_workgroup_memory_bytes",
    "workgroups_per_dimension": "max_workgroups_per_dimension",
    "binding_bytes": "max_binding_bytes",
    "storage_buffers": "max_storage_buffers",
}

# Dtypes that need a feature of the device to be computed in, for the languages that can express them.
OPTIONAL_DTYPES = {"opencl-c": ("float16", "float64"), "wgsl": ("float16",)}


def resolve(choice: TargetChoice, info: DeviceInfo | None = None) -> Target:
    """The target to compile for. Without a device: the target as its file has it, with the options applied. Raises
    TargetError when `f16=1` is asked of a device or target without float16."""
    target = TARGETS[choice.name]
    storage = dict(target.storage)
    for dtype in OPTIONAL_DTYPES.get(target.language, ()):
        if info is not None and dtype in info.features:
            storage.pop(dtype, None)
    if choice.f16 is False and target.language != "c":
        storage["float16"] = "float32"
    elif choice.f16 is True:
        if info is None and target.language in OPTIONAL_DTYPES:
            storage.pop("float16", None)
        if "float16" in storage:
            where = info.name if info is not None else f"the target {choice.name}"
            raise TargetError(f"Target {choice}: {where} cannot compute in float16. Leave f16=1 away to use float32.")
    limits = target.limits if info is None else _narrow(target.limits, info)
    tvm = dict(target.tvm)
    if "max_num_threads" in tvm:
        tvm["max_num_threads"] = min(tvm["max_num_threads"], limits.workgroup_invocations)
    if "max_shared_memory_per_block" in tvm:
        tvm["max_shared_memory_per_block"] = min(tvm["max_shared_memory_per_block"], limits.workgroup_memory)
    schedules = target.schedules
    if choice.schedule is not None:
        schedules = (choice.schedule,)
    elif info is not None and info.software and target.language != "c":
        schedules = ("blocked", *schedules)
    return replace(target, storage=storage, limits=limits, tvm=tvm, schedules=schedules)


def _narrow(limits: Limits, info: DeviceInfo) -> Limits:
    values = {f.name: getattr(limits, f.name) for f in fields(Limits)}
    return Limits(**{
        name: min(value, info.limits[DEVICE_LIMITS[name]]) if DEVICE_LIMITS[name] in info.limits else value
        for name, value in values.items()
    })
