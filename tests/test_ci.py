"""The workflow of docs/ci.md: its steps are run as a build server runs them, and its files are what they should be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / "examples" / "ci" / "operators.yml").read_text())
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["operators"]["steps"]
ELSEWHERE = {"Install"}


def stepped(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """As GitHub's runner does it: bash that stops at the first error, with the workflow's environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    ours = {"PATH": path, "PYTHONPATH": str(ROOT), "GITHUB_STEP_SUMMARY": "shown.md"}
    env = {**os.environ, **WORKFLOW["env"], **ours, **environment}
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after all steps."""
    folder = tmp_path_factory.mktemp("ci")
    (folder / "examples").symlink_to(ROOT / "examples")
    steps = [step for step in STEPS if "run" in step and step["name"] not in ELSEWHERE]
    assert [step["name"] for step in steps] == ["What can run here", "Carve", "Every operator", "The whole model", "Report"]
    for step in steps:
        done = stepped(step["run"], folder)
        assert done.returncode == 0, f"{step['name']}: {done.stdout}\n{done.stderr}"
    return folder


def test_the_steps_leave_results(built: Path) -> None:
    found = json.loads((built / "results.json").read_text())
    cases = list(ElementTree.parse(built / "results.xml").getroot().iter("testcase"))
    assert found["passed"] and len(cases) == len(found["verdicts"]) == 71
    assert "71 pass" in (built / "shown.md").read_text().replace("**", "")
    uploaded = next(s for s in STEPS if str(s.get("uses", "")).startswith("actions/upload"))["with"]["path"].split()
    assert all((built / path).exists() for path in uploaded)


def test_a_stored_run_is_not_carved_again(built: Path) -> None:
    before = (built / "run" / "run.json").stat().st_mtime_ns
    carve = next(step for step in STEPS if step.get("name") == "Carve")
    assert stepped(carve["run"], built).returncode == 0
    assert (built / "run" / "run.json").stat().st_mtime_ns == before


def test_a_missing_platform_is_not_green(built: Path) -> None:
    for name in ("What can run here", "Every operator", "The whole model"):
        step = next(step for step in STEPS if step.get("name") == name)
        assert stepped(step["run"], built, TARGET="metal").returncode == 3, name
    done = stepped("pytest run/tests --target metal -p no:cacheprovider", built)
    assert done.returncode == 3


def test_the_suite(built: Path) -> None:
    done = stepped('pytest run/tests --target "$TARGET" -k "layers.0 and q_proj" -p no:cacheprovider', built)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


def test_the_page_shows_the_steps() -> None:
    page = (ROOT / "docs" / "ci.md").read_text()
    for step in STEPS:
        if "run" in step and step["name"] not in {*ELSEWHERE, "Report"}:
            command = step["run"]
            for key, value in WORKFLOW["env"].items():
                command = command.replace(f'"${key}"', value)
            assert f"    {command}\n" in page, command
