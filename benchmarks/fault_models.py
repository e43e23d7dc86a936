"""Small models with seeded random weights, made so that between them all 28 classes of faults show (`faults.py` carves them).

    tapml carve benchmarks/fault_models.py:llama_like -o RUN

A trained model has what random initial weights lack: values far from zero, means that dwarf the spread, scores that differ by
hundreds. Each model below gets some of that by scaling a few weights, and says which classes need it. Sizes are those of the
tests: two layers, hidden 64.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

PROMPT_LENGTH = 19  # longer than a sliding window of 8 and than two chunks of 8

_COMMON: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 1100, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def llama_like() -> tuple[Any, dict[str, torch.Tensor]]:
    """Grouped-query heads (18), rotary (16, 17), an embedding of more than 65,536 elements (10), an untied head (24). Queries of
    the last layer are 60 times larger than usual, so that the scores of some rows are far below zero (4)."""
    model = _causal_lm("llama")
    with torch.no_grad():
        model.model.layers[-1].self_attn.q_proj.weight.mul_(60)
    return model, _prompts(model)


def gemma_like() -> tuple[Any, dict[str, torch.Tensor]]:
    """Gemma 2: soft caps (21), a sliding window of 8 in every other layer (19), tanh-GELU of values beyond 10 (1, 23)."""
    model = _causal_lm("gemma2", head_dim=16, query_pre_attn_scalar=16, sliding_window=8, tie_word_embeddings=False)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight.mul_(6)
    return model, _prompts(model)


def gpt2_like() -> tuple[Any, dict[str, torch.Tensor]]:
    """GPT-2: LayerNorm of values whose mean is far from zero (3), tanh-GELU of values beyond 10 (1, 23), a tied head (24)."""
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 128}
    model = _causal_lm("gpt2", **sizes)
    with torch.no_grad():
        model.transformer.wpe.weight.add_(40)
        for block in model.transformer.h:
            block.mlp.c_fc.weight.mul_(6)
    return model, _prompts(model)


def mistral_like() -> tuple[Any, dict[str, torch.Tensor]]:
    """A sliding window of 8 in every layer, shorter than the prompt (19)."""
    model = _causal_lm("mistral", sliding_window=8)
    return model, _prompts(model)


def mixtral_like() -> tuple[Any, dict[str, torch.Tensor]]:
    """Experts: routing by softmax and top-k, products over gathered experts."""
    model = _causal_lm("mixtral", num_local_experts=4, num_experts_per_tok=2)
    return model, _prompts(model)


class FakeQuantised(torch.nn.Module):
    """Two linear layers with activations rounded to multiples of a step, half to even, as quantisation-aware training does (25);
    then a LayerNorm of values whose mean is far from zero (3)."""

    STEP = 0.25

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(64, 128)
        self.down = torch.nn.Linear(128, 64)
        self.norm = torch.nn.LayerNorm(64)
        torch.nn.init.constant_(self.down.bias, 40.0)

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        return torch.clamp(torch.round(x / self.STEP), -128, 127) * self.STEP

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, length, 64]; the same shape back."""
        x = self.rounded(x)
        return self.norm(x + self.down(torch.nn.functional.gelu(self.rounded(self.up(x)))))


def fake_quantised() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """`FakeQuantised`, and inputs that lie halfway between two steps as often as not. Its GELU is the one with erf (23)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(-12, 12, (1, 12, 64), generator=generator) * (FakeQuantised.STEP / 2)
    return FakeQuantised().eval(), (x,)


MODELS = (llama_like, gemma_like, gpt2_like, mistral_like, mixtral_like, fake_quantised)


def _causal_lm(arch: str, **settings: Any) -> Any:
    known = set(transformers.AutoConfig.for_model(arch).to_dict()) | set(settings)
    config = transformers.AutoConfig.for_model(arch, **{k: v for k, v in (_COMMON | settings).items() if k in known})
    config.initializer_range = 0.15  # larger than usual: differences between tokens and layers show in the logits
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = _COMMON["eos_token_id"]
    model.generation_config.pad_token_id = _COMMON["pad_token_id"]
    return model


def _prompts(model: Any) -> dict[str, torch.Tensor]:
    """Two prompts of random tokens."""
    generator = torch.Generator().manual_seed(7)
    return {"input_ids": torch.randint(3, model.config.vocab_size, (2, PROMPT_LENGTH), generator=generator)}
