"""The table behind a device's handles, and the checks that every device makes in the same way.

What is caught here is a mistake of the caller, so it is a ValueError, on every device alike; but a kernel in another language
is refused as a driver would refuse it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from tapml.errors import DeviceError
from tapml.kernels import Kernel

T = TypeVar("T")


class Handles(Generic[T]):
    """Small integers that are never used twice, so that a stale one is always noticed. `kind` ("buffer", "kernel") is for
    messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[int, T] = {}
        self._next = 1

    def add(self, item: T) -> int:
        handle = self._next
        self._next += 1
        self._items[handle] = item
        return handle

    def __getitem__(self, handle: int) -> T:
        try:
            return self._items[handle]
        except KeyError:
            raise ValueError(self._unknown(handle)) from None

    def pop(self, handle: int) -> T:
        if handle not in self._items:
            raise ValueError(self._unknown(handle))
        return self._items.pop(handle)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._items.values()))

    def __len__(self) -> int:
        return len(self._items)

    def clear(self) -> None:
        self._items.clear()

    def _unknown(self, handle: int) -> str:
        state = "was given back" if 0 < handle < self._next else "was never issued"
        return f"{self.kind} {handle} {state}; {len(self)} {self.kind}s are live"


def pieces(offset: int, nbytes: int, most: int) -> list[tuple[int, int]]:
    """A transfer of `nbytes` bytes cut into (offset, size) of at most `most` bytes each; one empty piece for none."""
    return [(offset + start, min(most, nbytes - start)) for start in range(0, nbytes, most)] or [(offset, 0)]


def cut_reads(
    parts: Sequence[tuple[int, int, int]], capacities: Handles[int], most: int
) -> list[list[tuple[int, int, int]]]:
    """Each read (buffer, nbytes, offset), checked against its buffer, as reads of at most `most` bytes."""
    for buffer, nbytes, offset in parts:
        check_range(capacities[buffer], offset, nbytes)
    return [[(buffer, size, at) for at, size in pieces(offset, nbytes, most)] for buffer, nbytes, offset in parts]


def check_range(capacity: int, offset: int, nbytes: int) -> None:
    """[offset, offset + nbytes) must lie in a buffer of `capacity` bytes."""
    if offset < 0 or nbytes < 0 or offset + nbytes > capacity:
        raise ValueError(f"bytes {offset} to {offset + nbytes} are outside of a buffer of {capacity} bytes")


def check_binding(entry: str, access: Sequence[str], buffers: Sequence[int]) -> None:
    """A launch must bind as many buffers as the kernel declares, and one that is written to one argument only: kernels are
    compiled on the promise that their arguments do not overlap, and WebGPU forbids it."""
    if len(access) != len(buffers):
        raise ValueError(f"kernel {entry} takes {len(access)} buffers; the launch binds {len(buffers)}")
    if len(set(buffers)) != len(buffers):
        for mode, buffer in zip(access, buffers, strict=True):
            if mode != "read" and buffers.count(buffer) > 1:
                raise ValueError(f"kernel {entry} writes buffer {buffer}, which is also bound to another argument")


def check_language(name: str, language: str, kernel: Kernel) -> None:
    """A device called `name` takes kernels in its target's language only: any other is refused as a driver would refuse it."""
    if kernel.language != language:
        raise DeviceError("driver", f"{name} takes {language}, and kernel {kernel.entry} is {kernel.language}")
