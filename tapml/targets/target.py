"""What a target is: how to generate kernels for it, and what its limits are. One file a target beside this one.

A target is plain data, so that it can be part of a cache key and travel to a compiler process. `resolve` narrows one to a
device: limits shrink to what the device has, features that the device lacks are legalised away, and a software driver gets
the schedules that suit it first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from tapml.limits import Limits

# What concerns the text of `--target` only, and not what is compiled.
_OF_TEXTS = ("takes", "values", "opens", "levels", "elsewhere")


@dataclass(frozen=True)
class Target:
    """`language` and `device` are names in `tapml.languages` and in `tapml.devices.known`; where there is no such device, kernels
    cannot be run, and `without_device` is why. `tvm` are the attributes of the compiler's target ("kind" included). `storage`
    maps a dtype of the model to the one that the target stores and computes it in; dtypes not named stay. `schedules` are tried
    in this order until one compiles. `takes` are the options of `--target` and what their values are; None for those that
    targets with kernels take (`tapml.targets.parse`). `values` are the only values of some of them, `opens` those that the device
    is opened with, and `levels` what an engine calls the values of `optimise`. `elsewhere` are values of the first of `opens`,
    with what to do to have a device of that kind where there is none."""

    name: str
    language: str
    device: str
    tvm: dict[str, Any]
    storage: dict[str, str]
    schedules: tuple[str, ...]
    limits: Limits
    takes: dict[str, str] | None = field(default=None, compare=False)
    values: dict[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    opens: tuple[str, ...] = field(default=("device",), compare=False)
    levels: dict[str, str] = field(default_factory=dict, compare=False)
    elsewhere: dict[str, str] = field(default_factory=dict, compare=False)
    without_device: str = "kernels can be generated for it, but this version cannot run them"

    @property
    def key(self) -> str:
        """Hash of everything in it: equal keys compile to equal kernels."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def stored(self, dtype: str) -> str:
        return self.storage.get(dtype, dtype)

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in _OF_TEXTS} | {"limits": self.limits.to_json()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Target:
        return Target(**{**data, "schedules": tuple(data["schedules"]), "limits": Limits.from_json(data["limits"])})
