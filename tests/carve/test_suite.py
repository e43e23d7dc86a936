"""The pytest suite that a run carries: run as a user runs it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.carve import runs

FAULT = '''
def wrong(operator: str, target: str, source: str) -> str:
    return source.replace(" + ", " - ")
'''


def suite(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    run, _ = runs.convolution()
    command = [sys.executable, "-m", "pytest", str(run.path / "tests"), "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_it_is_readable() -> None:
    run, result, _ = runs.decoder()
    text = (run.path / "tests" / "test_operators.py").read_text()
    for case in run.cases:
        assert f'("{case.operator}", "{case.id}"),  # {", ".join(case.reasons)}; source error' in text
    assert f"{result.cases} recorded calls" in text
    readme = (run.path / "tests" / "README.md").read_text()
    assert str(run.path / "tests") in readme and str(next(iter(run.weights.entries.values())).file.path) in readme


def test_on_opencl_with_junit(tmp_path: Path) -> None:
    run, result = runs.convolution()
    done = suite("--target", "opencl", "--junitxml", "results.xml", "-rs", cwd=tmp_path)
    if f"{result.cases} skipped" in done.stdout:
        pytest.skip(f"no OpenCL here: {done.stdout[-500:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{result.cases} passed" in done.stdout
    cases = ElementTree.parse(tmp_path / "results.xml").getroot().findall(".//testcase")
    assert {c.get("name") for c in cases} == {f"test_operator[{c.operator}-{c.id}]" for c in run.cases}
    properties = {p.get("name"): p.get("value") for p in cases[0].findall(".//property")}
    assert properties["status"] == "pass" and float(properties["error"] or "nan") <= float(properties["bound"] or "nan")


def test_a_wrong_kernel_fails_with_numbers(tmp_path: Path) -> None:
    (tmp_path / "fault.py").write_text(FAULT)
    done = suite("--target", "opencl", "--inject", "fault.py:wrong", "-k", "head", cwd=tmp_path)
    if " skipped" in done.stdout:
        pytest.skip(f"no OpenCL here: {done.stdout[-500:]}")
    assert done.returncode == 1, done.stdout + done.stderr
    for words in ("at stage numeric", "source's own error", "bound", "worst element"):
        assert words in done.stdout, done.stdout


def test_without_the_platform_every_test_is_skipped_with_the_reason(tmp_path: Path) -> None:
    if sys.platform == "darwin":
        pytest.skip("Metal is there on this system, so it cannot stand for a platform that is not")
    _, result = runs.convolution()
    done = suite("--target", "metal", "-rs", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{result.cases} skipped" in done.stdout and "passed" not in done.stdout and "not run:" in done.stdout


def test_wrong_use_is_said_in_one_line(tmp_path: Path) -> None:
    done = suite(cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and "add --target opencl" in done.stderr
    done = suite("--target", "opencll", cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "opencl" in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr
