"""Opens the device that a target runs on, by name.

    open_device("opencl")                    the platform's device, in a child process: a driver that crashes or hangs
                                             costs a DeviceLost, not this process
    open_device("vulkan", in_process=True)   here: faster to open, no protection
    open_device("null")                      accepts everything, computes nothing

`probe` answers whether a target can run here without ever raising for an absent platform.
"""

from __future__ import annotations

from tapml.devices.interface import Device
from tapml.errors import TargetError, UnavailableError
from tapml.targets.known import WITHOUT_RUNTIME
from tapml.targets.parse import TargetChoice, parse


def open_device(
    target: str | TargetChoice, device: str = "local", *, in_process: bool = False, deadline: float | None = None
) -> Device:
    """`target` is the text of `--target` or what `parse` made of it; "null" is accepted too. Raises TargetError for names
    that do not exist, UnavailableError with the reason when the platform is not there."""
    if target == "null":
        return open_here("null", None)
    choice = parse(target) if isinstance(target, str) else target
    if device != "local":
        if "@" in device:
            raise UnavailableError(f"Device {device!r} is on another machine; this version drives local devices only. "
                                   "Use --device local.")
        raise TargetError(f"There is no device {device!r}. Use --device local.")
    if choice.name in WITHOUT_RUNTIME:
        raise UnavailableError(
            f"Target {choice.name}: kernels can be generated for it, but this version cannot run them. "
            "Targets that can run: cpu, opencl, vulkan, webgpu."
        )
    return open_here(choice.name, choice.device)


def open_here(platform: str, device: str | None) -> Device:
    """The platform's device in this process."""
    if platform == "opencl":
        from tapml.devices.opencl import OpenClDevice

        return OpenClDevice(device)
    raise ValueError(f"no platform {platform!r}")
