"""The lines of the model's code that operators come from, with a line around them, where the file can still be read.

    code = Snippets(run)
    code.of(nodes)       [3]: places in `code.all`
    code.all[3]          {"file": "modeling_llama.py", "first": 63, "lines": ["        …", …], "own": [64, 65]}

A run knows a file by its name: the model's own one lies where the model was loaded from, those of transformers and of PyTorch
where they are installed. A name that fits two files is left out, and so is a line that the file does not have: nothing is
guessed. What is shown is the file as it is now. Only Python files are read: the names come from the run, which somebody else may
have made, and a page may be handed on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tapml.carving.folder import RunFolder
from tapml.errors import RunError
from tapml.inside import open_regular
from tapml.operators.graph import Node

AROUND = 1
MOST_LINES = 12
MOST_WIDTH = 160
MOST_BYTES = 2**21

# Packages with models' code, and where in them it lies.
_PACKAGES = (("transformers", "models/*"), ("transformers", "."), ("torch", "nn/modules"))


class Snippets:
    """See the module's docstring. Equal snippets are kept once."""

    def __init__(self, run: RunFolder) -> None:
        self.all: list[dict[str, Any]] = []
        self._spec = str(run.manifest["model"].get("spec") or "")
        self._read: dict[str, list[str]] = {}
        self._places: dict[tuple[str, int, int], int] = {}

    def of(self, nodes: Iterable[Node]) -> list[int]:
        """The snippets of an operator with these nodes, a file each; what is farther down in a file than `MOST_LINES` is left
        out."""
        wanted: dict[str, set[int]] = {}
        for node in nodes:
            name, _, number = node.source.rpartition(":")
            if number.isdecimal() and len(number) < 10:
                wanted.setdefault(name, set()).add(int(number))
        return [place for name, own in wanted.items() if (place := self._add(name, sorted(own))) is not None]

    def _add(self, name: str, own: list[int]) -> int | None:
        if name not in self._read:
            self._read[name] = _lines(name, self._spec)
        text = self._read[name]
        own = [line for line in own if 0 < line <= len(text) and line < own[0] + MOST_LINES]
        if not own:
            return None
        first, last = max(own[0] - AROUND, 1), min(own[-1] + AROUND, len(text))
        key = (name, first, last)
        if key not in self._places:
            self._places[key] = len(self.all)
            shown = [line[:MOST_WIDTH] for line in text[first - 1 : last]]
            self.all.append({"file": name, "first": first, "lines": shown, "own": own})
        return self._places[key]


def _lines(name: str, spec: str) -> list[str]:
    path = _find(name, spec)
    if path is None:
        return []
    try:
        with open_regular(path) as file:
            return file.read(MOST_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError, RunError):
        return []


def _find(name: str, spec: str) -> Path | None:
    if not name.endswith(".py") or Path(name).name != name or "\0" in name or len(name) > 200:
        return None
    own = Path(spec.rpartition(":")[0]) if ".py:" in spec else Path(spec)
    beside = (own.parent if own.suffix == ".py" else own) / name
    if spec and beside.is_file():
        return beside
    for package, where in _PACKAGES:
        installed = importlib.util.find_spec(package)
        if installed is not None and installed.origin is not None:
            fitting = list(Path(installed.origin).parent.glob(f"{where}/{name}"))
            if len(fitting) == 1:
                return fitting[0]
    return None
