"""The text that fills the cache: where its calls are, what they record, and what a run says of the positions that it reaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tapml
from tapml.carving.carve import carve
from tapml.carving.executor import GraphExecutor
from tapml.carving.folder import RunFolder
from tapml.carving.late import CHUNKS, Late, check_calls, positions_words
from tapml.cli import carve as verb
from tapml.operators.execute import host_function, tensor_from_host
from tapml.operators.positional import positional
from tapml.report.console import stdout
from tapml.runtime.decoder import Decoder
from tapml.source.decoder import attention_windows
from tapml.source.load import load
from tests import models
from tests.carving import runs

MakeRun = Callable[[str], RunFolder]


def shape(max_len: int, chunk: int = 8, stop: tuple[int, ...] = (2,)) -> Decoder:
    return Decoder(chunk, max_len, 128, stop)


def planned(max_len: int, prompt: int = 11, answer: int = 6, windows: tuple[int, ...] = (), chunk: int = 8) -> Late:
    prompts, answers = [list(range(3, 3 + prompt))], [list(range(50, 50 + answer))]
    return Late.planned(prompts, answers, shape(max_len, chunk), windows)


@pytest.mark.parametrize(("max_len", "chunk", "prompt", "answer"), [
    (32, 8, 11, 6), (160, 32, 12, 8), (8, 8, 8, 1), (8, 1, 3, 2), (4, 4, 1, 1), (1, 1, 1, 1), (64, 8, 60, 5), (256, 8, 1, 1),
])
def test_every_position_is_exercised_and_the_last_one_decoded(max_len: int, chunk: int, prompt: int, answer: int) -> None:
    late = planned(max_len, prompt, answer, chunk=chunk)
    facts = late.positions(shape(max_len, chunk))
    assert facts["exercised"] == facts["cache"] == max_len and facts["last"] == max_len - 1
    assert facts["late_steps"][-1] == max_len - 1
    assert positions_words(facts) == f"positions 0 to {max_len - 1} of {max_len} were exercised"
    assert facts["prompts"] == prompt + answer - 1
    places = [call.position for call in late.calls(shape(max_len, chunk)) if call.graph == "decode"]
    assert places == facts["late_steps"] and len(places) <= max_len.bit_length() + 2


def test_decode_calls_are_spread_beyond_what_the_prompts_reach() -> None:
    assert [p for p, _ in planned(256).steps] == [16, 32, 64, 128, 192, 255]
    assert [p for p, _ in planned(256, prompt=100).steps] == [128, 192, 255]


def test_both_sides_of_a_windows_edge_are_decoded_even_within_the_prompt() -> None:
    assert [p for p, _ in planned(64, windows=(8, 40, 64, 500)).steps] == [7, 8, 16, 32, 39, 40, 48, 63]
    late = planned(64, prompt=30, windows=(8,))
    assert late.windows == (8,) and {0, 8} <= set(late.chunks), "their chunks run again, or no prefill call is seen there"


def test_a_step_puts_another_token_than_the_prefill_call_before_it() -> None:
    for late in (planned(256), planned(256, prompt=1, answer=1), planned(64, windows=(8,))):
        assert all(late.tokens[place] != token for place, token in late.steps)
        fresh = late.tokens[late.reached + 1 :]
        assert 2 not in fresh and len(set(fresh)) > min(len(fresh), 40) // 2, "no stop tokens, and not one again and again"


def test_the_plan_is_the_same_each_time_and_comes_back_from_json() -> None:
    late = planned(256, windows=(40,))
    assert late == planned(256, windows=(40,)) == Late.from_json(late.to_json())


def test_a_cache_of_thousands_costs_a_bounded_number_of_calls() -> None:
    late = planned(8192, windows=(4096,))
    calls = late.calls(shape(8192))
    assert len(calls) <= CHUNKS + 3 * 16 and late.chunks[-1] == 8184 and 4088 in late.chunks and 4096 in late.chunks
    facts = late.positions(shape(8192))
    assert facts["exercised"] < 8192 and f"of 8192, {facts['exercised']:,} of them, were exercised" in positions_words(facts)
    gaps = np.diff(late.chunks)
    assert gaps.max() < 8192 / 16, "spread over all of it"


def test_the_check_ends_with_the_late_calls_and_fits_the_cache() -> None:
    late = planned(32)
    calls = check_calls(list(range(3, 14)), list(range(50, 56)), late, shape(32))
    assert [(c.graph, c.position) for c in calls] == [
        ("prefill", 0), ("prefill", 8), ("decode", 11), ("decode", 12),
        ("prefill", 8), ("prefill", 16), ("decode", 16), ("prefill", 24), ("decode", 24), ("decode", 31),
    ]  # fmt: skip
    full = check_calls(list(range(32)), [5, 6], planned(32, prompt=32), shape(32))
    assert all(c.position < 32 for c in full)


def test_which_operators_depend_on_positions() -> None:
    run, _, _ = runs.decoder()
    assert isinstance(run.protocol, Decoder)
    names = positional(run.graphs, run.operators, run.protocol.max_len, "position_ids")
    kinds = {run.operator(name).kind for name in names}
    assert kinds == {"mask", "rotary_table", "rotary", "cache_update", "attention"}
    assert all(o.name in names for o in run.operators if o.kind in kinds)


def test_late_positions_are_recorded_once_a_signature_and_beside_the_slots() -> None:
    run, _, _ = runs.decoder()
    assert run.late is not None and run.kind == "decoder" and run.late.reached < run.protocol.max_len
    names = positional(run.graphs, run.operators, run.protocol.max_len, "position_ids")
    dependent = {run.operator(name).signature for name in names}
    late = [case for case in run.cases if case.late]
    assert {case.signature for case in late} == dependent
    for signature in dependent:
        own = [case for case in late if case.signature == signature]
        first = next(o.name for o in run.operators if o.signature == signature and o.name in {c.operator for c in own})
        assert {case.operator for case in own} == {first}
        end = run.protocol.max_len - 1
        assert any(case.reasons[-1].endswith(f" {end}") for case in own), "up to the end of the cache"
    for case in late:
        inputs, expected = run.case_arrays(case)
        made = host_function(run.bodies[case.signature])(inputs)
        for one, other in zip(made, expected, strict=True):
            np.testing.assert_allclose(one, np.ma.getdata(other), rtol=1e-5, atol=1e-6)
    (attention,) = [c for c in late if c.operator == "decode/layers.0.self_attn.attention" and c.reasons[0].endswith(f" {end}")]
    keys = run.case_arrays(attention)[0][0]
    assert np.abs(keys).max(axis=(0, 1, 3)).all(), "every position of the cache holds something"


def test_a_late_case_is_what_the_check_sees_at_its_step() -> None:
    run, _, _ = runs.decoder()
    assert isinstance(run.protocol, Decoder)
    weights = {p.key: tensor_from_host(run.weight(p.key)) for g in run.graphs for p in g.weights}
    states = {key: tensor_from_host(array) for key, array in run.initial_states.items()}
    seen: dict[tuple[str, int], np.ndarray] = {}
    executor = GraphExecutor(run.graphs, run.operators, run.bodies, weights, states)
    calls = check_calls(run.prompts[0].tokens, run.prompts[0].generated, run.late, run.protocol)
    for step, call in enumerate(calls):
        executor.hook = lambda o, i, out, step=step: seen.update({(o.name, step): out[0].numpy().copy()})
        executor.step(call.graph, call.inputs)
    for case in run.cases:
        if case.late:
            _, expected = run.case_arrays(case)
            np.testing.assert_allclose(seen[case.operator, case.step], expected[0], rtol=1e-4, atol=1e-5)


def test_the_source_is_measured_on_every_call_of_the_check() -> None:
    run, _, _ = runs.decoder()
    assert isinstance(run.protocol, Decoder)
    calls = check_calls(run.prompts[0].tokens, run.prompts[0].generated, run.late, run.protocol)
    lines = {line["step"]: line for line in run.oracle if line.get("prompt") == 0}
    assert [lines[step]["graph"] for step in range(len(calls))] == [call.graph for call in calls]


def test_each_kind_of_layer_has_its_window_and_its_late_cases(tmp_path: Path) -> None:
    module = models.causal_lm("gemma3_text", num_hidden_layers=6, layer_types=["sliding_attention"] * 5 + ["full_attention"])
    assert attention_windows(module) == (8,)
    carve(load(module), ["5 9 70 33"], tmp_path / "run", decode_steps=3, chunk=8, max_len=32)
    run = RunFolder.open(tmp_path / "run")
    masks = [case for case in run.cases if case.late and case.graph == "decode" and run.operator(case.operator).kind == "mask"]
    places = {case.reasons[0] for case in masks}
    assert {"late position 7", "late position 8", "late position 31"} <= places
    prefill = {r for case in run.cases if case.graph == "prefill" for r in case.reasons if r.startswith("late")}
    assert {"late positions 8 to 15", "late positions 24 to 31"} <= prefill


@pytest.mark.parametrize(("arch", "kinds"), [("gpt2", {"attention", "embedding"}), ("bloom", {"matmul", "softmax", "mask"})])
def test_learned_positions_and_alibi_are_recorded_late_too(make_run: MakeRun, arch: str, kinds: set[str]) -> None:
    """BLOOM's attention is cut into its parts, of which the softmax sees neither the cache nor the mask."""
    run = make_run(arch)
    late = {run.operator(case.operator).kind for case in run.cases if "late position 31" in case.reasons}
    assert kinds | {"cache_update"} <= late


def test_a_module_has_no_positions() -> None:
    run, result = runs.convolution()
    assert run.late is None and run.positions is None and result.positions is None
    assert not any(case.late for case in run.cases) and positions_words(None) == ""


def test_carve_says_how_far_the_evidence_reaches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, result, _ = runs.decoder()
    assert result.positions == run.positions is not None
    stdout().print(*verb.view(tapml.Run(run), "run"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "0 to 15 of 16 were exercised; the prompts reach 15, then decode steps at 15" in shown
