"""Every verb, with names, texts and paths that try to steer the terminal: what it prints is text, and its JSON is exact."""

from __future__ import annotations

import ast
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.server import ServerConnection

from tapml.api import Run
from tapml.cli.main import VERBS, main
from tapml.devices.child import PACKAGE_PARENT
from tapml.devices.trial import Trial
from tapml.remote.wire import VERSION, control, packet
from tests.cli.conftest import Typed
from tests.hostile import left_in
from tests.remote.ends import INFO
from tests.remote.server import server
from tests.remote.strange import items_of, strange
from tests.remote.test_link import BUSY

TypeIn = Callable[..., Typed]

# What a file's name, a module's name and a message can hold of such things.
EVIL = "\x1b]0;owned\x07\x1b[2J\rpassed\u202e\x9b31m\u200b[bold]"
SEEN = "\\x1b]0;owned"

MODEL = f"""
import torch

EVIL = {EVIL!r}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.add_module("a" + EVIL, torch.nn.Linear(8, 8))
        self.b = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.b(torch.relu(getattr(self, "a" + EVIL)(x)))


def model():
    return Net(), (torch.ones(2, 8),)


def raises():
    raise ValueError("no " + EVIL)


def wrong(operator, target, source):
    return source.replace("= 0.0e+00f;", "= 1.0f;")


def values(inputs, wanted):
    return {{wanted[0]: torch.full((2, 8), 7.0).numpy(), EVIL: torch.zeros(2, 4).numpy()}}


def refused(operator, target, source):
    return source + "\\n#error " + EVIL.replace("\\r", "") + "\\n"
"""


def check(typed: Typed, seen: bool = True) -> Typed:
    """Nothing of it steers, and something of it was there to be seen."""
    assert "Traceback" not in typed.err, typed.err
    assert not left_in(typed.out), ascii(typed.out)
    assert not left_in(typed.err), ascii(typed.err)
    assert SEEN in typed.out + typed.err or not seen, typed.out + typed.err
    return typed


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A model's file and the run of it, with such a name each; an operator has one too."""
    folder = tmp_path_factory.mktemp("evil")
    path = folder / f"m{EVIL}.py"
    path.write_text(MODEL)
    run = folder / f"run{EVIL}"
    out = StringIO()
    with redirect_stdout(out):
        assert main(["carve", f"{path}:model", "-o", str(run)]) == 0
    check(Typed(0, out.getvalue(), ""))
    return str(path), run


def doctor(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial("cpu", False, None, EVIL, 0.1)
    monkeypatch.setattr("tapml.devices.trial.try_target", lambda choice: trial)
    check(type_in("doctor", "--target", "cpu"))


def carve(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = evil
    check(type_in("carve", f"{path}:model", "-o", run))
    check(type_in("carve", f"{path}:raises", "-o", run.parent / "other"))
    check(type_in("carve", EVIL, "-o", run.parent / "other"))


def test(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = evil
    results, summary = run.parent / "results.xml", run.parent / "summary.md"
    typed = check(type_in(
        "test", run, "--target", "cpu", "--inject", f"{path}:refused", "--junit", results, "--markdown", summary, "--json", "-"
    ), seen=False)  # fmt: skip
    assert typed.out.isascii() and typed.code == 1
    data = json.loads(typed.out)
    assert any(EVIL in verdict["operator"] for verdict in data["verdicts"]), "JSON is exact"
    assert not left_in(summary.read_text()) and not left_in(results.read_text())
    assert SEEN in "".join(ElementTree.parse(results).getroot().itertext()) + results.read_text()
    assert check(type_in("test", run, "--target", "cpu", "--inject", f"{path}:wrong")).code == 1
    check(type_in("test", run, "--kernels", run.parent / f"no{EVIL}"))
    own = run.parent / f"kernels{EVIL}"
    own.mkdir()
    launch = {"operator": f"b{EVIL}", "kernels": [{"file": f"{EVIL}.c", "entry": "k", "grid": [1, 1, 1], "block": [1, 1, 1]}]}
    (own / f"{EVIL}.c").write_text("void k(float* x, float* weight, float* bias, float* y) { y[0] = x[0]; }")
    (own / f"{EVIL}.json").write_text(json.dumps(launch))
    assert check(type_in("test", run, "--kernels", own)).code == 2
    (own / f"{EVIL}.json").write_text(json.dumps(launch | {"operator": "b"}))
    typed = check(type_in("test", run, "--kernels", own, "--markdown", summary))
    assert typed.code == 1 and "1 fail" in typed.out and not left_in(summary.read_text())


def migrate(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    check(type_in("migrate", evil[1], "--target", "cpu", "--inject", f"{evil[0]}:wrong"))


def bisect(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    check(type_in("bisect", evil[1], "--target", "cpu", "--inject", f"{evil[0]}:wrong"))


def explain(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = evil
    name = next(o.name for o in Run.open(run).operators if EVIL in o.name)
    check(type_in("explain", run, name, "--target", "cpu", "--inject", f"{path}:wrong", "--out", run.parent / "found"))
    check(type_in("explain", run, f"no{EVIL}", "--target", "cpu"))


def health(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    check(type_in("health", evil[1], "--target", "cpu"))


def deployment(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = evil
    assert check(type_in("check", run, "--backend", f"{path}:values")).code == 1
    check(type_in("check", run, "--backend", f"{path}:raises"))
    check(type_in("check", run, "--onnx", f"no{EVIL}.onnx"))


def export_cases(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cases = evil[1].parent / f"cases{EVIL}"
    check(type_in("export-cases", evil[1], "-o", cases))
    check(type_in("export-cases", evil[1], "-o", cases))
    check(type_in("export-cases", evil[1], "-o", cases, "--operator", EVIL))


def report(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    page = evil[1].parent / f"page{EVIL}.html"
    check(type_in("report", evil[1], "-o", page))
    assert not left_in(page.read_text().partition("<script>")[0]), "the page's own data and title"


def faults(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    check(type_in("faults", "bench", evil[1], "--target", EVIL))
    check(type_in("faults", "list", EVIL))


def hub(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    check(type_in("hub", "--host", f"no{EVIL}.invalid", "--port", "0"))


def agent(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(control("refused", "token", f"no {EVIL}"))
        connection.recv()

    with server(refuse) as address:
        check(type_in("agent", f"http://{address.host}:{address.port}/?token=secret", "--name", f"x{EVIL}", "--target", "opencl"))


def devices(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    info = INFO | {"name": EVIL, "driver": EVIL}
    offers = {"gpu": {"state": "ready", "info": info, "reason": ""}, EVIL: {"state": "absent", "info": None, "reason": EVIL}}
    device = BUSY | {"name": EVIL, "system": EVIL, "label": EVIL, "doing": EVIL, "note": EVIL, "offers": offers}

    def tell(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(control("welcome", {"version": VERSION, "name": "me", "heartbeat": 5.0}))
        connection.send(control("devices", [device]))
        connection.recv()

    with server(tell) as address:
        check(type_in("devices", f"http://{address.host}:{address.port}/?token=secret"))


def build(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    check(type_in("migrate", evil[1], "--target", "cpu", "--fresh"))
    check(type_in("build", evil[1], "--target", "cpu", "-o", evil[1].parent / f"bundle{EVIL}"))


def generate(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    check(type_in("generate", evil[1], "--prompt", "5"))
    check(type_in("generate", evil[1].parent / f"bundle{EVIL}", "--prompt", "5", "--json-schema", EVIL))


def chat(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    check(type_in("chat", evil[1]))
    check(type_in("chat", evil[1].parent / f"bundle{EVIL}", "--json-schema", EVIL))


def verify(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = evil[1].parent / f"verified{EVIL}"
    check(type_in("migrate", evil[1], "--target", "cpu", "--fresh"))
    check(type_in("build", evil[1], "--target", "cpu", "-o", bundle))
    assert check(type_in("verify", bundle, "--repeat", "2")).code == 0


def bench(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = evil[1].parent / f"benched{EVIL}"
    check(type_in("migrate", evil[1], "--target", "cpu", "--fresh"))
    check(type_in("build", evil[1], "--target", "cpu", "-o", bundle))
    assert check(type_in("bench", bundle, "--repeat", "1")).code == 0


def evaluate(type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, text = evil[1].parent / f"evaluated{EVIL}", evil[1].parent / f"text{EVIL}"
    check(type_in("migrate", evil[1], "--target", "cpu", "--fresh"))
    check(type_in("build", evil[1], "--target", "cpu", "-o", bundle))
    check(type_in("eval", bundle, "--against", evil[1], "--text", text))
    text.write_text(EVIL)
    check(type_in("eval", bundle, "--against", evil[1], "--text", text))


BY_VERB = {one.__name__: one for one in (
    doctor, carve, test, migrate, bisect, explain, health, report, build, verify, bench, generate, chat, faults, hub,
    agent, devices,
)} | {"check": deployment, "export-cases": export_cases, "eval": evaluate}  # fmt: skip
del test  # pytest is not to take it for one


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_prints_text(verb: str, type_in: TypeIn, evil: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    BY_VERB[verb](type_in, evil, monkeypatch)


@pytest.mark.parametrize("what", ["name", "error"])
def test_what_a_device_says_is_text(what: str, type_in: TypeIn, evil: tuple[str, Path]) -> None:
    def tamper(messages: list[bytes]) -> list[bytes]:
        session, seq, ack, items = items_of(messages[-1])
        for item in items:
            if item[0] == "ok" and isinstance(item[2], dict) and what == "name":
                item[2]["info"] |= {"name": EVIL, "driver": EVIL}
            elif item[0] == "ok" and what == "error":
                item[:] = ["error", item[1], "unavailable", "", f"no {EVIL}"]
        return [*messages[:-1], packet(session, seq, ack, items)]

    with strange(tamper):
        typed = check(type_in("test", evil[1], "--target", "cpu", "--device", "odd@http://127.0.0.1:1/?token=x"))
    assert typed.code == (1 if what == "name" else 3)


def on_a_terminal(*words: str | Path) -> tuple[int, str]:
    """Exit code of `tapml` and what the terminal got, which is stdout and stderr alike."""
    own, its = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm-256color", "COLUMNS": "100", "PYTHONPATH": PACKAGE_PARENT}
    process = subprocess.Popen(
        [sys.executable, "-m", "tapml", *map(str, words)], stdin=its, stdout=its, stderr=its, env=environment
    )
    os.close(its)
    parts: list[bytes] = []
    while select.select([own], [], [], 120)[0]:
        try:
            part = os.read(own, 2**16)
        except OSError:  # nobody has the other end any more
            break
        if not part:
            break
        parts.append(part)
    os.close(own)
    return process.wait(30), b"".join(parts).decode()


def test_on_a_terminal_our_colours_are_all_that_steers_it(evil: tuple[str, Path]) -> None:
    path, run = evil
    code, text = on_a_terminal("test", run, "--target", "cpu", "--inject", f"{path}:wrong")
    assert code == 1 and "\x1b[1;31mfail" in text and SEEN in text
    assert not left_in(text, styles=True, bars=True), ascii(text)


def test_pytest_prints_text(evil: tuple[str, Path], tmp_path: Path) -> None:
    """Its own lines tell the folder's name as it is, so that one is plain here."""
    path, run = evil
    plain = shutil.copytree(run, tmp_path / "run")
    words: list[Any] = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests", "--target", "cpu"]
    done = subprocess.run(
        [*words, "--inject", f"{path}:refused"], capture_output=True, cwd=plain, check=False,
        env=os.environ | {"PYTHONPATH": PACKAGE_PARENT},
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 1 and SEEN in said, said
    assert not left_in(said), ascii(said)


def test_no_name_becomes_code_of_the_carved_tests(type_in: TypeIn, tmp_path: Path) -> None:
    """In comments and docstrings stand names of modules, of files and of folders."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w')".replace(".", "_")
    (tmp_path / "net.py").write_text(MODEL.replace(f"EVIL = {EVIL!r}", f"EVIL = {chr(10) + code + chr(13) + code!r}"))
    run = tmp_path / 'x"""\nopen("ran", "w")\n"""'
    assert type_in("carve", f"{tmp_path / 'net.py'}:model", "-o", run).code == 0
    tree = ast.parse((run / "tests" / "test_operators.py").read_text())
    assert [type(node) for node in tree.body] == [ast.Expr, ast.Import, ast.Assign, ast.FunctionDef]
