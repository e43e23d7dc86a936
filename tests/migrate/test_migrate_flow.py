"""The course of a migration on a model and device of whole numbers: faults, losses, and being stopped at every record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapml.devices.faulty import Fault, FaultyDevice
from tapml.errors import DeviceLost, RunError, UnavailableError, UsageError
from tapml.migrate import journal
from tapml.migrate.journal import Journal
from tapml.migrate.migrate import MigrationResult, migrate
from tapml.migrate.model import Model
from tapml.migrate.workbench import MOST_LOSSES
from tests.migrate.fake import FakeBackend, FakeDevice, FakeRun


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRun]:
    run = FakeRun(tmp_path, seed=5, operators=14)
    monkeypatch.setattr(Model, "of", lambda run: run.model)
    yield run


@pytest.fixture
def long_run(run: FakeRun, tmp_path: Path) -> FakeRun:
    """With more operators than a device may be lost over."""
    return FakeRun(tmp_path, seed=5, operators=2 * MOST_LOSSES)


def go(run: FakeRun, backend: FakeBackend | None = None, **options: Any) -> MigrationResult:
    return migrate(run, backend or FakeBackend(), **options)  # type: ignore[arg-type]


def plain(result: MigrationResult) -> tuple[Any, ...]:
    """What must not depend on when the process was stopped."""
    verdicts = [replace(v, seconds=0.0) for v in result.verdicts]
    return verdicts, result.offloaded, result.kept_on_source, result.end_to_end, result.checks


def fault(path: Path, body: str) -> str:
    (path / "fault.py").write_text(f"def inject(operator, target, source):\n    {body}\n")
    return f"{path / 'fault.py'}:inject"


def launched(run: FakeRun) -> list[str]:
    """Operators that have kernels of their own."""
    return [o.name for o in run.operators if int(o.signature) not in run.model.forwards]


def influential(run: FakeRun) -> list[str]:
    """Those of them on which the model's outputs depend."""
    (graph,) = run.graphs
    needed = set(graph.outputs)
    found = []
    for operator in reversed(run.operators):
        if needed & set(operator.outputs):
            needed |= set(operator.inputs)
            found.append(operator.name)
    return [name for name in launched(run) if name in found]


def test_everything_moves(run: FakeRun) -> None:
    backend = FakeBackend()
    result = go(run, backend)
    assert result.passed and result.checks == 1
    assert result.offloaded == tuple(o.name for o in run.operators) and not result.kept_on_source
    assert sorted(backend.compiled) == sorted({o.signature for o in run.operators}), "each signature once"
    data = json.loads(json.dumps(result.to_json()))
    assert data["summary"]["pass"] == len(run.operators)
    assert data["end_to_end"]["tokens_match"] is None and data["end_to_end"]["within_bound"] is True


def test_a_wrong_kernel_stays_and_is_named(run: FakeRun) -> None:
    bad = launched(run)[3]
    inject = fault(run.path, f"return source.replace(';', '1;', 1) if operator == {bad!r} else source")
    result = go(run, inject=inject)
    assert result.kept_on_source == (bad,) and not result.passed
    assert result.end_to_end.passed, "the hybrid still answers as the source"
    verdict = next(v for v in result.verdicts if v.operator == bad)
    assert (verdict.status, verdict.stage) == ("fail", "numeric") and "expected" in verdict.reason


def test_compile_failures_stay_with_their_reason(run: FakeRun) -> None:
    names = launched(run)[1:3]
    numbers = [int(run.operator(n).signature) for n in names]
    result = go(run, FakeBackend(failing=numbers[:1], crashing=numbers[1:]))
    assert result.kept_on_source == tuple(names)
    found = {v.operator: v for v in result.verdicts}
    assert [(found[n].status, found[n].stage, found[n].reason) for n in names] == [
        ("error", "lower", "no such thing"), ("crash", "lower", "no such thing"),
    ]


def test_an_operator_that_passes_alone_and_fails_in_the_model(run: FakeRun) -> None:
    """A device that computes one kernel wrongly when it is launched in a batch with others."""
    bad = influential(run)[-2]
    entry = f"k{run.operator(bad).signature}"

    class Shy(FakeDevice):
        def run(self, batch: Any) -> None:
            for launch in batch:
                super().run([launch])
                if len(batch) > 1 and self.kernels[launch.kernel].entry == entry:
                    self.buffers[launch.buffers[-1]][0] ^= 1

    result = go(run, FakeBackend(Shy))
    assert result.kept_on_source == (bad,)
    verdict = next(v for v in result.verdicts if v.operator == bad)
    assert verdict.status == "fail" and verdict.reason.startswith("passes alone, but not in the model")
    assert result.end_to_end.passed


def stop_after(monkeypatch: pytest.MonkeyPatch, records: int) -> list[dict[str, Any]]:
    """Every append beyond `records` fails as if the process were gone; returns what was written."""
    written: list[dict[str, Any]] = []
    real: Callable[..., None] = Journal.append

    def append(self: Journal, *items: dict[str, Any]) -> None:
        if len(written) + len(items) > records:
            raise KeyboardInterrupt
        real(self, *items)
        written.extend(items)

    monkeypatch.setattr(Journal, "append", append)
    return written


def test_stopped_at_every_record_and_resumed(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = launched(run)[2]
    inject = fault(run.path, f"return source.replace(';', '1;', 1) if operator == {bad!r} else source")
    whole = go(run, inject=inject, fresh=True)
    path = run.path / "targets" / "cpu" / "migrate.injected.jsonl"
    total = len(journal.read(path)[0])
    for count in range(1, total):
        with monkeypatch.context() as patched:
            written = stop_after(patched, count)
            with pytest.raises(KeyboardInterrupt):
                go(run, inject=inject, fresh=True)
            assert len(written) == count
        with pytest.raises(RunError, match=r"--resume.*--fresh"):
            go(run, inject=inject)
        resumed = go(run, inject=inject, resume=True)
        assert plain(resumed) == plain(whole), f"stopped after {count} records"
        records = journal.read(path)[0]
        assert len(records) == total
        names = [r["verdict"]["operator"] for r in records if r["record"] == "verdict"]
        assert names == [o.name for o in run.operators], "no verdict lost or doubled"
        assert resumed.resumed == sum(r["record"] == "verdict" for r in records[:count])


def test_resuming_a_finished_migration_only_reads(run: FakeRun) -> None:
    whole = go(run)
    backend = FakeBackend()
    again = go(run, backend, resume=True)
    assert plain(again) == plain(whole) and again.resumed == len(run.operators) and not backend.compiled


def test_another_fault_or_run_is_not_resumed(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    for inject in (None, fault(run.path, "return source.replace(';', '1;', 1)")):
        with monkeypatch.context() as patched:
            stop_after(patched, 4)
            with pytest.raises(KeyboardInterrupt):
                go(run, inject=inject)
    with pytest.raises(RunError, match="injected fault"):
        go(run, resume=True, inject=fault(run.path, "return source.replace(';', '2;', 1)"))
    run.digest = "another"
    with pytest.raises(RunError, match="run digest: 'fake' in the journal, 'another' now"):
        go(run, resume=True)


def test_a_lost_device_costs_one_verdict(run: FakeRun) -> None:
    opened: list[FaultyDevice] = []

    def opens() -> FaultyDevice:
        opened.append(FaultyDevice(FakeDevice(), [] if opened else [Fault("lose", "run", nth=3)]))
        return opened[-1]

    result = go(run, FakeBackend(opens))
    assert len(opened) == 2
    crashed = [v for v in result.verdicts if v.status == "crash"]
    assert [v.operator for v in crashed] == list(result.kept_on_source) and len(crashed) == 1
    assert "the device was lost" in crashed[0].reason and result.end_to_end.passed


def test_a_device_lost_in_a_check_is_a_failed_check(run: FakeRun) -> None:
    bad = influential(run)[-2]
    entry = f"k{run.operator(bad).signature}"

    class Dying(FakeDevice):
        def run(self, batch: Any) -> None:
            if len(batch) > 1 and any(self.kernels[b.kernel].entry == entry for b in batch):
                raise DeviceLost("gone")
            super().run(batch)

    result = go(run, FakeBackend(Dying))
    assert bad in result.kept_on_source and result.end_to_end.passed
    assert next(v for v in result.verdicts if v.operator == bad).status == "crash"


def test_a_device_that_dies_again_and_again_ends_the_work(long_run: FakeRun) -> None:
    run = long_run
    with pytest.raises(UnavailableError, match=f"lost {MOST_LOSSES} times"):
        go(run, FakeBackend(lambda: FaultyDevice(FakeDevice(), [Fault("lose", "run")])))
    records = journal.read(run.path / "targets" / "cpu" / "migrate.jsonl")[0]
    assert [r["record"] for r in records] == ["header", *["verdict"] * (len(records) - 1)]


def test_flaky_is_a_verdict_of_its_own(run: FakeRun) -> None:
    result = go(run, FakeBackend(lambda: FaultyDevice(FakeDevice(), [Fault("corrupt", "read", nth=2)])))
    flaky = [v for v in result.verdicts if v.status == "flaky"]
    assert [v.operator for v in flaky] == list(result.kept_on_source) and len(flaky) == 1
    assert "different results in 4 runs" in flaky[0].reason


def test_order(run: FakeRun) -> None:
    names = [o.name for o in run.operators]
    assert go(run, order=names[::-1]).passed
    with pytest.raises(UsageError, match="'nobody'"):
        go(run, order=["nobody"], fresh=True)
