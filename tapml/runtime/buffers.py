"""Memory on a device: buffers that are used again, and weights that are uploaded once.

    pool = BufferPool(device)
    buffer = pool.allocate(4096); …; pool.release(buffer)     a later allocate(4096) gets it again
    weights = WeightCache(pool)
    buffer = weights.get(digest, "float32", lambda: table.read(key))

Giving a buffer back right after submitting work that uses it is safe: launches run in order, so what a later user of the
buffer writes comes after.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from tapml.errors import ConnectionLost, DeviceError, DeviceLost, OutOfMemory
from tapml.tensors import HostArray, convert


class Memory(Protocol):
    """Where buffers lie; see `tapml.devices.interface.Device`."""

    def allocate(self, nbytes: int) -> int: ...

    def free(self, buffer: int) -> None: ...

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None: ...


class BufferPool:
    """Buffers by size. `in_use` counts bytes handed out, `held` those and the idle ones, `peak` the most ever held."""

    def __init__(self, device: Memory) -> None:
        self.device = device
        self.in_use = 0
        self.held = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._idle: dict[int, list[int]] = defaultdict(list)

    def allocate(self, nbytes: int) -> int:
        """A buffer of at least `nbytes` bytes, contents undefined. When the device has no room, idle buffers are freed and it
        is tried once more; then OutOfMemory."""
        size = padded(nbytes)
        if self._idle[size]:
            buffer = self._idle[size].pop()
        else:
            try:
                buffer = self.device.allocate(size)
            except OutOfMemory:
                if not self.trim():
                    raise
                buffer = self.device.allocate(size)
            self.held += size
            self.peak = max(self.peak, self.held)
        self._sizes[buffer] = size
        self.in_use += size
        return buffer

    def release(self, buffer: int) -> None:
        """Makes the buffer free for others. ValueError if it was not handed out by this pool."""
        if buffer not in self._sizes:
            raise ValueError(f"buffer {buffer} is not in use in this pool")
        size = self._sizes.pop(buffer)
        self.in_use -= size
        self._idle[size].append(buffer)

    @contextmanager
    def borrowed(self) -> Iterator[Callable[[int], int]]:
        """Allocates within a block, at whose end all of it is released; not after the device was lost, and all on it with it."""
        taken: list[int] = []

        def take(nbytes: int) -> int:
            taken.append(self.allocate(nbytes))
            return taken[-1]

        try:
            yield take
        except (DeviceLost, ConnectionLost):
            taken.clear()
            raise
        finally:
            for buffer in taken:
                self.release(buffer)

    def trim(self) -> int:
        """Frees the idle buffers on the device; returns how many bytes that were."""
        freed = 0
        for size, buffers in self._idle.items():
            for buffer in buffers:
                self.device.free(buffer)
                freed += size
        self._idle.clear()
        self.held -= freed
        return freed

    def clear(self) -> None:
        """Frees all buffers on the device, those that were handed out too."""
        for buffer in self._sizes:
            self.device.free(buffer)
        self.held -= self.in_use
        self.in_use = 0
        self._sizes.clear()
        self.trim()


class WeightCache:
    """Weights on the device by (content digest, dtype they are stored in). `bytes` counts what is there."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool
        self._buffers: dict[tuple[str, str], int] = {}
        self._sizes: dict[tuple[str, str], int] = {}
        self.bytes = 0

    def get(self, digest: str, dtype: str, read: Callable[[], HostArray]) -> int:
        """The buffer with the weight; `read` gives its host array and is called only the first time."""
        key = (digest, dtype)
        if key in self._buffers:
            return self._buffers[key]
        array = convert(read(), dtype)
        buffer = self._pool.allocate(array.nbytes)
        try:
            self._pool.device.write(buffer, as_bytes(array), keep=True)
        except DeviceError:
            self._pool.release(buffer)
            raise
        self._buffers[key] = buffer
        self._sizes[key] = array.nbytes
        self.bytes += array.nbytes
        return buffer

    def drop(self, digest: str, dtype: str) -> None:
        """Gives one weight's buffer back to the pool, if it is there."""
        buffer = self._buffers.pop((digest, dtype), None)
        if buffer is not None:
            self.bytes -= self._sizes.pop((digest, dtype))
            self._pool.release(buffer)

    def clear(self) -> None:
        for digest, dtype in list(self._buffers):
            self.drop(digest, dtype)


def as_bytes(array: HostArray) -> memoryview:
    """The bytes of a C-contiguous array, without a copy; also of dtypes that the buffer protocol does not know (bfloat16)."""
    return array.reshape(-1).view("uint8").data


def padded(nbytes: int) -> int:
    """The size that a device allocates for `nbytes`: whole 32-bit words, at least one."""
    if nbytes < 0:
        raise ValueError(f"a buffer cannot have {nbytes} bytes")
    return max(4, (nbytes + 3) // 4 * 4)
