"""Kernels that are right where the prompts reach and wrong beyond: each fails in its own operator, and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

import tapml
from tapml.carving.folder import RunFolder
from tapml.migrate.end_to_end import EndToEnd, Oracle, Reference, compare_prompt
from tapml.migrate.model import Model
from tapml.migrate.operator_test import OperatorTester
from tapml.migrate.workbench import Workbench
from tapml.runtime.hybrid import Hybrid
from tests.diagnose.late_faults import CACHE, OtherText, carved, decode_attention, ignores_keys_from, rotary_stops_at
from tests.models import causal_lm

Need = Callable[[str], str]
MakeRun = Callable[[str], RunFolder]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return carved(tmp_path_factory.mktemp("late") / "run")


def prefill_attention(name: str) -> bool:
    return name.startswith("prefill/") and name.endswith(".attention")


def last_layer(name: str) -> bool:
    return name == "decode/layers.1.self_attn.attention"


FAULTS = {
    "ignores keys from 100 on": (ignores_keys_from(100), decode_attention),
    "ignores the last key": (ignores_keys_from(CACHE - 1), decode_attention),
    "the last layer alone ignores keys from 100 on": (ignores_keys_from(100, last_layer), last_layer),
    "prefill ignores keys from 100 on": (ignores_keys_from(100, prefill_attention), prefill_attention),
    "the rotary table stops at 100": (rotary_stops_at(100), lambda name: name == "decode/rotary_emb"),
}


@pytest.mark.parametrize(("fault", "target"), zip(FAULTS, itertools.cycle(("opencl", "vulkan"))))
def test_a_kernel_that_is_wrong_late_fails(need: Need, run: RunFolder, target: str, fault: str) -> None:
    rewrite, guilty = FAULTS[fault]
    with OperatorTester(run, need(target), inject=rewrite) as tester:
        verdicts = [v for glob in ("*.attention", "*/rotary_emb") for v in tester.test_all(glob)]
    assert any(guilty(v.operator) for v in verdicts)
    for v in verdicts:
        assert v.status == ("fail" if guilty(v.operator) else "pass"), (v.operator, v.stage, v.reason)
        assert v.status == "pass" or "late position" in v.reason, "what the prompts reach is right"


def test_right_kernels_pass_at_every_position(need: Need, run: RunFolder) -> None:
    with OperatorTester(run, need("opencl")) as tester:
        verdicts = {v.operator: v for glob in ("*.attention", "*/rotary_emb", "*cache*") for v in tester.test_all(glob)}
    assert all(v.status == "pass" for v in verdicts.values())
    late = [case for case in run.cases if case.late and case.operator == "decode/layers.0.self_attn.attention"]
    assert len(late) > 3 and verdicts["decode/layers.1.self_attn.attention"].cases > len(late), "its own cases and the late ones"


def test_a_sliding_window_that_is_off_by_one_beyond_the_prompt_fails(need: Need, tmp_path: Path) -> None:
    module = causal_lm("mistral", sliding_window=24)
    run = tapml.carve(module, out=tmp_path / "run", prompts=["5 9 70 33"], decode_steps=4, chunk=8, max_len=32).folder
    for graph in ("decode", "prefill"):
        fault = OtherText(lambda name, graph=graph: name == f"{graph}/mask", r"\+ 24\)", "+ 25)")
        with OperatorTester(run, need("opencl"), inject=fault) as tester:
            verdicts = {v.operator: v for v in tester.test_all("*/mask")}
        assert {name for name, v in verdicts.items() if v.status == "fail"} == {f"{graph}/mask"}
        assert "late position" in verdicts[f"{graph}/mask"].reason


@pytest.mark.parametrize("fault", [ignores_keys_from(100), rotary_stops_at(100)], ids=["attention", "rotary"])
def test_the_check_of_the_whole_model_sees_late_positions(need: Need, run: RunFolder, fault: OtherText) -> None:
    with Workbench.on(run, need("opencl"), inject=fault) as bench:
        names = [o.name for o in run.operators if fault.chosen(o.name)]
        bench.compile([run.operator(name) for name in names])
        hybrid = bench.hybrid()
        hybrid.offload(bench.programs(names))
        answer = Reference.of(run, Hybrid(bench.model, bench.model.source)).check(hybrid)
    assert answer.status == "fail" and answer.error is not None and answer.bound is not None and answer.error > answer.bound


def test_an_answer_that_the_cache_cuts_short_says_so(make_run: MakeRun) -> None:
    run = make_run("llama")
    model = Model.of(run)
    source, prompt = Hybrid(model, model.source), run.prompts[0]
    room = 32 - len(prompt.tokens) + 1
    cut = compare_prompt(run, source, source, prompt, 150, Oracle(run))
    whole = compare_prompt(run, source, source, prompt, 5, Oracle(run))
    assert (cut.asked, cut.cache, len(cut.tokens_source)) == (150, 32, room) and (whole.asked, whole.cache) == (5, None)
    data = EndToEnd((whole, cut)).to_json()
    assert data["cut_by_cache"] is True and data["prompts"][1]["cache"] == 32 and data["prompts"][1]["asked"] == 150
    assert EndToEnd((whole,)).to_json()["cut_by_cache"] is False
