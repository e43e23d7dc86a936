"""What cannot be compared is no pass: operators that the source cannot decide, and models whose own answer is NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import tapml
from tapml.errors import RunError
from tapml.migrate.end_to_end import EndToEnd, PromptResult, hollow
from tests import models

Need = Callable[[str], str]


class Square(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


class Floor(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.floor(x / 0.1)


def carved(module: torch.nn.Module, x: torch.Tensor, out: Path, dtype: str | None = None) -> tapml.Run:
    return tapml.carve(module, (x,), out=out / "run", dtype=dtype)


def wrong(tmp_path: Path, body: str) -> str:
    """A fault as --inject takes it."""
    file = tmp_path / "fault.py"
    file.write_text(f"import re\n\ndef wrong(operator, target, source):\n    return {body}\n")
    return f"{file}:wrong"


@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_where_every_element_overflows_nothing_was_checked(target: str, need: Need, tmp_path: Path) -> None:
    run = carved(Square(), torch.rand(4, 64) * 100 + 300, tmp_path, "float16")
    result = run.test(target=need(target))
    (verdict,) = result.verdicts
    assert verdict.status == "unchecked" and verdict.stage is None and not result.passed
    assert (verdict.elements, verdict.excluded) == (256, 256) and "only 0 of 256 elements" in verdict.reason
    assert result.to_json()["summary"]["unchecked"] == 1 and result.to_json()["verdicts"][0]["excluded"] == 256
    migrated = run.migrate(target=target)
    assert not migrated.offloaded and not migrated.passed


@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_a_kernel_one_step_off_fails_though_some_elements_straddle(target: str, need: Need, tmp_path: Path) -> None:
    x = torch.cat([torch.arange(64).float() * 0.1, torch.randn(64, generator=torch.Generator().manual_seed(0))])
    run = carved(Floor(), x, tmp_path)
    (right,) = run.test(target=need(target)).verdicts
    assert right.status == "pass" and 0 < right.excluded < right.elements
    one = "1.0f" if target == "opencl" else "1.0"
    for change in (f"{one} + floor(", f"-{one} + floor("):
        fault = wrong(tmp_path, f're.sub(r"\\bfloor ?\\(", {change!r}, source)')
        assert [v.status for v in run.test(target=target, inject=fault).verdicts] == ["fail"]


def test_a_model_whose_answer_is_nan_is_never_equal(need: Need, tmp_path: Path) -> None:
    model = models.causal_lm("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(1e6)
    run = tapml.carve(model, {"input_ids": torch.arange(5, 13)[None]}, out=tmp_path / "run", dtype="float16", decode_steps=3)
    result = run.migrate(target=need("opencl"))
    assert not result.passed and not result.end_to_end.passed
    (prompt,) = result.end_to_end.prompts
    assert "NaN or infinite" in prompt.unchecked and result.end_to_end.to_json()["checked"] is False
    with pytest.raises(RunError, match="tapml health"):
        run.bisect(target="opencl")


def test_what_is_hollow() -> None:
    fine = np.array([1.0, -np.inf, 3.0], np.float32)
    assert hollow([fine], logits=True) == "" and hollow([np.arange(3)], logits=True) == ""
    assert "1 of 3" in hollow([np.array([1.0, np.nan, 3.0], np.float32)], logits=True)
    assert "1 of 3" in hollow([np.array([1.0, np.inf, 3.0], np.float32)], logits=True)
    assert hollow([np.array([1.0, np.nan, np.inf], np.float16)], logits=False) == ""
    assert "2 of 3" in hollow([np.array([1.0, np.nan, np.nan], np.float16)], logits=False)


def test_an_unchecked_prompt_does_not_pass() -> None:
    equal = PromptResult(0, (1, 2), (1, 2), 0.0, 1.0, 0.1, 1.0)
    assert equal.passed and EndToEnd((equal,)).passed
    unchecked = PromptResult(0, (1, 2), (1, 2), 0.0, 1.0, 0.1, 1.0, unchecked="all NaN")
    assert not unchecked.passed and PromptResult.from_json(unchecked.to_json()) == unchecked
