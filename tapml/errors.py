"""Every error that a user of TapML can meet, as one tree.

    TapmlError
    ├── UsageError             wrong flag, name, file or combination             exit code 2
    │   ├── ModelError         the model cannot be loaded, exported or cut
    │   ├── PromptError        a prompt is empty, or longer than the cache
    │   ├── RunError           a run folder is missing, damaged or of another model or version
    │   └── TargetError        no such target or device, or an option that it does not have
    └── UnavailableError       a target or device is not there, or was lost      exit code 3
        ├── DeviceError        a device refused or failed one request; the device itself lives on
        │   └── OutOfMemory    there is no room for a buffer
        ├── DeviceLost         the device is gone: its driver crashed, or a kernel hung
        └── ConnectionLost     the way to a device broke for good, or its memory is gone; nothing is said about what ran

Each message says what happened, with which input, and what to try next. `ValueError` and `assert` are for
mistakes inside TapML. A kernel that fails is no error: it is a verdict (see `tapml.verdicts`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TapmlError(Exception):
    """Base of all errors that TapML raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 2


class UsageError(TapmlError):
    """The request cannot be carried out as it was put."""


class ModelError(UsageError):
    """The model cannot be loaded, exported or cut into operators."""


class PromptError(UsageError):
    """A prompt is empty, or does not fit the key-value cache."""


class RunError(UsageError):
    """A run folder is missing, damaged, or belongs to another model or version."""


class TargetError(UsageError):
    """No such target or device, or an option that it does not have."""


class UnavailableError(TapmlError):
    """A target or a device is not there. The message says why."""

    exit_code = 3


class DeviceError(UnavailableError):
    """A device failed one request: `stage` is 'driver' (refused the kernel) or 'launch' (could not run it)."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


class OutOfMemory(DeviceError):
    """The device has no room for a buffer; with less on it, there may be."""

    def __init__(self, message: str) -> None:
        super().__init__("launch", message)


class DeviceLost(UnavailableError):
    """The device is gone, and what ran on it is to blame. What ran on it is lost; what was recorded is not."""


class ConnectionLost(UnavailableError):
    """A device across a connection did not come back, or came back without its memory. No verdict follows from it: what was under
    way is done again. `restarted`: the device's own process or page began anew, which a kernel may have caused. `final`: it was
    waited for in vain, so there is nothing to be tried again."""

    def __init__(self, message: str, restarted: bool = False, final: bool = False) -> None:
        super().__init__(message)
        self.restarted = restarted
        self.final = final


# As many names as an error message lists.
_LISTED = 12


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the close matches, then what exists, cut short when that is much."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{meant}Known: {', '.join(names[:_LISTED])}{more}."
