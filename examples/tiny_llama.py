"""A LLaMA of two layers with seeded random weights: `tapml carve examples/tiny_llama.py:model -o run`.

Small enough that the commands of docs/tutorial.md end soon, and a decoder all the same: prefill, decode, a key-value cache and
greedy tokens. Its vocabulary of 128 tokens has no words, so prompts and answers are token numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT = [5, 9, 70, 33, 7, 12, 99, 100]


def model() -> tuple[nn.Module, dict[str, Tensor]]:
    """The model, and int64 [1, 8] token numbers, which become the prompt that is recorded."""
    torch.manual_seed(0)
    # Initial weights larger than usual: differences between tokens and layers show in the logits.
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.15,
    )
    return LlamaForCausalLM(config).eval(), {"input_ids": torch.tensor([PROMPT])}
