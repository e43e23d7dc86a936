"""Where each tensor lies in a safetensors file, read from its header alone; and writing one without a copy in memory. Imports
no torch.

    entries = read_header(path)         name → Entry(spec, offset, nbytes), offsets from the start of the file
    write_file(path, arrays)            each array goes straight to the file

Raises ModelError when the file is cut off, is no regular file, or no safetensors file: its header is what somebody else wrote.
The layout (8 bytes little-endian length, JSON header, data) is that of https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tapml import strict
from tapml.errors import ModelError
from tapml.inside import open_regular
from tapml.tensors import HostArray, TensorSpec, spec_of

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Entry:
    """`spec` is None for a dtype that TapML does not carry (8-bit floats, …)."""

    spec: TensorSpec | None
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, Entry]:
    """See the module's docstring."""
    with open_regular(path, ModelError) as file:
        return header_of(file, path)


def header_of(file: BinaryIO, path: Path) -> dict[str, Entry]:
    """The same of a file that is open; the path is for messages."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
        raise ModelError(_broken(path, size, f"its header says {length} bytes" if size >= 8 else "that is no header"))
    try:
        header = strict.fields(strict.parse(file.read(length), unique=True))
        header.pop("__metadata__", None)
        entries = {name: _entry(data, 8 + length) for name, data in header.items()}
    except strict.UNREADABLE as error:
        raise ModelError(_broken(path, size, f"its header cannot be read ({str(error)[:200]})")) from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset < end and entry.nbytes:
            raise ModelError(_broken(path, size, f"tensor {name[:80]!a} overlaps another one"))
        end = max(end, entry.offset + entry.nbytes)
    if end > size:
        raise ModelError(_broken(path, size, f"its tensors need {end} bytes"))
    return entries


def _entry(data: dict[str, object], start: int) -> Entry:
    offsets = strict.fixed(data["data_offsets"], 2)
    first, last = strict.whole(offsets, 0), strict.whole(offsets, 1)
    name = _DTYPES.get(strict.text(data, "dtype", 40))
    spec = None if name is None else TensorSpec.from_json([data["shape"], name])
    if last < first or (spec is not None and spec.nbytes != last - first):
        raise ValueError(f"offsets {first} and {last} do not fit {'a tensor' if spec is None else spec}")
    return Entry(spec, start + first, last - first)


def _broken(path: Path, size: int, why: str) -> str:
    return f"{path} is damaged or cut off: it has {size} bytes, but {why}. Download or write it again."


def write_file(path: Path, arrays: Mapping[str, HostArray]) -> None:
    """Arrays must be C-contiguous. Wider dtypes come first, so that every array is aligned to its elements."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, object] = {}
    end = 0
    for name in order:
        spec = spec_of(arrays[name])
        header[name] = {"dtype": names[spec.dtype], "shape": list(spec.shape), "data_offsets": [end, end + spec.nbytes]}
        end += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(arrays[name].reshape(-1).view("uint8").data)
