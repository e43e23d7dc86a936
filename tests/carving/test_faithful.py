"""The graphs that are carved are the model: what differs from the module's own answer is refused, with the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tapml.carving import faithful
from tapml.carving.carve import carve
from tapml.errors import ModelError
from tapml.source import decoder as stepping
from tapml.source.export import export
from tapml.source.load import load
from tests import models

PROMPTS = ["5 9 70 33", "17 30 11 5 64 100 33 12 90 41 77"]


def gpt_neo() -> Any:
    """Two layers, one of them with a local window of 8."""
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(
        vocab_size=128, hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8,
        max_position_embeddings=64, intermediate_size=96, initializer_range=0.15, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPTNeoForCausalLM(config).eval()


def roberta() -> Any:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=70, initializer_range=0.15, is_decoder=True,
    )  # fmt: skip
    return transformers.RobertaForCausalLM(config).eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gpt_neo_s_local_layers_answer_as_the_module_does(dtype: str, tmp_path: Path) -> None:
    result = carve(load(gpt_neo(), dtype=dtype), PROMPTS, tmp_path / "run", decode_steps=8, chunk=8)
    assert result.compared["positions"] > 16 and result.compared["texts"] >= 2
    assert result.compared["dtype"] == ("float32" if dtype == "float32" else "float64")
    if dtype == "float32":
        module = gpt_neo()
        for k, prompt in enumerate(PROMPTS):
            ids = torch.tensor([[int(n) for n in prompt.split()]])
            wanted = module.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
            assert list(result.prompts[k]["generated"]) == wanted[0, ids.shape[1] :].tolist()


def test_a_mask_read_from_the_wrong_end_is_refused_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The layer's own code, which takes the last rows of its mask, whatever the cache holds.
    whole = stepping.masks_by_position
    monkeypatch.setattr(stepping, "masks_by_position", lambda module, positions: whole(torch.nn.Identity(), positions))
    with pytest.raises(ModelError, match=r"GPTNeoForCausalLM itself computes.*first in \w+/transformer\.h\.1\.attn"):
        carve(load(gpt_neo()), PROMPTS, tmp_path / "run", decode_steps=8, chunk=8)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_roberta_is_refused_since_its_two_ways_of_running_disagree(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not count positions as 0, 1, 2.*generate"):
        carve(load(roberta(), dtype=dtype), PROMPTS, tmp_path / "run", decode_steps=4, chunk=8)


@pytest.mark.parametrize("change", ["window", "chunk"])
def test_what_shows_only_beyond_the_prompts_is_found(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt of four tokens: neither the second chunk nor the window's end is in it, and the cache goes beyond both."""
    module = models.causal_lm("mistral")
    exported_forward = stepping.DecoderStep.forward

    def forward(self: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
        inner = self.model
        if change == "window":
            # The window is not seen by the mask of the step.
            inner.config.sliding_window, before = None, inner.config.sliding_window
            try:
                return exported_forward(self, input_ids, position_ids, last)
            finally:
                inner.config.sliding_window = before
        # Positions beyond the first chunk stop counting.
        step = position_ids.clamp(max=7)
        wanted = inner.model.rotary_emb
        return _with(wanted, step, lambda: exported_forward(self, input_ids, position_ids, last))

    monkeypatch.setattr(stepping.DecoderStep, "forward", forward)
    with pytest.raises(ModelError, match=r"itself computes: after (9|1\d|2\d) tokens"):
        carve(load(module), ["5 9 70 33"], tmp_path / "run", decode_steps=2, chunk=8, max_len=32)


def _with(rotary: Any, positions: torch.Tensor, call: Any) -> torch.Tensor:
    before = rotary.forward
    rotary.forward = lambda x, *_, **__: before(x, position_ids=positions)
    try:
        return call()
    finally:
        rotary.forward = before


class Traced(torch.nn.Module):
    """Computes something else when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if torch.compiler.is_exporting():
            x = x * 1.01
        return self.second(x)


class Counts(torch.nn.Module):
    """Keeps a number that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.calls


def test_a_module_that_is_traced_as_another_is_refused_where_values_part(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"Traced itself computes.*first in second"):
        carve(load(Traced(), example_inputs=(torch.randn(2, 4),)), [], tmp_path / "run")


def test_a_module_that_answers_otherwise_each_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another answer each time"):
        carve(load(Counts(), example_inputs=(torch.randn(2, 4),)), [], tmp_path / "run")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_constant_rounded_to_half_precision_is_no_fault(dtype: str) -> None:
    """Gemma scales its embedding by √hidden in the model's dtype; the copy in float64 does not round it."""
    model = load(models.causal_lm("gemma", hidden_size=72, head_dim=18), dtype=dtype)
    exported = export(model, chunk=8, max_len=16)
    found = faithful.compare_decoder(model, exported, [[5, 9, 70, 33]], [[]])
    assert found.dtype == "float64"


def test_experts_are_compared_in_float64_too() -> None:
    model = load(models.causal_lm("mixtral"), dtype="bfloat16")
    exported = export(model, chunk=8, max_len=16)
    found = faithful.compare_decoder(model, exported, [[5, 9, 70, 33]], [[]])
    assert found.dtype == "float64" and found.error < 1e-10


def test_latent_attention_reads_no_undefined_memory() -> None:
    """DeepSeek-V3's cache is made of a part of each head, and torch makes room for the rest that nothing writes."""
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        vocab_size=128, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2, n_group=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2, topk_group=1,
        kv_lora_rank=16, q_lora_rank=24, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, first_k_dense_replace=1,
        max_position_embeddings=128,
    )  # fmt: skip
    model = load(transformers.DeepseekV3ForCausalLM(config).eval())
    exported = export(model, chunk=8, max_len=16)
    assert not [node for graph in exported.graphs for node in graph.nodes if "empty" in node.target]
    assert faithful.compare_decoder(model, exported, [[5, 9, 70, 33]], [[]]).error < 1e-4


def test_the_module_is_afterwards_what_it_was(tmp_path: Path) -> None:
    module = models.causal_lm("llama")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    result = carve(load(module, dtype="float32"), ["5 9 70"], tmp_path / "run", decode_steps=2, chunk=4)
    assert result.compared["error"] < 1e-4
    assert not any(m._forward_hooks for m in module.modules())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_model_of_integers(tmp_path: Path) -> None:
    class Ids(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.abs() * 2

    assert carve(load(Ids(), example_inputs=(torch.arange(4),)), [], tmp_path / "run").compared["error"] == 0.0
