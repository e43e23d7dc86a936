"""Opens the device that a target runs on, here or elsewhere, by the texts of the command line.

    open_device("opencl")                            on this machine (`tapml.devices.open`)
    open_device("null")                              accepts everything, computes nothing
    open_device("vulkan", "phone@http://HOST:PORT/?token=…")      another machine's, or a browser tab's; "any@…" takes the first
"""

from __future__ import annotations

import importlib.util

from tapml.devices.interface import Device
from tapml.devices.known import NULL, here_only
from tapml.devices.open import open_here, open_local
from tapml.errors import TargetError, UnavailableError
from tapml.remote.address import RemoteName
from tapml.targets.parse import TargetChoice, parse

FORMS = "Give --device local, or NAME@URL with a name that tapml devices lists and the address that tapml hub prints."


def open_device(
    target: str | TargetChoice, device: str = "local", *, in_process: bool = False, deadline: float | None = None
) -> Device:
    """`target` is the text of `--target` or what `parse` made of it; the text "null" is accepted too. `deadline` is in seconds
    for one call to the child. Raises TargetError for unknown names, UsageError for what is not an address, UnavailableError
    with the reason when the platform or device is not there."""
    if target == NULL:
        return open_here(NULL, None)
    choice = parse(target) if isinstance(target, str) else target
    if device == "local":
        return open_local(choice, in_process=in_process, deadline=deadline)
    if "@" not in device:
        raise TargetError(f"There is no device {device!r} here. {FORMS}")
    if here_only(choice.name):
        raise TargetError(f"Target {choice.name} runs on this machine only. Leave out --device.")
    if in_process:
        raise ValueError("a device of another machine cannot be in this process")
    require_remote()
    from tapml.remote.client.client import RemoteDevice

    return RemoteDevice(RemoteName.parse(device), choice, deadline)


def require_remote() -> None:
    """Raises UnavailableError where the package is missing that connections to a hub are made with."""
    if importlib.util.find_spec("websockets") is None:
        raise UnavailableError("A device at a hub needs the websockets package: pip install 'tapml[remote]'")


def redacted(device: str) -> str:
    """A `--device` as records and messages have it: without the hub's token. Raises UsageError for what is not an address."""
    return RemoteName.parse(device).redacted if "@" in device else device


def address_of(device: Device, asked: str) -> str:
    """The `--device` that means this very device, where what was asked for may mean any of several."""
    return str(getattr(device, "address", asked))
