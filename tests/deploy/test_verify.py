"""Verifying bundles: what composes well passes every way, and each class of faults of composition is found and named."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from tapml.api import Run
from tapml.cli.main import main
from tapml.deploy import composition
from tapml.deploy.build import build
from tapml.deploy.bundle import BundleFolder
from tapml.deploy.composition import QUESTIONS
from tapml.deploy.plan import check_plan
from tapml.deploy.session import Session
from tapml.deploy.verify import Verified, verify
from tapml.diagnose.faults.catalogue import OF_PLANS, find
from tapml.diagnose.faults.fault import FaultClass
from tapml.errors import BundleError
from tapml.report.verify import view
from tests.cli.test_schemas import meets
from tests.conftest import MakeRun

TARGETS = ("opencl", "vulkan")


@pytest.fixture(scope="module")
def sessions(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Session]]:
    made: dict[str, Session] = {}

    def opened(target: str) -> Session:
        if target not in made:
            run = make_run("llama")
            Run.open(run.path).migrate(target, fresh=True)
            made[target] = Session(BundleFolder.open(build(run, target, tmp_path_factory.mktemp(target) / "llama").path))
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
    target: str, fault: FaultClass, open_session: Callable[[str], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composition, "TRIES", 3)  # a software driver is slow, and the seed makes three of them enough
    session = open_session(target)
    assert fault.compose is not None
    put = next(fault.compose(session.bundle, 3))
    verified = verify(session, repeat=2, max_tokens=3, composition=put.composition)
    assert not verified.passed and verified.found is not None
    found = verified.found
    assert found.cause == fault.name and found.to_json()["stage"] == "plan"
    named = {put.operator, put.other} if fault.name == "observer" else {put.operator}
    assert found.operator in named
    assert 0 <= found.wrong <= 3 and set(found.answers) == {q.name for q in QUESTIONS}


def test_what_a_plan_itself_gets_wrong_is_refused_before_it_runs(open_session: Callable[[str], Session]) -> None:
    """Also without running anything."""
    bundle = open_session("opencl").bundle
    for name in ("early-reuse", "unsafe-reorder"):
        compose = find(name).compose
        assert compose is not None
        with pytest.raises(BundleError, match="not sound"):
            check_plan(next(compose(bundle, 3)).composition.plan, bundle.model, bundle.programs)


def test_an_operator_that_is_not_deterministic_alone_is_no_fault_of_the_plan(
    open_session: Callable[[str], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that counts how often it has run, and adds that."""
    monkeypatch.setattr(composition, "TRIES", 3)
    bundle = BundleFolder.open(open_session("cpu").bundle.path)
    name = "decode/layers.1.mlp.down_proj"
    program = bundle.programs[name]
    counting = program.with_sources(tuple(counts(kernel.source) for kernel in program.kernels))
    bundle.__dict__["programs"] = {**bundle.programs, name: counting}
    with Session(bundle) as session:
        verified = verify(session, repeat=3, max_tokens=3)
    assert not verified.passed and verified.found is not None
    assert (verified.found.operator, verified.found.cause) == (name, "not-deterministic")
    assert verified.found.to_json()["stage"] == "numeric"
    text = shown(verified)
    assert f"first wrong: {name}, at stage numeric: not-deterministic" in text
    assert f"tapml test RUN --target T --repeat 20 --operator {name}" in text and "serialised" not in text.split("first wrong")[1]


def counts(source: str) -> str:
    changed, count = re.subn(r"(out3_ptr\[ax0\] = )(.*);", r"static int runs; \1\2 + 1e-3f * (float)(runs++ % 5);", source)
    assert count == 1, source
    return changed


def test_other_values_than_the_source_are_not_blamed_on_the_plan(open_session: Callable[[str], Session]) -> None:
    """Here the run's record is another: as if the kernels gave other values on this device."""
    bundle = BundleFolder.open(open_session("opencl").bundle.path)
    bundle.__dict__["prompts"] = tuple(p | {"generated": [*p["generated"][:2], 1, *p["generated"][3:]]} for p in bundle.prompts)
    with Session(bundle) as session:
        verified = verify(session, repeat=2, max_tokens=3)
    wrong = [check for check in verified.checks if not check.passed]
    assert [check.name for check in wrong] == ["source"] and verified.found is None
    assert re.match(r"prompt 0 chooses \d+ as token 2, and the source 1, and 1 more", wrong[0].detail)


def test_the_command_line(open_session: Callable[[str], Session], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(open_session("opencl").bundle.path)
    assert main(["verify", path, "--repeat", "2", "--max-tokens", "2", "--json", "-"]) == 0
    meets("verify", json.loads(capsys.readouterr().out))
    for argv, code, said in (
        (["verify", path + "x"], 2, "No bundle at"),
        (["verify", path, "--repeat", "0"], 2, "'0' is not a whole number of at least 1"),
        (["verify", path, "--device", "phone"], 2, "There is no device 'phone' here"),
    ):
        assert main(argv) == code
        assert said in capsys.readouterr().err


def test_what_was_found_is_shown(open_session: Callable[[str], Session]) -> None:
    session = open_session("opencl")
    compose = find("context-shape").compose
    assert compose is not None
    put = next(compose(session.bundle, 3))
    verified = verify(session, repeat=2, max_tokens=2, composition=put.composition)
    text = shown(verified)
    assert f"first wrong: {put.operator}, at stage plan: context-shape" in text
    assert f"it takes 2 launches submitted together, from {put.other} on" in text
    assert "right serialised" in text and "wrong without reuse" in text and "failed · llama · opencl" in text


def shown(verified: Verified) -> str:
    """In one line."""
    out = io.StringIO()
    console = Console(file=out, width=100, color_system=None)
    for part in view(verified, "llama · opencl", 1.0):
        console.print(part)
    return " ".join(out.getvalue().split())
