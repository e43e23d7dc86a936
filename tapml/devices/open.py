"""Opens the device that a target runs on, by name.

    open_device("opencl")                    the platform's device, in a child process: a driver that crashes or hangs
                                             costs a DeviceLost, not this process
    open_device("vulkan", in_process=True)   here: no protection, and no pipe in between
    open_device("null")                      accepts everything, computes nothing
    open_device("vulkan", "phone@http://HOST:PORT/?token=…")      another machine's, or a browser tab's; "any@…" takes the first

`probe` says whether a target can run here, and why not if it cannot.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from tapml.devices.interface import Device, DeviceInfo
from tapml.devices.known import DEVICES, NULL, RUNNABLE, WITHOUT_RUNTIME, executes
from tapml.errors import TargetError, UnavailableError
from tapml.remote.address import RemoteName
from tapml.targets.known import TARGETS
from tapml.targets.parse import TargetChoice, parse

PROBE_SECONDS = 60.0

FORMS = "Give --device local, or NAME@URL with a name that tapml devices lists and the address that tapml hub prints."


def open_device(
    target: str | TargetChoice, device: str = "local", *, in_process: bool = False, deadline: float | None = None
) -> Device:
    """`target` is the text of `--target` or what `parse` made of it; the text "null" is accepted too. `deadline` is in seconds
    for one call to the child. Raises TargetError for names that do not exist, UsageError for what is no address, UnavailableError
    with the reason when the platform or device is not there."""
    if target == NULL:
        return open_here(NULL, None)
    choice = parse(target) if isinstance(target, str) else target
    if device != "local":
        if "@" not in device:
            raise TargetError(f"There is no device {device!r} here. {FORMS}")
        if executes(choice.name):
            raise TargetError(f"Target {choice.name} runs on this machine only. Leave --device away.")
        if in_process:
            raise ValueError("a device of another machine cannot be in this process")
        require_remote()
        from tapml.remote.client.client import RemoteDevice

        return RemoteDevice(RemoteName.parse(device), choice, deadline)
    if choice.name in WITHOUT_RUNTIME:
        raise UnavailableError(f"Target {choice.name}: {WITHOUT_RUNTIME[choice.name]}. Can run: {', '.join(RUNNABLE)}.")
    if in_process:
        return open_here(choice.name, choice.opened_with)
    from tapml.devices.child import ChildDevice

    return ChildDevice(choice.name, choice.opened_with, deadline)


def require_remote() -> None:
    """Raises UnavailableError where the package is missing that connections to a hub are made with."""
    if importlib.util.find_spec("websockets") is None:
        raise UnavailableError("A device at a hub needs the websockets package: pip install 'tapml[remote]'")


def redacted(device: str) -> str:
    """A `--device` as records and messages have it: without the hub's token. Raises UsageError for what is no address."""
    return RemoteName.parse(device).redacted if "@" in device else device


def address_of(device: Device, asked: str) -> str:
    """The `--device` that means this very device, where what was asked for may mean any of several."""
    return str(getattr(device, "address", asked))


def open_here(platform: str, device: str | None) -> Device:
    """The platform's device in this process. Each binding is imported only when its platform is opened. `platform` is a target's
    name, or "null"."""
    if platform == NULL:
        return DEVICES[NULL].open(NULL, NULL, device)
    if platform not in RUNNABLE:
        raise ValueError(f"no platform {platform!r}")
    target = TARGETS[platform]
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
            open_device(choice)
        device = ChildDevice(choice.name, choice.opened_with, open_seconds=seconds)
    except UnavailableError as error:
        return Probe(str(choice), False, None, str(error))
    try:
        return Probe(str(choice), True, device.info)
    finally:
        device.close()
