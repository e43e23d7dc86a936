"""Opens the backend that a target asks for, by the text of `--target`."""

from __future__ import annotations

from tapml.backends.interface import Backend
from tapml.backends.kernels import Kernels
from tapml.backends.on_device import DEADLINE
from tapml.targets.parse import parse


def open_backend(target: str, device: str = "local", deadline: float = DEADLINE) -> Backend:
    """`device` is the text of `--device`, `deadline` in seconds for one call to it. Raises TargetError for names that do not
    exist, UsageError for what is no address, UnavailableError with the reason when it is not there."""
    return Kernels(parse(target), device, deadline)
