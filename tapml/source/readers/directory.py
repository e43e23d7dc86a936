"""A Hugging Face directory: config.json, safetensors, tokenizer files.

No code that the directory names is run, and no pickled weights are read. Weights are memory-mapped.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tapml.errors import ModelError, message_of
from tapml.source.licence import stated
from tapml.source.model import Kind, LoadedModel, is_causal_lm, stop_tokens
from tapml.source.own_code import own_code, refused
from tapml.source.readers.module import dtype_of
from tapml.source.readers.reader import Reader, Request
from tapml.source.safetensors_file import read_header

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def from_directory(folder: Path, name: str, spec: str, dtype: str | None) -> LoadedModel:
    """Raises ModelError for files that are missing or damaged, and for a model that needs code of its own."""
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
        raise ModelError(f"{folder} cannot be loaded: {type(error).__name__}: {message_of(error)}.") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} of the model's weights, first {missing[0]}. Download the model again.")
    kind: Kind = "causal_lm" if is_causal_lm(module) else "module"
    return LoadedModel(
        module, kind, name, spec, dtype_of(module), _tokenizer(folder), {},
        stop_tokens(module) if kind == "causal_lm" else (), files, licence=stated(folder),
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
        raise ModelError(f"The tokenizer in {folder} cannot be loaded: {message_of(error)}.") from error


def _means(text: str) -> bool:
    return Path(text).expanduser().is_dir()


def _read(request: Request) -> LoadedModel:
    path = Path(request.text).expanduser()
    return from_directory(path, path.resolve().name, request.text, request.dtype)


READER = Reader("a Hugging Face directory", _means, _read)
