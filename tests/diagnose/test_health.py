"""Numeric health: the operator that made a bad number is named, on the source and on the target, whatever became of it;
headroom is what can be worked out by hand."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import tapml
from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.cli import health as verb
from tapml.devices.interface import Launch
from tapml.diagnose.health.anatomy import Anatomy
from tapml.diagnose.health.anomalies import bad_elements
from tapml.diagnose.health.headroom import Peak
from tapml.diagnose.health.result import keep_health, kept_health
from tapml.diagnose.health.stage import _Anomalies, _judge_outputs, health
from tapml.diagnose.probes.watch import calls_of, watch
from tapml.errors import DeviceError, RunError, UsageError
from tapml.migrate.model import Model
from tapml.report.console import stdout
from tapml.report.health import view
from tapml.runtime.hybrid import Hybrid
from tests.conftest import MakeRun

Need = Callable[[str], str]


class Eye(torch.nn.Linear):
    """A linear layer that gives back what it gets: it keeps the operations around it apart."""

    def __init__(self, n: int) -> None:
        super().__init__(n, n, bias=False)
        torch.nn.init.eye_(self.weight)


class Spike(torch.nn.Module):
    """exp(12) is beyond float16, and 1/(1+inf) hides it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = Eye(4), Eye(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(1 / (1 + torch.exp(self.up(x))))


class Wide(torch.nn.Module):
    """Nobody reads the last column of `a`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Linear(4, 4, bias=False)
        self.b, self.c = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(2, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.b(y[:, :2]) + self.c(y[:, 1:3])


class Then(torch.nn.Module):
    """A function between two layers that change nothing."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], n: int = 4) -> None:
        super().__init__()
        self.before, self.after = Eye(n), Eye(n)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.function(self.before(x)))


def carved(path: Path, module: torch.nn.Module, *inputs: torch.Tensor) -> RunFolder:
    return tapml.carve(module.to(inputs[0].dtype).eval(), inputs, out=path / "run").folder


def half(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float16)


def test_an_overflow_that_the_output_hides_is_named_on_the_source(tmp_path: Path) -> None:
    found = health(carved(tmp_path, Spike(), half(1, 2, 12, -3)))
    assert found.source.outputs_finite and not found.passed and found.target is None
    made = found.source.first("overflow")
    assert made is not None and found.source.made == (made,)
    assert (made.operator, made.node, made.index, made.value) == ("up", "aten.exp.default", (0, 2), "inf")
    assert (made.elements, made.of) == (1, 4)
    assert made.exact == pytest.approx(math.exp(12))
    assert [(r.low, r.high, r.nonfinite) for r in made.inputs] == [(-3.0, 12.0, 0)]
    assert [h.operator for h in found.tight] == ["up"]
    assert found.tight[0].float16_bits == pytest.approx(math.log2(65504 / math.exp(12)))


def test_the_same_in_float32_is_sound_but_told_before_it_bites(tmp_path: Path) -> None:
    found = health(carved(tmp_path, Spike(), half(1, 2, 12, -3).float()))
    assert found.passed and not found.source.made
    (tight,) = found.tight
    assert tight.operator == "up" and (tight.float16_bits or 0) < 0 < (tight.bfloat16_bits or 0)


FAULT = """
def inject(operator, target, source):
    new = "= (get_local_id(0) & 3) == 3 ? {value} : linear_intermediate_local_ptr[0];"
    return source.replace("= linear_intermediate_local_ptr[0];", new) if operator == "a" else source
"""


@pytest.mark.parametrize(("value", "kind"), [("NAN", "nan"), ("INFINITY", "inf"), ("0.0f", None)])
def test_what_only_the_target_makes_is_named_there_though_nobody_reads_it(
    tmp_path: Path, need: Need, value: str, kind: str | None
) -> None:
    run = carved(tmp_path, Wide(), torch.randn(2, 4))
    (tmp_path / "fault.py").write_text(FAULT.format(value=value))
    found = health(run, need("opencl"), inject=f"{tmp_path / 'fault.py'}:inject")
    assert found.source.sound and found.target is not None and found.target.outputs_finite
    assert [(m.operator, m.kind, m.elements, m.index) for m in found.target.made] == ([("a", kind, 2, (0, 3))] if kind else [])
    assert found.passed == (kind is None)
    if kind is not None:
        made = found.target.made[0]
        assert made.source_too is False and made.node is None and made.output == 0 and made.value == kind
        assert [r.name for r in made.inputs] == ["value x", "weight a.weight"]


def test_what_comes_in_bad_is_its_makers_alone(tmp_path: Path, need: Need) -> None:
    run = carved(tmp_path, Then(torch.log), torch.tensor([[1.0, -1.0, 2.0, 3.0]]))
    found = health(run, need("cpu"))
    assert found.source.made == () and found.target is not None and found.target.made == (), "float64 gives NaN as well"
    assert not found.source.outputs_finite and not found.target.outputs_finite

    run = carved(tmp_path / "half", Then(lambda x: x * 300 - x * 299), half(1, 250, 2, 3))
    found = health(run)
    assert [(m.operator, m.kind, m.node) for m in found.source.made] == [
        ("before", "overflow", "aten.mul.Tensor"),
    ], "inf - inf is NaN of what came in"
    assert not found.source.outputs_finite


def test_underflow(tmp_path: Path) -> None:
    found = health(carved(tmp_path, Then(lambda x: x * x), half(1e-4, 0, 1, 2)))
    (made,) = found.source.made
    assert (made.kind, made.node, made.elements, made.index, made.value) == ("underflow", "aten.mul.Tensor", 1, (0, 0), "0")
    assert made.exact == pytest.approx(1e-8, rel=1e-3)
    assert found.passed, "small numbers that are lost are told, and no failure"
    (before,) = [h for h in found.headroom if h.operator == "before"]
    # Three outputs are not zero, seen in the call and in its recording, and four weights on the diagonal; 1e-8 is below 2^-24.
    assert (before.lost_share, before.subnormal_share) == (pytest.approx(2 / 10), pytest.approx(2 / 10))


@pytest.mark.parametrize("fill", [float("-inf"), -65504.0, -1e9])
def test_a_mask_is_meant(tmp_path: Path, need: Need, fill: float) -> None:
    """Also -1e9, which float16 has as -inf and float64 as it is."""
    keep = torch.tensor([[True, True, False, True]])

    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = Eye(4)

        def forward(self, x: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            masked = torch.where(keep, self.scores(x), fill)
            return masked, torch.softmax(masked, -1)

    run = carved(tmp_path, Masked(), half(1, 2, 3, 4), keep)
    found = health(run, need("cpu"))
    assert found.passed and not found.source.made and found.target is not None and not found.target.made
    assert not found.tight and not found.target.not_checked and not found.source.not_checked
    model = Model.of(run)
    anomalies = _Anomalies(model)
    for seen in watch(model, Hybrid(model, model.source), calls_of(run)):
        _judge_outputs(model, seen, anomalies)  # a target whose outputs are the source's, infinities included
    assert not anomalies.made


def test_headroom_by_hand(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[100.0, 200.0]]))
        layer.bias.fill_(-5.0)
    (found,) = health(carved(tmp_path, layer, torch.tensor([[3.0, -4.0], [0.5, 0.0]]))).headroom
    assert found.magnitude == 100 * 3 + 200 * 4 + 5 and found.where == "partial sums of aten.linear.default"
    assert found.float16_bits == pytest.approx(math.log2(65504 / 1105))
    assert found.bfloat16_bits == pytest.approx(math.log2(3.3895313892515355e38 / 1105))
    assert found.stored == 505 and found.stored_float16_bits == pytest.approx(math.log2(65504 / 505)), "|3·100 - 4·200 - 5|"


def accumulated(path: Path, module: torch.nn.Module, *inputs: torch.Tensor) -> float:
    """The bound on partial sums of the run's operator that has one."""
    run = carved(path, module, *inputs)
    (operator,) = run.operators
    anatomy = Anatomy(run.bodies[operator.signature])
    values = anatomy.values(run.case_arrays(run.cases_of(operator.name)[0])[0])
    return max(s for part in anatomy.parts if (s := anatomy.accumulated(part, values)) is not None)


def test_partial_sums_by_hand(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6)
    norm = accumulated(tmp_path / "norm", torch.nn.LayerNorm(6), x)
    assert norm == pytest.approx(float(x.double().square().sum(-1).max()))

    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(-1)

    assert accumulated(tmp_path / "mean", Mean(), x) == pytest.approx(float(x.double().abs().sum(-1).max()))

    class Attention(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 5, 8)
    wanted = q.double().abs() @ k.double().abs().repeat_interleave(2, 1).transpose(-1, -2)
    assert accumulated(tmp_path / "attention", Attention(), q, k) == pytest.approx(float(wanted.max()))

    conv = torch.nn.Conv2d(2, 3, 3)
    image = torch.randn(1, 2, 5, 5)
    with torch.no_grad():
        terms = torch.nn.functional.conv2d(image.abs(), conv.weight.abs(), conv.bias.abs())
    assert accumulated(tmp_path / "conv", conv, image) == pytest.approx(float(terms.max()), rel=1e-5)


def test_the_limits_of_a_dtype_are_no_magnitudes() -> None:
    peak = Peak()
    lowest = np.finfo(np.float32).min
    peak.see(np.array([lowest, lowest + 1, -np.inf, np.nan, 7.0]), "mask", "float32")
    assert peak.magnitude == 7.0
    peak.see(np.array([70000.0]), "beyond", "float16")
    assert peak.magnitude == 70000.0 and peak.where == "beyond", "what overflowed is a magnitude"


@settings(max_examples=200)
@given(arrays.arrays(np.float64, 12, elements=st.floats(-1e6, 1e6) | st.floats(-1e-5, 1e-5) | st.sampled_from([np.inf, np.nan])))
def test_rounding_to_float16_gives_overflow_and_underflow_and_nothing_else(exact: np.ndarray[Any, Any]) -> None:
    with np.errstate(over="ignore", under="ignore"):
        actual = exact.astype(np.float16)
    found = bad_elements(actual, exact)
    none = np.zeros(exact.shape, bool)
    assert set(found) <= {"overflow", "underflow"}
    assert (found.get("overflow", none) == (np.isfinite(exact) & (np.abs(exact) >= 65520))).all()
    assert (found.get("underflow", none) == ((exact != 0) & (actual == 0))).all()


def test_bad_elements_are_told_by_kind() -> None:
    actual = np.array([np.nan, np.inf, np.inf, np.nan, np.inf, -np.inf, 0.0, 0.0, 0.0], np.float16)
    exact = np.array([1.0, 1e5, 1e3, np.nan, np.inf, np.inf, 1e-9, 1e-3, 0.0])
    found = {kind: np.flatnonzero(mask).tolist() for kind, mask in bad_elements(actual, exact).items()}
    assert found == {"nan": [0], "overflow": [1], "inf": [2, 5], "underflow": [6]}, "a wrong zero is no underflow"
    with pytest.raises(ValueError, match="no counterpart"):
        bad_elements(actual, exact[:3])


def test_watching_sees_what_operators_got(make_run: MakeRun) -> None:
    """Fed with what was seen, every operator gives what was seen: states and weights are those of that moment."""
    run = make_run("llama")
    model = Model.of(run)
    calls = calls_of(run, 1)
    count = 0
    for seen in watch(model, Hybrid(model, model.source), calls):
        for mine, theirs in zip(model.source(seen.operator.signature)(seen.inputs), seen.outputs, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        count += 1
    assert count == sum(len(model.operators_of[call.graph]) for call in calls)
    assert {c.graph for c in calls} == {"prefill", "decode"}
    with pytest.raises(UsageError, match="no prompt 2; it has 2"):
        calls_of(run, 2)


class Refusing(Rewrite):
    """A device that refuses one operator's kernel."""

    def device(self, device: Any) -> Any:
        real, name = device.run, self.text

        class Wrapped:
            def __init__(self) -> None:
                self.kernels: set[int] = set()

            def __getattr__(self, attribute: str) -> Any:
                return getattr(device, attribute)

            def load(self, kernel: Any) -> int:
                handle = int(device.load(kernel))
                self.kernels |= {handle} if "refused" in kernel.source else set()
                return handle

            def run(self, batch: Sequence[Launch]) -> None:
                if any(launch.kernel in self.kernels for launch in batch):
                    raise DeviceError("launch", f"will not run {name}")
                real(batch)

        return Wrapped()

    def program(self, operator: str, target: str, program: Any) -> Any:
        if operator != self.text:
            return program
        return program.with_sources(tuple(kernel.source + "// refused" for kernel in program.kernels))


def test_an_operator_that_the_device_refuses_stays_on_the_source(tmp_path: Path, need: Need) -> None:
    run = carved(tmp_path, Wide(), torch.randn(2, 4))
    found = health(run, need("cpu"), inject=Refusing("b", "refusing b"))
    assert found.target is not None and found.target.on_source == {"b": "will not run b"}
    assert found.target.operators == 3 and not found.target.made


def test_what_float64_cannot_follow_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = carved(tmp_path, Wide(), torch.randn(2, 4))

    def exact(self: Anatomy, part: Any, values: Any) -> Any:
        raise RuntimeError("not implemented for 'Double'")

    monkeypatch.setattr(Anatomy, "exact", exact)
    found = health(run).source
    assert found.not_checked == dict.fromkeys("abc", "RuntimeError: not implemented for 'Double'")


def test_the_verb_keeps_what_it_found_and_shows_it(tmp_path: Path, need: Need, capsys: pytest.CaptureFixture[str]) -> None:
    run = carved(tmp_path, Spike(), half(1, 2, 12, -3))
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    outcome = verb.run(parser.parse_args([str(run.path), "--target", need("opencl")]))
    assert outcome.code == 1
    data = json.loads(json.dumps(outcome.data))
    assert data["first"]["source"]["overflow"]["operator"] == "up" and data["first"]["source"]["nan"] is None
    assert set(data) >= {"source", "target", "headroom", "first"} and data["facts"]["target"] == "opencl"
    assert kept_health(run, "opencl") == data
    alone = kept_health(run, None)
    assert alone is not None and alone["target"] is None and alone["facts"]["target"] is None
    assert alone["source"] == data["source"]
    assert kept_health(run, "vulkan") is None and kept_health(run, "opencl", injected=True) is None
    for part in outcome.view:
        stdout().print(part)
    text = capsys.readouterr().out
    assert "first overflow: up" in text and "float64 gives 162755" in text and "under 2 bits" in text
    (run.path / "targets" / "opencl" / "health.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        kept_health(run, "opencl")
    for wrong in (["--device", "x@y"], ["--inject", "f.py:f"], ["--prompt-index", "5"]):
        with pytest.raises(UsageError):
            verb.run(parser.parse_args([str(run.path), *wrong]))


def test_an_injected_fault_is_kept_apart(tmp_path: Path, need: Need) -> None:
    run = carved(tmp_path, Wide(), torch.randn(2, 4))
    (tmp_path / "fault.py").write_text(FAULT.format(value="NAN"))
    found = health(run, need("opencl"), inject=f"{tmp_path / 'fault.py'}:inject")
    keep_health(run, found, "opencl")
    assert kept_health(run, "opencl") is None
    assert kept_health(run, "opencl", injected=True) == json.loads(json.dumps(found.to_json()))
    assert any("leave every operator" in str(part) for part in view(found))
    run.manifest["digest"] = "another"
    assert kept_health(run, "opencl", injected=True) is None
