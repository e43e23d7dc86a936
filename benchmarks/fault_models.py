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


class Block(torch.nn.Module):
    """One transformer block: RMS norm, rotary attention with grouped heads and a causal mask with a sliding window, scores with a
    soft cap; LayerNorm, a gate with tanh-GELU; logits over 1,100 tokens with a soft cap."""

    HIDDEN, HEADS, GROUPS, HEAD, WINDOW, LENGTH = 128, 8, 2, 16, 24, 48

    def __init__(self) -> None:
        super().__init__()
        hidden, inner = self.HIDDEN, self.HEADS * self.HEAD
        self.weight = torch.nn.Parameter(torch.rand(hidden) + 0.5)
        self.q = torch.nn.Linear(hidden, inner)
        self.k = torch.nn.Linear(hidden, self.GROUPS * self.HEAD)
        self.v = torch.nn.Linear(hidden, self.GROUPS * self.HEAD)
        self.o = torch.nn.Linear(inner, hidden, bias=False)
        self.norm = torch.nn.LayerNorm(hidden)
        self.gate = torch.nn.Linear(hidden, 256)
        self.up = torch.nn.Linear(hidden, 256)
        self.down = torch.nn.Linear(256, hidden)
        self.head = torch.nn.Linear(hidden, 1100, bias=False)
        positions = torch.arange(self.LENGTH)
        far = positions[:, None] - positions[None]
        self.register_buffer("mask", (far >= 0) & (far < self.WINDOW), persistent=False)
        angles = positions[:, None] * 10000.0 ** (-torch.arange(0, self.HEAD, 2) / self.HEAD)
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, -1), persistent=False)
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, -1), persistent=False)
        with torch.no_grad():
            self.q.weight.mul_(4)
            self.gate.weight.mul_(6)

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, heads, length, head]."""
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, length, hidden]; logits [batch, length, 1100]."""
        batch, length, _ = x.shape
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        q, k, v = (
            each(y).view(batch, length, -1, self.HEAD).transpose(1, 2) for each in (self.q, self.k, self.v)
        )
        k, v = (each.repeat_interleave(self.HEADS // self.GROUPS, dim=1) for each in (self.rotated(k), v))
        scores = self.rotated(q) @ k.transpose(-1, -2) * self.HEAD**-0.5
        scores = 30.0 * torch.tanh(scores / 30.0)
        share = torch.softmax(scores.masked_fill(~self.mask, float("-inf")), -1)
        x = x + self.o((share @ v).transpose(1, 2).reshape(batch, length, -1))
        y = self.norm(x)
        x = x + self.down(torch.nn.functional.gelu(self.gate(y), approximate="tanh") * self.up(y))
        return 20.0 * torch.tanh(self.head(x) / 20.0)


def block(seed: int = 0) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """`Block` with seeded weights, and hidden states of which some channels are thirty times the others, as in trained models."""
    torch.manual_seed(seed)
    x = torch.randn(1, Block.LENGTH, Block.HIDDEN)
    x[..., :4] *= 30
    return Block().eval(), (x,)


MODELS = (block, llama_like, gemma_like, gpt2_like, mistral_like, mixtral_like, fake_quantised)


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
