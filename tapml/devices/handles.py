"""The table behind a device's handles: small integers that are never used twice, so that a stale one is always noticed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Handles(Generic[T]):
    """`kind` ("buffer", "kernel") is for messages. A handle that is not in the table is a mistake of the caller: ValueError."""

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
        state = "was freed" if 0 < handle < self._next else "was never handed out"
        return f"{self.kind} {handle} {state}; {len(self)} {self.kind}s are live"


def check_range(capacity: int, offset: int, nbytes: int) -> None:
    """Raises ValueError unless [offset, offset + nbytes) lies in a buffer of `capacity` bytes."""
    if offset < 0 or nbytes < 0 or offset + nbytes > capacity:
        raise ValueError(f"bytes {offset} to {offset + nbytes} are outside of a buffer of {capacity} bytes")


def check_arguments(entry: str, expected: int, given: int) -> None:
    """Raises ValueError unless a launch binds as many buffers as the kernel declares."""
    if expected != given:
        raise ValueError(f"kernel {entry} takes {expected} buffers; the launch binds {given}")
