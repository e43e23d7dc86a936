"""The kernels behind a target's verdicts, kept in the run: one file a program, named by its digest.

    keep(folder, program)                       RUN/targets/opencl/kernels/<digest>.json
    program = kept(folder, verdict.kernel)      None when it is not there

A verdict names the digest of what ran. With the programs beside the journal a run shows its kernels on any machine: no kernel
cache, compiler or device is needed, and a kernel that a fault was injected into is shown as it ran. Files are written beside
their place and renamed, so a process that dies leaves none that is torn; equal programs are one file.
"""

from __future__ import annotations

import json
from pathlib import Path

from tapml import strict
from tapml.backends.interface import Compiled
from tapml.errors import RunError, UnavailableError
from tapml.inside import is_file, read_file
from tapml.kernels import Program
from tapml.whole_file import write_whole

KERNEL_FOLDER = "kernels"


def keep(folder: Path, program: Compiled) -> None:
    """Writes a program into a target's folder, unless it is there or has no text. Raises UnavailableError when the disk takes no
    more."""
    if not isinstance(program, Program) or there(folder, program.digest):
        return
    path = folder / _name(program.digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(program.to_json(), separators=(",", ":")))
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written ({error.strerror}). Make room there.") from error


def kept(folder: Path, digest: str) -> Program | None:
    """The program with this digest, as it ran; None when the folder does not have it. Raises RunError when the file is damaged or
    was changed."""
    if not there(folder, digest):
        return None
    path = folder / _name(digest)
    try:
        program = Program.from_json(strict.fields(strict.parse(read_file(folder, _name(digest)))))
    except strict.UNREADABLE as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}). Migrate again with --fresh.") from error
    if program.digest != digest:
        raise RunError(f"{path} was changed: its content is not what ran. Migrate again with --fresh.")
    return program


def there(folder: Path, digest: str) -> bool:
    """Whether the folder has the program with this digest. Raises RunError when something else than a file is in its place."""
    return is_file(folder, _name(digest))


def _name(digest: str) -> str:
    return f"{KERNEL_FOLDER}/{digest}.json"
