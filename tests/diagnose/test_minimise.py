"""Minimising on real devices: faults put into kernels of a small model, and what is left of their operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tapml
from tapml.backends.forwarding import Forwarding
from tapml.backends.interface import PLAIN, Compiled, OnPrepared, Prepared, Way
from tapml.backends.on_device import with_kernels
from tapml.backends.open import open_backend
from tapml.backends.rewrite import Rewrite
from tapml.backends.source import OnHost, Source
from tapml.carving.folder import RunFolder
from tapml.carving.plain_reference import PlainReference
from tapml.diagnose.faults.catalogue import put_in
from tapml.diagnose.minimise.interestingness import FLAKY_RUNS
from tapml.diagnose.minimise.stage import Minimised, NotFailing, minimise
from tapml.errors import DeviceError, UnavailableError
from tapml.kernels import Program
from tapml.migrate.workbench import Workbench
from tapml.tensors import HostArray
from tests.conftest import MakeRun

Edit = Callable[[str], str]


class Text(Rewrite):
    """A fault in the text of every kernel of one operator."""

    def __init__(self, name: str, rewrite: Edit) -> None:
        super().__init__(f"text of {name}", f"text of {name}")
        self.name = name
        self.rewrite = rewrite

    def program(self, operator: str, target: str, program: Program) -> Program:
        if operator != self.name:
            return program
        return program.with_sources(tuple(self.rewrite(k.source) for k in program.kernels))


def started_wrong(source: str) -> str:
    """Sums start at 0.01."""
    return source.replace("= 0.0e+00f;", "= 1.0e-02f;")


def needs_many(source: str) -> str:
    """Sums of 8 and more elements leave one out."""
    for size in range(64, 7, -1):
        source = source.replace(f"< {size};", f"< {size - 1};").replace(f"< {size}i;", f"< {size - 1}i;")
    return source


def inputs_of(run: RunFolder, name: str) -> list[HostArray]:
    return run.case_arrays(run.cases_of_signature(run.operator(name).signature)[0])[0]


def shrunk(bench: Workbench, run: RunFolder, name: str, rewrite: Edit) -> Minimised:
    put_in(bench, Text(name, rewrite))
    return minimise(bench, run.operator(name), inputs_of(run, name), seconds=60.0)


@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_wrong_sums_shrink_to_a_few_elements(target: str, make_run: MakeRun, need: Callable[[str], str]) -> None:
    run = make_run("llama")
    with Workbench.on(run, need(target)) as bench:
        for name, most in (
            ("prefill/layers.0.self_attn.q_proj", 2),
            ("prefill/layers.0.input_layernorm", 2),
            ("prefill/layers.0.self_attn.attention", 16),
        ):
            found = shrunk(bench, run, name, started_wrong)
            assert found.comparison is not None and not found.comparison.passed
            assert found.elements_after == sum(a.size for a in found.inputs) <= most < found.elements_before
            assert tuple(a.shape for a in found.inputs) == tuple(s.shape for s in found.body.inputs)
            assert found.runs == 1 and found.steps


def test_what_a_failure_needs_stays(make_run: MakeRun, need: Callable[[str], str]) -> None:
    """A sum that goes wrong from 8 elements on keeps 8 or more, and nothing else: one row, one output feature."""
    run = make_run("llama")
    with Workbench.on(run, need("vulkan")) as bench:
        found = shrunk(bench, run, "prefill/layers.0.input_layernorm", needs_many)
    assert 8 <= found.elements_after <= 64
    assert max(max(s.shape) for s in found.body.inputs) >= 8


def test_a_case_that_passes_is_refused(make_run: MakeRun, need: Callable[[str], str]) -> None:
    run = make_run("llama")
    name = "prefill/layers.0.mlp.gated_activation"
    with Workbench.on(run, need("cpu")) as bench, pytest.raises(NotFailing, match="does not fail"):
        minimise(bench, run.operator(name), inputs_of(run, name))


def test_a_refused_kernel_shrinks_by_its_status_and_stage(make_run: MakeRun, need: Callable[[str], str]) -> None:
    run = make_run("llama")
    with Workbench.on(run, need("cpu")) as bench:
        found = shrunk(bench, run, "prefill/layers.0.mlp.gated_activation", lambda source: source.replace("exp(", "expo("))
    assert found.symptom == ("error", "driver")
    assert found.comparison is None and "expo" in found.message
    assert found.elements_after <= 2


class Sometimes(Forwarding):
    """Right on every other run of a wrong kernel: stands for a race."""

    calls = 0

    def run_once(
        self, compiled: Compiled, inputs: Sequence[HostArray | int], poison: bool = False, keep: bool = False
    ) -> list[HostArray]:
        self.calls += 1
        if not self.calls % 2:
            program = with_kernels(compiled)
            compiled = program.with_sources(tuple(k.source.replace("= 1.0e-02f;", "= 0.0e+00f;") for k in program.kernels))
        return super().run_once(compiled, inputs, poison, keep)


class Unplugged(Forwarding):
    """Gone after seven runs."""

    calls = 0

    def run_once(
        self, compiled: Compiled, inputs: Sequence[HostArray | int], poison: bool = False, keep: bool = False
    ) -> list[HostArray]:
        self.calls += 1
        if self.calls > 7:
            raise UnavailableError("unplugged")
        return super().run_once(compiled, inputs, poison, keep)


def test_a_failure_that_comes_and_goes_is_repeated(make_run: MakeRun, need: Callable[[str], str]) -> None:
    run = make_run("llama")
    with Workbench(run, Sometimes(open_backend(need("cpu")))) as bench:
        found = shrunk(bench, run, "prefill/layers.0.input_layernorm", started_wrong)
    assert found.runs == FLAKY_RUNS
    assert found.elements_after <= 2
    assert "intermittent" in found.steps[0]


def test_no_time_keeps_the_case_that_was_given(make_run: MakeRun, need: Callable[[str], str]) -> None:
    run = make_run("llama")
    name = "prefill/layers.0.input_layernorm"
    with Workbench.on(run, need("cpu")) as bench:
        put_in(bench, Text(name, started_wrong))
        found = minimise(bench, run.operator(name), inputs_of(run, name), seconds=0.0)
    assert found.elements_after == found.elements_before
    assert any("limit" in step for step in found.steps)


def test_a_device_that_goes_away_ends_with_the_best_so_far(make_run: MakeRun, need: Callable[[str], str]) -> None:
    run = make_run("llama")
    name = "prefill/layers.0.input_layernorm"
    with Workbench(run, Unplugged(open_backend(need("cpu")))) as bench:
        put_in(bench, Text(name, started_wrong))
        found = minimise(bench, run.operator(name), inputs_of(run, name), seconds=60.0)
    assert not isinstance(found, DeviceError)
    assert found.elements_after < found.elements_before
    assert any("unplugged" in step for step in found.steps)


class SumsInHalf(Source):
    """Products of matrices whose sums are kept in float16, rounded after each term."""

    def prepare(self, bodies: Any, on_prepared: OnPrepared | None = None, way: Way = PLAIN) -> dict[str, Prepared]:
        found = super().prepare(bodies, on_prepared, way)
        return {
            name: replace(p, compiled=replace(p.compiled, run=summed)) if isinstance(p.compiled, OnHost) else p
            for name, p in found.items()
        }


def summed(inputs: Sequence[HostArray]) -> list[HostArray]:
    x, w = inputs[0], inputs[1]
    total = np.zeros((*x.shape[:-1], len(w)), np.float16)
    for k in range(x.shape[-1]):
        total = np.float16(total.astype(np.float32) + x[..., k, None].astype(np.float32) * w[:, k].astype(np.float32))
    return [total]


def test_what_is_left_shows_the_fault_by_the_rule_of_reproducers(tmp_path: Path) -> None:
    """Sums in float16 are wrong for a product of two terms that cancel, by less than a reproducer tells from rounding."""
    torch.manual_seed(1)
    run = tapml.carve(torch.nn.Linear(256, 4, bias=False).half(), (torch.randn(1, 256).half(),), out=tmp_path / "run").folder
    operator = run.operators[0]
    with Workbench.on(run, SumsInHalf()) as bench:
        found = minimise(bench, operator, inputs_of(run, operator.name), seconds=30.0)
        assert found.elements_after < found.elements_before == 256 * 5
        actual = summed(found.inputs)
    assert any(PlainReference.of(r, "float16").fails(y) for r, y in zip(found.references, actual, strict=True))
