"""What a device remembers by content: weights and kernels, each under its SHA-256 digest, so that they are sent once.

    store = Store(budget=2 * 2**30)
    shelf = store.begin()                            a session starts; one at a time
    shelf.listed, shelf.room                         digests that stay until its end, and the bytes that it may add
    shelf.keep(digest, total, offset, piece)         in order; the last piece completes it, if the digest is right
    for piece in shelf.pieces(digest): …             its bytes, as they came
    shelf.end()                                      what is older makes room for the next session

Everything is in memory, never in a file. Nothing is allocated because a message says how large something will be: a thing
grows by the bytes that came. Nothing is forgotten during a session. At its end what was not used for longest goes, until half
of the budget is free. What that session used stays, since the next one is likely to be of the same model, but for what must go so
that there is some room at all: kernels have no other way to the device.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from tapml.remote.wire import PIECE

MOST_BUDGET = 2 * 2**30

# As many digests as the answer to `open` can list, and as many things as there can be during a session.
LISTED = 8192
MOST_THINGS = 65536

# What is free when a session begins; a quarter of the budget where that is less.
FREE = 2**25

# Smaller pieces are gathered, so that a thing that comes byte by byte does not cost more memory than it has bytes.
SMALL = 2**16


class NoRoom(Exception):
    """The store's budget is used up."""


def default_budget() -> int:
    """2 GiB, or an eighth of the machine's memory where that is less."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return MOST_BUDGET // 4
    return min(MOST_BUDGET, memory // 8)


class Store:
    """Things by digest, the one used longest ago first. Thread-safe."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._things: dict[bytes, tuple[bytes | bytearray, ...]] = {}
        self._used = 0
        self._shelf: Shelf | None = None

    @property
    def used(self) -> int:
        """Bytes that are stored."""
        return self._used

    def begin(self) -> Shelf:
        """A session's view of the store. One that was not ended ends now."""
        if self._shelf is not None:
            self._shelf.end()
        with self._lock:
            self._shelf = Shelf(self, tuple(self._things), max(0, self.budget - self._used), self._lock)
            return self._shelf

    def _trim(self, used: dict[bytes, None]) -> None:
        """Forgets what is older than the session that ends, which used these, in this order."""
        for digest in used:
            self._things[digest] = self._things.pop(digest)
        most = self.budget - min(FREE, self.budget // 4)
        for digest in list(self._things):
            if self._used <= self.budget // 2 and len(self._things) <= LISTED // 2:
                return
            if digest not in used or self._used > most or len(self._things) > LISTED:
                self._used -= _size(self._things.pop(digest))


class Shelf:
    """The store as one session sees it. After `end`, or when another session has begun, every call is a ValueError."""

    def __init__(self, store: Store, listed: Sequence[bytes], room: int, lock: threading.Lock) -> None:
        self.listed = listed
        self.room = room
        self._store = store
        self._lock = lock
        self._used: dict[bytes, None] = {}
        self._ended = False
        self._coming: _Coming | None = None

    def keep(self, digest: bytes, total: int, offset: int, data: bytes) -> None:
        """Takes the next piece; what is there already is not kept twice. Raises NoRoom when the whole would not fit, ValueError
        when the pieces are out of order or are not what the digest says."""
        with self._lock:
            self._check()
            if digest in self._store._things:
                self._used[digest] = None
                return
            if offset == 0:
                self._begin(digest, total)
            coming = self._coming
            if coming is None or (coming.digest, coming.total, coming.nbytes) != (digest, total, offset):
                self._coming = None
                raise ValueError(f"a piece at {offset} of {digest.hex()[:16]} does not follow what came before")
            try:
                coming.add(data)
            except ValueError:
                self._coming = None
                raise
            if coming.nbytes == total:
                self._coming = None
                coming.check()
                self._store._things[digest] = tuple(coming.pieces)
                self._store._used += total
                self._used[digest] = None
                self.room -= total

    def _begin(self, digest: bytes, total: int) -> None:
        self._coming = None
        if total > self.room:
            raise NoRoom(f"The store has room for {self.room} more bytes, not for {total}.")
        if len(self._store._things) >= MOST_THINGS:
            raise NoRoom(f"The store holds {MOST_THINGS} things and accepts no more in this session.")
        self._coming = _Coming(digest, total)

    def pieces(self, digest: bytes) -> tuple[bytes | bytearray, ...]:
        """What is stored under a digest, in order. ValueError if it is not there."""
        with self._lock:
            self._check()
            found = self._store._things.get(digest)
            if found is None:
                raise ValueError(f"nothing is stored under {digest.hex()[:16]}")
            self._used[digest] = None
            return found

    def end(self) -> None:
        """May be called twice."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._coming = None
                self._store._trim(self._used)

    def _check(self) -> None:
        if self._ended:
            raise ValueError("the session has ended")


class _Coming:
    """A thing whose pieces are still coming."""

    def __init__(self, digest: bytes, total: int) -> None:
        self.digest = digest
        self.total = total
        self.nbytes = 0
        self.pieces: list[bytes | bytearray] = []
        self._hash: Any = hashlib.sha256()

    def add(self, data: bytes) -> None:
        if self.nbytes + len(data) > self.total:
            raise ValueError(f"more than the {self.total} bytes that were announced for {self.digest.hex()[:16]}")
        self._hash.update(data)
        self.nbytes += len(data)
        last = self.pieces[-1] if self.pieces else None
        if len(data) >= SMALL:
            self.pieces.append(data)
        elif isinstance(last, bytearray) and len(last) + len(data) <= PIECE:
            last += data
        elif data:
            self.pieces.append(bytearray(data))

    def check(self) -> None:
        if self._hash.digest() != self.digest:
            raise ValueError(f"what came for {self.digest.hex()[:16]} has another digest")


def _size(pieces: Sequence[bytes | bytearray]) -> int:
    return sum(map(len, pieces))
