"""What a target is: how to generate kernels for it, and what its limits are. One file a target beside this one.

A target is plain data, so that it can be part of a cache key and travel to a compiler process. `resolve` narrows one to a
device: limits shrink to what the device has, features that the device lacks are legalised away, and a software driver gets
the schedules that suit it first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapml.kernels import Language


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes unless the name says otherwise. Defaults are the WebGPU specification's guaranteed minimum."""

    workgroup_invocations: int = 256
    workgroup_memory: int = 16384
    workgroups_per_dimension: int = 65535
    binding_bytes: int = 128 * 2**20
    storage_buffers: int = 8


@dataclass(frozen=True)
class Target:
    """`tvm` are the attributes of the compiler's target ("kind" included). `storage` maps a dtype of the model to the one
    that the target stores and computes it in; dtypes not named stay. `schedules` are tried in this order until one
    compiles."""

    name: str
    language: Language
    tvm: dict[str, Any]
    storage: dict[str, str]
    schedules: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    options: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of everything in it: equal keys compile to equal kernels."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def stored(self, dtype: str) -> str:
        return self.storage.get(dtype, dtype)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Target:
        return Target(
            data["name"], data["language"], data["tvm"], data["storage"], tuple(data["schedules"]),
            Limits(**data["limits"]), data["options"],
        )
