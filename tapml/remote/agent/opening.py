"""The child process in which the kernels of an agent's session run: opened when the session asks for it, ended from anywhere.

    opening = Opening(offers)
    session = Session(opening.open, store)
    opening.kill()                     at any moment, from any thread: the session's device is lost, or never opens
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from tapml.devices.child import ChildDevice
from tapml.devices.interface import Device
from tapml.errors import UnavailableError
from tapml.remote.agent.offers import Offers
from tapml.targets.parse import TargetChoice

LOOK_SECONDS = 0.2


class Opening:
    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._child: _Killable | None = None
        self._killed = False

    def open(self, target: str, device: str | None, deadline: float | None) -> Device:
        """What `Session` opens its device with. Waits for a target that is still being looked at."""
        while not self._offers.settled(target, LOOK_SECONDS):
            self._check()
        opened = _Killable(self._offers.choice(target, device), deadline, self._begun)
        try:
            self._check()
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

    def __init__(self, choice: TargetChoice, deadline: float | None, begun: Callable[[_Killable], None]) -> None:
        begun(self)
        super().__init__(choice.name, choice.device, deadline)

    def kill(self) -> None:
        process: subprocess.Popen[bytes] | None = getattr(self, "_process", None)
        if process is not None:
            process.kill()
