"""Faults from a file: loading, applying, and every way in which the file can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tapml.errors import UsageError
from tapml.kernels import Kernel, Program, Step
from tapml.migrate.inject import Injection


def program(*sources: str) -> Program:
    kernels = tuple(Kernel("null", f"k{n}", s, (), (1, 1, 1), (1, 1, 1)) for n, s in enumerate(sources))
    return Program(kernels, (Step(0, ()),), (), (), (), "blocked")


def load(tmp_path: Path, code: str, name: str = "inject") -> Injection:
    (tmp_path / "fault.py").write_text(code)
    return Injection.load(f"{tmp_path / 'fault.py'}:{name}")


def test_changes_only_what_the_function_changes(tmp_path: Path) -> None:
    fault = load(tmp_path, "def inject(o, t, s): return s.replace('+', '-') if o == 'q' and t == 'opencl' else s")
    clean = program("a + b", "a * b")
    assert fault.program("k", "opencl", clean) is clean
    assert fault.program("q", "vulkan", clean) is clean
    changed = fault.program("q", "opencl", clean)
    assert [k.source for k in changed.kernels] == ["a - b", "a * b"]
    assert changed.digest != clean.digest


def test_digest_follows_content_and_name(tmp_path: Path) -> None:
    code = "def inject(o, t, s): return s\ndef other(o, t, s): return s"
    digests = {load(tmp_path, code).digest, load(tmp_path, code, "other").digest, load(tmp_path, code + " ").digest}
    assert len(digests) == 3 and load(tmp_path, code).digest in digests


@pytest.mark.parametrize("code, message", [
    ("def inject(o, t, s): return None", "returned NoneType for operator q"),
    ("def inject(o, t, s): raise KeyError('boom')", "raised KeyError for operator q"),
    ("def inject(o, t): return ''", "raised TypeError"),
])
def test_a_function_that_misbehaves_is_the_users_error(tmp_path: Path, code: str, message: str) -> None:
    fault = load(tmp_path, code)
    with pytest.raises(UsageError, match=message):
        fault.program("q", "opencl", program("x"))


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    for text, message in [("nothing", "not of the form"), (":f", "not of the form"), ("/none.py:f", "there is no file")]:
        with pytest.raises(UsageError, match=message):
            Injection.load(text)
    with pytest.raises(UsageError, match="SyntaxError"):
        load(tmp_path, "def")
    with pytest.raises(UsageError, match="Did you mean inject"):
        load(tmp_path, "def inject(o, t, s): return s", "injct")
