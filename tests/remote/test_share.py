"""Several agents that test the operators of one run together, and what happens when they are killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tapml.api import Run
from tapml.carving.folder import RunFolder
from tapml.errors import UnavailableError, UsageError
from tapml.migrate.device_pool import DevicePool, are_several, units_of
from tapml.migrate.migrate import migrate
from tapml.migrate.model import Model
from tapml.migrate.records import Records
from tapml.verdicts import Verdict
from tests.conftest import MakeRun
from tests.remote.processes import Agent, running_agent, running_hub

TARGET = "cpu"


@pytest.fixture
def agents(tmp_path: Path, need: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Agent]]]:
    """A hub with the agents "one" and "two"; its address, and the agents. What is lost is given up soon."""
    need(TARGET)
    monkeypatch.setenv("TAPML_PATIENCE", "4")
    with ExitStack() as stack:
        hub = stack.enter_context(running_hub(tmp_path))
        made = [stack.enter_context(running_agent(hub.url, name, "--target", TARGET)) for name in ("one", "two")]
        for agent in made:
            agent.wait_ready(TARGET)
        yield hub.url, made


@pytest.fixture(scope="module")
def alone(make_run: MakeRun) -> list[Verdict]:
    """What one local device says, operator by operator."""
    return plain(Run(make_run("llama")).test(TARGET).verdicts)


@contextmanager
def pool_of(run: RunFolder, device: str) -> Iterator[DevicePool]:
    """With every device there before any begins."""
    with DevicePool(run, TARGET, device) as pool:
        until = time.monotonic() + 30
        while not all(share.info for share in pool.shares):
            assert time.monotonic() < until, pool.shares
            time.sleep(0.01)
        yield pool


def at(part: float, what: Callable[[], None]) -> Callable[[str, int, int], None]:
    """A progress that does something once a part of the tests is done."""

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("test", int(total * part)):
            what()

    return progress


def plain(verdicts: tuple[Verdict, ...]) -> list[Verdict]:
    return [replace(v, seconds=0.0) for v in verdicts]


def test_two_share_a_test(make_run: MakeRun, alone: list[Verdict], agents: tuple[str, list[Agent]]) -> None:
    url, _ = agents
    run = make_run("llama")
    result = Run(run).test(TARGET, f"all@{url}")
    assert plain(result.verdicts) == alone
    assert [s.name for s in result.devices] == ["one", "two"] and not any(s.gone for s in result.devices)
    assert sum(s.operators for s in result.devices) == len(run.operators)
    data = result.to_json()
    assert [d["name"] for d in data["devices"]] == ["one", "two"]
    kept = Records.of(run, TARGET).test
    assert kept is not None and list(kept.verdicts) == [o.name for o in run.operators] and kept.measures
    assert kept.header["device"] == f"all@{url.partition('/?')[0]}"


def test_one_is_killed_and_the_other_goes_on(
    make_run: MakeRun, alone: list[Verdict], agents: tuple[str, list[Agent]]
) -> None:
    url, (one, _) = agents
    run = make_run("llama")
    with pool_of(run, f"one,two@{url}") as pool:
        found = {v.operator: v for v in pool.test(run.operators, at(0.25, one.kill))}
        first, second = pool.shares
    assert plain(tuple(found[o.name] for o in run.operators)) == alone
    assert 0 < first.operators < second.operators and not second.gone
    assert first.operators + second.operators == len(alone)
    assert "did not come back within 4 s" in first.gone


def test_all_are_killed(make_run: MakeRun, agents: tuple[str, list[Agent]]) -> None:
    url, made = agents
    run = make_run("llama")

    def kill() -> None:
        for agent in made:
            agent.kill()

    with (
        pytest.raises(UnavailableError, match=r"(?s)No device is left at http://.* one: .* two: ") as caught,
        pool_of(run, f"one,two@{url}") as pool,
    ):
        list(pool.test(run.operators, at(0.25, kill)))
    assert caught.value.exit_code == 3 and "token" not in str(caught.value)
    with pytest.raises(UnavailableError, match=f"No device at the hub .* offers {TARGET}"):
        Run(run).test(TARGET, f"all@{url}")


def test_a_migration_is_tested_by_both_and_goes_on_with_one(
    make_run: MakeRun, alone: list[Verdict], agents: tuple[str, list[Agent]]
) -> None:
    url, (one, _) = agents
    run: RunFolder = make_run("llama")
    with pytest.raises(UnavailableError, match="--resume"):
        migrate(run, TARGET, f"one@{url}", fresh=True, max_tokens=4, progress=at(0.5, one.kill))
    result = migrate(run, TARGET, f"two,one@{url}", fresh=True, max_tokens=4)
    assert result.passed and plain(result.verdicts) == alone
    assert [(s.name, s.operators) for s in result.devices] == [("two", len(alone)), ("one", 0)]
    one.start()
    one.wait_ready(TARGET)
    result = migrate(run, TARGET, f"two,one@{url}", fresh=True, max_tokens=4)
    assert result.passed and plain(result.verdicts) == alone and len(result.devices) == 2


def test_what_stays_together(make_run: MakeRun) -> None:
    """Operators without weights that share kernels are one unit, in their order; all others stand alone."""
    run = make_run("llama")
    model = Model.of(run)
    units = units_of(model, run.operators)
    assert sorted(o.name for u in units for o in u.operators) == sorted(o.name for o in run.operators)
    for unit in units:
        assert len({o.signature for o in unit.operators}) == 1
        if len(unit.operators) > 1:
            assert all(key is None for o in unit.operators for key in model.weight_keys(o))
            positions = [run.operators.index(o) for o in unit.operators]
            assert positions == sorted(positions)
    alone = [u.operators[0].signature for u in units if all(k is None for k in model.weight_keys(u.operators[0]))]
    assert len(alone) == len(set(alone)) and any(len(u.operators) > 1 for u in units)


def test_which_devices_are_several() -> None:
    url = "http://h:1/?token=abc"
    assert are_several(f"a,b@{url}") and are_several(f"all@{url}")
    assert not any(map(are_several, ("local", f"a@{url}", f"any@{url}")))
    with pytest.raises(UsageError):
        are_several("a,b@nowhere")
