"""Packages with engines, as pip leaves them in a folder: written by hand, so that each takes no time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "numpy-engine"

# An engine that knows four calls, and does with them what its options and the test's edits say.
TEXT = '''
import os
import numpy as np
from tapml.backends import NotSupported, arguments

CALLS = {"aten.mul.Tensor": np.multiply, "aten.add.Tensor": np.add, "aten.relu.default": lambda x: np.maximum(x, 0)}


class Engine:
    interface = 1
    options = {"mode": "what it does", "other": "nothing"}

    def __init__(self, options):
        self.mode = options.get("mode")
        if self.mode == "absent":
            import a_module_that_is_not_there
        if self.mode == "wild":
            1 / 0
        self.device, self.version = "a toy", "Toy 3"

    def compile(self, body):
        for node in body.nodes:
            if node.target not in CALLS:
                raise NotSupported(f"{node.target}: a toy has none")
        if self.mode == "compile":
            raise RuntimeError("out of ideas")

        def run(inputs):
            if self.mode == "crash":
                os.abort()
            if self.mode == "run":
                raise KeyError("nothing\\nmore")
            if self.mode == "writes":
                inputs[0][...] = 0
            values = {f"i{k}": array for k, array in enumerate(inputs)}
            for node in body.nodes:
                args, _ = arguments(node, values)
                values[node.name] = CALLS[node.target](*args)
            made = [values[name] for name in body.outputs]
            if self.mode in ("none", "count"):
                return [None] if self.mode == "none" else []
            return [a[..., :1] if self.mode == "shape" else a.astype("f8") if self.mode == "dtype" else a for a in made]

        return run
'''


def package(folder: Path, name: str, points: dict[str, str], text: str = TEXT) -> None:
    """A package with one module, and an entry point for each target, by what it names."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = "\n".join(f"{target} = {value}" for target, value in points.items())
    (info / "entry_points.txt").write_text(f"[tapml.backends]\n{lines}\n")
    (folder / f"{name.replace('-', '_')}.py").write_text(text)


def see(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python finds packages in the folder, in this process and in those that it starts."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in (str(folder), os.environ.get("PYTHONPATH", "")) if p))


def installed_example(folder: Path, source: Path) -> Path:
    """The example as pip installs it; `source` is where a copy is built, so that the example's folder stays as it is."""
    source.mkdir()
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder), str(source)]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
