"""A model in PyTorch, from what the user names on the command line or gives from Python.

    model = load("./my-model")                  a Hugging Face directory, or an id such as "organisation/name"
    model = load("model.Q4_1.gguf")             a GGUF file, through a converted copy in the cache
    model = load("net.py:build")                a function that returns (torch.nn.Module, example_inputs)
    model = load(module, example_inputs=…)      a module that is there already

What a text means is decided by the table of `tapml.source.readers.known`. The dtype, where none is asked for, is float32 for GGUF
and what the model's config says otherwise. Weights in safetensors are memory-mapped. An id is looked up in the local Hugging Face
cache first, then on the hub. No code of a model's repository is run, and no pickled weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tapml.errors import ModelError, nearest
from tapml.source.checked import evaluated
from tapml.source.model import DTYPES, LoadedModel
from tapml.source.prompts import default_inputs
from tapml.source.readers.known import reader_of
from tapml.source.readers.module import bind, from_module
from tapml.source.readers.reader import Request

__all__ = ["LoadedModel", "load"]


def load(
    spec: str | Path | torch.nn.Module,
    *,
    dtype: str | None = None,
    device: str | None = None,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    tokenizer: Any | None = None,
) -> LoadedModel:
    """See the module's docstring. `dtype` is "float32", "float16" or "bfloat16"; `device` "cpu" (None too) or
    "cuda[:N]". `example_inputs` (keyword arguments or positional ones) and `tokenizer` replace the model's own. Raises
    ModelError."""
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not supported. {nearest(dtype, DTYPES)}")
    device = device or "cpu"
    _check_device(device)
    with _quiet():
        if isinstance(spec, torch.nn.Module):
            model = from_module(spec, "", "", example_inputs or (), dtype)
        else:
            model = reader_of(str(spec)).read(Request(str(spec), dtype, example_inputs))
    model.module.to(device)
    notes = [*model.notes, *evaluated(model.module)]
    if tokenizer is not None:
        model = replace(model, tokenizer=tokenizer)
    if example_inputs is not None:
        bound, positional = bind(model.module, example_inputs)
        model = replace(model, example_inputs=bound, positional=positional)
    elif not model.example_inputs and model.kind == "module":
        model = replace(model, example_inputs=default_inputs(model))
    if dtype is None and model.dtype == "float32":
        model = replace(model, dtype=_integers_only(model) or model.dtype)
    placed, cast = _placed(model.example_inputs, model)
    return replace(model, example_inputs=placed, notes=tuple(notes + cast))


def _placed(inputs: Mapping[str, Any], model: LoadedModel) -> tuple[dict[str, Any], list[str]]:
    """Inputs on the model's device, floating point ones in its dtype, and a line if that changed them."""
    from torch.utils import _pytree as pytree

    cast: dict[str, None] = {}

    def place(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.layout != torch.strided:
            raise ModelError(
                f"An example input is sparse ({value.layout}), which TapML does not support. Make it dense with to_dense()."
            )
        value = value.to(model.device)
        if not value.is_floating_point():
            return value
        if value.dtype != getattr(torch, model.dtype):
            cast[str(value.dtype).removeprefix("torch.")] = None
        return value.to(getattr(torch, model.dtype))

    placed: dict[str, Any] = pytree.tree_map(place, dict(inputs))
    line = f"the example inputs were cast from {' and '.join(cast)} to {model.dtype}, which the model computes in"
    return placed, [line] if cast else []


def _integers_only(model: LoadedModel) -> str | None:
    """The dtype of a model that has integers only, weights and inputs alike; None for any other."""
    from torch.utils import _pytree as pytree

    given = [value for value in pytree.tree_leaves(model.example_inputs) if isinstance(value, torch.Tensor)]
    tensors = [*model.module.parameters(), *model.module.buffers(), *given]
    if not tensors or any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors):
        return None
    return str((given or tensors)[0].dtype).removeprefix("torch.")


def _check_device(device: str) -> None:
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ModelError(f"The source runs on cpu or cuda, not on {device!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ModelError("The source cannot run on cuda: PyTorch sees no CUDA device here. Use cpu.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and advice off the terminal: what matters of them is raised as errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
