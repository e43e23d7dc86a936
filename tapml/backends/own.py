"""Somebody's own kernels as a backend: what runs is what a folder has (`tapml.backends.own_folder`), nothing is generated.

    backend = open_own(own, parse("opencl"), "local", DEADLINE)

An operator that the folder has nothing for is "absent", with the reason. Results are filed under the target with the folder's
name, "opencl:kernels=my-kernels", so they never mix with those of generated kernels.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tapml.backends.interface import Backend, OnPrepared, Prepared, Way
from tapml.backends.on_device import DEADLINE, OnDevice
from tapml.backends.one_text import NotWritten
from tapml.backends.own_folder import SCHEDULE, OwnFolder
from tapml.backends.pytorch import PyTorch
from tapml.devices.interface import DeviceInfo
from tapml.devices.known import RUNNABLE
from tapml.errors import ModelError, UsageError
from tapml.languages import LANGUAGES, pytorch
from tapml.operators.graph import Body
from tapml.operators.own_functions import text_with_functions
from tapml.targets.known import BROWSER, EXAMPLE, TARGETS
from tapml.targets.parse import TargetChoice
from tapml.targets.pytorch import PROCESSOR
from tapml.targets.target import Target
from tapml.tensors import Layout

OPTION = "kernels"


def target_of(asked: str | Backend | None, own: OwnFolder | None) -> str | Backend:
    """What runs: what was asked for, or what the folder needs where all of it is in one language. Raises UsageError."""
    if own is None:
        if asked is None:
            raise UsageError(f"Name a target, such as --target {EXAMPLE.name}: only --kernels can do without.")
        return asked
    if asked is not None:
        if not isinstance(asked, str):
            raise UsageError("A backend that is handed in runs what it prepares itself: leave kernels out, or name a target.")
        return asked
    fitting = [name for name in (BROWSER.name, *RUNNABLE, *TARGETS) if TARGETS[name].language in own.languages]
    if len(own.languages) == 1 and fitting:
        return fitting[0]
    several = [name for name in TARGETS if name in fitting]
    raise UsageError(
        f"--kernels {own.path} has kernels in {own.languages_named}: say which are to run. Give one of --target "
        f"{', '.join(several)}."
    )


def open_own(own: OwnFolder, choice: TargetChoice, device: str = "local", deadline: float = DEADLINE) -> Backend:
    """Raises UsageError where the folder has nothing in the target's language, and as opening a device does."""
    language = TARGETS[choice.name].language
    if language not in own.languages:
        raise UsageError(
            f"--kernels {own.path} has kernels in {own.languages_named}, and target {choice.name} takes "
            f"{LANGUAGES[language].title}. Leave --target out, or name another."
        )
    if choice.schedule or choice.way:
        raise UsageError(f"Target {choice}: nothing is scheduled or compiled with --kernels. Leave that option out.")
    named = replace(choice, options={**choice.options, OPTION: str(own.path)})
    if language == pytorch.LANGUAGE.name:
        return OwnFunctions(own, named, device, deadline)
    return OwnKernels(own, named, device, deadline)


class _OfFolder(OnDevice):
    """What a folder has, whatever it is; the rest is absent."""

    def __init__(self, own: OwnFolder, choice: TargetChoice, device: str, deadline: float) -> None:
        self.own = own
        super().__init__(choice, device, deadline)

    def _narrowed(self, info: DeviceInfo) -> Target:
        """The target, whose kernels are those of the folder as it is now."""
        return replace(super()._narrowed(info), tvm={OPTION: self.own.digest}, schedules=(SCHEDULE,))

    def _prepare(self, bodies: Mapping[str, Body], tell: OnPrepared, way: Way) -> None:
        there: dict[str, Body] = {}
        for signature, body in bodies.items():
            if why := self.own.lacks(signature, self.target.language):
                tell(signature, Prepared(None, "absent", None, why, 0.0))
            else:
                there[signature] = body
        self._prepare_own(there, tell, way)

    @abstractmethod
    def _prepare_own(self, bodies: Mapping[str, Body], tell: OnPrepared, way: Way) -> None:
        """`_prepare` of those that the folder has something for."""


class OwnKernels(_OfFolder):
    """Kernels in a kernel language. Implements `tapml.backends.interface.Backend`."""

    def _prepare_own(self, bodies: Mapping[str, Body], tell: OnPrepared, way: Way) -> None:
        for signature, body in bodies.items():
            started = time.monotonic()
            launched = self.own.launched[signature][self.target.language]
            try:
                program = launched.program(body, self.target)
                tell(signature, Prepared(program, "ok", None, "", time.monotonic() - started))
            except ValueError as error:
                tell(signature, Prepared(None, "error", "launch", f"{launched.file}: {error}", time.monotonic() - started))


class OwnFunctions(_OfFolder, PyTorch):
    """Functions of Python, called with tensors in a process of their own. Implements `tapml.backends.interface.Backend`."""

    def _prepare_own(self, bodies: Mapping[str, Body], tell: OnPrepared, way: Way) -> None:
        PyTorch._prepare(self, bodies, tell, way)

    def _text(self, body: Body, entry: str, lying: Sequence[Layout | None]) -> tuple[str, str]:
        functions = {
            call: (str(f.file), f.digest, f.names) for call, f in self.own.called[body.signature].functions.items()
        }  # fmt: skip
        try:
            text = text_with_functions(body, entry, self.choice.device or PROCESSOR, self.target.stored, lying, functions)
        except ModelError as error:
            raise NotWritten("backend", str(error)) from error
        return text, ""
