"""A file that is written whole or not at all."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tapml.whole_file import write_whole


def test_a_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    file, link = tmp_path / "é.json", tmp_path / "link"
    link.symlink_to(file)
    write_whole(file, "old")
    write_whole(link, "new ü")
    assert file.read_text(encoding="utf-8") == "new ü" and link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"é.json", "link"}


def test_a_failure_leaves_the_old_one_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    write_whole(file, "old")

    def full(self: Path, text: str, encoding: str) -> None:
        os.close(os.open(self, os.O_CREAT | os.O_WRONLY))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_whole(file, "new")
    assert caught.value.filename == str(file)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_threads_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    """As devices that share a test run do with a kernel that both ran."""
    file = tmp_path / "kernel.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_whole(file, f"{n}" * 20_000), [1, 2, 3, 4, 5, 6, 7, 8] * 20))
    text = file.read_text()
    assert len(text) == 20_000 and len(set(text)) == 1 and list(tmp_path.iterdir()) == [file]


def test_what_is_no_file_is_written_as_it_is() -> None:
    write_whole(Path(os.devnull), "nothing")
    assert Path(os.devnull).is_char_device()
