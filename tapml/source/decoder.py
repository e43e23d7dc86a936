"""A causal language model as one step over a key-value cache of fixed length, ready to be exported.

    step = DecoderStep(module, cache_shapes(module), max_len)
    logits = step(input_ids, position_ids, last)            prefill: logits of the token at index `last` [1, 1, vocabulary]
    logits = step(input_ids, position_ids)                  decode

Every layer's keys and values are buffers `keys_0`, `values_0`, … of [1, heads, max_len, head size], written at the positions
that the step is given. That is all of the state: the length of the text so far is known to the caller alone. A layer with a
sliding window keeps all positions too; its attention mask hides those outside of the window.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import StaticLayer

from tapml.errors import ModelError

MODEL = "model"

# What configs call the length of an attention window, or of the blocks within which a layer attends.
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window")


@dataclass(frozen=True)
class CacheShape:
    """Shapes of one layer's keys and values, [1, heads, 1, size] for one token."""

    keys: torch.Size
    values: torch.Size
    dtype: torch.dtype


def cache_shapes(module: Any) -> tuple[CacheShape, ...]:
    """The cache that each layer keeps, seen by running one token through the model. Raises ModelError for a model that keeps
    another kind of state."""
    token = torch.zeros(1, 1, dtype=torch.long, device=next(module.parameters()).device)
    with torch.no_grad():
        cache = module(input_ids=token, use_cache=True).past_key_values
    layers = getattr(cache, "layers", None)
    if not layers:
        raise ModelError(f"{type(module).__name__} has no key-value cache, so it cannot be run token by token.")
    shapes = []
    for index, layer in enumerate(layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, torch.Tensor) or not isinstance(values, torch.Tensor) or keys.dim() != 4:
            raise ModelError(
                f"Layer {index} of {type(module).__name__} keeps a {type(layer).__name__}, not keys and values. Only attention "
                "caches are supported."
            )
        shapes.append(CacheShape(keys.shape, values.shape, keys.dtype))
    return tuple(shapes)


def attention_windows(module: Any) -> tuple[int, ...]:
    """The lengths of the windows within which some layers of a model attend, by its config; () where all see everything."""
    config = getattr(module, "config", None)
    found: set[int] = set()
    for part in (config, config.get_text_config() if isinstance(config, PretrainedConfig) else None):
        for name in WINDOWS:
            value = getattr(part, name, None)
            found.update(v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, int) and v > 0)
    return tuple(sorted(found))


class StepLayer(StaticLayer):  # type: ignore[misc]
    """One layer's cache during one step: writes at `positions` [n], attends to all of it (the mask hides what is later)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> None:
        # The base class would make a length counter of its own here, which is state that we keep elsewhere.
        self.keys, self.values, self.positions = keys, values, positions
        self.max_cache_len = keys.shape[2]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    @property
    def cumulative_length(self) -> torch.Tensor:
        """How many positions were filled before this step: that of its first token, as a tensor."""
        return self.positions[0]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self.positions, key_states.to(self.dtype))
        self.values.index_copy_(2, self.positions, value_states.to(self.dtype))
        return self.keys, self.values


class _RowsByPosition:
    """Stands for a mask [1, 1, positions, positions] that is read as `mask[:, :, first : last, :last]`, the rows being those of
    the newest tokens: they are taken by position instead, since a cache of fixed length is not filled up to its end."""

    def __init__(self, mask: torch.Tensor, positions: torch.Tensor) -> None:
        self._mask, self._positions = mask, positions

    def __getitem__(self, index: tuple[slice, ...]) -> torch.Tensor:
        return self._mask[..., index[-1]].index_select(-2, self._positions)


@contextmanager
def masks_by_position(module: torch.nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """While it lasts, GPT-Neo's attention layers, which keep a mask of their own for their local window and take its last rows,
    take the rows of `positions` [n]."""
    patched = [m for m in module.modules() if type(m).__name__ == "GPTNeoSelfAttention"]
    for layer in patched:
        # In front of the buffer of that name, which stays where it is.
        layer.__dict__["bias"] = _RowsByPosition(layer.get_buffer("bias"), positions)
    try:
        yield
    finally:
        for layer in patched:
            del layer.__dict__["bias"]


class DecoderStep(torch.nn.Module):  # type: ignore[misc]
    """See the module's docstring."""

    def __init__(self, module: Any, shapes: tuple[CacheShape, ...], max_len: int) -> None:
        super().__init__()
        self.add_module(MODEL, module)
        self.layers = len(shapes)
        device = next(module.parameters()).device
        for index, shape in enumerate(shapes):
            for name, size in (("keys", shape.keys), ("values", shape.values)):
                zeros = torch.zeros(size[0], size[1], max_len, size[3], dtype=shape.dtype, device=device)
                self.register_buffer(f"{name}_{index}", zeros, persistent=False)
        accepted = inspect.signature(module.forward).parameters
        self.keeps_logits = "logits_to_keep" in accepted
        self.max_len = max_len
        # A model without positions of its own (ALiBi) counts them from a mask over the whole cache.
        self.takes_positions = "position_ids" in accepted

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, last: torch.Tensor | None = None) -> torch.Tensor:
        positions = position_ids[0]
        cache = Cache(layers=[
            StepLayer(getattr(self, f"keys_{i}"), getattr(self, f"values_{i}"), positions) for i in range(self.layers)
        ])
        wanted: dict[str, Any] = {"past_key_values": cache, "use_cache": True, "return_dict": True}
        if self.takes_positions:
            wanted["position_ids"] = position_ids
        else:
            wanted["attention_mask"] = torch.ones(1, self.max_len, dtype=torch.long, device=input_ids.device)
        if last is not None and self.keeps_logits:
            wanted["logits_to_keep"] = last
        model = getattr(self, MODEL)
        with masks_by_position(model, positions):
            logits: torch.Tensor = model(input_ids=input_ids, **wanted).logits
        return logits if last is None or self.keeps_logits else logits.index_select(1, last)
