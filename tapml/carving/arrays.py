"""Named arrays in one safetensors file, for every dtype that TapML carries (numpy's own reader knows no bfloat16).

    data = pack({"i0": array, "o0": other})
    arrays = unpack(path.read_bytes(), path)     read-only, in the file's order; the path is for messages
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from tapml.errors import RunError
from tapml.strict import UNREADABLE
from tapml.tensors import NUMPY, HostArray

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def pack(arrays: dict[str, HostArray]) -> bytes:
    """The content of a safetensors file."""
    return bytes(save({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}))


def unpack(data: bytes, path: Path) -> dict[str, HostArray]:
    """All arrays of a file that `pack` made. Raises RunError when it is damaged."""
    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]
        return {
            name: np.frombuffer(tensor["data"], NUMPY[_NAMES[tensor["dtype"]]]).reshape(tensor["shape"])
            for name, tensor in found
        }
    except (SafetensorError, *UNREADABLE) as error:
        raise RunError(f"{path} is damaged ({str(error)[:200]}). Carve again with --fresh.") from error
