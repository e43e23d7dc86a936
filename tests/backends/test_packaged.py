"""Engines of other packages as targets: the example does all that a target does; a broken one is one line and harms nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import tapml
from tapml.backends import NotSupported, open_backend, simpler
from tapml.cli import doctor
from tapml.cli.main import main
from tapml.devices.trial import try_target
from tapml.errors import DeviceError, DeviceLost, TargetError, UnavailableError, UsageError
from tapml.remote.agent.offers import parse_offered
from tapml.remote.open import open_device
from tapml.report.doctor import draw
from tapml.targets import packaged
from tapml.targets.parse import parse
from tests.backends.engines import EXAMPLE, ROOT, TEXT, installed_example, package, see
from tests.compile.bodies import Made, call
from tests.compile.test_conversions import floats
from tests.conftest import MakeRun

WRONG_EPSILON = """
def broken(operator, target, source):
    return source.replace("1e-12", "0.1") if operator == "encoder.layer.0.output.LayerNorm" else source
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    return installed_example(folder / "site", folder / "source")


@pytest.fixture
def numpy_engine(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    see(site, monkeypatch)
    monkeypatch.setattr(packaged, "_opened", {})
    return "numpy"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test puts packages."""
    see(tmp_path, monkeypatch)
    monkeypatch.setattr(packaged, "_opened", {})
    return tmp_path


def test_the_example_runs_from_the_command_line(site: Path, make_run: MakeRun) -> None:
    path = os.pathsep.join([str(site), str(ROOT)])
    words = [sys.executable, "-m", "tapml", "test", str(make_run("llama").path), "--target", "numpy", "--json", "-"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["summary"]["pass"] == len(told["verdicts"]) == 71 and told["device"]["driver"].endswith("by numpy-engine 1.0")


def test_the_example_is_short() -> None:
    (module,) = EXAMPLE.glob("*.py")
    assert len(module.read_text().splitlines()) <= 150


def test_every_verb_takes_it(numpy_engine: str, make_run: MakeRun, tmp_path: Path) -> None:
    """From a whole model to a reproducer that runs."""
    run, fault = tapml.Run.open(make_run("encoder").path), tmp_path / "fault.py"
    fault.write_text(WRONG_EPSILON)
    moved = run.migrate(numpy_engine, fresh=True)
    assert moved.passed and moved.kept_on_source == () and {v.schedule for v in moved.verdicts} == {"numpy-engine 1.0"}
    assert moved.device.driver == f"NumPy {np.__version__}, by numpy-engine 1.0"
    culprit = "encoder.layer.0.output.LayerNorm"
    assert run.bisect("numpy:precise=0", inject=f"{fault}:broken").culprits == (culprit,)
    told = run.explain(culprit, numpy_engine, inject=f"{fault}:broken", out=tmp_path / "out")
    assert (told.triage.status, told.triage.stage) == ("fail", "backend")
    assert told.reproducer is not None
    done = subprocess.run([sys.executable, str(told.reproducer / "run.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the fault shows" in done.stdout, done.stdout + done.stderr
    text = (told.reproducer / "kernel_0.json").read_text()
    (told.reproducer / "kernel_0.json").write_text(text.replace("0.1", "1e-12"))
    done = subprocess.run([sys.executable, str(told.reproducer / "run.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "does not show" in done.stdout, done.stdout + done.stderr
    for words in (["health", run.path], ["faults", "bench", run.path, "--faults", "gelu-variant,short-grid", "--operators", "1"]):
        assert main([*map(str, words), "--target", numpy_engine, "--json", str(tmp_path / "out.json")]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())["classes"]}
    assert rows["gelu-variant"]["faults"] and "runs no kernels of TapML" in rows["short-grid"]["why"]
    assert main(["report", str(run.path), "-o", str(tmp_path / "report.html")]) == 0
    assert numpy_engine in (tmp_path / "report.html").read_text()


def test_what_an_engine_does_not_have_stays_on_the_source(folder: Path, make_run: MakeRun) -> None:
    package(folder, "toy-engine", {"toy": "toy_engine:Engine"})
    moved = tapml.Run.open(make_run("conv_net").path).migrate("toy", fresh=True)
    kept = {v.operator: v for v in moved.verdicts if v.status != "pass"}
    assert set(kept) == set(moved.kept_on_source) and kept and moved.end_to_end.passed
    assert all((v.status, v.stage) == ("error", "convert") and "a toy has none" in v.reason for v in kept.values())
    assert "aten.conv2d.default: a toy has none" in kept["conv1"].reason


def relu() -> Made:
    return call("aten.relu.default", floats(3, 4))


@pytest.mark.parametrize(("mode", "error", "words"), [
    ("compile", DeviceError, r"relu_0 cannot be compiled: RuntimeError: out of ideas"),
    ("run", DeviceError, r"relu_0 cannot be run: KeyError: 'nothing\\nmore'"),
    ("writes", DeviceError, "relu_0 cannot be run: ValueError: .*read-only"),
    ("shape", DeviceError, r"output 0 of relu_0 is float32\[3, 1\], not float32\[3, 4\]"),
    ("dtype", DeviceError, r"output 0 of relu_0 is float64\[3, 4\], not float32\[3, 4\]"),
    ("none", DeviceError, "output 0 of relu_0 is no array of numbers"),
    ("count", DeviceError, "relu_0 gives 0 outputs, not 1"),
    ("crash", DeviceLost, "SIGABRT"),
])
def test_an_engine_that_fails(folder: Path, mode: str, error: type[Exception], words: str) -> None:
    package(folder, "toy-engine", {"toy": "toy_engine:Engine"})
    made, backend = relu(), open_backend(f"toy:mode={mode}")
    compiled = backend.prepare({"relu": made.body})["relu"].compiled
    assert compiled is not None
    for _ in range(2):
        with pytest.raises(error, match=words) as caught:
            backend.run_once(compiled, made.inputs)
        assert "\n" not in str(caught.value)
        assert not isinstance(caught.value, DeviceError) or caught.value.stage == "backend"
        if error is DeviceLost:
            backend.reopen()
    backend.close()


def test_what_is_not_here_or_not_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(folder, "toy-engine", {"toy": "toy_engine:Engine"})
    for target, error, words in (
        ("toy:mode=absent", UnavailableError, "No module named 'a_module_that_is_not_there'.*package toy-engine 1.2 needs it"),
        ("toy:mode=wild", UnavailableError, "Engine of the package toy-engine 1.2 fails at opening: ZeroDivisionError"),
        ("toy:speed=2", TargetError, "no option 'speed'. Known: mode, other. Options: mode= what it does"),
        ("toy:mode=a+b", TargetError, "the value of mode has a '\\+'"),
        ("tyo", TargetError, "no target 'tyo'. Did you mean toy"),
    ):
        with pytest.raises(error, match=words):
            open_backend(target)
    with pytest.raises(TargetError, match="runs on this machine only"):
        open_device("toy", "any@http://localhost:1/?token=x")
    with pytest.raises(UsageError, match="an agent runs nobody else's"):
        parse_offered(["toy"])
    assert str(parse("toy:other=1,mode=2")) == "toy:mode=2,other=1" and parse("toy:other=1").opened_with == "+1"


BROKEN = {
    "import": ("import a_module_that_is_not_there", "importing it fails with ModuleNotFoundError: No module named 'a_module"),
    "exits": ("raise SystemExit('bye')", "importing it fails with SystemExit: bye"),
    "syntax": ("def (", "importing it fails with SyntaxError: invalid syntax"),
    "missing": ("other = 1", "importing it fails with AttributeError: module 'broken_missing' has no attribute 'Engine'"),
    "function": ("def Engine(options): pass", "it is no class, but function"),
    "method": (TEXT.replace("def compile", "def translate"), "it has no method compile"),
    "old": (TEXT.replace("interface = 1", "pass"), "it has no interface, the number of what it was written for; this TapML has"),
    "new": (TEXT.replace("interface = 1", "interface = 2"), "it was written for interface 2, and this TapML has 1"),
    "options": (TEXT.replace('options = {"mode"', 'options = {"dtype"'), "it has an option 'dtype', which no engine can have"),
    "table": (TEXT.replace("options = {", "options = [1]; _ = {"), "its options are no dictionary of texts"),
    "storage": (TEXT.replace("= 1", "= 1; storage = {'float33': 'float32'}", 1), "its storage names 'float33', which"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_package_is_one_line_and_harms_nobody(
    kind: str, folder: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    text, why = BROKEN[kind]
    package(folder, f"broken-{kind}", {f"broken-{kind}": f"broken_{kind}:Engine"}, text)
    package(folder, "toy-engine", {"toy": "toy_engine:Engine"})
    assert main(["test", str(make_run("conv_net").path), "--target", f"broken-{kind}"]) == 3
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"entry point broken-{kind} = broken_{kind}:Engine of the package broken-{kind} 1.2 is broken: {why}" in line
    assert parse("opencl").target.name == "opencl" and parse("toy").target.name == "toy"


def test_names_that_cannot_be_used(folder: Path) -> None:
    package(folder, "one", {"opencl": "one:Engine", "Big Name": "one:Engine", "twice": "one:Engine"})
    package(folder, "two", {"twice": "two:Engine", "fine": "two:Engine"})
    assert parse("opencl").target.language == "opencl-c"
    for name, words in (
        ("twice", "twice = one:Engine of the package one 1.2: the package two offers a target of this name, too"),
        ("Big Name", "a target's name has small letters"),
    ):
        with pytest.raises(UnavailableError, match=words):
            parse(name)
    assert packaged.names() == ("fine",)
    told = {(e.name, e.package): e.unused for e in packaged.entries()}
    assert "TapML has a target opencl of its own, which is the one that is used" in told["opencl", "one"]


def test_doctor_lists_engines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(folder, "toy-engine", {"toy": "toy_engine:Engine", "opencl": "toy_engine:Engine"})
    package(folder, "broken-new", {"broken-new": "broken_new:Engine"}, BROKEN["new"][0])
    data = doctor.examine(["toy", "broken-new", "ort"], everything=True)
    engines = {(e["name"], e["package"]): e for e in data["engines"]}
    toy = engines["toy", "toy-engine"]
    assert (toy["version"], toy["entry_point"], toy["ready"]) == ("1.2", "toy_engine:Engine", True)
    broken = engines["broken-new", "broken-new"]
    assert not broken["ready"] and "was written for interface 2" in broken["targets"][0]["reason"]
    assert "TapML has a target opencl of its own" in engines["opencl", "toy-engine"]["reason"]
    there = {t["target"]: t for t in engines["ort", ""]["targets"]}
    assert there["ort"]["ready"] and not there["ort:provider=qnn"]["ready"]
    assert "pip install onnxruntime-qnn" in there["ort:provider=qnn"]["reason"]
    assert engines["ort", ""]["version"].startswith(f"ONNX Runtime {data['versions']['onnxruntime']}, CPUExecutionProvider")
    (text,) = draw(data)
    assert "  toy        package toy-engine 1.2 (toy_engine:Engine)\n      toy  ready\n" in text
    assert "not used: TapML has a target opencl" in text and "      toy        ready" not in text


def test_numbers_that_are_wrong_are_not_ready(folder: Path) -> None:
    package(folder, "toy-engine", {"toy": "toy_engine:Engine"}, TEXT.replace('Tensor": np.add', 'Tensor": np.maximum'))
    trial = try_target("toy")
    assert not trial.ready and "numbers are wrong" in trial.reason
    trial = try_target("toy:mode=compile")
    assert not trial.ready and "a small kernel failed on it" in trial.reason and "out of ideas" in trial.reason


def test_packages_are_looked_up_only_for_names_that_tapml_does_not_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(folder, "toy-engine", {"toy": "toy_engine:Engine", "second": "toy_second:Engine"})
    asked: list[str] = []
    real = metadata.entry_points
    monkeypatch.setattr(metadata, "entry_points", lambda **given: (asked.append(given["group"]), real(**given))[1])
    assert main(["--help"]) == main(["test", "--help"]) == 0
    assert parse("opencl:device=0").opened_with == "0" and not asked
    assert parse("toy").target.name == "toy" and asked == ["tapml.backends"]
    assert "toy_second" not in sys.modules


def test_calls_are_composed_of_those_that_an_engine_has() -> None:
    made = call("aten.layer_norm.default", floats(3, 8), [8], floats(8))
    less = {"aten.mm.default", "aten.mul.Tensor"}
    with pytest.raises(NotSupported, match=r"^aten.layer_norm.default: not supported \(what PyTorch composes it of needs prims"):
        simpler(made.body, less.__contains__)
    with pytest.raises(NotSupported, match=r"^aten.cumsum.default: not supported$"):
        simpler(call("aten.cumsum.default", floats(3), 0).body, less.__contains__)
    softmax = call("aten.softmax.int", floats(3, 4), -1).body
    has = {"aten.amax.default", "aten.sub.Tensor", "aten.exp.default", "aten.sum.dim_IntList", "aten.div.Tensor"}
    assert {node.target for node in simpler(softmax, has.__contains__).nodes} == has
    assert simpler(softmax, {"aten.softmax.int"}.__contains__) is softmax


def test_one_that_is_handed_in_runs_in_this_process(folder: Path) -> None:
    space: dict[str, type] = {}
    exec(TEXT, space)
    engine, made = space["Engine"]({}), relu()
    backend = open_backend(engine)
    assert str(backend.choice) == "engine" and backend.info.driver == "Toy 3"
    compiled = backend.prepare({"relu": made.body})["relu"].compiled
    assert compiled is not None
    np.testing.assert_array_equal(backend.run_once(compiled, made.inputs)[0], made.outputs[0])
    with pytest.raises(NotSupported, match=r"aten.exp.default: a toy has none"):
        exp = backend.prepare({"exp": call("aten.exp.default", floats(3)).body})["exp"].compiled
        backend.load(exp)  # type: ignore[arg-type]
    backend.close()
    space["Engine"].interface = 7  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="Engine is no engine: it was written for interface 7"):
        open_backend(engine)
