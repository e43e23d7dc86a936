"""Errors on their way between processes: by their kind there, as themselves again here.

    kind, stage, text = told(error)          what goes into a reply, over a pipe or over a connection
    raise error_of(kind, stage, text)        the same error for who asked

Kinds are those of docs/wire.md. Any other error is a bug, or unexpected from a driver, and travels with its traceback as "other".
"""

from __future__ import annotations

import traceback

from tapml.errors import DeviceError, DeviceLost, OutOfMemory, TargetError, UnavailableError

# The more special ones first.
_KINDS: tuple[tuple[str, type[Exception]], ...] = (
    ("memory", OutOfMemory), ("device", DeviceError), ("lost", DeviceLost), ("unavailable", UnavailableError),
    ("target", TargetError), ("value", ValueError),
)  # fmt: skip


def told(error: Exception) -> tuple[str, str, str]:
    """(kind, stage, text); the stage is "" for all but an error that a device made of a request."""
    for kind, cls in _KINDS:
        if isinstance(error, cls):
            return kind, error.stage if isinstance(error, DeviceError) else "", str(error)
    return "other", "", "".join(traceback.format_exception(error))


def error_of(kind: str, stage: str, text: str) -> Exception:
    """What `told` was given, but for a kind that is not known here, which is a RuntimeError."""
    if kind == "device":
        return DeviceError(stage, text)
    return dict(_KINDS).get(kind, RuntimeError)(text)
