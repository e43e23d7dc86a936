"""Real small models on real drivers: everything moves, faults are caught and named, any split answers as the source does."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tapml
from tapml.carving.folder import RunFolder
from tapml.devices.child import ChildDevice
from tapml.migrate.end_to_end import check_calls
from tapml.migrate.migrate import migrate
from tapml.migrate.operator_test import OperatorTester
from tapml.runtime.decoder import Decoder
from tapml.runtime.protocol import greedy
from tests.conftest import MakeRun

Need = Callable[[str], str]


@pytest.mark.parametrize(("model", "target"), [
    ("llama", "opencl"), ("llama", "vulkan"), ("llama", "cpu"),
    ("conv_net", "opencl"), ("conv_net", "cpu"), ("encoder", "vulkan"),
])
def test_everything_moves_and_answers_as_the_source(model: str, target: str, make_run: MakeRun, need: Need) -> None:
    need(target)
    run = make_run(model)
    result = migrate(run, target, fresh=True, max_tokens=12)
    bad = [(v.operator, v.status, v.reason) for v in result.verdicts if v.status != "pass"]
    assert not bad
    assert result.passed and result.checks == 1
    assert result.offloaded == tuple(o.name for o in run.operators)
    data = result.to_json()["end_to_end"]
    assert data["top1_agreement"] == (None if model == "encoder" else 1.0) and 0 < data["logit_error"] <= data["logit_bound"]
    if model == "llama":
        assert data["tokens_match"] is True
        recorded = [list(p.generated) for p in run.prompts]
        assert [t[: len(r)] for t, r in zip(data["tokens_target"], recorded, strict=True)] == recorded


class Leftovers(torch.nn.Module):
    """Some of its values have no elements, as what a rotary embedding leaves of a head, or a cache before it is filled."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rest = x[:, 6:]
        return x.sin() + 1, rest.exp(), rest.sum(-1) + x[:, 0], torch.cat([rest.double(), x.cos()], -1)


@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_values_without_elements_move_too(target: str, need: Need, tmp_path: Path) -> None:
    need(target)
    run = tapml.carve(Leftovers(), {"x": torch.randn(4, 6)}, out=tmp_path / "run").folder
    result = migrate(run, target)
    assert result.passed and not result.kept_on_source, [(v.operator, v.status, v.reason) for v in result.verdicts]


def test_any_split_of_a_decoder_answers_as_the_source(make_run: MakeRun, need: Need) -> None:
    run = make_run("llama")
    assert isinstance(run.protocol, Decoder)
    rng = random.Random(3)
    with OperatorTester(run, need("cpu")) as tester:
        bench = tester.bench
        bench.compile(run.operators)
        hybrid = bench.hybrid()
        for share in (0.1, 0.5, 0.5, 0.9):
            names = [o.name for o in run.operators if rng.random() < share]
            hybrid.offload(bench.programs(names))
            for prompt in run.prompts:
                tokens = [token for token, _ in greedy(hybrid, prompt.tokens, run.protocol, len(prompt.generated))]
                assert tokens == list(prompt.generated), (share, names)


def test_cumulative_passes_on_a_sound_target(make_run: MakeRun, need: Need) -> None:
    run = make_run("llama")
    with OperatorTester(run, need("cpu")) as tester:
        verdicts = list(tester.test_cumulative())
    assert [v.operator for v in verdicts] == [o.name for o in run.operators]
    assert all(v.status == "pass" and "cumulative" in v.reason for v in verdicts)
    prefills = sum(call.graph == "prefill" for call in check_calls(run))
    assert prefills > 2
    assert {v.cases for v in verdicts if v.operator.startswith("prefill/")} == {prefills}, "late ones among them"


# An edit of the kernel's source for each of five kinds: the sort of mistake that backends really had.
FAULTS = {
    "linear": ("decode/layers.1.self_attn.q_proj", r"(for \(int \w+ = 0; \w+ < )64", r"\g<1>63"),  # the last element forgotten
    "rms_norm": ("prefill/layers.0.post_attention_layernorm", r"sqrt\(", "fabs("),
    "attention": ("decode/layers.0.self_attn.attention", r"\* 0?\.?2[.\w-]*(\+00)?f", "* 1.0f"),  # the scale forgotten
    "rotary": ("prefill/layers.1.self_attn.rotary", r"\* -1\.0e\+00f", "* 1.0f"),  # the wrong sign of one half
    "gated_activation": ("decode/layers.1.mlp.gated_activation", r"exp\(", "exp2("),  # the wrong base
}


def inject(folder: Path, operator: str, pattern: str, replacement: str) -> str:
    """An injected fault: this edit in this operator's kernels, and a note of each edit."""
    (folder / "fault.py").write_text(f"""
import re
def inject(operator, target, source):
    if operator != {operator!r}:
        return source
    return re.sub({pattern!r}, {replacement!r}, source)
""")
    return f"{folder / 'fault.py'}:inject"


@pytest.mark.parametrize("kind", FAULTS)
def test_an_injected_fault_is_caught_and_named(kind: str, make_run: MakeRun, need: Need, tmp_path: Path) -> None:
    need("opencl")
    run = make_run("llama")
    name, pattern, replacement = FAULTS[kind]
    assert run.operator(name).kind == kind
    # The plainest schedule, so that the kernels' text is what the edits expect.
    fault = inject(tmp_path, name, pattern, replacement)
    result = migrate(run, "opencl:schedule=simple", fresh=True, inject=fault, max_tokens=4)
    assert result.kept_on_source == (name,), [(v.operator, v.reason) for v in result.verdicts if v.status != "pass"]
    assert [v.operator for v in result.verdicts if v.status == "fail"] == [name]
    assert not result.passed
    assert result.end_to_end.passed, "with only that operator on the source, the tokens are the source's"


def test_cumulative_shows_where_a_fault_begins(make_run: MakeRun, need: Need, tmp_path: Path) -> None:
    need("opencl")
    run = make_run("llama")
    name, pattern, replacement = FAULTS["gated_activation"]
    fault = inject(tmp_path, name, pattern, replacement)
    with OperatorTester(run, "opencl:schedule=simple", inject=fault) as tester:
        bad = [v.operator for v in tester.test_cumulative() if v.status != "pass"]
    assert bad[0] == name and len(bad) > 1, "what comes after is wrong too"


def test_a_kernel_that_kills_the_driver_costs_one_verdict(make_run: MakeRun, need: Need, tmp_path: Path) -> None:
    need("cpu")
    run = make_run("conv_net")
    name = run.operators[1].name
    (tmp_path / "trap.py").write_text(f"""
import re

def inject(operator, target, source):
    trapped = re.sub("^(.*void .*[)] [{{])$", "\\\\1 __builtin_trap();", source, flags=re.M)
    return trapped if operator == {name!r} else source
""")
    result = migrate(run, "cpu", fresh=True, inject=f"{tmp_path / 'trap.py'}:inject")
    assert [(v.operator, v.status) for v in result.verdicts if v.status != "pass"] == [(name, "crash")]
    assert result.kept_on_source == (name,) and result.end_to_end.passed


def test_a_device_process_that_is_killed_costs_one_verdict(make_run: MakeRun, need: Need) -> None:
    run = make_run("conv_net")
    statuses: list[str] = []
    with OperatorTester(run, need("cpu")) as tester:
        for verdict in tester.test_all():
            statuses.append(verdict.status)
            device: Any = tester.bench.backend.device
            if len(statuses) == 1:
                assert isinstance(device, ChildDevice)
                os.kill(device.pid, signal.SIGKILL)
    assert statuses.count("crash") == 1 and statuses[1] == "crash"
    assert set(statuses) == {"pass", "crash"} and len(statuses) == len(run.operators)


def test_an_operator_without_cases_of_its_own(make_run: MakeRun, need: Need) -> None:
    run: RunFolder = make_run("llama")
    with OperatorTester(run, need("cpu")) as tester:
        without = [o for o in run.operators if not run.cases_of(o.name)]
        weighted = next(o for o in without if any(tester.model.weight_keys(o)))
        verdict = tester.test(weighted.name)
        assert verdict.status == "pass" and "own weights" in verdict.reason and verdict.source_error is not None
        plain = next(o for o in without if not any(tester.model.weight_keys(o)))
        alone = tester.test(plain.name)
        assert alone.status == "pass" and "recorded from" in alone.reason
        sibling = next(o for o in run.operators if o.signature == plain.signature and o.name != plain.name)
        tester.test(sibling.name)
        assert "same kernels as" in tester.test(plain.name).reason
