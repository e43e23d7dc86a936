"""What the command line does around a verb: exit codes, one line an error, where output goes."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tapml
from tapml.cli import main as cli
from tapml.cli.verb import Outcome, count, prompts_of
from tapml.errors import PromptError, RunError, UnavailableError, UsageError

Run = Callable[[argparse.Namespace], Outcome]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Puts a verb `fake` that does as told beside the real ones."""

    def install(run: Run, **more: Any) -> None:
        fake = SimpleNamespace(NAME="fake", HELP="a fake", add_arguments=lambda parser: None, run=run, **more)
        monkeypatch.setitem(cli.VERBS, "fake", fake)

    return install


def raising(error: BaseException) -> Run:
    def run(args: argparse.Namespace) -> Outcome:
        raise error

    return run


def test_an_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrat", "run"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "'migrat'" in err and "Did you mean migrate" in err and "agent, bench, bisect, build, carve, chat" in err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["carve"], "MODEL"),
        (["test", "run"], "--target"),
        (["test", "run", "--target", "opencl", "--speed"], "Unrecognized: --speed. Try: tapml test --help"),
        (["carve", "m", "-o", "r", "--decode-steps", "-3"], "'-3' is not a whole number"),
        (["carve", "m", "-o", "r", "--decode-steps", "x"], "'x' is not a whole number"),
        (["carve", "m", "-o", "r", "--dtype", "float8"], "float32"),
        (["migrate", "run", "--target", "opencl", "--resume", "--fresh"], "not allowed"),
    ],
)
def test_wrong_flags_are_one_line(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err and "--help" in err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "carve" in capsys.readouterr().out
    assert cli.main(["carve", "--help"]) == 0
    assert "--decode-steps" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tapml 0.")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RunError("run is damaged:\n  cases.jsonl"), 2, "run is damaged: cases.jsonl"),
        (UsageError("no"), 2, "no"),
        (UnavailableError("no driver"), 3, "no driver"),
        (OSError(errno.ENOSPC, "No space left on device", "run/cases/1"), 2, "The disk is full while writing run/cases/1"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "The disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "The disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "run"), 2, "run cannot be used: Permission denied"),
        (MemoryError("2 GiB"), 2, "Out of memory (2 GiB)"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    error: Exception, code: int, says: str, verb: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(error))
    assert cli.main(["fake"]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("tapml: ") and says in err


def test_an_error_inside_tapml_shows_its_traceback(verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(KeyError("weights")))
    assert cli.main(["fake"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "bug in TapML" in err and "KeyError" in err.splitlines()[-1]


def test_ctrl_c_says_how_to_go_on(verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(KeyboardInterrupt()), resume_hint=lambda args: "Continue with: tapml fake --resume")
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr().err == "tapml: Interrupted. Continue with: tapml fake --resume\n"


def test_json_on_stdout_is_alone_there(verb: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    def run(args: argparse.Namespace) -> Outcome:
        print("a library talks")
        os.write(1, b"a driver talks\n")
        return Outcome(1, {"a": [1.0, float("inf"), float("nan")]}, ("a table",))

    verb(run)
    assert cli.main(["fake", "--json", "-"]) == 1
    out, err = capfd.readouterr()
    data = json.loads(out)
    assert data["a"] == [1.0, sys.float_info.max, None] and data["passed"] is False
    assert "a library talks" in err and "a driver talks" in err and "a table" not in out + err


def test_json_in_a_file_leaves_the_table_on_stdout(
    verb: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(lambda args: Outcome(0, {"a": 1}, ("a table [with brackets]",)))
    assert cli.main(["fake", "--json", str(tmp_path / "x.json")]) == 0
    data = json.loads((tmp_path / "x.json").read_text())
    assert data["a"] == 1 and data["passed"] is True and data["version"] == tapml.__version__
    assert capsys.readouterr().out == "a table [with brackets]\n"


def test_an_error_is_in_the_json_too(verb: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(UnavailableError("no driver")))
    assert cli.main(["fake", "--json", "-"]) == 3
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert (data["error"], data["code"], data["passed"]) == ("no driver", 3, False) and err == "tapml: no driver\n"


def test_a_place_for_json_that_cannot_be_is_refused_before_the_work(
    verb: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(AssertionError("the verb ran")))
    assert cli.main(["fake", "--json", str(tmp_path / "none" / "x.json")]) == 2
    assert cli.main(["fake", "--json", str(tmp_path)]) == 2
    (tmp_path / "file").write_text("")
    assert cli.main(["fake", "--json", str(tmp_path / "file" / "x.json")]) == 2
    assert cli.main(["fake", "--json", "/proc/x.json"]) == 2
    err = capsys.readouterr().err
    assert "the verb ran" not in err and err.count("\n") == 4 and "/proc/x.json cannot be written" in err


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "import sys\nfrom types import SimpleNamespace\nfrom tapml.cli import main as cli\nfrom tapml.cli.verb import Outcome\n"
        "cli.VERBS['fake'] = SimpleNamespace(NAME='fake', HELP='', add_arguments=lambda p: None,"
        " run=lambda a: Outcome(1, {}, tuple('a long line' * 100 for _ in range(5000))))\n"
        "sys.exit(cli.main(['fake']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert (process.wait(30), errors) == (1, "")


def test_a_real_ctrl_c_ends_with_130() -> None:
    code = (
        "import sys, time\nfrom types import SimpleNamespace\nfrom tapml.cli import main as cli\n"
        "def run(args):\n    print('ready', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "cli.VERBS['fake'] = SimpleNamespace(NAME='fake', HELP='', add_arguments=lambda p: None, run=run)\n"
        "sys.argv = ['tapml', 'fake']\nsys.exit(cli.main())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == "tapml: Interrupted.\n"
    assert process.wait(30) == 130


def test_ctrl_c_in_code_made_from_text_ends_with_130(tmp_path: Path) -> None:
    """Where CPython, under `python -m`, would rather end by the signal itself."""
    model = tmp_path / "slow.py"
    work = "import sys, time; print('ready', file=sys.stderr, flush=True); time.sleep(60)"
    model.write_text(f"def build():\n    exec({work!r})\n")
    words = [sys.executable, "-m", "tapml", "carve", f"{model}:build", "-o", str(tmp_path / "run")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "ready\n" in iter(process.stderr.readline, "")  # a busy machine tells of its progress first
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "tapml: Interrupted. Nothing was left behind" in process.stderr.read()
    assert process.wait(30) == 130


def test_counts_and_prompts(tmp_path: Path) -> None:
    assert count("12") == 12
    file = tmp_path / "p.txt"
    file.write_text("one\n\n  two  \n")
    assert prompts_of(["zero"], str(file)) == ["zero", "one", "two"]
    with pytest.raises(PromptError, match="--prompt is empty"):
        prompts_of(["  "], None)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        prompts_of([], str(tmp_path / "none"))
    file.write_text("\n \n")
    with pytest.raises(PromptError, match="contains no prompt"):
        prompts_of([], str(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        prompts_of([], str(file))
