"""Folders of the cache whose files can be made again at any time, so that they have a bound: what was used longest ago goes.

    folder = Bounded(cache_folder() / "cpu")
    folder.used(path)                  it is wanted: its time is now
    folder.fits(nbytes)                whether a file of that size is kept at all
    folder.added(nbytes)               one more; removes others where there are too many bytes

The bound is 1 GiB for each such folder (`kernels`, `cpu`, `opencl`), or what `TAPML_CACHE_LIMIT` says, as in 500M. A file larger
than a quarter of it is not kept. Several processes may share a folder: each counts what was there when it came and what it added,
so the bound may be exceeded by what others added since.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from pathlib import Path

from tapml.errors import UsageError

DEFAULT = 2**30
VARIABLE = "TAPML_CACHE_LIMIT"
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

# Of the bound, what is left after tidying up.
KEPT = 0.75


class Bounded:
    """Thread-safe. `limit` in bytes; the default is that of the environment. Raises UsageError for a value that is not a size."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self.limit = limit_of_environment() if limit is None else limit
        self._lock = threading.Lock()
        self._known: int | None = None

    def used(self, path: Path) -> None:
        """Its time of change is the time of its last use."""
        with contextlib.suppress(OSError):
            os.utime(path)

    def fits(self, nbytes: int) -> bool:
        return nbytes <= self.limit // 4

    def added(self, nbytes: int) -> None:
        """A file of that many bytes was put into the folder just now."""
        with self._lock:
            if self._known is None:
                self._known = sum(size for _, size, _ in self._files())
            else:
                self._known += nbytes
            if self._known > self.limit:
                self._known = self._tidy()

    def _tidy(self) -> int:
        """Removes what was used longest ago; returns the bytes that are left."""
        files = sorted(self._files())
        left = sum(size for _, size, _ in files)
        for _, size, path in files:
            if left <= self.limit * KEPT:
                break
            with contextlib.suppress(OSError):
                Path(path).unlink()
                left -= size
        return left

    def _files(self) -> list[tuple[float, int, str]]:
        """Last use, bytes and path of each."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    status = os.lstat(f"{folder}/{name}")
                    found.append((status.st_mtime, status.st_size, f"{folder}/{name}"))
        return found


@functools.cache
def bounded(folder: Path, limit: int) -> Bounded:
    """The same for all of this process that use the folder."""
    return Bounded(folder, limit)


def limit_of_environment() -> int:
    """Bytes. Raises UsageError."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return DEFAULT
    digits, unit = (text[:-1], text[-1].upper()) if text[-1].isalpha() else (text, "")
    try:
        nbytes = int(float(digits) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        nbytes = 0
    if nbytes < 1:
        raise UsageError(f"{VARIABLE}={text} is not a size, such as 500M or 2G.")
    return nbytes
