"""Stages on a backend that the caller opened: it is used as it is, and stays the caller's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tapml.api import Run
from tapml.backends.open import open_backend
from tapml.errors import UsageError
from tapml.migrate.model import Model
from tapml.targets.parse import TargetChoice
from tests.migrate.fake import FakeBackend, FakeDevice, FakeRun


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    run = FakeRun(tmp_path, seed=5, operators=10)
    monkeypatch.setattr(Model, "of", lambda run: run.model)
    return run


class Closable(FakeDevice):
    closed = False

    def close(self) -> None:
        super().close()
        self.closed = True


class Engine(FakeBackend):
    """Of a name that no target has."""

    def __init__(self) -> None:
        super().__init__(Closable)
        self.choice = TargetChoice("engine", {"threads": "2"})


def test_every_stage_leaves_it_open_and_empty(run: FakeRun) -> None:
    engine, opened = Engine(), Run(run)  # type: ignore[arg-type]
    device = engine.device
    found = opened.test(engine)
    assert found.passed and found.target == "engine:threads=2" and opened.test(engine, mode="cumulative").passed
    assert opened.migrate(engine).passed and opened.bisect(engine).passed
    assert sorted(p.name for p in (run.path / "targets" / "engine_threads=2").glob("*.jsonl")) == [
        "cumulative.jsonl", "migrate.jsonl", "test.jsonl",
    ]
    assert engine.device is device and not device.closed and engine.pool.in_use == 0
    engine.close()
    assert device.closed


def test_a_device_that_a_fault_stood_before_is_as_it_was(run: FakeRun) -> None:
    engine, opened = Engine(), Run(run)  # type: ignore[arg-type]
    bad = next(o for o in run.operators if int(o.signature) not in run.model.forwards).name
    wrong = opened.test(engine, inject=lambda o, t, s: s.replace(";", "1;", 1) if o == bad else s)
    assert [v.operator for v in wrong.verdicts if v.status != "pass"] == [bad]
    assert opened.test(engine).passed


def test_what_is_no_backend(run: FakeRun) -> None:
    with pytest.raises(UsageError, match="takes the text of --target or an opened backend, not int"):
        Run(run).test(5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has its own device: leave device 'phone@http://x' out"):
        open_backend(FakeBackend(), "phone@http://x")
