"""Writing a run: into PATH.partial, which becomes PATH by one rename when all is there.

So a folder with a `run.json` is whole, and a carve that was killed, or that filled the disk, leaves nothing that could be
taken for a run. What the files hold is up to the callers; reading is `tapml.carving.folder`.

    with RunWriter.create(path) as run:
        run.lines("graphs.jsonl", [...])
        run.arrays("cases/case0.safetensors", {...})
        run.finish({...})                       the rename

Leaving the block without `finish` removes the partial folder. One process writes a run at a time (a lock beside it). A disk
that is full, or a quota, becomes a RunError that says so.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import tapml
from tapml.cache.folder import file_digest
from tapml.carving import layout
from tapml.carving.arrays import pack
from tapml.errors import RunError
from tapml.manifest import SEAL, digest, seal
from tapml.tensors import HostArray
from tapml.verdicts import finite
from tapml.whole_file import why_not

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "a file may not be that large"}


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turns the system's "no space left" while writing to `path` into a RunError that says how much is free."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(_existing(path)).free / 2**20
        raise RunError(
            f"Cannot write {error.filename or path}: {_FULL[error.errno]} ({free:.0f} MiB free). Nothing was left behind. Make "
            "room, choose another place with -o, or keep less with --cases and --decode-steps."
        ) from error


def refuse_taken(path: Path, fresh: bool) -> None:
    """Raises RunError when something is at `path` that a carve may not replace, or nothing can be made there. Cheap: asked before
    a model is loaded, too."""
    if path.exists() and not _is_empty(path):
        if not (path / layout.MANIFEST).is_file():
            raise RunError(f"{path} exists and is not a run of TapML, so it was left as it is. Choose another place with -o.")
        if not fresh:
            raise RunError(
                f"{path} already holds a run. Use it (tapml test {path} --target …), replace it with --fresh, or choose "
                "another place with -o."
            )
    _refuse_no_place(path)


def _refuse_no_place(path: Path) -> None:
    """Raises RunError when no run can be made at `path`, because of what is above it. A full disk is said later, with numbers."""
    above = _existing(path.parent)
    reason = "that is a file" if not above.is_dir() else why_not(above)
    if reason and reason not in {os.strerror(number) for number in _FULL}:
        raise RunError(f"Cannot write a run at {path}: {above} cannot be written ({reason}). Choose another place with -o.")


class RunWriter:
    """See the module's docstring. Made by `create`."""

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        self.path = path
        self.partial = path.with_name(path.name + layout.PARTIAL)
        self._lock = lock
        self._finished = False

    @staticmethod
    def create(path: Path, fresh: bool = False) -> RunWriter:
        """Prepares PATH.partial. Raises RunError when PATH exists: a finished run is replaced only with `fresh` (when the
        new one is finished), anything else never. What a killed carve left is removed."""
        path = path.resolve()
        refuse_taken(path, fresh)
        with clear_disk_errors(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = path.with_name(path.name + layout.LOCK).open("ab")
            except (FileExistsError, NotADirectoryError, FileNotFoundError, PermissionError) as error:
                raise RunError(f"Cannot write a run at {path}: {error.strerror}. Choose another place with -o.") from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock.fileno()).st_nlink == 0:
                    raise BlockingIOError  # the process that held it has just removed it
            except OSError:
                lock.close()
                raise RunError(f"Another process is carving to {path} right now. Wait for it, or use another -o.") from None
            run = RunWriter(path, lock)
            try:
                if run.partial.exists():
                    shutil.rmtree(run.partial)
                run.partial.mkdir()
            except BaseException:
                run._unlock()
                raise
        return run

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._finished:
            shutil.rmtree(self.partial, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        self.path.with_name(self.path.name + layout.LOCK).unlink(missing_ok=True)
        self._lock.close()

    def lines(self, name: str, records: Iterable[Any]) -> None:
        """Writes a table: one JSON value a line, infinities and NaN as `tapml.verdicts.finite` has them."""
        with clear_disk_errors(self.path), (self.partial / name).open("w", encoding="utf-8") as file:
            for record in records:
                file.write(json.dumps(finite(record), separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n")

    def arrays(self, name: str, arrays: dict[str, HostArray]) -> int:
        """Writes a safetensors file and says how many bytes it has."""
        data = pack(arrays)
        self._bytes(name, data)
        return len(data)

    def text(self, name: str, text: str) -> None:
        self._bytes(name, text.encode())

    def _bytes(self, name: str, data: bytes) -> None:
        target = self.partial / name
        with clear_disk_errors(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def remove(self, name: str) -> None:
        (self.partial / name).unlink()

    def rename(self, old: str, new: str) -> None:
        with clear_disk_errors(self.path):
            (self.partial / old).rename(self.partial / new)

    def _files(self) -> list[str]:
        """What tables refer to, and what else is read later, as it lies there now."""
        folders = (layout.CASE_FOLDER, layout.STATE_FOLDER, layout.INPUT_FOLDER)
        found = [path for folder in folders for path in (self.partial / folder).glob("*")]
        found += [path for name in (layout.TOKENIZER, layout.CHAT) if (path := self.partial / name).is_file()]
        return sorted(path.relative_to(self.partial).as_posix() for path in found)

    def size(self) -> int:
        """Bytes of all files written so far."""
        return sum(p.stat().st_size for p in self.partial.rglob("*") if p.is_file())

    def finish(self, manifest: dict[str, Any]) -> None:
        """Adds format, version and digests (of all files but `tests/`, which people may edit) to the manifest, writes it, and
        puts the run in its place."""
        tables = {name: _table(self.partial / name) for name in layout.TABLES}
        files = {name: file_digest(self.partial / name) for name in self._files()}
        head = {
            "format": layout.FORMAT,
            "format_version": layout.FORMAT_VERSION,
            "version": tapml.__version__,
            "digest": digest(json.dumps([tables, files], sort_keys=True).encode()),
            "tables": tables,
            "files": files,
        }
        whole = head | manifest
        whole[SEAL] = seal(whole)
        self.text(layout.MANIFEST, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        with clear_disk_errors(self.path):
            old = self.path.with_name(self.path.name + ".replaced")
            if old.exists():
                shutil.rmtree(old)
            if self.path.exists():
                self.path.rename(old)
            self.partial.rename(self.path)
            self._finished = True
            if old.exists():
                shutil.rmtree(old)


def _table(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"lines": sum(1 for _ in file), "digest": file_digest(path)}


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
