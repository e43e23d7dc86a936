"""The course of a bisection on a model and device of whole numbers: devices that refuse, die or change their mind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapml.devices.faulty import Fault, FaultyDevice
from tapml.diagnose.bisect.result import BisectResult
from tapml.diagnose.bisect.stage import bisect
from tapml.errors import DeviceLost, UnavailableError
from tapml.migrate.model import Model
from tapml.migrate.workbench import MOST_LOSSES
from tests.migrate.fake import FakeBackend, FakeDevice, FakeRun
from tests.migrate.test_migrate_flow import influential


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRun]:
    run = FakeRun(tmp_path, seed=5, operators=14)
    monkeypatch.setattr(Model, "of", lambda run: run.model)
    yield run


def go(run: FakeRun, backend: FakeBackend, **options: Any) -> BisectResult:
    return bisect(run, backend, **options)  # type: ignore[arg-type]


def entry(run: FakeRun, name: str) -> str:
    return f"k{run.operator(name).signature}"


def test_a_driver_that_refuses_a_kernel(run: FakeRun) -> None:
    bad = influential(run)[-2]
    fault = Fault("refuse", "load", entry=entry(run, bad))
    result = go(run, FakeBackend(lambda: FaultyDevice(FakeDevice(), [fault])))
    assert result.culprits == (bad,) and result.sets[0].stage == "driver" and result.sets[0].answer.status == "error"
    assert result.without is not None and result.without.passed and result.runs <= result.bound


def test_a_kernel_that_takes_the_device_along(run: FakeRun) -> None:
    bad = influential(run)[-2]
    losses = 0

    class Dying(FakeDevice):
        def run(self, batch: Any) -> None:
            nonlocal losses
            if any(self.kernels[launch.kernel].entry == entry(run, bad) for launch in batch):
                losses += 1
                raise DeviceLost("gone")
            super().run(batch)

    result = go(run, FakeBackend(Dying))
    assert result.culprits == (bad,) and result.sets[0].answer.status == "crash"
    assert f"{bad}: gone" in result.sets[0].answer.reason
    assert losses == 5, "as it ships three times and once alone, one by one once; in the search it is known"


def test_a_device_that_dies_again_and_again(run: FakeRun) -> None:
    """It is lost over every operator, and all of them are looked for."""
    with pytest.raises(UnavailableError, match=f"lost {MOST_LOSSES} times"):
        go(run, FakeBackend(lambda: FaultyDevice(FakeDevice(), [Fault("lose", "run")])), all_sets=True)


def test_what_does_not_compile_stays_and_is_said(run: FakeRun) -> None:
    bad = run.operators[3]
    result = go(run, FakeBackend(failing={int(bad.signature)}))
    assert [(m.operator, m.stage, m.reason) for m in result.not_compiled] == [(bad.name, "lower", "no such thing")]
    assert result.passed and result.offloaded == len(run.operators) - 1 and "1 that does" in result.reason
    nothing = go(run, FakeBackend(failing=[int(o.signature) for o in run.operators]))
    assert not nothing.passed and nothing.answer is None and nothing.runs == 0
    assert nothing.reason.startswith("nothing could be offloaded") and not nothing.culprits


class Changing(FakeDevice):
    """Wrong in a share of the launches of one kernel; `together` only where others are in the same batch."""

    bad = ""
    share = 1.0
    together = False
    coin = random.Random(0)

    def run(self, batch: Any) -> None:
        for launch in batch:
            super().run([launch])
            hit = self.kernels[launch.kernel].entry == self.bad and (len(batch) > 1 or not self.together)
            if hit and self.coin.random() < self.share:
                self.buffers[launch.buffers[-1]][0] ^= 1


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("together", [False, True])
def test_a_fault_that_comes_and_goes(
    run: FakeRun, monkeypatch: pytest.MonkeyPatch, share: float, together: bool
) -> None:
    bad = influential(run)[-2]
    for name, value in {"bad": entry(run, bad), "share": share, "together": together, "coin": random.Random(6)}.items():
        monkeypatch.setattr(Changing, name, value)
    result = go(run, FakeBackend(Changing))
    assert bad in result.culprits and result.flaky and result.without is not None and result.without.passed
    (found,) = result.sets
    assert not found.steady and found.rate is not None and found.rate.least(0.95) < share
    assert found.repeats > 1 and f"run {found.repeats} times" in result.reason
    if together:
        # The neighbour that makes the batch longer than one launch belongs to the set.
        assert found.how == "together" and found.stage is None and len(found.operators) == 2
    else:
        assert found.how == "one by one" and found.operators == (bad,) and result.unsteady == (bad,)


def test_a_fault_that_needs_a_neighbour(run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time: the real hybrid is searched, and what is found is the kernel and a neighbour."""
    bad = influential(run)[-2]
    for name, value in {"bad": entry(run, bad), "share": 1.0, "together": True}.items():
        monkeypatch.setattr(Changing, name, value)
    result = go(run, FakeBackend(Changing))
    (found,) = result.sets
    assert bad in found.operators and len(found.operators) == 2 and found.how == "together" and found.stage == "state"
    assert "what is passed between them" in result.reason and not found.alone.passed and result.runs <= result.bound
