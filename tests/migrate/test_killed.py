"""SIGKILL at many random moments, and resume: nothing is lost, doubled or computed twice. See `tests.migrate.killed`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import MakeRun

KILLS = 20


def test_killed_at_random_moments_and_resumed(make_run: MakeRun, need: Callable[[str], str]) -> None:
    run = make_run("encoder")
    command = [sys.executable, "-m", "tests.migrate.killed", str(run.path), need("opencl"), str(KILLS), "1"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert not report["problems"], report
    assert report["kills"] == KILLS and report["completed"] >= 1
    assert len(set(report["lengths"])) >= 5, f"killed at different points: {report['lengths']}"
