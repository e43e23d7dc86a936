"""Folders and files that are this user's own: nobody else can write in them, and what is secret nobody else can read.

    private_folder(folder, "the cache folder")      made with mode 0700 if it is not there; refused if it is not our own
    not_private(path)                               why a secret file is none: another owner, or others can read or write it

On systems without owners and modes (Windows) everything passes: a user's folders are private there from the start.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tapml.errors import UsageError

# Where the token of a hub is found: what runs kernels of others must not see it.
TOKEN_VARIABLE = "TAPML_HUB_TOKEN"


def private_folder(folder: Path, what: str) -> Path:
    """Makes it, or checks it. `what` names it in the error. Raises UsageError where another user owns it or can write in it,
    OSError where it cannot be made."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not hasattr(os, "geteuid"):
        return folder
    status = folder.stat()
    wrong = ""
    if status.st_uid != os.geteuid():
        wrong = f"belongs to another user (number {status.st_uid})"
    elif status.st_mode & 0o022:
        wrong = f"can be written by other users (mode {status.st_mode & 0o7777:04o})"
    if wrong:
        raise UsageError(
            f"{what[:1].upper()}{what[1:]} {folder} {wrong}, so what is in it may not be yours. Remove it, or name another; if "
            f"you trust what is in it: chmod 700 {folder}"
        )
    if status.st_mode & 0o077:
        with contextlib.suppress(OSError):
            folder.chmod(0o700)
    return folder


def not_private(path: Path) -> str:
    """What is wrong with a file that only its owner should read and write; "" where nothing is. OSError where there is none."""
    if not hasattr(os, "geteuid"):
        return ""
    status = path.stat()
    if status.st_uid != os.geteuid():
        return f"belongs to another user (number {status.st_uid})"
    if status.st_mode & 0o077:
        return f"can be read or written by other users (mode {status.st_mode & 0o7777:04o})"
    return ""
