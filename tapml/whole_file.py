"""Writing a file or a folder whole or not at all: what was there stays until the new one is complete.

    write_whole(Path("report.html"), "<!doctype html>…")
    with whole_folder(Path("cases")) as partial: ...            files go into `partial`

Several threads and processes may write the same file: the last one's stays. Pipes and devices (/dev/null, /dev/stdout) are
written as they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"  # behind the name of a folder that is not complete


def why_not(folder: Path) -> str:
    """Why nothing can be written in a folder, in the system's words; "" when something can. Tried by writing, since permissions
    do not tell of a file system that takes none, or of a full disk."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def write_whole(path: Path, content: str | bytes) -> None:
    """Text as UTF-8. Raises OSError with the file's name, also for a full disk."""
    place = path.resolve()
    if place.exists() and not place.is_file():
        _write(place, content)
        return
    partial = place.with_name(f".{os.getpid()}.{threading.get_ident()}")
    try:
        _write(partial, content)
        partial.replace(place)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """An empty folder beside `place`, an absolute path, that takes its place, and that of what is there, at the end of the block.
    After an error nothing is left of it. Raises OSError."""
    partial = place.with_name(place.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        if place.exists():
            shutil.rmtree(place)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, content: str | bytes) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")
