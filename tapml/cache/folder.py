"""The cache folder: where converted models, and weights that no file of a model holds, are kept between commands.

It is `$TAPML_CACHE`, or `~/.cache/tapml`, and the user's own: mode 0700, and refused where others can write. Everything in it can
be made again: deleting it costs time, nothing else (runs that refer to weights in it then say that the model must be carved
again).

    folder = keep("gguf", key, fill)        the folder filled by an earlier call, or by fill(folder) now; never half of it
    file_digest(path)                       hash of a file's bytes

A kept folder holds `sealed.json`: size, time and hash of each of its files. A folder in which a file is missing or differs is
built again. A file whose size and time are as sealed is not hashed again, so opening is cheap. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tapml.errors import UsageError, message_of
from tapml.private import private_folder

SEAL = "sealed.json"


def cache_folder() -> Path:
    """The folder, created for its owner only if it is not there. Raises UsageError when that is impossible, and for a folder that
    another user owns or can write in."""
    folder = Path(os.environ.get("TAPML_CACHE") or Path.home() / ".cache" / "tapml").expanduser()
    try:
        return private_folder(folder, "the cache folder")
    except OSError as error:
        why = error.strerror or message_of(error)
        raise UsageError(f"The cache folder {folder} cannot be made: {why}. Set TAPML_CACHE to a writable one.") from error


def file_digest(path: Path) -> str:
    """blake2b of the file's bytes, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def keep(kind: str, key: str, fill: Callable[[Path], None]) -> Path:
    """The sealed folder `kind/key` of the cache, made by `fill` if it is missing or damaged.

    `fill` gets an empty temporary folder beside it, which is renamed when complete, so that a reader never sees half of one, also
    when several processes fill it at once. Raises UsageError when there is no room."""
    final = cache_folder() / kind / key
    if _sound(final):
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{key[:16]}-", dir=final.parent))
    try:
        fill(partial)
        _seal(partial)
        if final.exists() and not _sound(final):
            shutil.rmtree(final)
        try:
            partial.rename(final)
        except OSError:
            # Another process may have put it there first: what counts is that a sound one is there.
            if not _sound(final):
                raise
    except OSError as error:
        raise UsageError(
            f"The cache folder {final.parent} could not be written: {error.strerror or message_of(error)}. Make room, or set "
            "TAPML_CACHE to another disk."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _seal(folder: Path) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        status = path.stat()
        files[str(path.relative_to(folder))] = {"size": status.st_size, "time": status.st_mtime_ns, "digest": file_digest(path)}
    (folder / SEAL).write_text(json.dumps(files, indent=1))


def _sound(folder: Path) -> bool:
    try:
        files = json.loads((folder / SEAL).read_text())
        for name, sealed in files.items():
            status = (folder / name).stat()
            if status.st_size != sealed["size"]:
                return False
            if status.st_mtime_ns != sealed["time"] and file_digest(folder / name) != sealed["digest"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True
