"""A model in PyTorch, from what the user names on the command line or gives from Python.

    model = load("./my-model")                  a Hugging Face directory, or an id such as "organisation/name"
    model = load("model.Q4_1.gguf")             a GGUF file, through a converted copy in the cache
    model = load("net.py:build")                a function that returns (torch.nn.Module, example_inputs)
    model = load(module, example_inputs=…)      a module that is there already

The dtype, where none is asked for, is float32 for GGUF and what the model's config says otherwise. Weights in safetensors are
memory-mapped. An id is looked up in the local Hugging Face cache first, then on the hub. No code of a model's repository is
run, and no pickled weights are read.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tapml.errors import ModelError, nearest
from tapml.operators.carried import widened
from tapml.source.checked import evaluated, plain_module
from tapml.source.from_gguf import converted
from tapml.source.gguf_types import weight_type
from tapml.source.messages import first_line
from tapml.source.model import DTYPES, Kind, LoadedModel, is_causal_lm, stop_tokens
from tapml.source.own_code import own_code, refused
from tapml.source.prompts import default_inputs
from tapml.source.python_file import call_function
from tapml.source.safetensors_file import read_header

__all__ = ["LoadedModel", "load"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# What GGUF calls weights that are as they are computed with.
_AS_COMPUTED = {"float32": ("f32",), "float16": ("f16",), "bfloat16": ("bf16",)}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load(
    spec: str | Path | torch.nn.Module,
    *,
    dtype: str | None = None,
    device: str | None = None,
    example_inputs: Mapping[str, Any] | tuple[Any, ...] | None = None,
    tokenizer: Any | None = None,
) -> LoadedModel:
    """See the module's docstring. `dtype` is "float32", "float16" or "bfloat16"; `device` "cpu" (None too) or
    "cuda[:N]". `example_inputs`
    (keyword arguments or positional ones) and `tokenizer` replace the model's own. Raises ModelError."""
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not supported. {nearest(dtype, DTYPES)}")
    device = device or "cpu"
    _check_device(device)
    with _quiet():
        notes: list[str] = []
        if isinstance(spec, torch.nn.Module):
            plain, notes = plain_module(spec)
            model = _from_module(plain, type(plain).__name__, type(plain).__name__, example_inputs or (), dtype)
        elif re.search(r"\.py:\w+$", str(spec)):
            module, own = call_function(str(spec))
            module, notes = plain_module(module)
            inputs = own if example_inputs is None else example_inputs
            model = _from_module(module, _file_and_function(str(spec)), str(spec), inputs, dtype)
        else:
            model = _from_files(str(spec), dtype)
    model.module.to(device)
    notes += evaluated(model.module)
    if tokenizer is not None:
        model = replace(model, tokenizer=tokenizer)
    if example_inputs is not None:
        bound, positional = _bind(model.module, example_inputs)
        model = replace(model, example_inputs=bound, positional=positional)
    elif not model.example_inputs and model.kind == "module":
        model = replace(model, example_inputs=default_inputs(model))
    if dtype is None and model.dtype == "float32":
        model = replace(model, dtype=_integers_only(model) or model.dtype)
    placed, cast = _placed(model.example_inputs, model)
    return replace(model, example_inputs=placed, notes=tuple(notes + cast))


def _file_and_function(spec: str) -> str:
    """ "convnet.py:model" of "examples/convnet.py:model": many functions are called model."""
    file, _, function = spec.rpartition(":")
    return f"{Path(file).name}:{function}"


def _from_module(module: torch.nn.Module, name: str, spec: str, inputs: Any, dtype: str | None) -> LoadedModel:
    if dtype is not None:
        module = widened(module, getattr(torch, dtype))
    kind: Kind = "causal_lm" if is_causal_lm(module) else "module"
    stop = stop_tokens(module) if kind == "causal_lm" else ()
    bound, positional = _bind(module, inputs)
    return LoadedModel(
        module, kind, name, spec, dtype or _dtype_of(module, bound), example_inputs=bound, stop=stop, positional=positional,
    )


def _from_files(spec: str, dtype: str | None) -> LoadedModel:
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        model = _from_folder(converted(path, dtype or "float32"), path.stem, spec, dtype or "float32")
        held = weight_type(path)
        return replace(model, weights="" if held.lower() in _AS_COMPUTED[model.dtype] else held)
    if path.is_dir():
        return _from_folder(path, path.resolve().name, spec, dtype)
    if path.exists():
        raise ModelError(f"{spec} is no model: give a Hugging Face directory, a .gguf file or FILE.py:FUNCTION.")
    return _from_folder(_from_hub(spec), spec.rpartition("/")[2], spec, dtype)


def _from_hub(spec: str) -> Path:
    if not _HUB_ID.fullmatch(spec) or spec.startswith((".", "~")) or spec.endswith((".gguf", ".py")):
        raise ModelError(
            f"No such model: {spec} does not exist. A model is a Hugging Face directory or id, a .gguf file or FILE.py:FUNCTION."
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(spec, allow_patterns=wanted, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        return Path(huggingface_hub.snapshot_download(spec, allow_patterns=wanted, etag_timeout=5))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise ModelError(
            f"No such model: {spec} is neither a path here nor in the local Hugging Face cache, and the hub did not give it "
            f"({first_line(error)}). Check the name, or download the model and give its directory."
        ) from error


def _from_folder(folder: Path, name: str, spec: str, dtype: str | None) -> LoadedModel:
    import transformers

    files = _checked_files(folder)
    wanted = {"dtype": dtype or "auto", "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        build = _class_for(config)
        module, info = build.from_pretrained(folder, config=config, **wanted)
        if info["missing_keys"] and all("pooler" in key for key in info["missing_keys"]):
            # The classes have a pooling layer that many encoders were saved without.
            module, info = build.from_pretrained(folder, config=config, add_pooling_layer=False, **wanted)
    except Exception as error:
        # transformers raises many kinds of errors for a config or weights that it cannot make a model of.
        code = own_code(folder, ("config.json",))
        if code:
            raise refused(folder, code) from error
        raise ModelError(f"{folder} cannot be loaded: {type(error).__name__}: {first_line(error)}.") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} of the model's weights, first {missing[0]}. Download the model again.")
    kind: Kind = "causal_lm" if is_causal_lm(module) else "module"
    return LoadedModel(
        module, kind, name, spec, _dtype_of(module), _tokenizer(folder), {},
        stop_tokens(module) if kind == "causal_lm" else (), files,
    )


def _checked_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a directory, each whole."""
    if not (folder / "config.json").is_file():
        other = sorted(folder.glob("*.gguf"))
        whole = "A Hugging Face directory has config.json, *.safetensors and tokenizer files."
        hint = f"Did you mean {other[0]}?" if other else whole
        raise ModelError(f"{folder} has no config.json. {hint}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} is damaged ({error}). Download the model again.") from error
        files = [folder / str(n) for n in names]
        for file in files:
            if not file.is_file():
                raise ModelError(f"{folder} has no {file.name}, which its index names. Download the model again.")
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        again = "Download the model again."
        hint = f"It has {pickled[0].name}, which is pickled: save it again as safetensors." if pickled else again
        raise ModelError(f"{folder} has no weights: no *.safetensors file. {hint}")
    for file in files:
        read_header(file)
    return tuple(files)


def _class_for(config: Any) -> Any:
    """The class that the config names, or the one that transformers has for its kind of model."""
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and not config.architectures
    return transformers.AutoModelForCausalLM if causal else transformers.AutoModel


def _tokenizer(folder: Path) -> Any | None:
    import transformers

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # The tokenizers library has no error types of its own.
        code = own_code(folder)
        if code:
            raise refused(folder, code) from error
        raise ModelError(f"The tokenizer in {folder} cannot be loaded: {first_line(error)}.") from error


def _bind(module: torch.nn.Module, inputs: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
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


def _placed(inputs: Mapping[str, Any], model: LoadedModel) -> tuple[dict[str, Any], list[str]]:
    """Inputs on the model's device, floating point ones in its dtype, and a line if that changed them."""
    from torch.utils import _pytree as pytree

    cast: dict[str, None] = {}

    def place(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.layout != torch.strided:
            raise ModelError(
                f"An example input is sparse ({value.layout}), which TapML does not carry. Make it dense with to_dense()."
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


def _dtype_of(module: torch.nn.Module, inputs: Mapping[str, Any] | None = None) -> str:
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
