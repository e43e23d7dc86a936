"""A device as it is described to others, and a kernel as it was described by them.

    described(device.info)            the map that docs/wire.md calls info
    parse_kernel(data)                the text of a kernel, every field checked
"""

from __future__ import annotations

import json
import re
from typing import Any

from tapml.devices.interface import DeviceInfo
from tapml.kernels import Kernel
from tapml.languages import LANGUAGES
from tapml.remote.agent.failures import cut
from tapml.remote.wire import LARGEST

MOST_LINE = 400
MOST_DRIVER = 2000

_ENTRY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_KERNEL_FIELDS = {"language", "entry", "source", "access", "grid", "block", "uniform"}


def described(info: DeviceInfo, memory: int | None = None) -> dict[str, Any]:
    """A device as docs/wire.md describes one; with a limit of memory no buffer is larger than that."""
    limits = {name: max(0, min(int(value), LARGEST)) for name, value in info.limits.to_json().items()}
    if memory is not None:
        for name in ("max_buffer_bytes", "max_binding_bytes"):
            limits[name] = min(limits.get(name, memory), memory)
    return {
        "platform": _line(info.platform), "name": _line(info.name), "driver": cut(info.driver)[:MOST_DRIVER],
        "software": bool(info.software), "limits": limits, "features": [_line(feature) for feature in info.features],
    }


def parse_kernel(data: bytes) -> Kernel:
    """The text of a kernel, every field checked. Raises ValueError."""
    try:
        fields = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the text of a kernel is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.keys() != _KERNEL_FIELDS:
        raise ValueError(f"a kernel has the fields {', '.join(sorted(_KERNEL_FIELDS))}, and no others")
    source, access = fields["source"], fields["access"]
    for name, right in (
        ("language", isinstance(fields["language"], str) and fields["language"] in LANGUAGES),
        ("entry", isinstance(fields["entry"], str) and _ENTRY.fullmatch(fields["entry"])),
        ("source", isinstance(source, str) and "\0" not in source and _encodable(source)),
        ("access", isinstance(access, list) and all(mode in ("read", "read_write", "write") for mode in access)),
        ("grid", _words(fields["grid"], 1, 2**32 - 1) and len(fields["grid"]) == 3),
        ("block", _words(fields["block"], 1, 2**32 - 1) and len(fields["block"]) == 3),
        ("uniform", _words(fields["uniform"], -(2**31), 2**32 - 1)),
    ):
        if not right:
            raise ValueError(f"the field {name} of a kernel is not what it must be")
    return Kernel.from_json(fields)


def _words(value: Any, low: int, high: int) -> bool:
    return isinstance(value, list) and all(type(item) is int and low <= item <= high for item in value)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _line(text: str) -> str:
    return cut(text)[:MOST_LINE]
