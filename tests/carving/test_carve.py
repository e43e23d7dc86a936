"""A whole carve of small models: what the run says is what the source does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tapml.carving.carve import carve
from tapml.carving.distance import distance
from tapml.carving.executor import GraphExecutor
from tapml.carving.folder import RunFolder
from tapml.errors import PromptError, RunError, UsageError
from tapml.operators.execute import host_function, tensor_from_host
from tapml.runtime.decoder import Decoder
from tapml.runtime.module import Module
from tapml.runtime.protocol import greedy
from tapml.source.load import load
from tapml.source.model import LoadedModel
from tapml.tensors import EPSILON
from tests import models
from tests.carving import runs


def test_every_case_is_what_the_source_computes() -> None:
    run, result, _ = runs.decoder()
    assert len(run.cases) == result.cases > 20
    for case in run.cases:
        inputs, expected = run.case_arrays(case)
        body = run.bodies[case.signature]
        assert [(a.shape, str(a.dtype)) for a in inputs] == [(s.shape, s.dtype) for s in body.inputs]
        for made, kept in zip(host_function(body)(inputs), expected, strict=True):
            # Not always bit for bit: the order of a sum may depend on where in memory a weight lies.
            assert distance(made, kept) <= 8 * EPSILON["float32"], case


def test_a_case_holds_float64s_answer_and_the_largest_error_of_calls_near_it() -> None:
    run, _, _ = runs.decoder()
    largest = 0.0
    for case in run.cases:
        inputs, references = run.case_references(case)
        exact = host_function(run.bodies[case.signature], "float64")(inputs)
        for mine, reference, oracle in zip(case.source_error, references, exact, strict=True):
            if reference.values.dtype.kind != "f":
                assert mine == 0.0 and reference.exact is None
                continue
            assert reference.exact is not None and distance(reference.exact, oracle) < 1e-12
            assert mine >= distance(reference.values, oracle) * (1 - 1e-6)
        largest = max(largest, *case.source_error)
    assert 0 < largest < 1e-4


def test_a_run_regenerates_the_tokens_from_its_own_files() -> None:
    run, _, model = runs.decoder()
    weights = {p.key: tensor_from_host(run.weight(p.key)) for g in run.graphs for p in g.weights}
    states = {key: tensor_from_host(array) for key, array in run.initial_states.items()}
    executor = GraphExecutor(run.graphs, run.operators, run.bodies, weights, states)
    assert isinstance(run.protocol, Decoder)
    for prompt in run.prompts:
        tokens = [token for token, _ in greedy(executor, prompt.tokens, run.protocol, 6)]
        assert tuple(tokens) == prompt.generated
        ids = torch.tensor([prompt.tokens])
        answer = model.module.generate(ids, max_new_tokens=6, do_sample=False)[0, len(prompt.tokens) :]
        assert tuple(answer.tolist()) == prompt.generated


def test_every_signature_is_covered_within_the_limit_and_all_calls_are_counted() -> None:
    run, result, _ = runs.decoder()
    per_signature = Counter(case.signature for case in run.cases if not case.late)
    assert set(per_signature) == set(run.bodies) and max(per_signature.values()) <= 6
    assert run.late is not None and run.kind == "decoder"
    late = Counter(call.graph for call in run.late.calls(run.protocol))
    chunks = sum(-(-len(p.tokens) // 4) for p in run.prompts) + late["prefill"]
    decodes = sum(len(p.generated) - 1 for p in run.prompts) + late["decode"]
    assert result.calls == {"prefill": chunks, "decode": decodes}
    each = Counter(o.graph for o in run.operators)
    assert result.calls_seen == each["prefill"] * chunks + each["decode"] * decodes
    assert result.calls_dropped == result.calls_seen - result.cases
    counts = run.manifest["signatures"].values()
    assert sum(c["seen"] for c in counts) == result.calls_seen and sum(c["kept"] for c in counts) == result.cases
    naive = 0
    for operator in run.operators:
        body = run.bodies[operator.signature]
        carried = sum(s.nbytes for s, role in zip(body.inputs, body.roles, strict=True) if role != "weight")
        naive += result.calls[operator.graph] * (carried + sum(s.nbytes for s in body.output_specs))
    assert result.naive_bytes == naive


def test_no_weight_is_in_a_case() -> None:
    run, _, _ = runs.decoder()
    weights = {run.weight(p.key).tobytes() for g in run.graphs for p in g.weights if p.spec.elements > 64}
    assert weights
    for case in run.cases:
        data = (run.path / case.file).read_bytes()
        assert not any(weight in data for weight in weights)


def test_late_and_last_cases_are_where_they_say() -> None:
    run, _, _ = runs.decoder()
    for case in run.cases:
        own = [o.name for o in run.operators if o.signature == case.signature]
        if "late step" in case.reasons:
            assert case.operator == own[0] and case.step > 0
        if "first layer" in case.reasons:
            assert case.operator == own[0] and case.prompt == 0
        if "last layer" in case.reasons:
            assert case.operator == own[-1] and case.prompt == len(run.prompts) - 1
    assert any("late step" in case.reasons and case.graph == "decode" for case in run.cases)


def test_the_end_to_end_oracle_covers_every_prompt_and_operator() -> None:
    run, _, _ = runs.decoder()
    calls = [line for line in run.oracle if "prompt" in line]
    assert {line["prompt"] for line in calls} == {0, 1, 2}
    assert all(0 < line["source_error"]["logits"] < 1e-4 for line in calls)
    for operator in run.operators:
        errors = run.compound_error(operator.name)
        assert errors and all(len(e) == len(operator.outputs) for e in errors.values())
    last = [o for o in run.operators if o.graph == "decode"][-1]
    own = [line for line in calls if line["prompt"] == 0 and line["graph"] == "decode"]
    by_call = {line["step"]: line["source_error"]["logits"] for line in own}
    assert {step: max(e) for step, e in run.compound_error(last.name).items()} == by_call


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_dtypes_have_a_larger_source_error(dtype: str) -> None:
    run, result, _ = runs.decoder(dtype)
    assert result.dtype == dtype
    errors = [case.source_error[0] for case in run.cases if "linear" in run.operator(case.operator).kind]
    assert EPSILON["float32"] < max(errors) < 32 * EPSILON[dtype]


def test_a_convolutional_network() -> None:
    run, result = runs.convolution()
    assert run.kind == "module" and run.protocol == Module() and len(run.examples) == 1
    assert result.calls == {"forward": 1} and set(run.bodies) == {case.signature for case in run.cases}
    (line,) = [line for line in run.oracle if "prompt" in line]
    assert 0 < line["source_error"]["output"] < 1e-5
    outputs = GraphExecutor(
        run.graphs, run.operators, run.bodies, {k: tensor_from_host(run.weight(k)) for k in run.weights.entries}, {}
    ).step("forward", run.examples[0])
    module, inputs = models.conv_net()
    with torch.no_grad():
        np.testing.assert_allclose(outputs["output"], module(*inputs).numpy(), rtol=1e-5, atol=1e-6)


class Overflow(torch.nn.Module):
    """float16 overflows in 300 * 300: the source says inf, float64 does not."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([1.0, 300.0, 2.0, -4.0], dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_where_the_source_overflows_it_is_no_judge(tmp_path: Path) -> None:
    x = torch.tensor([[1.0, 300.0, 2.0, -4.0]], dtype=torch.float16)
    result = carve(load(Overflow(), example_inputs=(x,)), [], tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    assert result.cases == 1 and "non-finite" in run.cases[0].reasons
    (_, (expected,)) = run.case_arrays(run.cases[0])
    assert np.isinf(np.ma.getdata(expected)).tolist() == [[False, True, False, False]]
    exact = x.float().numpy() * np.array([1.0, 300.0, 2.0, -4.0], np.float32)
    (judged,) = run.compare(run.cases[0], [exact])
    assert judged.passed and judged.excluded == 1
    (judged,) = run.compare(run.cases[0], [exact + 1])
    assert not judged.passed


class Total(torch.nn.Module):
    """Keeps a state that does not start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.tensor([5.0, 6.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total * 2


def test_initial_states_come_back(tmp_path: Path) -> None:
    carve(load(Total(), example_inputs=(torch.ones(2),)), [], tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    (case,) = run.cases
    inputs, _ = run.case_arrays(case)
    state = run.bodies[case.signature].roles.index("state")
    assert run.initial_states["total"].tolist() == inputs[state].tolist() != [0.0, 0.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", ["decoder", "convolution"])
def test_a_source_on_cuda(kind: str, tmp_path: Path) -> None:
    if kind == "decoder":
        model, prompts = load(models.causal_lm("llama"), device="cuda"), ["5 9 70 33", "11"]
    else:
        module, inputs = models.conv_net()
        model, prompts = load(module, example_inputs=inputs, device="cuda"), []
    result = carve(model, prompts, tmp_path / "run", decode_steps=6, chunk=4)
    run = RunFolder.open(tmp_path / "run")
    assert result.cases == len(run.cases) > 0
    assert all(0 <= error < 0.05 for case in run.cases for error in case.source_error)


def test_an_answer_that_stops_at_once_still_shows_a_decode_step(tmp_path: Path) -> None:
    model = load(models.causal_lm("llama"))
    first = run_tokens(model, tmp_path / "before")[0]
    run_tokens(replace(model, stop=(first,)), tmp_path / "after")
    run = RunFolder.open(tmp_path / "after")
    assert run.prompts[0].generated == (first,)
    assert {case.signature for case in run.cases} == set(run.bodies)


def run_tokens(model: LoadedModel, out: Path) -> tuple[int, ...]:
    carve(model, ["5 9 70 33"], out, decode_steps=4, chunk=4)
    return RunFolder.open(out).prompts[0].generated


def test_bad_prompts_leave_nothing(tmp_path: Path) -> None:
    model = load(models.causal_lm("llama"))
    for prompts, settings, message in (
        ([""], {}, "empty"),
        (["5 9 1 2 3 4"], {"max_len": 4, "chunk": 4}, "--max-len"),
        (["5 999"], {}, "vocabulary"),
        ([], {}, "--prompt"),
    ):
        with pytest.raises(PromptError, match=message):
            carve(model, prompts, tmp_path / "run", **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--decode-steps"):
        carve(model, ["5"], tmp_path / "run", decode_steps=0)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    run, _, model = runs.decoder()
    started = time.perf_counter()
    with pytest.raises(RunError, match="--fresh"):
        carve(model, ["5"], run.path)
    assert time.perf_counter() - started < 1.0


CARVE = """
import signal, sys, time
from pathlib import Path
from tapml.carving.carve import carve
from tapml.source.load import load
from tests import models

def progress(stage, done, total):
    if stage == sys.argv[2]:
        print("here", flush=True)
        time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has it ignored
module, inputs = models.conv_net()
carve(load(module, example_inputs=inputs), [], Path(sys.argv[1]), progress=progress)
"""


@pytest.mark.parametrize(("end", "stage"), [(signal.SIGKILL, "write"), (signal.SIGINT, "oracle: cases")])
def test_an_interrupted_carve_leaves_no_run(tmp_path: Path, end: signal.Signals, stage: str) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-c", CARVE, str(path), stage]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None and child.stdout.readline() == "here\n"
    os.kill(child.pid, end)
    child.wait()
    child.stdout.close()
    assert not path.exists()
    with pytest.raises(RunError, match="No run at"):
        RunFolder.open(path)
    if end == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []


def test_the_result_is_json_with_the_promised_keys() -> None:
    _, result, _ = runs.decoder()
    data = json.loads(json.dumps(result.to_json()))
    assert {"operators", "signatures", "cases", "bytes", "naive_bytes", "seconds", "source_seconds"} <= data.keys()
    assert re.fullmatch(r"[\d.]+", str(data["seconds"])) and data["source_seconds"] > 0
    assert set(data["stages"]) == {"load", "export", "cut", "record", "compare", "oracle", "write"}
