"""Messages over pipes: a MessagePack list, then raw bytes, under one small header.

    header   8 bytes little-endian: length of the list (uint32), length of the bytes (uint32)

`FrameReader` and `FrameWriter` can wait with a time limit, and never wait for a peer that has gone: its pipe breaks, and
that is `PeerGone`. Nothing is evaluated, and a list longer than LIST_LIMIT is refused.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time
from typing import Any

import msgpack

HEADER = struct.Struct("<II")
LIST_LIMIT = 256 * 2**20
# Larger transfers are split into frames of at most this many raw bytes.
PIECE = 16 * 2**20


class PeerGone(Exception):
    """The other end of the pipe is closed, or sent something that is no frame."""


class TooLate(Exception):
    """The time limit ended before the frame was through."""


class FrameWriter:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def send(self, message: list[Any], payload: memoryview | bytes = b"", until: float | None = None) -> None:
        """`until` is a time of `time.monotonic`; None waits as long as the peer lives."""
        data = msgpack.packb(message)
        view = memoryview(payload).cast("B")
        parts = [memoryview(HEADER.pack(len(data), view.nbytes) + data), view]
        while parts:
            try:
                sent = os.writev(self._descriptor, parts)
            except BlockingIOError:
                _wait(self._poll, until)
                continue
            except OSError as error:
                raise PeerGone(f"cannot write: {error.strerror}") from error
            while parts and sent >= parts[0].nbytes:
                sent -= parts.pop(0).nbytes
            if parts:
                parts[0] = parts[0][sent:]


class FrameReader:
    """`limit` is how many bytes a list may have. `peer` is the process at the other end, where it is known: when it has ended it
    is gone, although something that it started may hold its end of the pipe."""

    def __init__(self, descriptor: int, limit: int = LIST_LIMIT, peer: int | None = None) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._peer = -1
        os.set_blocking(descriptor, False)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        if peer is not None and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._peer = os.pidfd_open(peer)
                self._poll.register(self._peer, select.POLLIN)

    def close(self) -> None:
        """The pipe itself stays open. May be called twice."""
        if self._peer >= 0:
            self._poll.unregister(self._peer)
            os.close(self._peer)
            self._peer = -1

    def receive(self, until: float | None = None) -> tuple[list[Any], bytearray]:
        header = self._exactly(HEADER.size, until)
        length, raw = HEADER.unpack(header)
        if length > self._limit or raw > PIECE:
            raise PeerGone(f"a frame of {length} + {raw} bytes is not one of ours")
        data = self._exactly(length, until)
        payload = self._exactly(raw, until)
        try:
            message = msgpack.unpackb(data)
        except ValueError as error:
            raise PeerGone(f"not MessagePack: {error}") from error
        if not isinstance(message, list) or not message:
            raise PeerGone("a frame without a list")
        return message, payload

    def _exactly(self, nbytes: int, until: float | None) -> bytearray:
        data = bytearray(nbytes)
        view = memoryview(data)
        ended = False
        while view.nbytes:
            try:
                got = os.readv(self._descriptor, [view])
            except BlockingIOError:
                if ended:
                    raise PeerGone("its process has ended") from None
                ended = self._peer in _wait(self._poll, until)
                continue
            except OSError as error:
                raise PeerGone(f"cannot read: {error.strerror}") from error
            if got == 0:
                raise PeerGone("the pipe is closed")
            view = view[got:]
        return data


def _wait(poll: select.poll, until: float | None) -> set[int]:
    """The descriptors that have something to read."""
    if until is None:
        return {descriptor for descriptor, _ in poll.poll()}
    left = until - time.monotonic()
    ready = poll.poll(left * 1000) if left > 0 else []
    if not ready:
        raise TooLate
    return {descriptor for descriptor, _ in ready}


def widen(descriptor: int) -> None:
    """Makes a pipe hold 1 MiB where the system can, for fewer switches between the processes."""
    import fcntl

    size = getattr(fcntl, "F_SETPIPE_SZ", None)
    if size is not None:
        try:
            fcntl.fcntl(descriptor, size, 2**20)
        except OSError:
            return  # over the user's quota of pipe memory: it stays as it is
