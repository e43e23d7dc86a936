"""All devices by name, and what follows from them: which targets can run, and how. A new device is one new file beside this one
and one line here.

A device is made for a target: `DEVICES["wgpu"].open("vulkan", "wgsl", None)`. Its binding is imported only then.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapml.languages import LANGUAGES
from tapml.targets.known import TARGETS
from tapml.targets.packaged import DEVICE as PACKAGED
from tapml.targets.target import Target

if TYPE_CHECKING:
    from tapml.devices.interface import Device, DeviceInfo


@dataclass(frozen=True)
class Kind:
    """Where a device's class is. It is made with the target's name, its language's name, and which of several devices the user
    wants (None: any); `processor` is True where kernels run on the processor with no driver in between, `here_only` where texts
    are taken from nobody else: they are programs of this process's own language, or native code reads them that nothing confines;
    `packages` are those of Python that it needs or
    that bring it a driver, by the names that they are installed by."""

    module: str
    cls: str
    processor: bool = False
    packages: tuple[str, ...] = ()
    here_only: bool = False

    def open(self, platform: str, language: str, device: str | None) -> Device:
        """Raises UnavailableError where the platform is not there, TargetError where `device` matches none."""
        made: Device = getattr(importlib.import_module(f"tapml.devices.{self.module}"), self.cls)(platform, language, device)
        return made


def others_of(platform: str, info: DeviceInfo) -> list[dict[str, str]]:
    """Options of `--target` for the other devices that an open one named among its features."""
    if platform not in RUNNABLE or not here_only(platform):
        return []
    dtypes = LANGUAGES[TARGETS[platform].language].optional_dtypes.values()
    return [{TARGETS[platform].opens[0]: name} for name in info.features if name not in dtypes]


NULL = "null"

DEVICES: dict[str, Kind] = {
    "cpu": Kind("cpu", "CpuDevice", processor=True),
    "opencl": Kind("opencl", "OpenClDevice", packages=("pyopencl", "pocl-binary-distribution")),
    "wgpu": Kind("gpu", "GpuDevice", packages=("wgpu",)),
    "torch": Kind("torch_device", "TorchDevice", here_only=True),
    "onnxruntime": Kind("onnxruntime_device", "OnnxRuntimeDevice", here_only=True, packages=("onnx", "onnxruntime")),
    NULL: Kind("null", "NullDevice"),
    PACKAGED: Kind("packaged_device", "PackagedDevice", here_only=True),
}

# Targets that this version can run kernels on, and why it cannot on the others.
RUNNABLE = tuple(t.name for t in TARGETS.values() if t.device in DEVICES)
WITHOUT_RUNTIME = {t.name: t.without_device for t in TARGETS.values() if t.device not in DEVICES}


def on_processor(platform: str) -> bool:
    """Whether a target's kernels run on the processor with no driver in between; False for what is no target here."""
    return platform in RUNNABLE and DEVICES[TARGETS[platform].device].processor


def here_only(platform: str) -> bool:
    """Whether a target's texts are run unconfined, so that no agent may offer it: also those of other packages."""
    return platform not in TARGETS or (platform in RUNNABLE and DEVICES[TARGETS[platform].device].here_only)


# Those that an agent may offer, the processor last, since it is for diagnosis.
PLATFORMS = tuple(sorted((name for name in RUNNABLE if not here_only(name)), key=on_processor))


def is_native(platform: str) -> bool:
    """Whether a target's kernels are native code where its device is a processor."""
    return platform in RUNNABLE and LANGUAGES[TARGETS[platform].language].native


def others(target: Target) -> tuple[str, ...]:
    """The targets that a fault of this one's text is not on: those with threads that can run, in another language."""
    return tuple(n for n in RUNNABLE if TARGETS[n].language != target.language and LANGUAGES[TARGETS[n].language].threads)
