"""Connections that break and memory that runs out: the work is done again, and no verdict, check or culprit follows from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapml.devices.faulty import Call, Fault, FaultyDevice
from tapml.devices.interface import DeviceInfo
from tapml.diagnose.bisect.result import BisectResult
from tapml.diagnose.bisect.stage import bisect
from tapml.errors import ConnectionLost, DeviceLost, OutOfMemory, UnavailableError
from tapml.migrate import journal
from tapml.migrate.migrate import MigrationResult, migrate
from tapml.migrate.model import Model
from tapml.migrate.operator_test import OperatorTester
from tapml.migrate.workbench import MOST_LOSSES, Workbench
from tapml.targets.target import Target
from tests.migrate.fake import FakeBackend, FakeDevice, FakeRun
from tests.migrate.test_migrate_flow import influential

PHONE = "phone@http://localhost:1/?token=secret"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRun]:
    run = FakeRun(tmp_path, seed=5, operators=10)
    monkeypatch.setattr(Model, "of", lambda run: run.model)
    yield run


class Breaking(FakeBackend):
    """`Breaking([fault], [])`: the first device that is opened has that fault, the next one none, all after them the last one's.
    `opened` are the devices as they are."""

    def __init__(self, *faults: list[Fault], device: type[FakeDevice] = FakeDevice, name: str = "local") -> None:
        self.opened: list[FaultyDevice] = []

        def opens() -> FaultyDevice:
            self.opened.append(FaultyDevice(device(), faults[min(len(self.opened), len(faults) - 1)]))
            return self.opened[-1]

        super().__init__(opens, name)


def go(run: FakeRun, backend: FakeBackend, **options: Any) -> MigrationResult:
    return migrate(run, backend, **options)  # type: ignore[arg-type]


def plain(result: MigrationResult) -> tuple[Any, ...]:
    verdicts = [replace(v, seconds=0.0) for v in result.verdicts]
    return verdicts, result.offloaded, result.kept_on_source, result.end_to_end, result.checks


def culprit(run: FakeRun) -> str:
    return influential(run)[-2]


def broken(run: FakeRun) -> type[FakeDevice]:
    """A device on which one operator is wrong, so that there is something to find."""
    bad = f"k{run.operator(culprit(run)).signature}"

    class Broken(FakeDevice):
        def run(self, batch: Any) -> None:
            super().run(batch)
            for launch in batch:
                if self.kernels[launch.kernel].entry == bad:
                    self.buffers[launch.buffers[-1]][0] ^= 1

    return Broken


@pytest.mark.parametrize(
    ("kind", "call"),
    [("away", call) for call in ("allocate", "write", "load", "run", "read")] + [("restart", "run"), ("memory", "write")],
)
def test_a_break_anywhere_changes_nothing_of_a_migration(
    run: FakeRun, kind: Any, call: Call
) -> None:
    """At the first call of its kind, the fifth and so on, one a migration, until there is no such call."""
    whole = Breaking([], device=broken(run))
    expected = plain(go(run, whole))
    assert len(whole.opened) == 1 and expected[2]
    for nth in itertools.count(1, 4):
        backend = Breaking([Fault(kind, call, nth)], [], device=broken(run))
        assert plain(go(run, backend, fresh=True)) == expected, (kind, call, nth)
        if backend.opened[0].calls[call] < nth:
            break
    assert nth > 4, "the fault never struck"


@pytest.mark.parametrize("call", ["write", "run", "read"])
def test_a_break_anywhere_changes_nothing_of_a_bisection(run: FakeRun, call: Call) -> None:
    def found(backend: FakeBackend) -> tuple[Any, ...]:
        result: BisectResult = bisect(run, backend)  # type: ignore[arg-type]
        return result.culprits, [(s.stage, s.answer) for s in result.sets], result.without, result.runs

    expected = found(Breaking([], device=broken(run)))
    assert expected[0] == (culprit(run),)
    for nth in itertools.count(1, 11):
        backend = Breaking([Fault("away", call, nth)], [], device=broken(run))
        assert found(backend) == expected, (call, nth)
        if backend.opened[0].calls[call] < nth:
            break
    assert nth > 20, "the fault never struck"


def test_a_device_that_begins_anew_at_the_same_work_is_lost_because_of_it(run: FakeRun) -> None:
    bad = run.operators[5]

    class Dying(FakeDevice):
        def run(self, batch: Any) -> None:
            if any(self.kernels[launch.kernel].entry == f"k{bad.signature}" for launch in batch):
                raise ConnectionLost("the page was loaded anew", restarted=True)
            super().run(batch)

    backend = Breaking([], device=Dying, name=PHONE)
    result = go(run, backend)
    verdict = next(v for v in result.verdicts if v.operator == bad.name)
    assert verdict.status == "crash" and "went away 3 times in a row while running this" in verdict.reason
    assert "the page was loaded anew" in verdict.reason
    assert len(backend.opened) == 4 and result.kept_on_source == (bad.name,) and result.end_to_end.passed


def test_a_connection_that_breaks_again_and_again_is_no_verdict(run: FakeRun, tmp_path: Path) -> None:
    backend = Breaking([Fault("away", "run", nth=4)], [Fault("away", "run", nth=1)], name=PHONE)
    with pytest.raises(ConnectionLost, match=r"connection to phone@http://localhost:1 was lost 32 times.*--resume"):
        go(run, backend)
    assert len(backend.opened) == 32
    records, _ = journal.read(tmp_path / "targets" / "cpu" / "migrate.jsonl")
    assert {r["verdict"]["status"] for r in records if r["record"] == "verdict"} <= {"pass"}


@pytest.mark.parametrize("nth", [2, 5, 11, 30])
def test_a_device_that_does_not_come_back_leaves_a_journal_to_go_on_with(run: FakeRun, tmp_path: Path, nth: int) -> None:
    expected = plain(go(run, Breaking([], name=PHONE)))
    path = tmp_path / "targets" / "cpu" / "migrate.jsonl"
    whole = journal.read(path)[0]
    first = iter([FaultyDevice(FakeDevice(), [Fault("away", "write", nth)])])

    def once() -> FaultyDevice:
        for device in first:
            return device
        raise UnavailableError("The phone is nowhere.")

    with pytest.raises(ConnectionLost, match=r"nowhere\. The results so far are kept: continue with --resume\.") as caught:
        go(run, FakeBackend(once, PHONE), fresh=True)
    assert caught.value.exit_code == 3
    until_then = journal.read(path)[0]
    assert len(until_then) < len(whole)
    assert [_timeless(r) for r in until_then[1:]] == [_timeless(r) for r in whole[1 : len(until_then)]]
    assert plain(go(run, Breaking([], name=PHONE), resume=True)) == expected
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"secret" not in file.read_bytes(), file
    assert until_then[0]["device"] == "phone@http://localhost:1"


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return record | ({"verdict": record["verdict"] | {"seconds": 0}} if "verdict" in record else {})


def test_any_device_at_any_address_may_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path, seed=5, operators=2 * MOST_LOSSES)
    monkeypatch.setattr(Model, "of", lambda _: run.model)
    lost = Breaking([Fault("lose", "run", nth=7)], [Fault("lose", "run")], name="any@http://localhost:1/?token=secret")
    with pytest.raises(UnavailableError, match="--resume"):
        go(run, lost)
    assert go(run, Breaking([], name="any@https://elsewhere:2/?token=other"), resume=True).resumed > 0


def test_what_needs_more_memory_than_there_is_is_an_error_with_everything_else_off_the_device(run: FakeRun) -> None:
    backend = Breaking([Fault("memory", "write", nth=1)], [Fault("memory", "write", nth=1)], [])
    with OperatorTester(run, backend) as tester:  # type: ignore[arg-type]
        name = next(o.name for o in run.operators if int(o.signature) not in run.model.forwards)
        verdict = tester.test(name)
        assert (verdict.status, verdict.stage, len(backend.opened)) == ("error", "launch", 2)
        assert "out of memory" in verdict.reason


def test_attempts(run: FakeRun) -> None:
    backend = Breaking([])
    opened = backend.opened
    with Workbench.on(run, backend) as bench:  # type: ignore[arg-type]

        def attempt(*errors: Exception | None) -> int:
            """How often the work is begun when it raises these one after the other."""
            course = iter(errors)
            count = 0

            def work() -> int:
                nonlocal count
                count += 1
                error = next(course)
                if error is not None:
                    raise error
                return count

            return bench.attempt(work).get()

        away, restarted, full = ConnectionLost("away"), ConnectionLost("anew", restarted=True), OutOfMemory("full")
        assert attempt(None) == 1 and len(opened) == 1
        assert attempt(away, away, away, away, None) == 5 and bench.breaks == 4
        assert attempt(restarted, away, restarted, None) == 4 and bench.losses == 0
        assert attempt(full, away, None) == 3
        with pytest.raises(OutOfMemory):
            attempt(full, full, None)
        with pytest.raises(DeviceLost, match=r"went away 3 times in a row while running this\. The last time: anew"):
            attempt(restarted, restarted, restarted, None)
        assert bench.losses == 1
        with pytest.raises(DeviceLost, match="gone"):
            attempt(DeviceLost("gone"), None)
        assert bench.losses == 2 and backend.device is opened[-1]
        with pytest.raises(KeyError):
            attempt(KeyError(), None)  # type: ignore[arg-type]
        assert backend.device is opened[-1]


def test_a_device_that_comes_back_as_another_one_is_not_gone_on_with(run: FakeRun) -> None:
    calls = itertools.count()

    class Another(Breaking):
        def _narrowed(self, info: DeviceInfo) -> Target:
            return replace(super()._narrowed(info), schedules=("s",) * next(calls))

    with pytest.raises(ConnectionLost, match="came back as another one, fake"):
        go(run, Another([Fault("away", "run", nth=2)], [], name=PHONE))
