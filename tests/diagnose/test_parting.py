"""Tokens that part beyond the check of the whole model: bisection and explanation go on to the step where they do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tapml.carving.folder import RunFolder
from tapml.diagnose.bisect.parting import Parting
from tapml.diagnose.bisect.stage import bisect
from tapml.diagnose.explain.stage import explain
from tapml.migrate.end_to_end import PromptResult
from tapml.migrate.migrate import migrate
from tapml.runtime.decoder import Decoder
from tests.diagnose.late_faults import carved, rotary_wrong_at

Need = Callable[[str], str]
MakeRun = Callable[[str], RunFolder]
WRONG_AT = 44


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return carved(tmp_path_factory.mktemp("parting") / "run")


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy without results."""
    return RunFolder.open(Path(shutil.copytree(made.path, tmp_path / "run", ignore=shutil.ignore_patterns("targets"))))


def test_bisect_and_explain_go_on_from_the_journal(need: Need, run: RunFolder) -> None:
    """The fault is at a position that no case and no call of the check is at. A migration shows it and names no operator."""
    fault = rotary_wrong_at(WRONG_AT)
    assert run.late is not None and WRONG_AT not in {p for p, _ in run.late.steps} and run.late.reached <= WRONG_AT
    before = bisect(run, need("cpu"), inject=fault)
    assert before.passed and before.further is None and "positions 0 to 159 of 160 were exercised" in before.reason
    moved = migrate(run, "cpu", inject=fault, max_tokens=60)
    assert not moved.kept_on_source and not moved.end_to_end.passed, "every operator passes, and the model is wrong"
    found = bisect(run, "cpu", inject=fault)
    assert found.culprits == ("decode/rotary_emb",) and found.further is not None and "prompt 0" in found.further
    assert found.without is not None and found.without.passed and found.runs <= found.bound
    assert json.loads(json.dumps(found.to_json()))["further"] == found.further
    why = explain(run, "decode/rotary_emb", "cpu", inject=fault)
    assert not why.triage.passed and why.model is not None and why.model.blamed and why.model.trial is not None
    assert "of the model (decode)" in why.model.trial.name and why.model.trial.inputs[0].reshape(-1).tolist() == [WRONG_AT]


def test_bisect_compares_tokens_when_it_is_asked_to(need: Need, run: RunFolder) -> None:
    found = bisect(run, need("cpu"), inject=rotary_wrong_at(WRONG_AT), tokens=60)
    assert found.culprits == ("decode/rotary_emb",) and found.further is not None
    right = bisect(run, "cpu", tokens=40)
    assert right.passed and "the first 40 tokens of each answer agree" in right.reason


def result(source: tuple[int, ...], target: tuple[int, ...], differs_at: int | None, error: float = 0.0) -> PromptResult:
    return PromptResult(0, source, target, error, 1.0, 0.1, 1.0, differs_at)


def test_where_two_answers_part(make_run: MakeRun) -> None:
    assert Parting.of(result((5, 6, 7), (5, 6, 7), None)) is None
    assert Parting.of(result((), (), None, error=2.0)) is None, "a module that is not a decoder"
    assert Parting.of(result((5, 6, 7), (5, 8, 9), 1)) == Parting(0, 1, (5, 6, 7))
    assert Parting.of(result((5, 6, 7), (5, 6, 7), None, error=2.0)) == Parting(0, 2, (5, 6, 7)), "only the logits are wrong"
    assert Parting.of(result((5, 6), (5, 6, 7), 2)) == Parting(0, 1, (5, 6)), "one side stops earlier"


def test_a_further_check_ends_at_the_step_where_they_part(make_run: MakeRun) -> None:
    run = make_run("llama")
    assert isinstance(run.protocol, Decoder)
    prompt = len(run.prompts[1].tokens)
    short, full = Parting(1, 3, (5, 6, 7, 8)).checks(run)
    for check in (short, full):
        assert check.prompt == 1 and check.calls[-1].graph == "decode" and check.calls[-1].position == prompt + 2
        assert check.calls[-1].inputs["input_ids"].tolist() == [[7]], "the token before the one that differs"
    assert [c.graph for c in short.calls].count("decode") == 1 and [c.graph for c in full.calls].count("decode") == 3
    (only,) = Parting(1, 0, (5, 6)).checks(run)
    assert {c.graph for c in only.calls} == {"prefill"}, "the first token comes from the prompt"
    (only,) = Parting(1, 1, (5, 6)).checks(run)
    assert [c.graph for c in only.calls].count("decode") == 1
