"""Opens the backend that a target asks for: by the text of `--target`, or one that the caller has opened.

    open_backend("opencl", "phone@http://…")      closing it closes the device
    open_backend(MyBackend())                     lent: closing what this gives leaves the caller's backend open
    open_backend(MyEngine({}))                    an engine of whole operators, in this process
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from tapml.backends.forwarding import Lent
from tapml.backends.interface import Backend
from tapml.backends.kernels import Kernels
from tapml.backends.on_device import DEADLINE
from tapml.backends.onnxruntime import OnnxRuntime
from tapml.backends.own import open_own
from tapml.backends.own_folder import OwnFolder
from tapml.backends.packaged import HandedIn, Packaged
from tapml.backends.pytorch import PyTorch
from tapml.errors import UsageError
from tapml.languages import body, onnx, pytorch
from tapml.operators.engine import OperatorEngine
from tapml.targets.parse import TargetChoice, parse

# By the language of what they run. A new backend is a file beside this one and a line here.
WITHOUT_KERNELS: dict[str, Callable[[TargetChoice, str, float], Backend]] = {
    pytorch.LANGUAGE.name: PyTorch, onnx.LANGUAGE.name: OnnxRuntime, body.LANGUAGE.name: Packaged,
}  # fmt: skip


def open_backend(
    target: str | Backend | OperatorEngine, device: str = "local", deadline: float = DEADLINE, own: OwnFolder | None = None
) -> Backend:
    """`device` is the text of `--device`, `deadline` in seconds for one call to it; a backend that is handed in has its own.
    `own` are kernels of somebody's own, which run in place of generated ones. Raises TargetError for names that do not exist,
    UsageError for what is no address or no backend, UnavailableError with the reason when it is not there."""
    if isinstance(target, str):
        choice = parse(target)
        if own is not None:
            return open_own(own, choice, device, deadline)
        return WITHOUT_KERNELS.get(choice.target.language, Kernels)(choice, device, deadline)
    if not hasattr(target, "prepare") and not hasattr(target, "compile"):
        raise UsageError(f"target takes the text of --target or an opened backend, not {type(target).__name__}.")
    if device != "local":
        raise UsageError(f"A backend that is handed in has its own device: leave device {device!r} out.")
    return Lent(cast(Backend, target)) if hasattr(target, "prepare") else HandedIn(target)
