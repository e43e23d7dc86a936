"""Whether an answer of a device can be one: of the shape, type and size that docs/wire.md has for what was asked.

    value_of(["read", 7, buffer, 0, 16], answer)     its value, or None for an error; raises Malformed
    session = opened(value)                          what `open` was answered: DeviceInfo, digests that are stored, room
    told(text)                                       a text of a device, of a length that people read
    error = dropped("phone", "…")                    what becomes of a device that does not keep to the format

A device is a stranger: `tapml.remote.wire` has seen to it that what came is a message, this that it answers the question. No
I/O and no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tapml.devices.interface import DeviceInfo
from tapml.errors import ConnectionLost
from tapml.limits import Limits
from tapml.remote.wire import DIGEST_BYTES, INFO, LARGEST, MOST_ELEMENTS

# Characters of what a device says of itself, and of an error's text.
MOST_LINE = 400
MOST_TOLD = 8000
MOST_FEATURES = 256

# Limits that nothing can be done with when they are 0.
_AT_LEAST_ONE = (
    "max_buffer_bytes", "max_binding_bytes", "max_workgroup_invocations", "max_workgroups_per_dimension", "max_storage_buffers",
)  # fmt: skip


class Malformed(Exception):
    """What a device answered that can be no answer to what it was asked."""


@dataclass(frozen=True)
class Opened:
    """The answer to `open`: what the device is, the digests that it has, and the bytes that may be added to them."""

    info: DeviceInfo
    stored: tuple[bytes, ...]
    room: int


def value_of(request: Sequence[Any], answer: Sequence[Any]) -> Any:
    """The value that `answer` gives to `request`; None for an error. Raises Malformed. What `open` is answered is looked at by
    `opened`."""
    if answer[0] == "error":
        return None
    name, value = request[0], answer[2]
    if name == "read":
        asked = request[4]
        if type(value) is not bytes:
            raise Malformed(f"a read of {asked} bytes was answered with {_kind(value)}")
        if len(value) != asked:
            raise Malformed(f"a read of {asked} bytes was answered with {len(value)}")
    elif name == "synchronize" and value is not None:
        raise Malformed(f"synchronize, which has no value, was answered with {_kind(value)}")
    return value


def opened(value: Any) -> Opened:
    """Raises Malformed for anything but `{info, stored, room}` as docs/wire.md describes them."""
    if type(value) is not dict or not {"info", "stored", "room"} <= set(value):
        raise Malformed("open was answered without info, stored and room")
    info, stored, room = value["info"], value["stored"], value["room"]
    if not INFO(info):
        raise Malformed("open was answered with an info that does not describe a device")
    zero = next((name for name in _AT_LEAST_ONE if info["limits"].get(name) == 0), None)
    if zero is not None:
        raise Malformed(f"open was answered with a {zero} of 0")
    if type(stored) is not list or len(stored) > MOST_ELEMENTS or not all(_digest(one) for one in stored):
        raise Malformed("open was answered with a list of what is stored that holds other things than digests")
    if type(room) is not int or not 0 <= room <= LARGEST:
        raise Malformed("open was answered with a room in the store that is not a number of bytes")
    words = {name: told(info[name], MOST_LINE) for name in ("platform", "name", "driver")}
    limits = Limits.from_json(info["limits"])
    features = tuple(info["features"][:MOST_FEATURES])
    return Opened(DeviceInfo(**words, software=info["software"], limits=limits, features=features), tuple(stored), room)


def told(text: str, most: int = MOST_TOLD) -> str:
    """The text; of a longer one both ends, and how much is left out."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} … ({len(text) - most:,} more characters) … {text[len(text) - most // 2 :]}"


def dropped(name: str, why: str) -> ConnectionLost:
    """The error of every call to a device that broke the format. Nothing follows from it for what ran there, and to open it
    again is of no use."""
    return ConnectionLost(
        f"Device {name} does not keep to the format of docs/wire.md: {why}. It was dropped. Update TapML on it, or use another "
        "device.", final=True,
    )  # fmt: skip


def _digest(value: Any) -> bool:
    return type(value) is bytes and len(value) == DIGEST_BYTES


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
