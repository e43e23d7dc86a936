"""In what type a GGUF file holds its weights, read from its header alone.

    weight_type(path)           "Q4_1"; of a mix the quantized type with the most numbers

transformers makes float tensors of every type, so the name is all that is left of the quantization. Strings are skipped, not
read: a tokenizer has 100,000 of them.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from pathlib import Path
from typing import BinaryIO

# Bytes of the header's plain value types, by their number in the format; 8 is a string, 9 an array.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9

_PLAIN = ("F32", "F16", "BF16", "F64")

# Types with less than this share of the numbers (norms, biases) do not count.
_SHARE = 0.05


def weight_type(path: Path) -> str:
    """ "" for a header that cannot be followed: whoever reads the weights says what is wrong with the file."""
    from gguf import GGMLQuantizationType

    numbers: Counter[int] = Counter()
    try:
        with path.open("rb") as file:
            _, _, tensors, values = struct.unpack("<4sIQQ", file.read(24))
            for _ in range(values):
                _skip_string(file)
                _skip(file, _number(file))
            for _ in range(tensors):
                _skip_string(file)
                sizes = struct.unpack(f"<{(count := _number(file))}Q", file.read(8 * count))
                kind = _number(file)
                file.seek(8, 1)
                numbers[kind] += math.prod(sizes)
        total = numbers.total()
        named = [GGMLQuantizationType(kind).name for kind, count in numbers.most_common() if count >= _SHARE * total]
        named.sort(key=lambda name: name in _PLAIN)
    except (struct.error, KeyError, ValueError, OverflowError, OSError):
        return ""
    return named[0] if named else ""


def _number(file: BinaryIO) -> int:
    return int(struct.unpack("<I", file.read(4))[0])


def _skip_string(file: BinaryIO) -> None:
    (length,) = struct.unpack("<Q", file.read(8))
    file.seek(length, 1)


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _skip_string(file)
    elif kind == _ARRAY:
        inner = _number(file)
        (count,) = struct.unpack("<Q", file.read(8))
        if inner in _SIZES:
            file.seek(_SIZES[inner] * count, 1)
        else:
            for _ in range(count):
                _skip(file, inner)
    else:
        file.seek(_SIZES[kind], 1)
