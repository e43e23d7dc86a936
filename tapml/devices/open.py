"""Opens the device that a target runs on, on this machine.

    open_local(parse("opencl"))                      the platform's device, in a child process: a driver that crashes or hangs
                                                     costs a DeviceLost, not this process
    open_local(parse("vulkan"), in_process=True)     here: no protection, and no pipe in between
    open_here("null", None)                          accepts everything, computes nothing

`probe` says whether a target can run here, and why not if it cannot. Devices of other machines: `tapml.remote.open`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tapml.devices.interface import Device, DeviceInfo
from tapml.devices.known import DEVICES, NULL, RUNNABLE, WITHOUT_RUNTIME
from tapml.errors import UnavailableError
from tapml.targets.packaged import target_named
from tapml.targets.parse import TargetChoice, parse

PROBE_SECONDS = 60.0



def open_local(choice: TargetChoice, *, in_process: bool = False, deadline: float | None = None) -> Device:
    """The target's device on this machine. `deadline` is in seconds for one call to the child. Raises TargetError for a device
    that does not exist, UnavailableError with the reason when the platform is not there."""
    if choice.name in WITHOUT_RUNTIME:
        raise UnavailableError(f"Target {choice.name}: {WITHOUT_RUNTIME[choice.name]}. Can run: {', '.join(RUNNABLE)}.")
    if in_process:
        return open_here(choice.name, choice.opened_with)
    from tapml.devices.child import ChildDevice

    return ChildDevice(choice.name, choice.opened_with, deadline)


def open_here(platform: str, device: str | None) -> Device:
    """The platform's device in this process. Each binding is imported only when its platform is opened. `platform` is a target's
    name, also one of another package, or "null"."""
    if platform == NULL:
        return DEVICES[NULL].open(NULL, NULL, device)
    target = target_named(platform)
    if target is None or target.device not in DEVICES:
        raise ValueError(f"no platform {platform!r}")
    return DEVICES[target.device].open(platform, target.language, device)


@dataclass(frozen=True)
class Probe:
    """Whether a target can be opened here. `info` is None and `reason` says why when it cannot."""

    target: str
    available: bool
    info: DeviceInfo | None
    reason: str = ""


def probe(target: str | TargetChoice, seconds: float = PROBE_SECONDS) -> Probe:
    """Opens and closes the target's device in a child process, within a time limit. Raises TargetError for a name that does
    not exist, nothing else."""
    from tapml.devices.child import ChildDevice

    choice = parse(target) if isinstance(target, str) else target
    try:
        if choice.name in WITHOUT_RUNTIME:
            open_local(choice)
        device = ChildDevice(choice.name, choice.opened_with, open_seconds=seconds)
    except UnavailableError as error:
        return Probe(str(choice), False, None, str(error))
    try:
        return Probe(str(choice), True, device.info)
    finally:
        device.close()
