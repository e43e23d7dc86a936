"""Wraps a device and makes it fail on schedule, to test what is done about failures.

    FaultyDevice(device, [Fault("lose", "run", nth=3)])                the third `run` loses the device
    FaultyDevice(device, [Fault("refuse", "load", entry="softmax")])   every kernel of that name is refused
    FaultyDevice(device, [Fault("corrupt", "read", nth=2)])            the second read has its bytes inverted
    FaultyDevice(device, [Fault("away", "read", nth=4)])               the connection breaks at the fourth read

With no faults it behaves as the device that it wraps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tapml.devices.interface import Device, DeviceInfo, Launch, ReadsInTurn
from tapml.errors import ConnectionLost, DeviceError, DeviceLost, OutOfMemory
from tapml.kernels import Kernel

Call = Literal["allocate", "free", "write", "read", "load", "unload", "run", "synchronize"]


@dataclass(frozen=True)
class Fault:
    """What happens at which call. `nth` counts calls of that kind from 1; 0 means every one. `entry` limits a fault of `load` to
    kernels of that name. Kinds: "lose" (DeviceLost, from then on for every call), "away" and "restart" (ConnectionLost in the
    same way: the connection broke, or the device began anew), "refuse" (DeviceError: 'driver' at load, else 'launch'), "memory"
    (OutOfMemory), "corrupt" (a read's bytes are inverted), "slow" (waits `seconds` first). Each part of `read_many` is a read."""

    kind: Literal["lose", "away", "restart", "refuse", "memory", "corrupt", "slow"]
    call: Call
    nth: int = 0
    entry: str = ""
    seconds: float = 0.0


class FaultyDevice(ReadsInTurn):
    """Implements `tapml.devices.interface.Device` over another one, which it owns and closes."""

    def __init__(self, device: Device, faults: Sequence[Fault] = ()) -> None:
        self._device = device
        self._faults = tuple(faults)
        self._lost: DeviceLost | ConnectionLost | None = None
        self.calls: Counter[str] = Counter()

    @property
    def info(self) -> DeviceInfo:
        return self._device.info

    def allocate(self, nbytes: int) -> int:
        self._strike("allocate")
        return self._device.allocate(nbytes)

    def free(self, buffer: int) -> None:
        self._strike("free")
        self._device.free(buffer)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        self._strike("write")
        self._device.write(buffer, data, offset, keep)

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        corrupt = self._strike("read")
        data = self._device.read(buffer, nbytes, offset)
        return bytes(byte ^ 0xFF for byte in data) if corrupt else data

    def load(self, kernel: Kernel) -> int:
        self._strike("load", kernel.entry)
        return self._device.load(kernel)

    def unload(self, kernel: int) -> None:
        self._strike("unload")
        self._device.unload(kernel)

    def run(self, batch: Sequence[Launch]) -> None:
        self._strike("run")
        self._device.run(batch)

    def synchronize(self) -> None:
        self._strike("synchronize")
        self._device.synchronize()

    def close(self) -> None:
        self._device.close()

    def _strike(self, call: Call, entry: str = "") -> bool:
        """Applies the faults due at this call; True when what it returns is to be corrupted."""
        if self._lost is not None:
            raise self._lost
        self.calls[call] += 1
        count = self.calls[call]
        corrupt = False
        for fault in self._faults:
            if fault.call != call or fault.nth not in (0, count) or (fault.entry and fault.entry != entry):
                continue
            what = f"injected at {call} number {count}" + (f" (kernel {entry})" if entry else "")
            if fault.kind in ("lose", "away", "restart"):
                lost = f"the device was lost: {what}"
                self._lost = DeviceLost(lost) if fault.kind == "lose" else ConnectionLost(lost, fault.kind == "restart")
                raise self._lost
            if fault.kind == "refuse":
                raise DeviceError("driver" if call == "load" else "launch", f"refused: {what}")
            if fault.kind == "memory":
                raise OutOfMemory(f"out of memory: {what}")
            if fault.kind == "slow":
                time.sleep(fault.seconds)
            corrupt = corrupt or fault.kind == "corrupt"
        return corrupt
