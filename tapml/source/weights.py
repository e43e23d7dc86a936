"""Where each weight of a model lies on disk, and reading it from there: a run refers to weights, it never copies them.

    table = WeightTable.build(arrays, weight_files)     finds each array in the model's own safetensors files, by content
    table.read("model.norm.weight")                     numpy array over the mapped file, read-only
    records = table.to_records()                        JSON, a record a weight;  WeightTable.from_records(records) reads it back

An array that no file holds as it is (converted, made in code, of a model that was built in Python) goes to a store in the cache
folder that all runs share: one safetensors file a model, named by its content.

Opening checks that a file is there, is a regular one, has its size, and has its header; a weight is one of the tensors that this
header names, so a run cannot have other files read. Each weight is hashed when it is first read: a disk, or a
program that keeps a file's time, can change a number behind everybody's back, and a kernel would get the blame. Imports no
torch, so that a device can read weights without it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tapml import strict
from tapml.cache.folder import keep
from tapml.errors import ModelError, RunError
from tapml.inside import open_regular
from tapml.source.safetensors_file import Entry, header_of, read_header, write_file
from tapml.tensors import NUMPY, HostArray, TensorSpec, spec_of

_STORE_FILE = "weights.safetensors"


@dataclass(frozen=True)
class WeightFile:
    """A file as it was when the table was built: `size` in bytes, `head` the hash of its header."""

    path: Path
    size: int
    head: str

    @staticmethod
    def of(path: Path) -> WeightFile:
        return WeightFile(path.resolve(), path.stat().st_size, _head(path))


@dataclass(frozen=True)
class Weight:
    """One weight: `digest` is blake2b (32 hexadecimal digits) of its bytes, `offset` where they begin in the file."""

    key: str
    spec: TensorSpec
    digest: str
    file: WeightFile
    offset: int

    @property
    def nbytes(self) -> int:
        return self.spec.nbytes

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key, "spec": self.spec.to_json(), "digest": self.digest, "file": str(self.file.path),
            "offset": self.offset, "file_size": self.file.size, "file_head": self.file.head,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Weight:
        path = Path(strict.text(data, "file", 4000))
        if not path.is_absolute():
            raise ValueError(f"the file {str(path)[:80]!a} is not an absolute path")
        file = WeightFile(path, strict.whole(data, "file_size"), strict.hexadecimal(data, "file_head"))
        spec, digest = TensorSpec.from_json(data["spec"]), strict.hexadecimal(data, "digest")
        return Weight(strict.name(data, "key"), spec, digest, file, strict.whole(data, "offset"))


class WeightTable:
    """Weights by key, in the order of the graphs that use them."""

    def __init__(self, entries: Iterable[Weight]) -> None:
        self.entries = {entry.key: entry for entry in entries}
        self._maps: dict[Path, HostArray] = {}
        self._tensors: dict[Path, set[tuple[int, int]]] = {}
        self._read: dict[str, HostArray] = {}

    @staticmethod
    def build(
        arrays: Mapping[str, HostArray] | Iterable[tuple[str, HostArray]], weight_files: Iterable[Path] = ()
    ) -> WeightTable:
        """Finds or stores each array. With an iterator of (key, array), only arrays that no file holds are kept in memory.
        Raises UsageError when the store cannot be written, ModelError when a weight file is damaged."""
        known = _Known(weight_files)
        entries: dict[str, Weight | None] = {}
        homeless: dict[str, tuple[str, HostArray]] = {}
        for key, array in arrays.items() if isinstance(arrays, Mapping) else arrays:
            array = np.ascontiguousarray(array).reshape(array.shape)
            digest = _digest(array)
            entries[key] = known.find(key, array, digest)
            if entries[key] is None:
                homeless[key] = (digest, array)
        stored = _store(dict(homeless.values())) if homeless else {}
        for key, (digest, array) in homeless.items():
            file, offset = stored[digest]
            entries[key] = Weight(key, spec_of(array), digest, file, offset)
        return WeightTable(entry for entry in entries.values() if entry is not None)

    def read(self, key: str) -> HostArray:
        """The weight as a read-only array over the mapped file. The first time it is read as a whole and checked (about
        1 GB/s). Raises RunError when the file is gone, or this weight is no longer what it was."""
        if key not in self._read:
            entry = self.entries[key]
            held = self._open(entry.file)
            if (entry.offset, entry.nbytes) not in self._tensors[entry.file.path]:
                raise RunError(f"{entry.file.path} has no tensor where {key} is said to be. {_AGAIN}")
            data = held[entry.offset : entry.offset + entry.nbytes]
            if hashlib.blake2b(data.data, digest_size=16).hexdigest() != entry.digest:
                raise RunError(f"{entry.file.path} was changed: {key} is no longer the weight that was carved. {_AGAIN}")
            dtype = NUMPY[entry.spec.dtype]
            if data.ctypes.data % dtype.itemsize:
                data = data.copy()
                data.flags.writeable = False
            self._read[key] = data.view(dtype).reshape(entry.spec.shape)
        return self._read[key]

    def check(self) -> None:
        """Opens every file. Raises RunError as `read` does."""
        for entry in self.entries.values():
            self._open(entry.file)

    def to_records(self) -> list[dict[str, Any]]:
        return [entry.to_json() for entry in self.entries.values()]

    @staticmethod
    def from_records(records: Iterable[Mapping[str, Any]]) -> WeightTable:
        """Raises KeyError, ValueError or TypeError for a record that is damaged."""
        return WeightTable(Weight.from_json(record) for record in records)

    def to_jsonl(self) -> str:
        return "".join(json.dumps(record) + "\n" for record in self.to_records())

    @staticmethod
    def from_jsonl(text: str) -> WeightTable:
        return WeightTable.from_records(json.loads(line) for line in text.splitlines() if line.strip())

    def _open(self, file: WeightFile) -> HostArray:
        if file.path not in self._maps:
            try:
                with open_regular(file.path) as opened:
                    size = os.fstat(opened.fileno()).st_size
                    if size != file.size or _head_of(opened) != file.head:
                        raise RunError(
                            f"The weights file {file.path} is not the one that was carved (it has {size} bytes, had "
                            f"{file.size}). {_AGAIN}"
                        )
                    self._tensors[file.path] = {(e.offset, e.nbytes) for e in header_of(opened, file.path).values()}
                    self._maps[file.path] = np.memmap(opened, np.uint8, mode="r").view(np.ndarray)
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                raise RunError(f"The weights file {file.path} cannot be read: {why}. {_AGAIN}") from error
        return self._maps[file.path]


_AGAIN = "Carve the model again with `tapml carve … --fresh`."


class _Known:
    """The tensors of the model's files, by spec."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.places: dict[TensorSpec, list[tuple[str, WeightFile, Entry]]] = {}
        self.maps: dict[Path, HostArray] = {}
        for path in files:
            entries = read_header(path)
            file = WeightFile.of(path)
            self.maps[file.path] = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
            for name, entry in entries.items():
                if entry.spec is not None:
                    self.places.setdefault(entry.spec, []).append((name, file, entry))

    def find(self, key: str, array: HostArray, digest: str) -> Weight | None:
        data = _bytes(array)
        # The name decides only what is looked at first; the bytes decide.
        for _, file, entry in sorted(self.places.get(spec_of(array), ()), key=lambda place: not _alike(key, place[0])):
            held = self.maps[file.path][entry.offset : entry.offset + entry.nbytes]
            if np.array_equal(held[:256], data[:256]) and np.array_equal(held, data):
                return Weight(key, spec_of(array), digest, file, entry.offset)
        return None


def _alike(key: str, name: str) -> bool:
    return key.endswith(name) or name.endswith(key)


def _store(arrays: dict[str, HostArray]) -> dict[str, tuple[WeightFile, int]]:
    """Writes arrays by digest to the shared store, unless they are there; digest → where it is."""
    whole = hashlib.blake2b("".join(sorted(arrays)).encode(), digest_size=16).hexdigest()
    path = keep("weights", whole, lambda folder: write_file(folder / _STORE_FILE, arrays)) / _STORE_FILE
    file = WeightFile.of(path)
    return {digest: (file, entry.offset) for digest, entry in read_header(path).items()}


def _bytes(array: HostArray) -> HostArray:
    return array.reshape(-1).view(np.uint8)


def _digest(array: HostArray) -> str:
    return hashlib.blake2b(_bytes(array).data, digest_size=16).hexdigest()


def _head(path: Path) -> str:
    with open_regular(path, ModelError) as file:
        return _head_of(file)


def _head_of(file: BinaryIO) -> str:
    file.seek(0)
    length = file.read(8)
    return hashlib.blake2b(length + file.read(min(int.from_bytes(length, "little"), 2**24)), digest_size=8).hexdigest()
