"""How fast a device copies its own memory: what other speeds of memory are held against.

    found = copy_speed(device, target.language)
    found.bytes_per_second                             each byte counted twice: it is read, and it is written

Two buffers of 128 MiB (less where the device allows less) are copied to each other in turn by a kernel of one 16-byte word an
invocation, or of one loop where the language has no threads. So many copies are submitted together that they take about
`SECONDS`, which makes the way to the device small beside them; of `repeat` such batches the fastest counts, as in STREAM
(McCalpin, 1995). Both buffers have been written before the clock runs, and marks at both ends of them say whether the kernel
copied.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tapml.devices.interface import Device, Launch
from tapml.errors import DeviceError, NotSupported
from tapml.kernels import Kernel
from tapml.languages import LANGUAGES
from tapml.languages.language import COPY, COPY_BLOCK, COPY_WORD

LARGEST = 2**27
SECONDS = 0.25
MOST_COPIES = 4096
MARK = bytes(range(256)) * 4


@dataclass(frozen=True)
class CopySpeed:
    """`nbytes` of each buffer, `copies` in a batch, `seconds` of each batch."""

    nbytes: int
    copies: int
    seconds: tuple[float, ...]

    @property
    def bytes_per_second(self) -> float:
        return 2 * self.nbytes * self.copies / min(self.seconds)

    def to_json(self) -> dict[str, Any]:
        return {
            "bytes": self.nbytes, "copies": self.copies, "seconds": list(self.seconds),
            "bytes_per_second": self.bytes_per_second,
        }  # fmt: skip


def copy_kernel(language: str, nbytes: int) -> Kernel:
    """It copies so many bytes, a multiple of `COPY_WORD * COPY_BLOCK`. Raises NotSupported for a language without one."""
    known = LANGUAGES[language]
    if known.copy is None:
        raise NotSupported(f"there is no kernel in {known.title} that copies memory")
    words = nbytes // COPY_WORD
    grid, block = (words // COPY_BLOCK, COPY_BLOCK) if known.threads else (1, 1)
    return Kernel(language, COPY, known.copy(words), ("read", "read_write"), (grid, 1, 1), (block, 1, 1))


def copy_speed(
    device: Device, language: str, nbytes: int = LARGEST, repeat: int = 5, seconds: float = SECONDS
) -> CopySpeed:
    """Raises NotSupported for a language without such a kernel, OutOfMemory where two buffers have no room; DeviceError, also
    where the kernel did not copy, and DeviceLost from the device."""
    most = device.info.limits.largest_buffer
    unit = COPY_WORD * COPY_BLOCK
    nbytes = max(unit, min(nbytes, nbytes if most is None else most) // unit * unit)
    kernel = device.load(copy_kernel(language, nbytes))
    buffers: list[int] = []
    try:
        for _ in range(2):
            buffers.append(device.allocate(nbytes))
        return _timed(device, kernel, (buffers[0], buffers[1]), nbytes, repeat, seconds)
    finally:
        device.unload(kernel)
        for buffer in buffers:
            device.free(buffer)


def _timed(
    device: Device, kernel: int, buffers: tuple[int, int], nbytes: int, repeat: int, seconds: float
) -> CopySpeed:
    there, back = Launch(kernel, buffers), Launch(kernel, buffers[::-1])
    last = nbytes - len(MARK)
    for offset in (0, last):
        device.write(buffers[0], MARK, offset)
        device.write(buffers[1], bytes(len(MARK)), offset)

    def took(batch: tuple[Launch, ...]) -> float:
        device.synchronize()
        started = time.perf_counter()
        device.run(batch)
        device.synchronize()
        return time.perf_counter() - started

    took((there,))
    for buffer in buffers:
        if device.read(buffer, len(MARK)) != MARK or device.read(buffer, len(MARK), last) != MARK:
            raise DeviceError("launch", f"the kernel that copies memory did not copy on {device.info.name}")
    batch: tuple[Launch, ...] = (back, there)
    while took(batch) < seconds and len(batch) < MOST_COPIES:
        batch *= 2
    return CopySpeed(nbytes, len(batch), tuple(took(batch) for _ in range(repeat)))
