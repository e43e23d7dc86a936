"""Picks one of a platform's devices by index or by a part of its name."""

from __future__ import annotations

from collections.abc import Sequence

from tapml.errors import TargetError


def pick(platform: str, names: Sequence[str], wanted: str | None, default: int = 0) -> int:
    """The index of the device that `wanted` means; `default` where it is None. `names` is not empty. Raises TargetError,
    listing the devices, when none or several match."""
    if wanted is None:
        return default
    listing = "; ".join(f"{i} = {name}" for i, name in enumerate(names))
    if wanted.isdigit():
        if int(wanted) < len(names):
            return int(wanted)
        raise TargetError(f"{platform} has no device number {wanted}. It has: {listing}.")
    found = [i for i, name in enumerate(names) if wanted.lower() in name.lower()]
    if len(found) == 1:
        return found[0]
    what = "no device" if not found else f"{len(found)} devices"
    raise TargetError(f"{platform} has {what} with {wanted!r} in the name. It has: {listing}.")
