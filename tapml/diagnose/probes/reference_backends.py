"""Other backends on which the same operator can be run: opened when first asked for, kept for the next triage.

    with ReferenceBackends(run, bench) as backends:
        there = backends.other_target()          a Workbench, or a text that says why there is none
        backends.alter(alteration)               for the next fault: each gets what it shares of it

Which: `cpu`, plain C in one thread; another GPU target; other drivers of the same language. A backend that is not here costs one
attempt.
"""

from __future__ import annotations

from types import TracebackType
from typing import Literal

from tapml.carving.folder import RunFolder
from tapml.devices.interface import DeviceInfo
from tapml.devices.known import RUNNABLE, on_processor, others
from tapml.errors import TapmlError, TargetError
from tapml.migrate.alteration import Alteration
from tapml.migrate.workbench import Workbench
from tapml.targets.known import REFERENCE, TARGETS

# What a backend gets of the bench's alteration.
Share = Literal["elsewhere", "nothing"]

# How many devices of a platform are looked at for another driver.
MOST_DEVICES = 4


class ReferenceBackends:
    """See the module's docstring. `bench` is the target under diagnosis and stays the caller's."""

    def __init__(self, run: RunFolder, bench: Workbench) -> None:
        self._run = run
        self._bench = bench
        self._opened: dict[str, Workbench | str] = {}
        self._alteration = bench.alteration
        self._shares: dict[str, Share] = {}
        self._drivers: tuple[list[str], str] | None = None

    def __enter__(self) -> ReferenceBackends:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes every backend that was opened."""
        for backend in self._opened.values():
            if isinstance(backend, Workbench):
                backend.close()
        self._opened.clear()

    def alter(self, alteration: Alteration | None) -> None:
        """What the bench has been altered to: the backends get what they share of it."""
        self._alteration = alteration
        for name, backend in self._opened.items():
            if isinstance(backend, Workbench):
                backend.alter(self._of(self._shares[name]))

    def cpu(self) -> Workbench | str:
        """Plain C in one thread."""
        if self._bench.choice.name == REFERENCE.name:
            return "the target is the processor itself"
        return self._open(REFERENCE.name)

    def other_target(self) -> Workbench | str:
        """Another target, of another language: one that shares it is no other backend for a fault of the text."""
        reasons: list[str] = []
        for name in others(self._bench.target):
            backend = self._open(name)
            if isinstance(backend, Workbench):
                return backend
            reasons.append(backend)
        return "; ".join(reasons)

    def other_drivers(self) -> tuple[list[Workbench], str]:
        """Devices of the same language with another driver, and a sentence about what was looked for."""
        if self._drivers is None:
            self._drivers = self._look_for_drivers()
        names, words = self._drivers
        return [backend for name in names if isinstance(backend := self._opened[name], Workbench)], words

    def _look_for_drivers(self) -> tuple[list[str], str]:
        language, own = self._bench.target.language, self._bench.info
        if on_processor(self._bench.choice.name):
            return [], "there is one C compiler"
        found: list[str] = []
        seen = {_identity(own)}
        for target in (name for name in RUNNABLE if TARGETS[name].language == language):
            for number in range(MOST_DEVICES):
                name = f"{target}:device={number}"
                backend = self._open(name, "nothing")
                if isinstance(backend, str):
                    break
                if _identity(backend.info) in seen:
                    backend.close()
                    self._opened[name] = "the same driver"
                    continue
                seen.add(_identity(backend.info))
                found.append(name)
        return found, "" if found else f"{own.name} is the only device here that takes {language}"

    def _open(self, target: str, share: Share = "elsewhere") -> Workbench | str:
        if target not in self._opened:
            try:
                self._opened[target] = Workbench.on(self._run, target, inject=self._of(share))
            except TargetError as error:
                self._opened[target] = str(error)
            except TapmlError as error:
                self._opened[target] = f"{target} is not here: {error}"
            self._shares[target] = share
        return self._opened[target]

    def _of(self, share: Share) -> Alteration | None:
        if self._alteration is None or share == "nothing":
            return None
        return self._alteration.elsewhere()


def _identity(info: DeviceInfo) -> tuple[str, str]:
    return info.name, info.driver
