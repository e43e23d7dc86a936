"""Arrays that an engine wrote into files: `--outputs DIR`.

`.npy` files are named by their stem, arrays of `.npz` and `.safetensors` files by their keys. A name that is an operator's, or a
module path, helps to recognise a value, but is not required. `map.json` in the folder gives other names:
{"blk.0.attn_norm": "layers.0.input_layernorm"}.

A `.txt` or `.log` file is what llama.cpp's `llama-eval-callback` prints (`ggml_text.py`): parts of arrays, so that a folder holds
either.

The arrays are those of the run's first example, or of the first tokens of its first prompt.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from tapml import strict
from tapml.diagnose.check.function import named
from tapml.diagnose.check.ggml_text import Glimpse, glimpses
from tapml.diagnose.check.seen import Seen
from tapml.errors import UsageError
from tapml.operators.graph import Operator
from tapml.tensors import HostArray

MAP = "map.json"

ARRAYS = (".npy", ".npz", ".safetensors")
TEXTS = (".txt", ".log")


def read_dumps(folder: Path, operators: tuple[Operator, ...]) -> Seen:
    """Raises UsageError for a folder without arrays, or a file that cannot be read."""
    if not folder.is_dir():
        raise UsageError(f"--outputs {folder}: there is no such folder.")
    arrays: dict[str, HostArray] = {}
    for path in sorted(folder.iterdir()):
        try:
            arrays |= _arrays(path)
        except (OSError, ValueError, EOFError, KeyError, SafetensorError) as error:
            raise UsageError(f"--outputs: {path} cannot be read: {error}") from error
    if not arrays:
        raise UsageError(f"--outputs {folder}: there are no .npy, .npz or .safetensors files in it.")
    other = _other_names(folder / MAP, arrays)
    return named({other.get(name, name): array for name, array in arrays.items()}, operators, f"--outputs {folder}")


def _arrays(path: Path) -> dict[str, HostArray]:
    if path.suffix == ".npy":
        return {path.stem: np.load(path, allow_pickle=False)}
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    return {}


def _other_names(path: Path, held: Collection[str]) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        data = strict.parse(path.read_text())
        other = {key: strict.name(data, key) for key in data}
    except (OSError, *strict.UNREADABLE) as error:
        raise UsageError(f"{path} is not a table of names: {error}") from error
    if unknown := other.keys() - set(held):
        raise UsageError(f"{path} names {min(unknown)!r}, which no file holds.")
    return other


def read_texts(folder: Path) -> tuple[list[Glimpse], dict[str, str]] | None:
    """What llama.cpp printed of values, and the names of `map.json` or their own; None for a folder without texts. Raises
    UsageError for a text without values, one that cannot be read, and for arrays beside it."""
    files = sorted(path for path in folder.iterdir() if path.suffix in TEXTS) if folder.is_dir() else []
    if not files:
        return None
    beside = next((path for path in sorted(folder.iterdir()) if path.suffix in ARRAYS), None)
    if beside is not None or len(files) > 1:
        raise UsageError(
            f"--outputs {folder}: {files[0].name} is a text of parts of values, and {(beside or files[1]).name} is beside it. "
            "Give a folder for each."
        )
    try:
        shown = glimpses(files[0].read_text(errors="replace"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--outputs: {files[0]} cannot be read: {error}") from error
    if not shown:
        raise UsageError(f"--outputs: {files[0]} holds no values as llama-eval-callback prints them.")
    names = {glimpse.name: glimpse.name for glimpse in shown}
    return shown, names | _other_names(folder / MAP, names)
