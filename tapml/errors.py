"""Every error that a user of TapML can meet, as one tree.

    TapmlError
    ├── UsageError             wrong flag, name, file or combination             exit code 2
    │   ├── ModelError         the model cannot be loaded, exported or cut
    │   ├── PromptError        a prompt is empty, or longer than the cache
    │   ├── RunError           a run folder is missing, damaged or of another model or version
    │   └── TargetError        no such target or device, or an option that it does not have
    └── UnavailableError       a target or device is not there, or was lost      exit code 3
        ├── DeviceError        a device refused or failed one request; the device itself lives on
        │   ├── OutOfMemory    there is no room for a buffer
        │   ├── NotSupported   an engine does not have an operator, or not with these shapes, dtypes or options
        │   ├── DoesNotFit     an integer is beyond what the target stores its dtype in
        │   └── WrongValue     what the target computed is no value of the model
        ├── DeviceLost         the device is gone: its driver crashed, or a kernel hung
        └── ConnectionLost     the way to a device broke for good, or its memory is gone; nothing is said about what ran

Each message says what happened, with which input, and what to try next. `ValueError` and `assert` are for
mistakes inside TapML. A kernel that fails is no error: it is a verdict (see `tapml.verdicts`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class TapmlError(Exception):
    """Base of all errors that TapML raises on purpose. `exit_code` is what the command line returns."""

    exit_code = 2


class UsageError(TapmlError):
    """The request cannot be carried out as it was put."""


class ModelError(UsageError):
    """The model cannot be loaded, exported or cut into operators. `reason` says what in the model is in the way, without what
    could not be done because of it and without advice."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class PromptError(UsageError):
    """A prompt is empty, or does not fit the key-value cache."""


class RunError(UsageError):
    """A run folder is missing, damaged, or belongs to another model or version."""


class BundleError(UsageError):
    """A bundle cannot be built from a run, or one is missing, damaged, or of another format."""


class TargetError(UsageError):
    """No such target or device, or an option that it does not have."""


class UnavailableError(TapmlError):
    """A target or a device is not there. The message says why."""

    exit_code = 3


class DeviceError(UnavailableError):
    """A device failed one request: `stage` is 'driver' (refused the kernel) or 'launch' (could not run it). `suspects` are the
    operators that it is about, where whoever raised it knows them better than the order of the work tells."""

    suspects: tuple[str, ...] = ()

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


class OutOfMemory(DeviceError):
    """The device has no room for a buffer; with less on it, there may be."""

    def __init__(self, message: str) -> None:
        super().__init__("launch", message)


class NotSupported(DeviceError):
    """An engine does not have an operator, or does not have it with these shapes, dtypes or options; the message says which, and
    why."""

    def __init__(self, message: str) -> None:
        super().__init__("convert", message)


class DoesNotFit(DeviceError):
    """An integer that is to go to a device is beyond the dtype that the target stores it in: nothing computed there is right."""

    def __init__(self, message: str, suspects: Sequence[str] = ()) -> None:
        super().__init__("launch", message)
        self.suspects = tuple(suspects)


class WrongValue(DeviceError):
    """What the target computed cannot be a value of the model: it is out of the range of its dtype, or the source, which is to go
    on with it, refuses it. `operator` made or read it; `suspects` are the operators on the target from which it comes."""

    def __init__(self, operator: str, message: str, suspects: Sequence[str] = ()) -> None:
        super().__init__("numeric", message)
        self.operator = operator
        self.suspects = tuple(suspects)


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


class AnotherDevice(ConnectionLost):
    """A device across a connection came back as another one, to which what was found until then does not apply."""

    def __init__(self, message: str) -> None:
        super().__init__(message, final=True)


def is_confined(error: Exception) -> bool:
    """Whether an error that was met in the work on one operator says nothing about the rest of the work. A damaged run, a device
    that is not there, a full disk and memory that ran out concern everything; most else is a bug, and no reason to stop."""
    return isinstance(error, ModelError) or not isinstance(error, TapmlError | OSError | MemoryError)


def unexpected(error: Exception) -> str:
    """The reason of a verdict on an operator whose work was ended by an error that nobody foresaw: one line."""
    text = first_line(error)
    if isinstance(error, TapmlError):
        return text
    return f"{text} -- this is a bug in TapML; please report it, with what `TAPML_DEBUG=1` shows"


def first_line(error: Exception) -> str:
    """The class of an error and the first line of what it says; the text alone where the error is TapML's own."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]
    return line if isinstance(error, TapmlError) else f"{type(error).__name__}: {line}"


def message_of(error: BaseException) -> str:
    """The first line of what an error of another library says, without its full stop; its class where it says nothing."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


# As many names as an error message lists.
_LISTED = 12


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the close matches, then what exists, cut short when that is much."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(close)}? " if close else ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{meant}Known: {', '.join(names[:_LISTED])}{more}."
