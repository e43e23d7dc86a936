"""Runs as somebody makes them who wants harm: files are changed, and every digest that the run has of them is made anew."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tapml.cache.folder import file_digest
from tapml.carving import layout
from tapml.manifest import SEAL, digest, seal


def reseal(run: Path, manifest: dict[str, Any] | None = None) -> Path:
    """Makes all digests of the run true again. `manifest` replaces the one that is there."""
    whole = json.loads((run / layout.MANIFEST).read_text()) if manifest is None else manifest
    for name in layout.TABLES:
        data = (run / name).read_bytes()
        whole["tables"][name] = {"lines": data.count(b"\n"), "digest": digest(data)}
    whole["files"] = {name: file_digest(run / name) for name in whole["files"] if (run / name).is_file()}
    whole["digest"] = digest(json.dumps([whole["tables"], whole["files"]], sort_keys=True).encode())
    whole[SEAL] = seal(whole)
    (run / layout.MANIFEST).write_text(json.dumps(whole))
    return run


def tampered(run: Path, to: Path, table: str, change: Callable[[list[Any]], None]) -> Path:
    """A copy of a run in which `change` was applied to the lines of a table, in place."""
    shutil.copytree(run, to)
    lines = [json.loads(line) for line in (to / table).read_text().splitlines()]
    change(lines)
    write_table(to / table, lines)
    return reseal(to)


def write_table(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def with_nodes(run: Path, to: Path, make: Callable[[dict[str, Any]], list[dict[str, Any]]], kind: str = "linear") -> Path:
    """A copy of a run in which every body of a kind begins with the nodes that `make` gives for it (as JSON), under its new
    signature everywhere."""
    shutil.copytree(run, to)
    new: dict[str, str] = {}
    bodies = [json.loads(line) for line in (to / layout.BODIES).read_text().splitlines()]
    for line in bodies:
        if line["body"]["kind"] == kind:
            line["body"]["nodes"] = make(line["body"]) + line["body"]["nodes"]
            new[line["signature"]] = line["signature"] = signature_of(line["body"])
    assert new, f"no body of kind {kind}"
    write_table(to / layout.BODIES, bodies)
    for table in (layout.OPERATORS, layout.CASES):
        lines = [json.loads(line) for line in (to / table).read_text().splitlines()]
        write_table(to / table, [line | {"signature": new.get(line["signature"], line["signature"])} for line in lines])
    return reseal(to)


def signature_of(body: dict[str, Any]) -> str:
    """As `Body.signature` has it, of a body that may be none."""
    return hashlib.blake2b(json.dumps(body, sort_keys=True, separators=(",", ":")).encode(), digest_size=8).hexdigest()


def node(name: str, target: str, args: list[Any], kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": name, "target": target, "args": args, "kwargs": kwargs or {}, "outputs": [[[1], "float32"]], "module": "",
        "source": "",
    }  # fmt: skip
