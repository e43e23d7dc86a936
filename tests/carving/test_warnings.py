"""What a carve says beside its facts: bad numbers, what was switched off, nothing to move, how a file holds its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tapml.carving.carve import CarveResult, carve
from tapml.errors import PromptError
from tapml.source.load import load
from tests import models


def carved(module: torch.nn.Module, inputs: Any, out: Path, dtype: str | None = None) -> CarveResult:
    return carve(load(module, dtype=dtype, example_inputs=inputs), [], out / "run")


class Plain(torch.nn.Module):
    """A linear layer, dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = torch.nn.Linear(4, 4)
        self.drop = torch.nn.Dropout(0.5)
        self.norm = torch.nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.drop(self.lin(x)))


class Masked(torch.nn.Module):
    """A causal mask of infinities, on purpose."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.full((4, 4), float("-inf")).triu(1)
        return torch.softmax(x @ x.T + mask, -1)


def test_nan_in_a_weight_is_named_and_counted(tmp_path: Path) -> None:
    module = Plain().eval()
    with torch.no_grad():
        module.lin.weight[0, :3] = float("nan")
        module.lin.weight[1, 1] = float("inf")
    weight, answer = carved(module, (torch.ones(2, 4),), tmp_path).warnings
    assert weight == "weight lin.weight holds 3 NaN and 1 infinity among 16 numbers"
    assert answer.startswith("1 of 1 recorded answers hold NaN or infinities; the first came from lin (")
    assert "whose weight lin.weight holds" in answer
    facts = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert facts["warnings"] == [weight, answer]


def test_an_overflow_of_the_source_names_the_operator_that_made_it(tmp_path: Path) -> None:
    module = models.causal_lm("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight.mul_(2e4)
    result = carve(load(module, dtype="float16"), ["5 9 70"], tmp_path / "run", decode_steps=3, chunk=4)
    (line,) = [w for w in result.warnings if "recorded answers" in w]
    assert line.startswith(f"{sum(result.calls.values())} of {sum(result.calls.values())} recorded answers hold NaN")
    assert "prefill/layers.1.mlp" in line and "out of finite numbers" in line and "--dtype bfloat16" in line


def test_masks_of_infinities_are_no_trouble(tmp_path: Path) -> None:
    assert carved(Masked(), (torch.randn(4, 4),), tmp_path).warnings == []


def test_a_mask_that_hides_everything_is(tmp_path: Path) -> None:
    class Hidden(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x.masked_fill(x < 100, float("-inf")), -1)

    (line,) = carved(Hidden(), (torch.randn(4, 4),), tmp_path).warnings
    assert "16 NaN among 16" in line


def test_training_mode_is_switched_off_and_said(tmp_path: Path) -> None:
    (line,) = carved(Plain(), (torch.ones(2, 4),), tmp_path).warnings
    assert line == (
        "the module was in training mode; dropout (1 module) is switched off and batch norm (1) uses its running statistics"
    )
    assert load(Plain().eval(), example_inputs=(torch.ones(2, 4),)).notes == ()
    assert load(torch.nn.Linear(4, 4), example_inputs=(torch.ones(2, 4),)).notes == (), "nothing in it is switched off"


def test_a_model_that_is_the_identity(tmp_path: Path) -> None:
    result = carved(torch.nn.Dropout(0.5).eval(), (torch.randn(2, 5),), tmp_path)
    assert result.operators == 0 and result.warnings[0].startswith("nothing to move: in evaluation mode the model returns")


def test_a_prompt_beyond_the_model_s_positions_is_one_message(tmp_path: Path) -> None:
    model = load(models.causal_lm("llama"))
    for max_len in (None, 256):
        with pytest.raises(PromptError, match=r"200 tokens; LlamaForCausalLM knows 128 positions.*Shorten the prompt") as caught:
            carve(model, [" ".join(["5"] * 200)], tmp_path / "run", max_len=max_len)
        assert "Carve with" not in str(caught.value)
    with pytest.raises(PromptError, match="smaller --chunk"):
        carve(load(models.causal_lm("llama", max_position_embeddings=40)), [" ".join(["5"] * 36)], tmp_path / "run")


def test_a_prompt_whose_answer_meets_the_end_of_the_positions(tmp_path: Path) -> None:
    model = load(models.causal_lm("llama", max_position_embeddings=16))
    result = carve(model, ["5 9 70 5 9 70 5 9 70 5 9"], tmp_path / "run", decode_steps=16, chunk=8)
    assert len(result.prompts[0]["generated"]) <= 6


def test_a_prompt_of_half_characters(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="half a character"):
        carve(load(models.causal_lm("llama")), ["a \udcff b"], tmp_path / "run")
