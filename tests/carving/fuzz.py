"""Runs made wrong at random, with digests that are right again, and everything that reads a run.

    spoiler = Spoiler(run, scratch, seed)        works in `scratch/run`, a copy
    what = spoiler.spoil()                       one change, described
    read = drive(spoiler.run, thorough=True)     "refused" or "read"; anything else comes out as it is
    spoiler.restore()

`outside` of the scratch folder is what no reading may touch; `Spoiler.untouched` tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tapml
from tapml.carving import layout
from tapml.diagnose.health.result import keep_health
from tapml.diagnose.health.stage import health
from tapml.errors import ModelError, RunError
from tapml.manifest import SEAL, digest, seal
from tests.carving.tampered import signature_of

# What a field is replaced by.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 1.5, -0.0, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63), 1e308, 5e-324, "", "x",
    "..", ".", "../outside/secret", "../../outside/secret", "/dev/zero", "/dev/stdin", "a\0b", "x" * 5000, "\ud800",
    "é\u202e", "\x1b[2J", [], {}, [[]], [1], ["x"], [None], {"ref": "i0"}, {"ref": "i9"}, {"dtype": "float32"}, {"dtype":
    "nn"}, {"float": "nan"}, {"float": "1e999"}, {"memory_format": "hub"}, {"layout": "strided"}, {"device": "cuda:99"}, {"a":
    {"b": []}}, "load_library", "import_module", "aten.from_file.default", "aten.add.Tensor", "aten.add_.Tensor",
    "aten.empty.memory_format", "aten.item.default", "getitem", [[2**40, 2**40], "float32"], [[-1], "float32"], [[0],
    "float32"], [["4"], "float32"], [[4], "float8"], [[True], "bool"], "cases/case1.safetensors", "cases", "run.json", "0" *
    32, "f" * 16, "decoder", "module", "weight", "state", "input", "value",
)  # fmt: skip
# What JSON text is replaced by that no JSON library would write.
RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "[" * 100_000 + "]" * 100_000, '{"a":' * 3000 + "0" + "}" * 3000,
    "1" * 6000, '{"a":1,"a":2}', "\x00", "'x'", "", "0x10", "01", "[" * 900 + "]" * 900,
)  # fmt: skip
_RAW_MARK = "@raw@"
# How many cases and operators are looked at one by one.
_SHORT = 4


class Spoiler:
    """See the module's docstring. `files` are all files of the run as they were, by name."""

    def __init__(self, run: Path, scratch: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.scratch, self.run = scratch, scratch / "run"
        shutil.copytree(run, self.run)
        self._own_weights()
        self.files = {p.relative_to(self.run).as_posix(): p.read_bytes() for p in self.run.rglob("*") if p.is_file()}
        self.manifest: dict[str, Any] = json.loads(self.files[layout.MANIFEST])
        self.names = [n for n in self.files if not n.startswith(f"{layout.TEST_FOLDER}/")]
        self.kinds: dict[str, list[str]] = {}
        for name in self.names:
            self.kinds.setdefault(_kind_of(name), []).append(name)
        self._changed: set[Path] = set()
        for folder in ("outside", "cwd"):
            (scratch / folder).mkdir()
        (scratch / "outside" / "secret").write_text("secret")
        os.chdir(scratch / "cwd")
        self._before = self._outside()

    def _own_weights(self) -> None:
        """The weights are put beside the run, so that they can be spoiled too."""
        self.weights = self.scratch / "weights.safetensors"
        lines = [json.loads(line) for line in (self.run / layout.WEIGHTS).read_text().splitlines()]
        (source,) = {line["file"] for line in lines}
        shutil.copyfile(source, self.weights)
        self.weight_bytes = self.weights.read_bytes()
        (self.run / layout.WEIGHTS).write_text("".join(json.dumps(line | {"file": str(self.weights)}) + "\n" for line in lines))
        manifest = json.loads((self.run / layout.MANIFEST).read_text())
        old = manifest["digest"]
        _seal(manifest, {layout.WEIGHTS: (self.run / layout.WEIGHTS).read_bytes()})
        (self.run / layout.MANIFEST).write_text(json.dumps(manifest))
        # Results belong to the run by its digest.
        for path in self.run.glob(f"{layout.TARGET_FOLDER}/**/*.json*"):
            path.write_text(path.read_text().replace(old, manifest["digest"]))

    def spoil(self) -> str:
        """Changes one file, or what is in its place. What was changed before must be restored first."""
        kind = self.random.choice(list(self.kinds))
        name = self.random.choice(self.kinds[kind])
        data = self.files[name]
        if kind == "safetensors":
            if self.random.random() < 0.3:
                return self._spoil_weights()
            what, data = self._arrays(data)
        elif self.random.random() < 0.04:
            return self._instead(name)
        elif self.random.random() < 0.15 or not name.endswith((".json", ".jsonl")):
            what, data = self._bytes(data)
        else:
            what, data = self._json(name, data)
        self._write(name, data)
        return f"{name}: {what}"

    def _write(self, name: str, data: bytes) -> None:
        """Writes a file, and all digests that cover it."""
        changed = {name: data}
        if name == layout.BODIES and self.random.random() < 0.8:
            changed = self._signed(data)
        manifest = json.loads(self.files[layout.MANIFEST])
        if name == layout.MANIFEST:
            with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError):
                manifest = json.loads(data)
                manifest[SEAL] = seal(manifest)
                data = json.dumps(manifest).encode()
            changed = {name: data}
        elif name in manifest["tables"] or name in manifest["files"]:
            _seal(manifest, changed)
            changed[layout.MANIFEST] = json.dumps(manifest).encode()
        for name, content in changed.items():
            self._changed.add(self.run / name)
            (self.run / name).write_bytes(content)

    def _signed(self, bodies: bytes) -> dict[str, bytes]:
        """Bodies under the signatures that they have now, and what refers to them by these."""
        new: dict[str, str] = {}
        lines: list[bytes] = []
        for line in bodies.splitlines():
            try:
                data = json.loads(line)
                new[data["signature"]] = data["signature"] = signature_of(data["body"])
                lines.append(json.dumps(data).encode())
            except (ValueError, TypeError, KeyError, RecursionError):
                lines.append(line)
        found = {layout.BODIES: b"".join(line + b"\n" for line in lines)}
        for table in (layout.OPERATORS, layout.CASES):
            text = self.files[table].decode()
            for old, signature in new.items():
                text = text.replace(str(old), signature)
            found[table] = text.encode()
        return found

    def _json(self, name: str, data: bytes) -> tuple[str, bytes]:
        """One value somewhere in one line."""
        whole = name.endswith(".json")
        lines = [data] if whole else data.splitlines()
        if not lines:
            return self._bytes(data)
        number = self.random.randrange(len(lines))
        value = json.loads(lines[number])
        what, value = self._value(value)
        text = json.dumps(value)
        if _RAW_MARK in text:
            text = text.replace(f'"{_RAW_MARK}"', self.random.choice(RAW))
        lines[number] = text.encode("utf-8", "surrogatepass")
        if not whole and self.random.random() < 0.05:
            lines.insert(number, self.random.choice(lines))
            what += ", and a line twice"
        return f"line {number + 1}: {what}", b"\n".join(lines) + (b"" if whole else b"\n")

    def _value(self, value: Any) -> tuple[str, Any]:
        """The value with one change in it, and what that was."""
        root = [value]
        holder: Any = root
        key: Any = 0
        path = ""
        while isinstance(holder[key], dict | list) and holder[key] and self.random.random() < 0.9:
            holder = holder[key]
            key = self.random.choice(list(holder)) if isinstance(holder, dict) else self.random.randrange(len(holder))
            path += f".{key}"
        old = holder[key]
        chance = self.random.random()
        if chance < 0.5:
            holder[key] = self.random.choice(VALUES)
        elif chance < 0.6:
            holder[key] = _RAW_MARK
        elif chance < 0.7 and holder is not root:
            del holder[key]
        elif chance < 0.8:
            holder[key] = self._near(old)
        elif chance < 0.9 and isinstance(holder, list):
            holder.append(old)
        else:
            other = self.random.choice(list(holder)) if isinstance(holder, dict) else self.random.randrange(len(holder))
            holder[key], holder[other] = holder[other], old
        return path or "all of it", root[0]

    def _near(self, old: Any) -> Any:
        if isinstance(old, bool):
            return not old
        if isinstance(old, int):
            return self.random.choice((old + 1, old - 1, -old, old * 1000, old * 2**40, float(old), str(old)))
        if isinstance(old, float):
            return self.random.choice((-old, old * 1e300, int(old), 0.0))
        if isinstance(old, str):
            return self.random.choice((old[:-1], old + old, old.upper(), [old], old.replace(".", "/"), "../" + old, old[::-1]))
        return [old]

    def _bytes(self, data: bytes) -> tuple[str, bytes]:
        found = bytearray(data)
        at = self.random.randrange(len(found) + 1)
        how = self.random.choice(("cut", "flip", "insert", "remove", "repeat", "fill"))
        if how == "cut":
            del found[at:]
        elif how == "flip" and at < len(found):
            found[at] ^= 1 << self.random.randrange(8)
        elif how == "insert":
            found[at:at] = self.random.randbytes(self.random.choice((1, 4, 100)))
        elif how == "remove":
            del found[at : at + self.random.choice((1, 8, 1000))]
        elif how == "repeat":
            found[at:at] = found[at : at + 50]
        else:
            found[at : at + 8] = self.random.choice((b"\xff", b"\0", b"[")) * 8
        return f"bytes at {at}: {how}", bytes(found)

    def _arrays(self, data: bytes) -> tuple[str, bytes]:
        """A safetensors file: its header as JSON, its length, or its bytes."""
        length = int.from_bytes(data[:8], "little")
        chance = self.random.random()
        if chance < 0.2:
            return self._bytes(data)
        if chance < 0.3:
            size = self.random.choice((0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1))
            return f"header of {size}", size.to_bytes(8, "little") + data[8:]
        what, value = self._value(json.loads(data[8 : 8 + length]))
        text = json.dumps(value).replace(f'"{_RAW_MARK}"', self.random.choice(RAW)).encode("utf-8", "surrogatepass")
        return f"header{what}", len(text).to_bytes(8, "little") + text + data[8 + length :]

    def _spoil_weights(self) -> str:
        """The file of the weights, with its size and head as the run then has them."""
        what, data = self._arrays(self.weight_bytes)
        self._changed.add(self.weights)
        self.weights.write_bytes(data)
        length = data[:8]
        head = hashlib.blake2b(length + data[8 : 8 + min(int.from_bytes(length, "little"), 2**24)], digest_size=8).hexdigest()
        lines = [json.loads(line) for line in self.files[layout.WEIGHTS].splitlines()]
        table = "".join(json.dumps(line | {"file_size": len(data), "file_head": head}) + "\n" for line in lines)
        self._write(layout.WEIGHTS, table.encode())
        return f"weights: {what}"

    def _instead(self, name: str) -> str:
        """Something else than a file in its place."""
        path = self.run / name
        path.unlink()
        self._changed.add(path)
        how = self.random.choice(("pipe", "folder", "link to a device", "link to a file", "link to nothing", "nothing"))
        if how == "pipe":
            os.mkfifo(path)
        elif how == "folder":
            path.mkdir()
        elif how != "nothing":
            outside = self.scratch / "outside"
            places = {"device": "/dev/zero", "file": outside / "secret", "nothing": outside / "made"}
            path.symlink_to(places[how.rpartition(" ")[2]])
        return f"{name}: {how}"

    def restore(self) -> None:
        """The run as it was."""
        for path in self._changed:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(path.lstat().st_mode):
                    shutil.rmtree(path)
                else:
                    path.unlink()
            path.write_bytes(self.weight_bytes if path == self.weights else self.files[path.relative_to(self.run).as_posix()])
        self._changed.clear()

    def untouched(self) -> bool:
        """Whether nothing was made, changed or removed beside the run."""
        return self._outside() == self._before

    def _outside(self) -> list[tuple[str, int, int]]:
        found = [*self.scratch.iterdir(), *(self.scratch / "outside").iterdir(), *(self.scratch / "cwd").iterdir()]
        kept = [p for p in found if p not in (self.run, self.weights, self.scratch / "report.html")]
        return sorted((str(p), p.lstat().st_size, 0 if p.is_dir() else p.lstat().st_mtime_ns) for p in kept)


def drive(run: Path, thorough: Callable[[], bool] = lambda: True) -> str:
    """Reads all of a run: "refused" (with a RunError or ModelError), or "read". Of one that opens and is
    `thorough`, the model is computed on the source, and the report written beside it."""
    try:
        found = tapml.Run.open(run)
        folder = found.folder
        _ = folder.positions, folder.prompts, found.facts, folder.initial_states, folder.examples, repr(found)
        for case in folder.cases[:_SHORT]:
            inputs, references = folder.case_references(case)
            assert len(inputs) == len(folder.bodies[case.signature].inputs) and references
        for operator in folder.operators[:_SHORT]:
            folder.compound_error(operator.name), folder.cases_of(operator.name)
        found.text([1, 2])
        if thorough():
            keep_health(folder, health(folder), None)
            found.report(run.parent / "report.html")
    except (RunError, ModelError) as error:
        assert str(error) and len(str(error)) < 20_000, "an error is one line, not the run"
        return "refused"
    return "read"


def _kind_of(name: str) -> str:
    """Files of a kind are as likely as those of any other, however many they are."""
    if name.endswith(".safetensors"):
        return "safetensors"
    return name if "/" not in name else "/".join((name.split("/")[2], name.rpartition("/")[2] if "kernels" not in name else ""))


def _seal(manifest: dict[str, Any], changed: dict[str, bytes]) -> None:
    """All digests of a manifest after a change of these files."""
    for name, data in changed.items():
        if name in manifest["tables"]:
            manifest["tables"][name] = {"lines": data.count(b"\n"), "digest": digest(data)}
        elif name in manifest["files"]:
            manifest["files"][name] = digest(data)
    manifest["digest"] = digest(json.dumps([manifest["tables"], manifest["files"]], sort_keys=True).encode())
    manifest[SEAL] = seal(manifest)
