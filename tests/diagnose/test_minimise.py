"""Minimising on real devices: faults put into kernels of a small model, and what is left of their operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tapml.carving.folder import RunFolder
from tapml.diagnose.minimise.interestingness import FLAKY_RUNS
from tapml.diagnose.minimise.stage import Minimised, NotFailing, minimise
from tapml.errors import DeviceError
from tapml.kernels import Program
from tapml.migrate.alteration import Alteration
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator
from tapml.tensors import HostArray
from tests.conftest import MakeRun

Rewrite = Callable[[str], str]


class Text(Alteration):
    """A fault in the text of every kernel of one operator."""

    def __init__(self, name: str, rewrite: Rewrite) -> None:
        super().__init__(f"text of {name}", f"text of {name}")
        self.name = name
        self.rewrite = rewrite

    def program(self, operator: Operator, target: str, program: Program) -> Program:
        if operator.name != self.name:
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


def shrunk(bench: Workbench, run: RunFolder, name: str, rewrite: Rewrite) -> Minimised:
    bench.alter(Text(name, rewrite))
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


class Sometimes:
    """A device that is right on every other run of a wrong kernel: stands for a race."""

    def __init__(self, bench: Workbench) -> None:
        self.inner = bench.run
        self.bench = bench
        self.calls = 0

    def __call__(self, operator: Operator, program: Program, *args: object, **kwargs: object) -> list[HostArray]:
        self.calls += 1
        if self.calls % 2:
            return self.inner(operator, program, *args, **kwargs)  # type: ignore[arg-type]
        clean = program.with_sources(tuple(k.source.replace("= 1.0e-02f;", "= 0.0e+00f;") for k in program.kernels))
        return self.inner(operator, clean, *args, **kwargs)  # type: ignore[arg-type]


def test_a_failure_that_comes_and_goes_is_repeated(
    make_run: MakeRun, need: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("llama")
    with Workbench.on(run, need("cpu")) as bench:
        monkeypatch.setattr(bench, "run", Sometimes(bench))
        found = shrunk(bench, run, "prefill/layers.0.input_layernorm", started_wrong)
    assert found.runs == FLAKY_RUNS
    assert found.elements_after <= 2
    assert "comes and goes" in found.steps[0]


def test_no_time_keeps_the_case_that_was_given(make_run: MakeRun, need: Callable[[str], str]) -> None:
    run = make_run("llama")
    name = "prefill/layers.0.input_layernorm"
    with Workbench.on(run, need("cpu")) as bench:
        bench.alter(Text(name, started_wrong))
        found = minimise(bench, run.operator(name), inputs_of(run, name), seconds=0.0)
    assert found.elements_after == found.elements_before
    assert any("limit" in step for step in found.steps)


def test_a_device_that_goes_away_ends_with_the_best_so_far(
    make_run: MakeRun, need: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tapml.errors import UnavailableError

    run = make_run("llama")
    name = "prefill/layers.0.input_layernorm"
    with Workbench.on(run, need("cpu")) as bench:
        bench.alter(Text(name, started_wrong))
        inner, calls = bench.run, 0

        def dying(*args: object, **kwargs: object) -> list[HostArray]:
            nonlocal calls
            calls += 1
            if calls > 7:
                raise UnavailableError("unplugged")
            return inner(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(bench, "run", dying)
        found = minimise(bench, run.operator(name), inputs_of(run, name), seconds=60.0)
    assert not isinstance(found, DeviceError)
    assert found.elements_after < found.elements_before
    assert any("unplugged" in step for step in found.steps)
