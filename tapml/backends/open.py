"""Opens the backend that a target asks for, by the text of `--target`."""

from __future__ import annotations

from collections.abc import Callable

from tapml.backends.interface import Backend
from tapml.backends.kernels import Kernels
from tapml.backends.on_device import DEADLINE
from tapml.backends.pytorch import PyTorch
from tapml.languages import pytorch
from tapml.targets.known import TARGETS
from tapml.targets.parse import TargetChoice, parse

# By the language of what they run. A new backend is a file beside this one and a line here.
WITHOUT_KERNELS: dict[str, Callable[[TargetChoice, str, float], Backend]] = {pytorch.LANGUAGE.name: PyTorch}


def open_backend(target: str, device: str = "local", deadline: float = DEADLINE) -> Backend:
    """`device` is the text of `--device`, `deadline` in seconds for one call to it. Raises TargetError for names that do not
    exist, UsageError for what is no address, UnavailableError with the reason when it is not there."""
    choice = parse(target)
    return WITHOUT_KERNELS.get(TARGETS[choice.name].language, Kernels)(choice, device, deadline)
