"""What holds for a module wherever it came from: its example inputs by name, the dtype that it computes in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from tapml.errors import ModelError
from tapml.operators.carried import widened
from tapml.source.checked import plain_module
from tapml.source.model import DTYPES, Kind, LoadedModel, is_causal_lm, stop_tokens


def from_module(module: torch.nn.Module, name: str, spec: str, inputs: Any, dtype: str | None) -> LoadedModel:
    """`name` and `spec`, where empty, are the name of the module's class. `inputs` are keyword arguments, or positional ones.
    Raises ModelError for inputs that do not fit, a dtype that is not supported, and what `plain_module` refuses."""
    module, notes = plain_module(module)
    if dtype is not None:
        module = widened(module, getattr(torch, dtype))
    kind: Kind = "causal_lm" if is_causal_lm(module) else "module"
    stop = stop_tokens(module) if kind == "causal_lm" else ()
    bound, positional = bind(module, inputs)
    own = type(module).__name__
    return LoadedModel(
        module, kind, name or own, spec or own, dtype or dtype_of(module, bound), example_inputs=bound, stop=stop,
        positional=positional, notes=tuple(notes),
    )


def bind(module: torch.nn.Module, inputs: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Example inputs by the names of `forward`'s arguments, and the names of those that go in by position: all up to the last
    that has no other way. What `*args` takes is named by its place, "args_0"."""
    if isinstance(inputs, Mapping):
        return dict(inputs), ()
    if not isinstance(inputs, tuple | list):
        inputs = (inputs,)
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    nameless = sum(p.kind == p.POSITIONAL_ONLY for p in parameters)
    star = next((p.name for p in parameters if p.kind == p.VAR_POSITIONAL), None)
    if star is not None and len(inputs) > len(names):
        names += [f"{star}_{k}" for k in range(len(inputs) - len(names))]
        nameless = len(names)
    if len(inputs) > len(names):
        raise ModelError(
            f"{type(module).__name__}.forward takes {names or 'no named arguments'}; {len(inputs)} example inputs do not fit. "
            "Give them as a dict of keyword arguments."
        )
    return dict(zip(names, inputs, strict=False)), tuple(names[: min(nameless, len(inputs))])


def dtype_of(module: torch.nn.Module, inputs: Mapping[str, Any] | None = None) -> str:
    """That of the first floating point weight, or of the parts of the first complex one; without any, that of the first such
    input."""
    tensors = [*module.parameters(), *module.buffers()]
    for tensor in [*(t for t in tensors if t.is_floating_point()), *(t for t in tensors if t.is_complex())]:
        name = str(tensor.dtype.to_real()).removeprefix("torch.")
        if name not in DTYPES:
            raise ModelError(f"The model's weights are {name}. Give --dtype with one of {', '.join(DTYPES)}.")
        return name
    from torch.utils import _pytree as pytree

    for value in pytree.tree_leaves(dict(inputs or {})):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            name = str(value.dtype).removeprefix("torch.")
            return name if name in DTYPES else "float32"
    return "float32"
