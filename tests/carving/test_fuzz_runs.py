"""A sample of `benchmarks/fuzz_runs.py`: runs changed at random, with digests that are right again, are refused or read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tapml
from tapml.diagnose.health.result import keep_health
from tapml.diagnose.health.stage import health
from tests.carving import runs
from tests.carving.fuzz import Spoiler, drive

CHANGES = 250
THOROUGH = 0.03


@pytest.mark.parametrize("seed", [11, 12])
def test_a_run_made_wrong_is_refused_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(runs.convolution()[0].path, tmp_path / "made"))
    folder = tapml.Run.open(run).folder
    keep_health(folder, health(folder), None)
    (tmp_path / "scratch").mkdir()
    spoiler = Spoiler(run, tmp_path / "scratch", seed)
    assert drive(spoiler.run) == "read", "as it was"
    outcomes = []
    for _ in range(CHANGES):
        what = spoiler.spoil()
        outcomes.append(drive(spoiler.run, lambda: spoiler.random.random() < THOROUGH))
        assert spoiler.untouched(), what
        spoiler.restore()
    assert drive(spoiler.run) == "read", "as it was again"
    assert outcomes.count("refused") > CHANGES / 3, "changes that nothing notices show nothing"
