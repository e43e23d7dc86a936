"""What a target assumes of a device, and what a device says of itself, in one vocabulary: the one of JSON.

    Limits(max_workgroup_invocations=256)              nothing is said of the rest
    target.limits.narrowed(device.info.limits)         the smaller of each
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any


class LimitError(Exception):
    """A kernel asks for more than the target has; the message says what, how much, and the limit."""


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes where the name says so, else counts. None: nothing is known, so nothing is held against it."""

    max_buffer_bytes: int | None = None
    max_binding_bytes: int | None = None
    max_workgroup_invocations: int | None = None
    max_workgroup_memory_bytes: int | None = None
    max_workgroups_per_dimension: int | None = None
    max_storage_buffers: int | None = None
    memory_bytes: int | None = None

    @property
    def largest_buffer(self) -> int | None:
        """The bytes of the largest buffer that can be made and bound."""
        return _smaller(self.max_buffer_bytes, self.max_binding_bytes)

    def narrowed(self, device: Limits) -> Limits:
        """The smaller of each of these limits; of which nothing is said here, nothing is said afterwards."""
        own = self.to_json()
        return replace(self, **{name: min(value, own[name]) for name, value in device.to_json().items() if name in own})

    def to_json(self) -> dict[str, int]:
        """Those that are known, in the order above."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @staticmethod
    def from_json(data: Mapping[str, int]) -> Limits:
        """Names that are not known here are left out."""
        return Limits(**{f.name: data[f.name] for f in fields(Limits) if f.name in data})


@dataclass(frozen=True)
class DeviceInfo:
    """What a device is. `platform` names the target that it was opened for ("opencl", "vulkan", …); `software` is True for a
    driver that emulates a GPU on the processor; `features` is what is optional ("float16", "subgroups", …)."""

    platform: str
    name: str
    driver: str
    software: bool
    limits: Limits = field(default_factory=Limits)
    features: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "limits": self.limits.to_json()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> DeviceInfo:
        """Raises TypeError or KeyError for what describes no device."""
        return DeviceInfo(**{**data, "limits": Limits.from_json(data["limits"]), "features": tuple(data["features"])})


def _smaller(one: int | None, other: int | None) -> int | None:
    known = [value for value in (one, other) if value is not None]
    return min(known, default=None)
