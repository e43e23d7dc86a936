"""A backend whose work is done by a `Device` (see `tapml.devices.interface`): everything but preparing bodies.

The device is opened by its target's name, in a child process or across a connection, so that one that crashes or hangs costs a
DeviceLost. Across a connection, where the name may mean any of several devices, the first one that is opened is kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tapml.backends.interface import PLAIN, Compiled, OnPrepared, Plain, Prepared, Way
from tapml.devices.interface import Device, DeviceInfo, Part
from tapml.devices.runner import ProgramRunner
from tapml.errors import AnotherDevice, ConnectionLost, UnavailableError
from tapml.kernels import Kernel, Program
from tapml.operators.graph import Body
from tapml.remote.open import address_of, open_device, redacted
from tapml.runtime.buffers import BufferPool
from tapml.targets.parse import TargetChoice
from tapml.targets.resolve import resolve
from tapml.targets.target import Target
from tapml.tensors import HostArray

# Seconds that one call to the device may take before it counts as hung.
DEADLINE = 120.0


class OnDevice(Plain):
    """All of `tapml.backends.interface.Backend` but how bodies are prepared and what kind of backend it is. Opening raises
    TargetError, UsageError for what is no device, and UnavailableError."""

    def __init__(self, choice: TargetChoice, device: str = "local", deadline: float = DEADLINE) -> None:
        self.choice = choice
        self.name = redacted(device)
        self._where = device
        self._deadline = deadline
        self._wrap: Callable[[Device], Device] | None = None
        self._prepared: dict[tuple[str, Way], Prepared] = {}
        self._target = self._open()

    def _open(self) -> Target:
        """The device, and what the choice means on it. One that cannot be used is closed again."""
        self._platform: Device = self._opened()
        try:
            self._where = address_of(self._platform, self._where)
            self._stand_on(self._platform if self._wrap is None else self._wrap(self._platform))
            return self._narrowed(self.device.info)
        except BaseException:
            self._platform.close()
            raise

    def _opened(self) -> Device:
        return open_device(self.choice, self._where, deadline=self._deadline)

    def _narrowed(self, info: DeviceInfo) -> Target:
        return resolve(self.choice, info)

    def _stand_on(self, device: Device) -> None:
        """With nothing on it yet."""
        self.device = device
        self.runner = ProgramRunner(device)

    @property
    def target(self) -> Target:
        return self._target

    @property
    def info(self) -> DeviceInfo:
        return self.device.info

    @property
    def pool(self) -> BufferPool:
        return self.runner.pool

    def prepare(
        self, bodies: Mapping[str, Body], on_prepared: OnPrepared | None = None, way: Way = PLAIN
    ) -> dict[str, Prepared]:
        """Equal bodies are prepared once, in the same way, as long as the backend lives."""
        way = replace(way, schedules=way.schedules or self.target.schedules)
        found: dict[str, Prepared] = {}
        operators: dict[str, list[str]] = {}
        for operator, body in bodies.items():
            operators.setdefault(body.signature, []).append(operator)
        new = {s: bodies[some[0]] for s, some in operators.items() if (s, way) not in self._prepared}

        def tell(signature: str, prepared: Prepared) -> None:
            self._prepared[signature, way] = shared = replace(prepared, cached=True)
            for operator in operators[signature]:
                found[operator], prepared = prepared, shared
                if on_prepared is not None:
                    on_prepared(operator, found[operator])

        for signature in operators.keys() - new.keys():
            tell(signature, self._prepared[signature, way])
        if new:
            self._prepare(new, tell, way)
        return found

    @abstractmethod
    def _prepare(self, bodies: Mapping[str, Body], tell: OnPrepared, way: Way) -> None:
        """`prepare` of bodies that differ, by their signatures; `tell` takes what each gives."""

    def load(self, compiled: Compiled) -> None:
        self.runner.load(with_kernels(compiled))
        self.device.synchronize()  # a device across a connection tells only when it is waited for what it thinks of kernels

    def record(
        self, compiled: Compiled, inputs: Sequence[int], outputs: Sequence[int], scratch: Sequence[int] | None = None
    ) -> Sequence[Any]:
        return self.runner.record(compiled, inputs, outputs, scratch)

    def submit(self, work: Sequence[Any]) -> None:
        self.runner.submit(work)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        self.runner.write(buffer, data, offset, keep)

    def read_many(self, parts: Sequence[Part]) -> list[bytes]:
        return self.runner.read_many(parts)

    def run_once(
        self, compiled: Compiled, inputs: Sequence[HostArray | int], poison: bool = False, keep: bool = False
    ) -> list[HostArray]:
        return self.runner.run_once(with_kernels(compiled), inputs, poison, keep)

    def doing(self, text: str) -> None:
        tell = getattr(self._platform, "doing", None)
        if tell is not None:
            tell(text)

    def through(self, wrap: Callable[[Device], Device] | None) -> None:
        self._wrap = wrap
        device = self._platform if wrap is None else wrap(self._platform)
        if device is not self.device:
            self.pool.clear()
            self._stand_on(device)

    def reopen(self) -> None:
        self.device.close()
        try:
            target = self._open()
        except UnavailableError as error:
            if self.name == "local":
                raise
            raise ConnectionLost(str(error), final=True) from error
        if target.key != self._target.key:
            raise AnotherDevice(
                f"Device {self.name} came back as another one, {self.info.name}, with other limits or features. "
                "Start over to work with that one."
            )

    def close(self) -> None:
        self.device.close()


def kernels_of(compiled: Compiled | None) -> tuple[Kernel, ...]:
    """What a device runs of it; nothing for what runs on none."""
    return compiled.kernels if isinstance(compiled, Program) else ()


def with_kernels(compiled: Compiled) -> Program:
    """The program that a device runs. ValueError for what runs on none."""
    if not isinstance(compiled, Program):
        raise ValueError("this runs on no device: it has no kernels")
    return compiled
