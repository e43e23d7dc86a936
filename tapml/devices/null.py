"""A device that accepts everything and computes nothing: for dry runs, and for tests of what is launched when.

Memory is real and starts as zeros, so writes can be read back; a kernel leaves its outputs as they are. It
remembers what it was given: `loaded` (kernels, in order) and `launched` (every launch of every batch).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tapml.devices.handles import Handles, check_binding, check_range
from tapml.devices.interface import DeviceInfo, Launch, ReadsInTurn
from tapml.errors import DeviceError
from tapml.kernels import Kernel
from tapml.limits import Limits
from tapml.runtime.buffers import padded

# Larger than any real buffer: a request above it is refused, so that the refusal can be tested here too.
LARGEST = 2**33


class NullDevice(ReadsInTurn):
    """Implements `tapml.devices.interface.Device`; takes kernels of every language."""

    def __init__(self, platform: str = "null", language: str = "null", device: str | None = None) -> None:
        self._info = DeviceInfo(platform, "null", "none", software=True, limits=Limits(max_buffer_bytes=LARGEST))
        self._buffers: Handles[NDArray[np.uint8]] = Handles("buffer")
        self._kernels: Handles[Kernel] = Handles("kernel")
        self.loaded: list[Kernel] = []
        self.launched: list[Launch] = []
        self._closed = False

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def allocate(self, nbytes: int) -> int:
        self._check_open()
        if nbytes > LARGEST:
            raise DeviceError("launch", f"a buffer of {nbytes} bytes is more than the null device allows ({LARGEST})")
        return self._buffers.add(np.zeros(padded(nbytes), np.uint8))

    def free(self, buffer: int) -> None:
        self._buffers.pop(buffer)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        memory = self._buffers[buffer]
        view = memoryview(data).cast("B")
        check_range(memory.size, offset, view.nbytes)
        memory.data[offset : offset + view.nbytes] = view

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        memory = self._buffers[buffer]
        check_range(memory.size, offset, nbytes)
        return memory[offset : offset + nbytes].tobytes()

    def load(self, kernel: Kernel) -> int:
        self._check_open()
        self.loaded.append(kernel)
        return self._kernels.add(kernel)

    def unload(self, kernel: int) -> None:
        self._kernels.pop(kernel)

    def run(self, batch: Sequence[Launch]) -> None:
        self._check_open()
        for launch in batch:
            kernel = self._kernels[launch.kernel]
            check_binding(kernel.entry, kernel.access, launch.buffers)
            for buffer in launch.buffers:
                self._buffers[buffer]
            self.launched.append(launch)

    def synchronize(self) -> None:
        self._check_open()

    def close(self) -> None:
        self._closed = True
        self._buffers.clear()
        self._kernels.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the device is closed")
