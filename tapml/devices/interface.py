"""The runtime interface: all that TapML asks of a platform.

A device allocates buffers, moves bytes, loads kernels and runs batches of launches. Handles are small integers that the device
hands out. A batch is recorded by the caller and submitted at once; launches in it run in order, each seeing what the ones
before it wrote, with no read-back between. `run` may return before the work is done; `read` and `synchronize` wait for it,
and what went wrong in a `write` or `run` may be raised only there. A buffer that a launch writes is bound to one of its
arguments only, on every device.

Errors: `DeviceError(stage, message)` for one refused request ('driver': the kernel was not accepted; 'launch': it
could not be run), after which the device still works; `DeviceLost` when the device is gone. Implementations live one a
file beside this one and pass `tests/devices/test_conformance.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tapml.kernels import Kernel
from tapml.limits import DeviceInfo as DeviceInfo
from tapml.runtime.engine import Part as Part


@dataclass(frozen=True)
class Launch:
    """One launch in a batch: a loaded kernel and the buffers bound to its arguments, in order."""

    kernel: int
    buffers: tuple[int, ...]


class Device(Protocol):
    """See the module's docstring. Not thread-safe: one caller at a time."""

    @property
    def info(self) -> DeviceInfo: ...

    def allocate(self, nbytes: int) -> int:
        """A new buffer of at least `nbytes` bytes, contents undefined. OutOfMemory when there is no room, DeviceError('launch')
        when no buffer may be so large."""

    def free(self, buffer: int) -> None:
        """Gives a buffer back. Launches that use it may still be under way."""

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        """Copies `data` into the buffer. The caller may reuse `data` as soon as this returns. `keep`: the same bytes may be
        wanted again, such as a weight, and a device across a connection may remember them."""

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        """The bytes of the buffer after all launches submitted before."""

    def read_many(self, parts: Sequence[Part]) -> list[bytes]:
        """Several reads, each (buffer, nbytes, offset), which wait together. All of them fail if one does."""

    def load(self, kernel: Kernel) -> int:
        """Hands the kernel to the driver. DeviceError('driver') with the driver's own log if it refuses."""

    def unload(self, kernel: int) -> None:
        """Forgets a loaded kernel."""

    def run(self, batch: Sequence[Launch]) -> None:
        """Submits a batch in order."""

    def synchronize(self) -> None:
        """Waits until everything submitted is done."""

    def close(self) -> None:
        """Frees all that the device holds. May be called twice."""


class _Reads(Protocol):
    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes: ...


class ReadsInTurn:
    """`read_many` for a device where waiting for one read costs nothing besides it."""

    def read_many(self: _Reads, parts: Sequence[Part]) -> list[bytes]:
        return [self.read(*part) for part in parts]
