"""Headers of safetensors files as somebody else may write them: each is read, or one ModelError that names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tapml.errors import ModelError
from tapml.source.safetensors_file import read_header

GOOD: dict[str, Any] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def written(path: Path, header: bytes, data: bytes = bytes(64), length: int | None = None) -> Path:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + data)
    return path


def test_a_whole_header_is_read(tmp_path: Path) -> None:
    empty, other = GOOD | {"shape": [0], "data_offsets": [16, 16]}, {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [16, 32]}
    header = {"a": GOOD, "empty": empty, "f8": other, "__metadata__": {"format": "pt"}}
    found = read_header(written(tmp_path / "x", json.dumps(header).encode()))
    assert set(found) == {"a", "empty", "f8"} and found["f8"].spec is None


@pytest.mark.parametrize(
    "entry",
    [
        GOOD | {"shape": "22"}, GOOD | {"shape": None}, GOOD | {"shape": ["2", "2"]}, GOOD | {"shape": [2.0, 2]},
        GOOD | {"shape": [-2, -2]}, GOOD | {"shape": [True, 4]}, GOOD | {"shape": [2**62, 2**62]}, GOOD | {"shape": [2**40] * 40},
        GOOD | {"shape": [1] * 100}, GOOD | {"data_offsets": [-16, 0]}, GOOD | {"data_offsets": [16, 0]},
        GOOD | {"data_offsets": [0]}, GOOD | {"data_offsets": [0, 16, 32]}, GOOD | {"data_offsets": "ab"},
        GOOD | {"data_offsets": [0, 1e999]}, GOOD | {"data_offsets": [0, 10**30]}, GOOD | {"data_offsets": [0, 8]},
        GOOD | {"data_offsets": [100, 116]}, GOOD | {"dtype": 7}, GOOD | {"dtype": None}, {"dtype": "F32", "shape": [2, 2]},
        {"dtype": "F32", "data_offsets": [0, 16]}, [], "x", None, 7,
    ],
)  # fmt: skip
def test_an_odd_tensor_is_one_error(tmp_path: Path, entry: Any) -> None:
    header = json.dumps({"a": entry}).replace("Infinity", "1e999").encode()
    with pytest.raises(ModelError, match=r"is damaged or cut off") as caught:
        read_header(written(tmp_path / "x", header))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000, b'{"a":' * 5000, b"[]", b"7", b"", b"{", b'{"a": NaN}', b"\xff\xfe", b"{}{}",
        json.dumps({"a": GOOD, "b": GOOD | {"data_offsets": [8, 24]}}).encode(),
        f'{{"a": {json.dumps(GOOD)}, "a": {json.dumps(GOOD)}}}'.encode(),
        b'{"a": {"dtype": "F32", "shape": [' + b"1" * 6000 + b'], "data_offsets": [0, 4]}}',
    ],
    ids=range(12),
)  # fmt: skip
def test_an_odd_header_is_one_error(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ModelError, match=r"is damaged or cut off"):
        read_header(written(tmp_path / "x", header))


@pytest.mark.parametrize("length", [1, 200, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_one_error(tmp_path: Path, length: int) -> None:
    with pytest.raises(ModelError, match=r"is damaged or cut off"):
        read_header(written(tmp_path / "x", json.dumps({"a": GOOD}).encode(), length=length))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ModelError, match=r"is a pipe|is a device|is a folder"):
            read_header(place)
