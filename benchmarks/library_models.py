"""Small models of transformers, timm and torchvision, with random weights: a configuration of each architecture, cut down.

    module, given = models("transformers")["bert"]()          a module and its keyword arguments

Making one may fail: sizes that belong together differ from architecture to architecture. Those are counted as not made.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tapml.source.checked import batch_experts
from tapml.source.export import flat_outputs

LIBRARIES = ("transformers", "timm", "torchvision")
TOKENS = 12
SMALL = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "embed_dim": 64, "dim": 64, "embedding_size": 64, "word_embed_proj_dim": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "depth": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "ffn_dim": 96,
    "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
    "vocab_size": 120, "image_size": 32, "patch_size": 8, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "max_position_embeddings": 64, "type_vocab_size": 2, "moe_intermediate_size": 32,
    "d_ff": 96, "d_kv": 16, "kv_lora_rank": 16, "q_lora_rank": 16,
}  # fmt: skip
Made = tuple[torch.nn.Module, dict[str, torch.Tensor]]


def models(library: str) -> dict[str, Callable[[], Made]]:
    """What makes each model of a library, by name; nothing where the library is not installed."""
    if importlib.util.find_spec(library) is None:
        return {}
    names: dict[str, Callable[[], list[str]]] = {"transformers": _types, "timm": _families, "torchvision": _vision}
    makers: dict[str, Callable[[str], Made]] = {"transformers": _language, "timm": _timm, "torchvision": _torchvision}
    return {name: partial(makers[library], name) for name in names[library]()}


def _types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return sorted(MODEL_MAPPING_NAMES)


class _Tensors(torch.nn.Module):
    """Only the tensors of what a model returns, without a cache."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, **given: torch.Tensor) -> list[torch.Tensor]:
        return list(flat_outputs(self.module(**given)).values())


def _language(name: str) -> Made:
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CONFIG_MAPPING[name]()
        for part in (config, *(v for v in vars(config).values() if hasattr(v, "model_type"))):
            for key, value in SMALL.items():
                if isinstance(getattr(part, key, None), int):
                    setattr(part, key, value)
            if hasattr(part, "use_cache"):
                part.use_cache = False
        model = AutoModel.from_config(config).eval()
        batch_experts(model)
        module = _Tensors(model)
        for given in _inputs(config):
            try:
                with torch.no_grad():
                    if module(**given):
                        return module, given
            except Exception as error:
                last = error
        raise last


def _inputs(config: Any) -> list[dict[str, torch.Tensor]]:
    """What a model may want, the likely first."""
    tokens = torch.randint(3, 100, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 32)
    size = size if isinstance(size, int) else 32
    pixels = torch.rand(1, getattr(vision, "num_channels", 3), size, size, generator=torch.Generator().manual_seed(0))
    both = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return [
        both, {"input_ids": tokens}, {**both, "decoder_input_ids": tokens}, {"pixel_values": pixels},
        {**both, "pixel_values": pixels}, {"input_values": torch.rand(1, 4000)}, {"input_features": torch.rand(1, 80, 64)},
    ]  # fmt: skip


def _families() -> list[str]:
    import timm

    smallest = {}
    for name in timm.list_models():
        family = name.split("_")[0]
        smallest.setdefault(family, name)
    return sorted(smallest.values())


def _timm(name: str) -> Made:
    import timm

    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, num_classes=10).eval()
    size = module.default_cfg.get("input_size", (3, 64, 64))
    return _Tensors(module), {"x": torch.rand(1, *size)}


def _vision() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _torchvision(name: str) -> Made:
    import torchvision

    torch.manual_seed(0)
    size = 96 if name.startswith("inception") else 64
    size = 224 if name.startswith(("vit", "swin", "maxvit")) else size
    return _Tensors(torchvision.models.get_model(name, weights=None, num_classes=10).eval()), {"x": torch.rand(1, 3, size, size)}
