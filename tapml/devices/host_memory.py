"""Memory for devices whose engine computes on arrays of this process: buffers as numpy arrays, aligned for any of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapml.devices.handles import Handles, check_range
from tapml.devices.interface import ReadsInTurn
from tapml.errors import OutOfMemory
from tapml.runtime.buffers import padded

_ALIGNED = 64


@dataclass(frozen=True)
class Buffer:
    """`bytes` at `address`, which is a multiple of 64."""

    bytes: NDArray[np.uint8]
    address: int


class HostMemory(ReadsInTurn):
    """Of `tapml.devices.interface.Device`: buffers, moving bytes, and that nothing is asked of it when it is closed."""

    def __init__(self) -> None:
        self._buffers: Handles[Buffer] = Handles("buffer")
        self._closed = False

    def allocate(self, nbytes: int) -> int:
        self._check_open()
        size = padded(nbytes)
        try:
            memory = np.empty(size + _ALIGNED, np.uint8)
        except MemoryError as error:
            raise OutOfMemory(f"could not allocate {size} bytes") from error
        start = -memory.ctypes.data % _ALIGNED
        data = memory[start : start + size]
        return self._buffers.add(Buffer(data, data.ctypes.data))

    def free(self, buffer: int) -> None:
        self._buffers.pop(buffer)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        memory = self._buffers[buffer].bytes
        view = memoryview(data).cast("B")
        check_range(len(memory), offset, view.nbytes)
        memory[offset : offset + view.nbytes] = np.frombuffer(view, np.uint8)

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        memory = self._buffers[buffer].bytes
        check_range(len(memory), offset, nbytes)
        return memory[offset : offset + nbytes].tobytes()

    def synchronize(self) -> None:
        self._check_open()

    def close(self) -> None:
        self._closed = True
        self._buffers.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the device is closed")
