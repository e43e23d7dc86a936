"""A deployment as an ONNX file, run by ONNX Runtime with every value that it computes.

    file = OnnxFile(Path("model.onnx"), optimised=False)
    file.inputs                       what it wants to be fed with
    file.outputs(feed)                what its user gets: the file as it is, nothing exposed
    file.seen(feed)                   all values, with what the nodes say of where they come from

`optimised`: the graph that ONNX Runtime makes of the file, in which operators are fused; only what is left of its values is seen.
Each run is a process of its own (`onnx_worker.py`): an engine that crashes costs one error. The largest files (external data) are
read by ONNX Runtime alone.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tapml.devices.child import PACKAGE_PARENT
from tapml.devices.onnxruntime_device import INSTALL
from tapml.diagnose.check.quantized import QuantizedWeight, quantized, quantized_weights
from tapml.diagnose.check.seen import Seen
from tapml.errors import UnavailableError, UsageError
from tapml.targets.onnxruntime import PROCESSOR
from tapml.tensors import HostArray

SECONDS = 1800.0

# Names of element types in ONNX that are numbers here.
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}


@dataclass(frozen=True)
class Wanted:
    """An input of the file; None for an axis of any length."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class OnnxFile:
    """Raises UsageError for a file that is none, UnavailableError where ONNX Runtime or the provider is not here."""

    def __init__(self, path: Path, provider: str = PROCESSOR, optimised: bool = False) -> None:
        for package in ("onnx", "onnxruntime"):
            if find_spec(package) is None:
                raise UnavailableError(f"--onnx needs the package {package}. Install it: {INSTALL}")
        self.path = path
        self._folder = path.resolve().parent
        self.provider = provider
        self._optimised = optimised
        self._scratch = tempfile.TemporaryDirectory()
        self._model = self._read(path)

    def close(self) -> None:
        self._scratch.cleanup()

    def _read(self, path: Path) -> Any:
        import onnx

        if not path.is_file():
            raise UsageError(f"There is no file {path}.")
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as error:
            raise UsageError(f"{path} cannot be read as ONNX: {str(error).splitlines()[0]}") from error
        if not model.graph.node:
            raise UsageError(f"{path} cannot be read as ONNX: it has no nodes.")
        return model

    @cached_property
    def inputs(self) -> tuple[Wanted, ...]:
        constants = {t.name for t in self._model.graph.initializer}
        found = []
        for given in self._model.graph.input:
            if given.name not in constants:
                tensor = given.type.tensor_type
                shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
                found.append(Wanted(given.name, _DTYPES.get(tensor.elem_type, "float32"), shape))
        return tuple(found)

    @property
    def inside(self) -> tuple[str, ...]:
        """Values that are quantized within operators, in the file as it is written."""
        return quantized(self._model, self._folder).inside

    def weights(self) -> dict[str, QuantizedWeight | None]:
        """Those that are quantized, in the file as it is written; None for one that cannot be read."""
        return quantized_weights(self._model, self._folder)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(o.name for o in self._model.graph.output)

    @property
    def version(self) -> str:
        from importlib.metadata import version

        return f"ONNX Runtime {version('onnxruntime')}, {self.provider}"

    def outputs(self, feed: Mapping[str, HostArray]) -> dict[str, HostArray]:
        return self._run(self._model, feed, self.output_names, self._optimised)

    def seen(self, feed: Mapping[str, HostArray]) -> Seen:
        import onnx

        model = self._optimised_model(feed) if self._optimised else self._model
        shown = type(model).FromString(model.SerializeToString())
        made_of, paths = _sources(shown.graph.node)
        there = {o.name for o in shown.graph.output}
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made_of if name not in there)
        values = self._run(shown, feed, tuple(made_of), False)
        rounded = quantized(model, self._folder).roundings(values)
        return Seen({name: values[name] for name in made_of if name in values}, paths, made_of, self.output_names, rounded)

    def _optimised_model(self, feed: Mapping[str, HostArray]) -> Any:
        made = Path(self._scratch.name) / "optimised.onnx"
        if not made.exists():
            self._run(self._model, feed, (), True, keep=made)
        return self._read(made)

    def _run(
        self, model: Any, feed: Mapping[str, HostArray], names: Sequence[str], optimised: bool, keep: Path | None = None
    ) -> dict[str, HostArray]:
        with tempfile.TemporaryDirectory(dir=self._scratch.name) as folder:
            work = Path(folder)
            (work / "model.onnx").write_bytes(model.SerializeToString())
            fed: dict[str, Any] = {str(k): array for k, array in enumerate(feed.values())}
            np.savez(work / "feed.npz", **fed)
            job = {
                "feed": list(feed), "outputs": list(names), "provider": self.provider, "optimised": optimised,
                "data": str(self._folder), "keep": None if keep is None else str(keep),
            }  # fmt: skip
            (work / "job.json").write_text(json.dumps(job))
            try:
                done = subprocess.run(
                    [sys.executable, "-P", "-m", "tapml.diagnose.check.onnx_worker", folder],
                    capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False, env=_environment(),
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise UnavailableError(f"ONNX Runtime did not run {self.path} within {SECONDS:g} s.") from None
            answer = work / "answer.json"
            if not answer.exists():
                last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
                raise UnavailableError(f"ONNX Runtime ended while it ran {self.path} (code {done.returncode}): {last}")
            told = json.loads(answer.read_text())
            if told["error"]:
                kind = UnavailableError if told["absent"] else UsageError
                raise kind(f"ONNX Runtime cannot run {self.path}: {told['error']}")
            with np.load(work / "outputs.npz") as arrays:
                return {name: arrays[str(k)] for k, name in enumerate(told["names"])}


def _environment() -> dict[str, str]:
    """In which this very package is imported."""
    path = os.pathsep.join(p for p in (PACKAGE_PARENT, os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path}


def _sources(nodes: Sequence[Any]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """What each value was computed from, and the module path that its node names."""
    made_of: dict[str, tuple[str, ...]] = {}
    paths: dict[str, str] = {}
    for node in nodes:
        read = tuple(name for name in node.input if name)
        path = _path(node)
        for name in node.output:
            if name:
                made_of[name] = read
                paths[name] = path
    return made_of, paths


def _path(node: Any) -> str:
    """Of the exporters of PyTorch: the scopes in the metadata, or the node's name, "/model/layers.0/mlp/act_fn/Mul"."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                continue
            if isinstance(scopes, list) and len(scopes) > 1 and all(isinstance(s, str) for s in scopes):
                return str(scopes[-2])
    return ".".join(node.name.strip("/").split("/")[:-1]) if node.name.startswith("/") else ""
