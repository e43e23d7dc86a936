"""A `.gguf` file, through a Hugging Face directory in the cache: config, tokenizer with chat template, safetensors in the dtype
that was asked for.

    folder = converted(path, "float32")

transformers knows how to read GGUF, but parses the file anew at each of its steps, and slowly: `_parsed_once` makes it read a
file once, without a numpy memmap object for each of a tokenizer's 100,000 strings. The conversion is kept under the hash of the
file's bytes, so that the next load of the same model is that of a directory. So nothing but those bytes goes into it: what lies
beside the file is not read, and code that a tokenizer beside it names is neither run nor asked about.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tapml.cache.folder import file_digest, keep
from tapml.errors import ModelError, TapmlError, message_of
from tapml.source.licence import CARD, card
from tapml.source.model import LoadedModel
from tapml.source.own_code import refused, tokenizer_beside
from tapml.source.readers.directory import from_directory
from tapml.source.readers.gguf_types import weight_type
from tapml.source.readers.reader import Reader, Request
from tapml.tensors import HostArray

# Part of the key of a conversion: counts up when the same file would be converted to something else.
_FORMAT = 3

# What GGUF calls weights that are as they are computed with.
_AS_COMPUTED = {"float32": ("f32",), "float16": ("f16",), "bfloat16": ("bf16",)}


def converted(path: Path, dtype: str) -> Path:
    """The directory with the model in `dtype`. Raises ModelError when the file is not GGUF, is cut off, holds an architecture
    that transformers cannot read, or lies beside a tokenizer that works with code of its own only."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file: it does not begin with 'GGUF'. Give another file, or a directory.")
    code = tokenizer_beside(path)
    if code:
        raise ModelError(f"{refused(path.parent, code)} Or move {path.name} to another folder: it contains its own tokenizer.")
    key = f"{file_digest(path)}-{dtype}-{_FORMAT}-{version('transformers')}"
    return keep("gguf", key, lambda folder: _convert(path, dtype, folder))


def _convert(path: Path, dtype: str, folder: Path) -> None:
    import torch
    import transformers
    from safetensors import SafetensorError

    try:
        with tempfile.TemporaryDirectory(prefix="tapml-") as alone, _parsed_once(path):
            (Path(alone) / "model.gguf").symlink_to(path.resolve())
            where = {"pretrained_model_name_or_path": alone, "gguf_file": "model.gguf", "trust_remote_code": False}
            model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype))
            tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    except TapmlError:
        raise
    except Exception as error:
        # The readers check little: a damaged file shows as whatever they stumble over.
        raise ModelError(
            f"{path} cannot be read: {type(error).__name__}: {message_of(error)}. The file is damaged, or transformers does "
            "not read its architecture from GGUF; then give the model's Hugging Face directory."
        ) from error
    # The tensors are plain by now; the marks of the quantised file would keep the directory from being written and read.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    try:
        model.save_pretrained(folder, max_shard_size="1000GB")
        tokenizer.save_pretrained(folder)
        (folder / CARD).write_text(card(_licence(path)), encoding="utf-8")
    except SafetensorError as error:
        # A full disk, in the words of a library that has its own type for it.
        raise OSError(str(error)) from error


def _licence(path: Path) -> str:
    """What the file says in general.license."""
    import gguf

    field = gguf.GGUFReader(path).get_field("general.license")
    return "" if field is None else str(field.contents())


@contextmanager
def _parsed_once(path: Path) -> Iterator[None]:
    """While it lasts, `gguf.GGUFReader` parses a file once, name maps are built once, and no progress bar is drawn."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: str | None = None) -> Any:
            data: HostArray = np.asarray(self.data)  # type: ignore[has-type]
            self.data = data
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > data.size:
                raise ModelError(f"{path} is cut off: it has {data.size} bytes and needs at least {end}. Download it again.")
            part = data[int(offset) : end].view(dtype)
            order = override_order or self.byte_order
            return part if order == "I" else part.view(part.dtype.newbyteorder(order))

    whole = (gguf.GGUFReader, gguf.get_tensor_name_map, reading.tqdm)
    gguf.GGUFReader = functools.lru_cache(maxsize=1)(Reader)
    gguf.get_tensor_name_map = functools.lru_cache(maxsize=None)(gguf.get_tensor_name_map)
    reading.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map, reading.tqdm = whole


def _means(text: str) -> bool:
    path = Path(text).expanduser()
    return path.suffix == ".gguf" and path.is_file()


def _read(request: Request) -> LoadedModel:
    path, dtype = Path(request.text).expanduser(), request.dtype or "float32"
    model = from_directory(converted(path, dtype), path.stem, request.text, dtype)
    held = weight_type(path)
    return replace(model, weights="" if held.lower() in _AS_COMPUTED[model.dtype] else held)


READER = Reader("a .gguf file", _means, _read)
