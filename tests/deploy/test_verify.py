"""Verifying bundles: what composes well passes every way, and each class of faults of composition is found and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tapml.api import Run
from tapml.deploy.build import build
from tapml.deploy.bundle import Bundle
from tapml.deploy.composition import QUESTIONS, TRIES
from tapml.deploy.session import Session
from tapml.deploy.verify import Verified, verify
from tapml.diagnose.faults.catalogue import OF_PLANS
from tapml.diagnose.faults.fault import FaultClass
from tests.conftest import MakeRun

TARGETS = ("cpu", "opencl", "vulkan")


@pytest.fixture(scope="module")
def sessions(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Session]]:
    made: dict[str, Session] = {}

    def opened(target: str) -> Session:
        if target not in made:
            run = make_run("llama")
            Run.open(run.path).migrate(target, fresh=True)
            made[target] = Session(Bundle.open(build(run, target, tmp_path_factory.mktemp(target) / "llama").path))
        return made[target]

    yield opened
    for session in made.values():
        session.close()


@pytest.fixture
def open_session(sessions: Callable[[str], Session], need: Callable[[str], str]) -> Callable[[str], Session]:
    return lambda target: sessions(need(target))


@pytest.mark.parametrize("target", TARGETS)
def test_a_clean_bundle_is_the_same_every_way(target: str, open_session: Callable[[str], Session]) -> None:
    verified = verify(open_session(target), repeat=3)
    assert verified.passed and verified.found is None, verified.checks
    assert [check.name for check in verified.checks] == ["source", "repeat", *(q.name for q in QUESTIONS), "chunks"]


@pytest.mark.parametrize("fault", OF_PLANS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("target", TARGETS)
def test_a_fault_of_composition_is_found_and_named(
    target: str, fault: FaultClass, open_session: Callable[[str], Session]
) -> None:
    session = open_session(target)
    assert fault.compose is not None
    put = next(fault.compose(session.bundle, 3))
    verified = verify(session, repeat=3, max_tokens=3, composition=put.composition)
    assert not verified.passed and verified.found is not None
    found = verified.found
    assert found.cause == fault.name and found.to_json()["stage"] == "plan"
    named = {put.operator, put.other} if fault.name == "observer" else {put.operator}
    assert found.operator in named
    assert 0 < found.wrong <= TRIES and set(found.answers) == {q.name for q in QUESTIONS}
    print(found)
