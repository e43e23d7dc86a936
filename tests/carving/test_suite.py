"""The pytest suite that a run carries: run as a user runs it, in a process of its own."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tapml.carving.folder import RunFolder
from tapml.carving.suite import write_suite
from tapml.carving.writer import RunWriter
from tapml.devices.open import probe
from tapml.errors import UnavailableError
from tests.carving import runs

FAULT = '''
def wrong(operator: str, target: str, source: str) -> str:
    return source.replace(" + ", " - ")
'''


ONE_LAYER = '''
def wrong(operator: str, target: str, source: str) -> str:
    return source.replace(" = 0.0e+00f;", " = 1.0e+00f;") if operator == "{name}" else source
'''


def suite(*arguments: str, cwd: Path, run: RunFolder | None = None) -> subprocess.CompletedProcess[str]:
    folder = (run or runs.convolution()[0]).path / "tests"
    command = [sys.executable, "-m", "pytest", str(folder), "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_it_is_readable() -> None:
    run, result, _ = runs.decoder()
    text = (run.path / "tests" / "test_operators.py").read_text()
    for case in run.cases:
        assert f"#   {case.id} of {case.operator}: {', '.join(case.reasons)}; source error" in text
    assert all(f'    "{operator.name}",\n' in text for operator in run.operators)
    assert f"{result.operators} operators" in text and f"{result.cases} recorded calls" in text
    readme = (run.path / "tests" / "README.md").read_text()
    assert str(run.path / "tests") in readme and str(next(iter(run.weights.entries.values())).file.path) in readme


def test_on_opencl_with_junit(tmp_path: Path, need: Callable[[str], str]) -> None:
    run, result = runs.convolution()
    done = suite("--target", need("opencl"), "--junitxml", "results.xml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{result.operators} passed" in done.stdout and "warning" not in done.stdout
    cases = ElementTree.parse(tmp_path / "results.xml").getroot().findall(".//testcase")
    assert {c.get("name") for c in cases} == {f"test_operator[{o.name}]" for o in run.operators}
    properties = {p.get("name"): p.get("value") for p in cases[0].findall(".//property")}
    assert properties["status"] == "pass" and float(properties["error"] or "nan") <= float(properties["bound"] or "nan")


def test_a_wrong_kernel_fails_with_numbers(tmp_path: Path, need: Callable[[str], str]) -> None:
    (tmp_path / "fault.py").write_text(FAULT)
    done = suite("--target", need("opencl"), "--inject", "fault.py:wrong", "-k", "head", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    for words in ("at stage numeric", "source's own error", "bound", "worst element"):
        assert words in done.stdout, done.stdout


def test_a_wrong_operator_without_a_recorded_call_fails(tmp_path: Path, need: Callable[[str], str]) -> None:
    """Operators that share kernels share recorded calls: one that has none of its own is tested with its own weights."""
    run, _, _ = runs.decoder()
    recorded = {case.operator for case in run.cases}
    wrong = next(o for o in run.operators if o.kind == "linear" and o.name not in recorded)
    (tmp_path / "fault.py").write_text(ONE_LAYER.format(name=wrong.name))
    part = wrong.name.rpartition(".")[2]
    alike = sum(o.name.endswith(part) for o in run.operators)
    done = suite("--target", need("opencl"), "--inject", "fault.py:wrong", "-k", part, cwd=tmp_path, run=run)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"1 failed, {alike - 1} passed" in done.stdout and alike > 1
    assert f"test_operator[{wrong.name}]" in done.stdout, done.stdout
    assert f"{wrong.name} (linear): fail at stage numeric" in done.stdout, done.stdout


@pytest.fixture
def absent() -> str:
    """A target that this machine cannot run."""
    found = next((name for name in ("metal", "cuda") if not probe(name).available), None)
    assert found is not None, "every target is here, so none can stand for a platform that is not"
    return found


def test_a_platform_that_is_missing_is_a_failure(tmp_path: Path, absent: str) -> None:
    done = suite("--target", absent, "--junitxml", "results.xml", cwd=tmp_path)
    assert done.returncode == UnavailableError.exit_code, done.stdout + done.stderr
    assert "1 failed" in done.stdout and "passed" not in done.stdout and "not run:" in done.stdout
    assert "--skip-missing" in done.stdout and "Traceback" not in done.stdout
    failures = ElementTree.parse(tmp_path / "results.xml").getroot().findall(".//failure")
    assert len(failures) == 1 and "not run:" in (failures[0].get("message") or "")


def test_a_platform_that_is_missing_may_be_skipped(tmp_path: Path, absent: str) -> None:
    _, result = runs.convolution()
    done = suite("--target", absent, "--skip-missing", "-rs", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{result.operators} skipped" in done.stdout and "passed" not in done.stdout and "not run:" in done.stdout


def test_wrong_use_is_said_in_one_line(tmp_path: Path) -> None:
    done = suite(cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and "add --target opencl" in done.stderr
    done = suite("--target", "opencll", cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "opencl" in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr


def test_nothing_of_a_run_but_its_suite_is_loaded(tmp_path: Path) -> None:
    """Settings, plugins, conftest.py and modules in the run: none of them is read when its tests are."""
    run = Path(shutil.copytree(runs.convolution()[0].path, tmp_path / "run"))
    mark = tmp_path / "loaded"
    evil = f"open({str(mark)!r}, 'a').write(__name__)\n"
    for name in ("conftest.py", "evil.py", "__init__.py", "numpy.py", "sitecustomize.py", "cases/conftest.py", "cases/numpy.py"):
        (run / name).write_text(evil)
    (run / "evil.pth").write_text("import evil\n")
    for name in ("pytest.ini", "tox.ini"):
        (run / name).write_text("[pytest]\naddopts = -p evil\npythonpath = . cases\n")
    (run / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "-p evil"\n')
    for where in (tmp_path, run, run / "tests"):
        command = [sys.executable, "-P", "-m", "pytest", str(run / "tests"), "-p", "no:cacheprovider", "--collect-only", "-q"]
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
        assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr
        assert "test_operator[" in done.stdout
    assert not mark.exists()


def test_names_of_a_model_are_no_code_in_the_suite(tmp_path: Path) -> None:
    """A name with a line's end in it, as a model's metadata may have, ends no comment and no docstring."""
    run = runs.convolution()[0]
    evil = '"""\nraise SystemExit("ran")\n"""\\'
    cases = [replace(run.cases[0], reasons=("x\nraise SystemExit('ran')\r# y",))]
    with RunWriter.create(tmp_path / "run") as writer:
        write_suite(writer, run.operators, run.bodies, cases, evil, [evil])
        text = (writer.partial / "tests" / "test_operators.py").read_text()
    assert not any(isinstance(node, ast.Raise) for node in ast.walk(ast.parse(text)))
