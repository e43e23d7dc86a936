"""What a device remembers by its SHA-256, so that it is sent once: weights, kernels, recorded inputs, runs of one byte.

    content = Content(post)
    content.opened(stored, room)                 what the device said when the session began
    content.write(buffer, view, offset, keep)    as `put` where the device has it or may keep it, else as it is
    content.kernel(kernel)                       the digest to load it by; None where the store has no room
    content.uploaded                             bytes of content that were sent

`post` takes a request and how many bytes of content are in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from tapml.devices.handles import pieces
from tapml.kernels import Kernel
from tapml.remote.wire import PIECE

# Content of fewer bytes is not worth a digest.
LEAST_KEPT = 512
# The sizes in which runs of one byte are cut.
RUNS = (2**20, 2**16)
# Of the store's room, what is left for kernels, which have no other way to the device; a quarter where that is less.
FOR_KERNELS = 2**25


class Content:
    """See the module's docstring."""

    def __init__(self, post: Callable[[list[Any], int], None]) -> None:
        self.uploaded = 0
        self._post = post
        self._stored: set[bytes] = set()
        self._room = self._for_kernels = 0
        self._kernels: dict[str, bytes] = {}
        self._runs: dict[tuple[int, int], bytes] = {}

    def opened(self, stored: Iterable[bytes], room: int) -> None:
        """`stored`: digests that stay until the session ends; `room`: bytes that may be added to them."""
        self._stored = set(stored)
        self._room = room
        self._for_kernels = min(FOR_KERNELS, room // 4)

    def write(self, buffer: int, view: memoryview, offset: int, keep: bool) -> None:
        """`view` of bytes. With `keep`, what is likely to be written again."""
        if view.nbytes >= LEAST_KEPT and _is_run(view):
            self._write_run(buffer, view[0], offset, view.nbytes)
        elif not (keep and view.nbytes >= LEAST_KEPT and self._put(buffer, view, offset)):
            for at, size in pieces(0, view.nbytes, PIECE) if view.nbytes else ():
                self._upload(["write", buffer, offset + at], view[at : at + size])

    def kernel(self, kernel: Kernel) -> bytes | None:
        digest = self._kernels.get(kernel.digest)
        if digest is None:
            text = json.dumps(kernel.to_json(), separators=(",", ":")).encode()
            digest = hashlib.sha256(text).digest()
            if digest not in self._stored and not self._keep(digest, memoryview(text), 0):
                return None
            self._kernels[kernel.digest] = digest
        return digest

    def _put(self, buffer: int, view: memoryview, offset: int) -> bool:
        """Writes by digest; False where the store has no room."""
        digest = hashlib.sha256(view).digest()
        if digest not in self._stored and not self._keep(digest, view, self._for_kernels):
            return False
        self._post(["put", buffer, offset, digest], 0)
        return True

    def _write_run(self, buffer: int, byte: int, offset: int, nbytes: int) -> None:
        """The same byte so often: in pieces of the sizes of `RUNS`, which all runs share, and one for the rest."""
        end = offset + nbytes
        while offset < end:
            size = next((size for size in RUNS if size <= end - offset), end - offset)
            digest = self._runs.get((byte, size))
            if digest is None:
                run = memoryview(bytes([byte]) * size)
                digest = hashlib.sha256(run).digest()
                if size < LEAST_KEPT or (digest not in self._stored and not self._keep(digest, run, self._for_kernels)):
                    self._upload(["write", buffer, offset], run)
                    offset += size
                    continue
                self._runs[byte, size] = digest
            self._post(["put", buffer, offset, digest], 0)
            offset += size

    def _keep(self, digest: bytes, view: memoryview, left: int) -> bool:
        """Gives the device something to remember, if `left` bytes of room stay."""
        if view.nbytes + left > self._room:
            return False
        for at, size in pieces(0, view.nbytes, PIECE):
            self._upload(["keep", digest, view.nbytes, at], view[at : at + size])
        self._room -= view.nbytes
        self._stored.add(digest)
        return True

    def _upload(self, request: list[Any], view: memoryview) -> None:
        self.uploaded += view.nbytes
        self._post([*request, bytes(view)], view.nbytes)


def _is_run(view: memoryview) -> bool:
    """Whether all bytes are the same."""
    first = view[:1].tobytes()
    if view[:LEAST_KEPT].tobytes() != first * LEAST_KEPT:
        return False
    run = first * min(PIECE, view.nbytes)
    return all(view[at : at + size].tobytes() == run[:size] for at, size in pieces(0, view.nbytes, PIECE))
