"""The child process in which the kernels of an agent's session run: opened when the session asks for it, ended from anywhere.

    opening = Opening(offers, sandbox_for)
    session = Session(opening.open, store)
    opening.kill()                     at any moment, from any thread: the session's device is lost, or never opens

`sandbox_for` is what such a child is confined by (`tapml.devices.sandbox`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from tapml.devices.child import ChildDevice
from tapml.devices.cpu import memory_bytes
from tapml.devices.interface import Device
from tapml.devices.known import on_processor
from tapml.devices.sandbox import Sandbox
from tapml.errors import UnavailableError
from tapml.remote.agent.offers import Offers
from tapml.targets.parse import TargetChoice

LOOK_SECONDS = 0.2


def sandbox_for(platform: str) -> Sandbox:
    """For a platform's child process. Raises UnavailableError when no scratch folder can be made."""
    try:
        # A GPU's driver maps more addresses than there is memory; C needs no more than there is.
        return Sandbox(memory_bytes() if on_processor(platform) else None)
    except OSError as error:
        raise UnavailableError(f"The agent's machine has no place for a session's files: {error.strerror or error}.") from error


class Opening:
    """`sandbox` gives what the child is confined by; None for nothing."""

    def __init__(self, offers: Offers, sandbox: Callable[[str], Sandbox | None] = lambda platform: None) -> None:
        self._offers = offers
        self._sandbox = sandbox
        self._child: _Killable | None = None
        self._killed = False

    def open(self, target: str, device: str | None, deadline: float | None) -> Device:
        """What `Session` opens its device with. Waits for a target that is still being looked at."""
        while not self._offers.settled(target, LOOK_SECONDS):
            self._check()
        choice = self._offers.choice(target, device)
        opened = _Killable(choice, deadline, self._begun, self._sandbox(choice.name))
        try:
            self._check()
            refused = self._offers.refused(opened.info)
            if refused:
                raise UnavailableError(refused)
        except UnavailableError:
            opened.close()
            raise
        return opened

    def kill(self) -> None:
        self._killed = True
        if self._child is not None:
            self._child.kill()

    def _begun(self, child: _Killable) -> None:
        self._child = child
        self._check()

    def _check(self) -> None:
        if self._killed:
            raise UnavailableError("The session was ended before its device was open.")


class _Killable(ChildDevice):
    """A `ChildDevice` that hands itself to `begun` before it opens, since opening may be what never ends."""

    def __init__(
        self, choice: TargetChoice, deadline: float | None, begun: Callable[[_Killable], None], sandbox: Sandbox | None
    ) -> None:
        self._box = sandbox
        try:
            begun(self)
        except BaseException:
            if sandbox is not None:
                sandbox.end()
            raise
        super().__init__(choice.name, choice.device, deadline, sandbox=sandbox)

    def kill(self) -> None:
        process: subprocess.Popen[bytes] | None = getattr(self, "_process", None)
        if process is not None and process.returncode is None:
            if self._box is not None:
                self._box.kill(process.pid)
            process.kill()
