"""The journal of a migration: what was found so far, one JSON record a line, safe against being killed at any moment.

The first line is the header: which run, target, device, injected fault and version the records belong to. Every other
line has a "record" field that says what it is; what the records mean is up to `tapml.migrate.migrate`. A journal whose last
record is "done" is finished.

Invariants. A record is on disk (written and fsynced) before anybody is told of it. A process that dies while writing leaves
at most one torn line, the last; opening the journal again cuts it off. So what was told is never lost, and what is replayed
is exactly what was told, plus at most one batch of records that nobody heard of. One process writes a journal at a time: a POSIX
record lock on a file beside it, which the kernel drops with the process, and which child processes do not inherit.

    with Journal.open(folder / "migrate.jsonl", header, resume=True) as journal:
        for record in journal.replayed: ...
        journal.append({"record": "verdict", ...})
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tapml.errors import RunError, UnavailableError
from tapml.inside import is_file, read_file

FORMAT = 1

_held: set[str] = set()


@dataclass(frozen=True)
class Header:
    """What the records of a journal belong to. `run` is the digest of the run, `target` the name and options that were asked
    for, `target_key` the hash of the target as narrowed to the device, `inject` the digest of an injected fault's file (None:
    none), `compiler` the versions that kernels come from, `settings` whatever else changes the outcome. Two headers that differ
    only in what is told besides are alike: `device_info` (`DeviceInfo.to_json()`), `time` (seconds since 1970), `fault` (what
    people call the injected fault), `storage` and `not_checked` (see `tapml.migrate.circumstances`). `device` is what was asked
    for, without a hub's token. Any device that this means can go on, as long as the target's key is the same; so "any@…" may be
    another one after a while, and a hub may have moved to another address."""

    version: str
    run: str
    target: str
    target_key: str
    device: str
    inject: str | None = None
    compiler: str = ""
    settings: str = ""
    format: int = FORMAT
    device_info: dict[str, Any] | None = None
    time: float | None = None
    fault: str | None = None
    storage: dict[str, str] = field(default_factory=dict)
    not_checked: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"record": "header", **asdict(self)}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """One phrase a field that another header (as JSON) has differently."""
        words = {
            "format": "journal format", "version": "TapML version", "run": "run digest", "target": "target",
            "target_key": "target key (compiler, limits or device features)", "device": "device", "inject": "injected fault",
            "compiler": "compiler", "settings": "settings",
        }
        return [
            f"{words[name]}: {other.get(name)!r} in the journal, {mine!r} now"
            for name, mine in asdict(self).items()
            if name in words and _compared(name, other.get(name)) != _compared(name, mine)
        ]


def _compared(field: str, value: Any) -> Any:
    """Of a device at a hub only the name counts."""
    return value.partition("@")[:2] if field == "device" and isinstance(value, str) else value


class Journal:
    """An open journal. `replayed` are the records (header not counted) that it held when it was opened."""

    def __init__(self, path: Path, lock: _Lock, file: IO[bytes], replayed: list[dict[str, Any]]) -> None:
        self.path = path
        self.replayed = replayed
        self._lock = lock
        self._file = file
        self._broken: str | None = None

    @staticmethod
    def open(path: Path, header: Header, resume: bool = False, fresh: bool = False) -> Journal:
        """Opens or creates a journal.

        No journal yet: a new one. `fresh`: an old one is moved aside (`NAME.1`, `NAME.2`, …). `resume`: its records are
        replayed. With neither, a finished one is moved aside and an unfinished one is refused. Raises RunError for
        that, for a header that differs (with `resume`), for damage before the last line, and when another process has it open.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in (path.name, f"{path.name}.lock"):
            is_file(path.parent, name)  # a link or a pipe in a run that somebody else made is no journal
        lock = _Lock(path.with_name(path.name + ".lock"))
        try:
            return Journal._open(path, lock, header, resume, fresh)
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def _open(path: Path, lock: _Lock, header: Header, resume: bool, fresh: bool) -> Journal:
        if path.exists() and not fresh:
            records, length = read(path)
            old = records[0] if records else None
            finished = bool(records) and records[-1]["record"] == "done"
            if old is not None and (resume or not finished):
                differences = header.differences(old)
                if not resume:
                    also = f" It differs from this request ({'; '.join(differences)})." if differences else ""
                    raise RunError(
                        f"There is an unfinished migration in {path} ({len(records) - 1} records).{also} "
                        "Continue it with --resume, or start over with --fresh."
                    )
                if differences:
                    raise RunError(
                        f"The migration in {path} cannot be resumed, because it was a different one: {'; '.join(differences)}. "
                        "Start over with --fresh (the old journal is kept beside the new one)."
                    )
                os.truncate(path, length)
                return Journal(path, lock, path.open("ab"), records[1:])
        if path.exists():
            _move_aside(path)
        file = path.open("xb")
        journal = Journal(path, lock, file, [])
        journal.append(header.to_json())
        _sync_folder(path.parent)
        return journal

    def append(self, *records: dict[str, Any]) -> None:
        """Writes records and waits until they are on disk (one fsync for all of them). Raises UnavailableError when the disk
        is full; the journal then takes no more records, and what it holds can be resumed."""
        if self._broken:
            raise UnavailableError(self._broken)
        data = b"".join(json.dumps(r, separators=(",", ":")).encode() + b"\n" for r in records)
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            what = "The disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"The disk failed ({error})"
            self._broken = f"{what}: the journal {self.path} could not be continued. Make room there."
            raise UnavailableError(self._broken) from error

    def close(self) -> None:
        """Lets go of the journal; what was appended is on disk already. May be called twice."""
        try:
            self._file.close()
        except OSError:
            # Bytes that a full disk did not take are still buffered. append() has told the caller, and reading cuts them off.
            assert self._broken is not None
        self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def read(path: Path, advice: str = "Start over with --fresh.") -> tuple[list[dict[str, Any]], int]:
    """All whole records, the header first, and the length in bytes of the part that holds them. A torn last line is left
    out. Raises RunError, with the advice, if a line before the last is damaged, or the first is no header."""
    data = read_file(path.parent, path.name)
    records: list[dict[str, Any]] = []
    length = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines):
            break  # what follows the last newline: empty, or torn
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("record"), str):
                raise ValueError("not a record")
        except (ValueError, RecursionError) as error:
            if number == len(lines) - 1 and not lines[-1]:
                break  # torn, though its newline arrived
            raise RunError(f"Line {number} of the journal {path} is damaged ({error}). {advice}") from error
        records.append(record)
        length += len(line) + 1
    if records and records[0]["record"] != "header":
        raise RunError(f"{path} is not a journal: its first line is not a header. {advice}")
    return records, length


class _Lock:
    """An exclusive lock on a file, held by this process until `release` or its end."""

    def __init__(self, path: Path) -> None:
        self._name = str(path.resolve())
        self._file: IO[bytes] | None = None
        if self._name in _held:
            raise RunError(f"This process already writes the journal of {path}.")
        file = path.open("a+b")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise RunError(
                f"Another process is writing this journal ({path} is locked). Wait for it to end, or stop it."
            ) from error
        self._file = file
        _held.add(self._name)

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            _held.discard(self._name)


def _move_aside(path: Path) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    path.rename(aside)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
