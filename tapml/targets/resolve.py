"""A target narrowed to the device that it will run on, or left as it is where there is none yet.

Limits become the smaller of the target's and the device's; dtypes that the device can compute in are no longer
stored in another one; a driver that emulates a GPU on the processor gets first the schedule that needs no barriers, since
barriers are what such drivers are slow at.
"""

from __future__ import annotations

from dataclasses import replace

from tapml.errors import TargetError
from tapml.languages import LANGUAGES
from tapml.limits import DeviceInfo
from tapml.targets.parse import TargetChoice
from tapml.targets.pytorch import DTYPES
from tapml.targets.schedules import ON_PROCESSOR
from tapml.targets.target import Target


def resolve(choice: TargetChoice, info: DeviceInfo | None = None) -> Target:
    """The target to compile for. Without a device: the target as its file has it, with the options applied. Raises
    TargetError when `f16=1` is asked of a device or target without float16."""
    target = choice.target
    language, storage = LANGUAGES[target.language], dict(target.storage)
    for dtype in language.optional_dtypes:
        if info is not None and dtype in info.features:
            storage.pop(dtype, None)
    if choice.dtype is not None:
        storage = {dtype: choice.dtype for dtype in DTYPES if dtype != choice.dtype}
    if choice.f16 is False:
        storage["float16"] = "float32"
    elif choice.f16 is True:
        if info is None and language.optional_dtypes:
            storage.pop("float16", None)
        if "float16" in storage:
            where = info.name if info is not None else f"the target {choice.name}"
            raise TargetError(f"Target {choice}: {where} cannot compute in float16. Leave out f16=1 to use float32.")
    limits = target.limits if info is None else target.limits.narrowed(info.limits)
    tvm = dict(target.tvm)
    for name, limit in (
        ("max_num_threads", limits.max_workgroup_invocations), ("max_shared_memory_per_block", limits.max_workgroup_memory_bytes),
    ):  # fmt: skip
        if name in tvm and limit is not None:
            tvm[name] = min(tvm[name], limit)
    schedules = target.schedules
    own = choice.schedule or choice.way
    if own is not None:
        schedules = (own,)
    elif info is not None and info.software and language.threads:
        schedules = (ON_PROCESSOR, *schedules)
    return replace(target, storage=storage, limits=limits, tvm=tvm, schedules=schedules)
