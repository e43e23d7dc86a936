"""What `load` gives and the rest of the source stage works on: the module, and what is known about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["causal_lm", "module"]
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode.

    `kind`: "causal_lm" (a transformers causal language model: prefill, decode, key-value cache, greedy tokens) or "module"
    (anything else: one forward pass). `name` is for people, `spec` is how it was asked for. `dtype` is that of its floating
    point weights. `tokenizer` is transformers' or None. `example_inputs` are keyword arguments of one call, tensors on the
    module's device ({} where none are needed or known); those that `positional` names go in without their names, in that order.
    `stop` holds the token ids that end generation. `weight_files` are the safetensors files that hold the weights as the module
    has them, if there are any. `weights` says how a file holds them where that is not `dtype` ("Q4_1"). `licence` is that of the
    weights where their files state it. `notes` are what was done to the module that its owner should know."""

    module: torch.nn.Module
    kind: Kind
    name: str
    spec: str
    dtype: str
    tokenizer: Any | None = None
    example_inputs: dict[str, Any] = field(default_factory=dict)
    stop: tuple[int, ...] = ()
    weight_files: tuple[Path, ...] = ()
    positional: tuple[str, ...] = ()
    weights: str = ""
    licence: str = ""
    notes: tuple[str, ...] = ()

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """What the module returns for keyword arguments like `example_inputs`."""
        return called(self.module, inputs, self.positional)

    @cached_property
    def digest(self) -> str:
        """Hash of what the model computes: its class, config, and the bytes of every parameter and buffer. Equal for
        equal models wherever their files lie; reads all weights once (about 1 s a GB)."""
        found = hashlib.blake2b(digest_size=16)
        config = getattr(self.module, "config", None)
        known = {} if config is None or not hasattr(config, "to_dict") else config.to_dict()
        for place in ("_name_or_path", "transformers_version", "dtype"):
            known.pop(place, None)
        found.update(f"{type(self.module).__qualname__} {json.dumps(known, sort_keys=True, default=str)}".encode())
        seen: set[int] = set()
        named = [*self.module.named_parameters(remove_duplicate=False), *self.module.named_buffers(remove_duplicate=False)]
        for name, tensor in sorted(named, key=lambda pair: pair[0]):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            if id(tensor) not in seen and tensor.numel():
                seen.add(id(tensor))
                found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    @property
    def device(self) -> torch.device:
        tensor = next(self.module.parameters(), None)
        return torch.device("cpu") if tensor is None else tensor.device


def called(module: torch.nn.Module, inputs: Mapping[str, Any], positional: Sequence[str]) -> Any:
    """The module's result, with the inputs that `positional` names passed by position."""
    named = {key: value for key, value in inputs.items() if key not in positional}
    return module(*[inputs[key] for key in positional], **named)


def is_causal_lm(module: torch.nn.Module) -> bool:
    """Whether a module is a transformers causal language model: it generates, and its class is one that transformers files
    under causal language modelling."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    entries = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    names = {name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)}
    bases = {base.__name__ for base in type(module).__mro__}
    can = getattr(module, "can_generate", None)
    return hasattr(module, "config") and callable(can) and bool(can()) and bool(bases & names)


def stop_tokens(module: torch.nn.Module) -> tuple[int, ...]:
    """The token ids at which `model.generate` stops."""
    settings = getattr(module, "generation_config", None) or getattr(module, "config", None)
    found = getattr(settings, "eos_token_id", None)
    return () if found is None else (found,) if isinstance(found, int) else tuple(int(n) for n in found)
