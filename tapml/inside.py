"""Opening and making files in a folder that somebody else may have made, such as a run: only in it, and only regular files.

    data = read_file(run, "cases/case0.safetensors")     bytes; RunError for anything that is no regular file of the run
    path = path_in(run, "targets/opencl/kernels")          a path in the folder, with no symbolic link on the way
    with open_regular(path) as file: ...                 a file anywhere (a model's): no pipe, device or socket is ever waited for

A name is relative, with "/" between its parts and no ".." among them. Symbolic links below the folder are refused, whether they
lead out of it or not; the folder itself may be reached by one. That holds against what is in the folder when it is opened, not
against a process that changes it meanwhile: whoever can do that can write the user's files anyway.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tapml.errors import RunError, UsageError

LONGEST = 1000
# A file of a run that is read as a whole. Larger ones than this are no recordings.
LARGEST = 2**34


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a file's name in a folder. Raises ValueError for one that leads out of it, or that no file can have."""
    parts = tuple(name.split("/"))
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        parts = ()
    if not parts or len(name) > LONGEST or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name[:80]!a} is not the name of a file in this folder")
    return parts


def path_in(folder: Path, name: str) -> Path:
    """The path of a name in the folder, whether something is there or not. Raises RunError when the name leads out of the folder,
    or a symbolic link is on the way or at the end of it."""
    try:
        parts = parts_of(name)
    except ValueError as error:
        raise RunError(f"{folder} refers to a file outside of itself: {error}. Do not use this run.") from None
    path = folder
    for part in parts:
        path = path / part
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            break
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}.") from None
        if stat.S_ISLNK(status.st_mode):
            raise RunError(f"{path} is a symbolic link, and links in a run are not followed. Replace it with what it points to.")
    return folder.joinpath(*parts)


def is_file(folder: Path, name: str) -> bool:
    """Whether a regular file is there. Raises RunError as `path_in` does, and when something else is there."""
    path = path_in(folder, name)
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(status.st_mode):
        raise RunError(f"{path} is {_kind(status.st_mode)}, not a file. Remove it.")
    return True


def read_file(folder: Path, name: str, most: int = LARGEST) -> bytes:
    """A file's content. Raises RunError as `path_in` does, when it is no regular file, or has more than `most` bytes;
    FileNotFoundError when it is not there."""
    path = path_in(folder, name)
    with open_regular(path) as file:
        found = os.fstat(file.fileno()).st_size
        if found > most:
            raise RunError(f"{path} has {found:,} bytes, more than it can need ({most:,}).")
        return file.read(found)


@contextmanager
def open_regular(path: Path, refusal: type[UsageError] = RunError) -> Iterator[BinaryIO]:
    """A file, open for reading, that is a regular one: anything else is a RunError (or the given `refusal`) at once, and is
    neither waited for nor read. Raises FileNotFoundError when there is none, the refusal when it cannot be opened."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if isinstance(error, OSError) and error.errno == errno.ENXIO:
            why = "it is a socket or a pipe, not a file"
        raise refusal(f"{str(path)[:300]} cannot be read: {why}.") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise refusal(f"{path} is {_kind(mode)}, not a file.")
    with os.fdopen(handle, "rb") as file:
        yield file


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"), (stat.S_ISLNK, "a symbolic link"),
    )  # fmt: skip
    return next((word for test, word in kinds if test(mode)), "something else")
