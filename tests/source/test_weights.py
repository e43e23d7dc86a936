"""Weights are referred to where they lie, found by content, and a file that is no longer the same is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tapml.errors import ModelError, RunError
from tapml.source.safetensors_file import read_header, write_file
from tapml.source.weights import WeightTable
from tapml.tensors import HostArray


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAPML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def arrays() -> dict[str, HostArray]:
    rng = np.random.default_rng(0)
    return {
        "layers.0.weight": rng.standard_normal((4, 6)).astype(np.float32),
        "layers.1.weight": rng.standard_normal((4, 6)).astype(np.float32),
        "norm": rng.standard_normal(5).astype(ml_dtypes.bfloat16),
        "steps": np.arange(3),
        "flag": np.array(True),
    }


@pytest.fixture
def file(tmp_path: Path, arrays: dict[str, HostArray]) -> Path:
    path = tmp_path / "model.safetensors"
    write_file(path, arrays)
    return path


def test_written_files_are_those_of_the_library(file: Path, arrays: dict[str, HostArray]) -> None:
    from safetensors.numpy import load_file

    read = load_file(file)
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(read[name], array), name
    assert all(entry.offset % 8 == 0 for name, entry in read_header(file).items() if "weight" in name)


def test_found_by_content_and_not_copied(file: Path, arrays: dict[str, HostArray], cache: Path) -> None:
    swapped = {"a.layers.0.weight": arrays["layers.1.weight"], "other": arrays["layers.0.weight"], "norm": arrays["norm"]}
    table = WeightTable.build(swapped, [file])
    assert {entry.file.path for entry in table.entries.values()} == {file}
    assert not cache.exists()
    for key, array in swapped.items():
        assert np.array_equal(table.read(key), array)
        assert table.read(key).dtype == array.dtype
        assert not table.read(key).flags.writeable


def test_one_different_byte_is_another_weight(tmp_path: Path) -> None:
    rows = np.zeros((8, 64), np.float32)
    other = rows.copy()
    other[-1, -1] = 1
    write_file(tmp_path / "model.safetensors", {"w": rows})
    table = WeightTable.build({"w": other}, [tmp_path / "model.safetensors"])
    assert np.array_equal(table.read("w"), other)


def test_the_rest_goes_to_the_store_once(file: Path, arrays: dict[str, HostArray], cache: Path) -> None:
    own = arrays["layers.0.weight"]
    made = {"layers.0.weight": own, "half": own.astype(np.float16), "twin": arrays["norm"] * 2}
    first = WeightTable.build(iter(made.items()), [file])
    assert first.entries["layers.0.weight"].file.path == file
    assert first.entries["half"].file.path.is_relative_to(cache)
    again = WeightTable.build(made, [file])
    assert again.to_jsonl() == first.to_jsonl()
    assert len(list(cache.rglob("*.safetensors"))) == 1
    for key, array in made.items():
        assert np.array_equal(WeightTable.from_jsonl(first.to_jsonl()).read(key), array), key


def test_a_file_that_vanished_shrank_or_changed(file: Path, arrays: dict[str, HostArray]) -> None:
    text = WeightTable.build(arrays, [file]).to_jsonl()
    whole = file.read_bytes()

    os.utime(file, ns=(1, 1))
    assert np.array_equal(WeightTable.from_jsonl(text).read("steps"), arrays["steps"])

    entry = WeightTable.from_jsonl(text).entries["layers.0.weight"]
    changed = bytearray(whole)
    changed[entry.offset] ^= 1
    time = file.stat().st_mtime_ns
    file.write_bytes(changed)
    os.utime(file, ns=(time, time))
    table = WeightTable.from_jsonl(text)
    assert np.array_equal(table.read("layers.1.weight"), arrays["layers.1.weight"])
    with pytest.raises(RunError, match=r"model\.safetensors was changed: layers\.0\.weight is .* `tapml carve … --fresh`"):
        table.read("layers.0.weight")

    file.write_bytes(whole[:-1])
    with pytest.raises(RunError, match=r"not the one that was carved .* `tapml carve … --fresh`"):
        WeightTable.from_jsonl(text).check()
    file.unlink()
    with pytest.raises(RunError, match=r"model\.safetensors cannot be read: No such file"):
        WeightTable.from_jsonl(text).check()


def test_damaged_weight_file_is_refused(file: Path, arrays: dict[str, HostArray]) -> None:
    os.truncate(file, 50)
    with pytest.raises(ModelError, match="damaged or cut off"):
        WeightTable.build(arrays, [file])


def test_reading_needs_no_torch() -> None:
    code = "import sys, tapml.source.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
