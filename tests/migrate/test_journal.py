"""The journal: what a killed, resumed, confused or doubled process finds in it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tapml.errors import RunError, UnavailableError
from tapml.migrate.journal import Header, Journal, read

HEADER = Header("0.1.0", "run-digest", "opencl", "key", "local")
DONE = {"record": "done"}


def verdict(n: int) -> dict[str, object]:
    return {"record": "verdict", "operator": f"op{n}"}


def write(path: Path, *records: dict[str, object]) -> None:
    with Journal.open(path, HEADER) as journal:
        journal.append(*records)


def test_resume_replays_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "targets" / "opencl" / "migrate.jsonl"
    write(path, verdict(0), verdict(1))
    with Journal.open(path, HEADER, resume=True) as journal:
        assert journal.replayed == [verdict(0), verdict(1)]
        journal.append(verdict(2))
    with Journal.open(path, HEADER, resume=True) as journal:
        assert journal.replayed == [verdict(0), verdict(1), verdict(2)]


def test_every_cut_of_the_file_leaves_whole_records_and_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "migrate.jsonl"
    write(path, verdict(0), verdict(1), verdict(2))
    data = path.read_bytes()
    header = data.index(b"\n") + 1
    for cut in range(header, len(data) + 1):
        path.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n") - 1
        with Journal.open(path, HEADER, resume=True) as journal:
            assert journal.replayed == [verdict(n) for n in range(whole)]
            journal.append(verdict(9))
        assert [r.get("operator") for r in read(path)[0][1:]] == [*(f"op{n}" for n in range(whole)), "op9"]


def test_a_journal_torn_in_its_header_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "migrate.jsonl"
    write(path)
    path.write_bytes(path.read_bytes()[:10])
    with Journal.open(path, HEADER) as journal:
        assert journal.replayed == []


def test_an_unfinished_journal_wants_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "migrate.jsonl"
    write(path, verdict(0))
    with pytest.raises(RunError, match=r"--resume.*--fresh"):
        Journal.open(path, HEADER)
    with Journal.open(path, HEADER, fresh=True) as journal:
        assert journal.replayed == []
    assert read(tmp_path / "migrate.jsonl.1")[0][1:] == [verdict(0)]


def test_a_finished_journal_is_moved_aside_or_replayed(tmp_path: Path) -> None:
    path = tmp_path / "migrate.jsonl"
    write(path, verdict(0), DONE)
    with Journal.open(path, HEADER, resume=True) as journal:
        assert journal.replayed == [verdict(0), DONE]
    with Journal.open(path, replace(HEADER, inject="other")) as journal:
        assert journal.replayed == []
        journal.append(DONE)
    with Journal.open(path, HEADER):
        pass
    assert (tmp_path / "migrate.jsonl.1").exists() and (tmp_path / "migrate.jsonl.2").exists()


@pytest.mark.parametrize("field", ["version", "run", "target", "target_key", "device", "inject", "compiler", "settings"])
def test_another_header_is_refused_with_what_differs(tmp_path: Path, field: str) -> None:
    path = tmp_path / "migrate.jsonl"
    write(path, verdict(0))
    other = replace(HEADER, **{field: "elsewhere"})
    with pytest.raises(RunError, match="'elsewhere' now") as info:
        Journal.open(path, other, resume=True)
    assert "--fresh" in str(info.value) and str(info.value).count(" now") == 1
    with pytest.raises(RunError, match="elsewhere"):
        Journal.open(path, other)
    assert read(path)[0][1:] == [verdict(0)]


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "migrate.jsonl"
    write(path, verdict(0), verdict(1))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:5], *lines[2:]]))
    with pytest.raises(RunError, match="Line 2"):
        Journal.open(path, HEADER, resume=True)


def test_two_journals_of_one_path(tmp_path: Path) -> None:
    path = tmp_path / "migrate.jsonl"
    with Journal.open(path, HEADER), pytest.raises(RunError, match="already writes"):
        Journal.open(path, HEADER, resume=True)
    with Journal.open(path, HEADER, resume=True):
        pass


CHILD = """
import sys, time
from pathlib import Path
from tapml.migrate.journal import Header, Journal
journal = Journal.open(Path(sys.argv[1]), Header(*sys.argv[2:]))
journal.append({"record": "verdict", "operator": "op0"})
print("open", flush=True)
time.sleep(60)
"""


def test_another_process_is_kept_out_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "migrate.jsonl"
    command = [sys.executable, "-c", CHILD, str(path), "0.1.0", "run-digest", "opencl", "key", "local"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "open\n"
        for flags in ({}, {"resume": True}, {"fresh": True}):
            with pytest.raises(RunError, match="Another process"):
                Journal.open(path, HEADER, **flags)
        os.kill(child.pid, signal.SIGKILL)
    with Journal.open(path, HEADER, resume=True) as journal:
        assert journal.replayed == [verdict(0)]


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    script = f"""
import resource, signal, sys
from pathlib import Path
from tapml.errors import UnavailableError
from tapml.migrate.journal import Header, Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
told = 0
try:
    path = Path({str(tmp_path / "migrate.jsonl")!r})
    with Journal.open(path, Header("0.1.0", "run-digest", "opencl", "key", "local")) as journal:
        for n in range(1000):
            journal.append({{"record": "verdict", "operator": f"op{{n}}"}})
            told += 1
except UnavailableError as error:
    print(told, error)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    count, message = told.split(" ", 1)
    assert "Make room there" in message and int(count) > 10
    with Journal.open(tmp_path / "migrate.jsonl", HEADER, resume=True) as journal:
        assert journal.replayed == [verdict(n) for n in range(int(count))]


def test_a_broken_journal_takes_no_more(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "migrate.jsonl", HEADER)
    os.close(journal._file.fileno())
    for _ in range(2):
        with pytest.raises(UnavailableError):
            journal.append(verdict(0))
    journal.close()
    assert json.loads((tmp_path / "migrate.jsonl").read_text())["record"] == "header"


def test_what_was_appended_is_on_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes records and fails to keep them says so when it is waited for, and only then."""
    path = tmp_path / "migrate.jsonl"
    waited: list[int] = []

    def fsync(descriptor: int) -> None:
        waited.append(os.fstat(descriptor).st_size)
        if len(waited) > 2:
            raise OSError(errno.EIO, "Input/output error")

    with Journal.open(path, HEADER) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        for n in range(2):
            journal.append(verdict(n))
            assert waited[-1] == path.stat().st_size, "all of it was written when the disk was waited for"
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"The disk failed .*Make room there"):
                journal.append(verdict(2))
    assert len(waited) == 3, "a journal that failed takes no more records"
