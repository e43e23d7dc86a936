"""What a test leaves in the run, and what reading it back gives: replaced as a whole, merged where it is of the same, never
mixed with an injected fault."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapml.api import Run
from tapml.errors import DeviceLost, RunError, UsageError
from tapml.migrate import operator_test
from tapml.migrate.migrate import migrate
from tapml.migrate.model import Model
from tapml.migrate.records import Records
from tapml.migrate.tested import TestResult
from tests.migrate.fake import FakeBackend, FakeDevice, FakeRun


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRun]:
    run = FakeRun(tmp_path, seed=5, operators=14)
    monkeypatch.setattr(Model, "of", lambda run: run.model)
    yield run


def go(run: FakeRun, device: type[FakeDevice] = FakeDevice, **options: Any) -> TestResult:
    return Run(run).test(FakeBackend(device), **options)  # type: ignore[arg-type]


def records(run: FakeRun, injected: bool = False) -> Records:
    return Records.of(run, "cpu", injected)  # type: ignore[arg-type]


def fault(run: FakeRun, operator: str) -> str:
    path = run.path / "fault.py"
    line = f"return source.replace(';', '1;', 1) if operator == {operator!r} else source"
    path.write_text(f"def inject(operator, target, source):\n    {line}\n")
    return f"{path}:inject"


def launched(run: FakeRun) -> list[str]:
    return [o.name for o in run.operators if int(o.signature) not in run.model.forwards]


def test_a_test_is_read_back_as_it_was(run: FakeRun) -> None:
    result = go(run)
    found = records(run)
    assert found.test is not None and found.cumulative is None and found.migration is None and not found.outdated
    assert tuple(found.test.verdicts.values()) == result.verdicts
    assert found.test.measures == result.measures
    assert {m.operator for m in found.test.measures} == {o.name for o in run.operators}
    header = found.test.header
    assert header["device_info"] == FakeDevice.info.to_json() | {"features": []} and header["run"] == "fake"
    name = run.operators[3].name
    (measure,) = found.test.of(name)
    assert (measure.case, measure.prompt, measure.step, measure.graph, measure.status) == (name, 0, 0, "g0", "pass")
    assert found.test.at(name, 0) == measure and found.test.at(name, 1) is None and found.test.steps == (0,)


def test_a_cumulative_test_has_a_measure_of_every_operator_and_step(run: FakeRun) -> None:
    go(run, mode="cumulative")
    found = records(run).cumulative
    assert found is not None and records(run).test is None
    assert [(m.operator, m.case, m.step) for m in found.measures] == [(o.name, None, 0) for o in run.operators]


def test_the_journal_of_a_migration_holds_the_same_measures(run: FakeRun) -> None:
    tested = go(run)
    result = migrate(run, FakeBackend())  # type: ignore[arg-type]
    found = records(run)
    assert found.migration is not None and found.migration.measures == tested.measures
    assert tuple(found.migration.verdicts.values()) == result.verdicts
    assert found.isolated is found.migration, "the newer"
    go(run)
    assert (newer := records(run)).isolated is newer.test


def test_a_verdict_of_a_whole_model_wins_over_that_of_the_operator_alone(run: FakeRun) -> None:
    migrate(run, FakeBackend())  # type: ignore[arg-type]
    path = run.path / "targets" / "cpu" / "migrate.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    verdict = next(r["verdict"] for r in lines if r["record"] == "verdict")
    kept = {"record": "kept", "verdict": verdict | {"status": "fail", "reason": "passes alone, but not in the model"}}
    path.write_text("".join(json.dumps(r) + "\n" for r in [*lines[:-1], kept, lines[-1]]))
    found = records(run).migration
    assert found is not None and found.verdicts[verdict["operator"]].status == "fail"
    assert found.of(verdict["operator"])[0].status == "pass"


def test_an_injected_fault_never_mixes_with_clean_results(run: FakeRun) -> None:
    clean = go(run)
    bad = launched(run)[2]
    faulty = go(run, inject=fault(run, bad))
    assert not faulty.passed and faulty.circumstances.kernels_changed == 1
    told = faulty.to_json()
    assert told["inject"] == fault(run, bad) and told["kernels_changed"] == 1 and told["kernels_seen"] == len(launched(run))
    assert clean.to_json()["inject"] is None and clean.to_json()["kernels_changed"] is None
    mine, theirs = records(run), records(run, injected=True)
    assert mine.test is not None and tuple(mine.test.verdicts.values()) == clean.verdicts
    assert theirs.test is not None and theirs.test.verdicts[bad].status == "fail"
    (measure,) = theirs.test.of(bad)
    assert measure.status == "fail" and measure.error is not None and measure.ratio == float("inf")
    migrate(run, FakeBackend())  # type: ignore[arg-type]
    migrate(run, FakeBackend(), inject=fault(run, bad))  # type: ignore[arg-type]
    mine, theirs = records(run), records(run, injected=True)
    assert mine.migration is not None and mine.migration.header["fault"] is None, "the clean migration is still there"
    assert theirs.migration is not None and theirs.migration.header["fault"] == fault(run, bad)
    assert not mine.outdated and not theirs.outdated


@pytest.mark.parametrize("mode", ["isolated", "cumulative", "migrate"])
def test_a_fault_that_changes_no_kernel_is_an_error_and_leaves_nothing(run: FakeRun, mode: str) -> None:
    with pytest.raises(UsageError, match=r"changed none of \d+ kernels .* target is called 'cpu', operators such as 'g0/"):
        if mode == "migrate":
            migrate(run, FakeBackend(), inject=fault(run, "no such operator"))  # type: ignore[arg-type]
        else:
            go(run, mode=mode, inject=fault(run, "no such operator"))
    found = records(run, injected=True)
    assert found.test is None and found.cumulative is None and found.migration is None
    assert not list(run.path.glob("targets/*/*.jsonl"))


def test_a_fault_that_is_in_other_operators_than_those_tested_is_an_error(run: FakeRun) -> None:
    first, second = launched(run)[:2]
    assert not go(run, inject=fault(run, first), operator=first).passed
    with pytest.raises(UsageError, match="changed none of 1 kernels"):
        go(run, inject=fault(run, first), operator=second)


def test_a_function_is_taken_as_it_is(run: FakeRun) -> None:
    bad, other = launched(run)[2:4]

    def wrong(operator: str, target: str, source: str) -> str:
        return source.replace(";", "1;", 1) if operator == bad else source

    result = go(run, inject=wrong)
    assert [v.operator for v in result.verdicts if v.status == "fail"] == [bad]
    assert str(result.circumstances.inject).endswith("wrong")
    again = go(run, inject=wrong, operator=bad)
    assert len(again.verdicts) == 1
    found = records(run, injected=True).test
    assert found is not None and len(found.verdicts) == len(run.operators), "the same function is the same fault"
    go(run, inject=lambda o, t, s: wrong(bad if o == other else o + "?", t, s), operator=other)
    found = records(run, injected=True).test
    assert found is not None and list(found.verdicts) == [other], "another function is another fault"
    with pytest.raises(UsageError, match="not int"):
        go(run, inject=5)


def test_testing_some_operators_keeps_the_others_of_the_same_run(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    first = go(run)
    name = run.operators[4].name
    (again,) = go(run, operator=name).verdicts
    found = records(run).test
    assert found is not None and list(found.verdicts) == [o.name for o in run.operators]
    assert found.verdicts[name] == again
    others = [v for v in first.verdicts if v.operator != name]
    assert [v for v in found.verdicts.values() if v.operator != name] == others
    assert len(found.measures) == len(first.measures)
    other = replace(FakeDevice.info, name="another", driver="2")
    monkeypatch.setattr(FakeDevice, "info", other)
    go(run, operator=name)
    assert records(run).test is not None
    monkeypatch.setattr("tapml.migrate.records.toolchain", lambda: "another compiler")
    go(run, operator=name)
    found = records(run).test
    assert found is not None and list(found.verdicts) == [name], "results of another compiler are not kept beside these"


def test_a_test_that_is_stopped_leaves_the_old_results(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    go(run)
    path = run.path / "targets" / "cpu" / "test.jsonl"
    before = path.read_bytes()
    real = operator_test.OperatorTester.test
    stop = run.operators[5].name

    def test(self: operator_test.OperatorTester, name: str) -> Any:
        if name == stop:
            raise KeyboardInterrupt
        return real(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(operator_test.OperatorTester, "test", test)
        with pytest.raises(KeyboardInterrupt):
            go(run)
    assert path.read_bytes() == before
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]


def test_a_folder_that_cannot_be_written_costs_a_warning(run: FakeRun, caplog: pytest.LogCaptureFixture) -> None:
    (run.path / "targets").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        result = go(run)
    assert result.passed and "cannot be written" in caplog.text


def test_a_refused_launch_is_a_measure_without_numbers(run: FakeRun) -> None:
    bad = launched(run)[1]
    entry = f"k{run.operator(bad).signature}"

    class Refusing(FakeDevice):
        def run(self, batch: Any) -> None:
            if any(self.kernels[launch.kernel].entry == entry for launch in batch):
                raise DeviceLost("gone")
            super().run(batch)

    go(run, Refusing)
    found = records(run).test
    assert found is not None
    (measure,) = found.of(bad)
    assert measure.status == "crash" and measure.error is None and measure.ratio is None


def test_damage(run: FakeRun) -> None:
    go(run)
    path = run.path / "targets" / "cpu" / "test.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], lines[-1][:20]]))
    torn = records(run).test
    assert torn is not None and len(torn.verdicts) == len(run.operators) - 1
    path.write_bytes(b"".join([lines[0], lines[1][:20] + b"\n", *lines[2:]]))
    with pytest.raises(RunError, match=r"Line 2.*test\.jsonl"):
        records(run)
    path.write_bytes(b"".join([lines[0], b'{"record": "measure", "operator": "x"}\n']))
    with pytest.raises(RunError, match=r"test\.jsonl is damaged"):
        records(run)
    path.write_bytes(lines[1])
    with pytest.raises(RunError, match="not a header"):
        records(run)
    path.write_bytes(b"".join(lines))
    run.digest = "another"
    assert records(run).test is None and "another run" in records(run).outdated[0]
