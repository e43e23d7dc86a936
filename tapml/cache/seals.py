"""Seals: which files of the cache this installation made itself, from what their names say.

    seal("kernels/3f…", data)              32 bytes, a keyed digest (HMAC with SHA-256) of the name and the bytes
    sound("kernels/3f…", data, found)      whether that is the seal of this installation

The key is made once for each cache folder and lies in its file `secret`, readable for its owner only. Whoever can write a file
into the cache, from a backup or a shared disk, cannot make its seal; who can read the key is the user, against whom nothing
helps. A key that others could read is replaced, and everything that it sealed is made again.
"""

from __future__ import annotations

import functools
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from tapml.cache.folder import cache_folder
from tapml.private import not_private

BYTES = 32
FILE = "secret"


def seal(name: str, data: bytes) -> bytes:
    """Raises UsageError for a cache folder that is not our own, OSError where the key cannot be kept."""
    return hmac.digest(_key(cache_folder()), name.encode() + b"\0" + data, "sha256")


def sound(name: str, data: bytes, found: bytes) -> bool:
    """In a time that does not depend on how much of the seal is right. Raises as `seal`."""
    return hmac.compare_digest(seal(name, data), found)


@functools.lru_cache(maxsize=16)
def _key(folder: Path) -> bytes:
    path = folder / FILE
    if path.exists():
        key = path.read_bytes()
        if len(key) == BYTES and not not_private(path):
            return key
        path.unlink()
    handle, name = tempfile.mkstemp(prefix=".secret-", dir=folder)  # mkstemp makes it 0600
    made = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(BYTES))
        try:
            path.hardlink_to(made)  # fails if another process was first
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            made.replace(path)
    finally:
        made.unlink(missing_ok=True)
    return path.read_bytes()
