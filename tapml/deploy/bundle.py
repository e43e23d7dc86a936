"""Reading a bundle: a model that ships, with the kernels that passed.

    bundle = BundleFolder.open("smollm2")
    bundle.model.operators, bundle.programs["decode/lm_head"], bundle.weight("lm_head.weight", "float32")

Opening checks the manifest alone; it holds size and digest of every other file, and each file is read as a whole and checked
before anything of it is used, so a bundle that was cut off or altered is a BundleError, never a wrong answer. Needs neither torch
nor a compiler. Building is `tapml.deploy.build`, running `tapml.deploy.session`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tapml import strict
from tapml.cache.folder import file_digest
from tapml.carving import layout as of_run
from tapml.carving.tolerance import Reference, of_source
from tapml.deploy import layout
from tapml.deploy.plan import Plan, check_plan
from tapml.deploy.sampling import Sampling
from tapml.errors import BundleError, TargetError, UsageError
from tapml.inside import path_in, read_file
from tapml.kernels import Program
from tapml.manifest import SEAL, digest, seal
from tapml.operators.graph import Graph, Operator
from tapml.runtime.kinds import KINDS
from tapml.runtime.model import ModelData
from tapml.runtime.protocol import ModelProtocol
from tapml.source.safetensors_file import Entry, header_of
from tapml.targets.parse import TargetChoice, parse
from tapml.tensors import NUMPY, HostArray, TensorSpec, dtype_name
from tapml.whole_file import PARTIAL

T = TypeVar("T")

AGAIN = "Build or fetch it again."

# Bytes of a file that is read at once and is no weights.
_LARGEST = 2**30


@dataclass(frozen=True)
class Example:
    """Inputs by key, and what each output is judged by: the source's answer, and how exact that is."""

    inputs: dict[str, HostArray]
    outputs: dict[str, Reference]


def _accuracy(line: dict[str, Any]) -> dict[str, tuple[float, int, float | None]]:
    real, whole, maybe = strict.real, strict.whole, strict.maybe
    return {key: (real(line[key], "error"), whole(line[key], "straddling"), maybe(real, line[key], "spread")) for key in line}


class BundleFolder:
    """See the module's docstring. Everything is read when it is first asked for. Raises BundleError."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._shards: dict[str, tuple[HostArray, Mapping[str, Entry]]] = {}

    @staticmethod
    def open(path: str | Path) -> BundleFolder:
        """Raises BundleError where there is no bundle, or none of this format."""
        folder = Path(path)
        try:
            folder = folder.resolve()
            manifest = strict.fields(strict.parse(read_file(folder, layout.MANIFEST, most=_LARGEST)))
        except FileNotFoundError:
            if (folder / of_run.MANIFEST).is_file():
                raise BundleError(
                    f"{folder} is a run, not a bundle. Make one of it: tapml build {folder} --target T -o BUNDLE"
                ) from None
            partial = folder.with_name(folder.name + PARTIAL)
            hint = " A build of it was started and did not finish." if partial.exists() else ""
            raise BundleError(f"No bundle at {folder}.{hint} Make one: tapml build RUN --target T -o {folder}") from None
        except (OSError, RuntimeError, *strict.UNREADABLE) as error:
            raise BundleError(f"{folder} is no bundle, or its {layout.MANIFEST} is damaged ({error}). {AGAIN}") from error
        if manifest.get("format") != layout.FORMAT:
            raise BundleError(f"{folder / layout.MANIFEST} is not the manifest of a bundle. {AGAIN}")
        if manifest.get("format_version") != layout.FORMAT_VERSION:
            raise BundleError(
                f"{folder} has format {manifest.get('format_version')!a}; this TapML reads {layout.FORMAT_VERSION}. Use the "
                f"TapML that built it ({manifest.get('version')!a}), or build it again."
            )
        if seal(manifest) != manifest.get(SEAL):
            raise BundleError(f"{folder / layout.MANIFEST} was changed: its content is not what was built. {AGAIN}")
        found = BundleFolder(folder, manifest)
        try:
            _ = found.choice, found.protocol, found.name, found.allowed, found.licence, found.published
            for name in strict.inner(manifest, "files"):
                strict.hexadecimal(manifest["files"][name], "digest")
                strict.whole(manifest["files"][name], "bytes")
        except (TargetError, UsageError, *strict.UNREADABLE) as error:
            raise BundleError(f"{folder / layout.MANIFEST} is damaged ({error}). {AGAIN}") from error
        return found

    @property
    def name(self) -> str:
        """Of the model."""
        return strict.text(self.manifest, "model")

    @cached_property
    def choice(self) -> TargetChoice:
        """The target that its kernels are for."""
        return parse(strict.text(self.manifest, "target"))

    @property
    def licence(self) -> str:
        """Of the weights, as the model's files state it; "" where they do not."""
        return strict.text(self.manifest, "licence")

    @cached_property
    def published(self) -> Sampling:
        """How the model's publisher has tokens chosen; greedy where nothing is said."""
        return Sampling(**strict.inner(self.manifest, "generation"))

    @property
    def allowed(self) -> tuple[str, ...]:
        """The operators that ship without having passed, because whoever built it said so."""
        return strict.several(strict.name, self.manifest, "allowed")

    @cached_property
    def protocol(self) -> ModelProtocol:
        """How the model is called."""
        return KINDS[strict.one_of(self.manifest, "kind", tuple(KINDS))](self.manifest["calls"])

    @cached_property
    def model(self) -> ModelData:
        """Graphs, operators in order, first states. It has no bodies: nothing here can run but the programs."""
        operators = [operator for operator, _ in self._operators]
        return ModelData(self._graphs, operators, {}, self._handed_out, self._states)

    @cached_property
    def _graphs(self) -> list[Graph]:
        return self._table(layout.GRAPHS, Graph.from_json)

    @cached_property
    def _operators(self) -> list[tuple[Operator, str]]:
        """Each with the digest of its program."""
        return self._table(
            layout.OPERATORS, lambda line: (Operator.from_json(line["operator"]), strict.hexadecimal(line, "program"))
        )

    @cached_property
    def programs(self) -> dict[str, Program]:
        """By operator, every one of them."""
        made = {digest: self._program(digest) for digest in dict.fromkeys(digest for _, digest in self._operators)}
        return {operator.name: made[digest] for operator, digest in self._operators}

    @cached_property
    def plan(self) -> Plan:
        """How a call runs; proven to compute what the graphs say."""
        try:
            found = Plan.from_json(strict.fields(strict.parse(self.content(layout.PLAN))))
            check_plan(found, self.model, self.programs)
        except strict.UNREADABLE as error:
            raise BundleError(f"{self.path / layout.PLAN} is damaged ({error}). {AGAIN}") from error
        except BundleError as error:
            raise BundleError(f"{self.path} cannot be run. {error} {AGAIN}") from error
        return found

    @cached_property
    def prompts(self) -> tuple[dict[str, Any], ...]:
        """The run's: {"text", "tokens", "generated"}."""
        return tuple(self._table(layout.PROMPTS, dict))

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """The run's first one, where the model chooses no tokens."""
        if layout.ACCURACY not in self.manifest["files"]:
            return ()
        arrays, lines = self._arrays(layout.EXAMPLES), self._table(layout.ACCURACY, _accuracy)
        try:
            return tuple(
                Example(
                    {name.removeprefix(f"{k} input "): array for name, array in arrays.items() if name.startswith(f"{k} input ")},
                    {key: of_source(arrays[f"{k} output {key}"], *facts) for key, facts in line.items()},
                )
                for k, line in enumerate(lines)
            )
        except KeyError as error:
            raise BundleError(f"{self.path / layout.EXAMPLES} has no array {error}. {AGAIN}") from error

    def _program(self, digest: str) -> Program:
        name = f"{layout.KERNEL_FOLDER}/{digest}.json"
        try:
            found = Program.from_json(strict.fields(strict.parse(self.content(name))))
        except strict.UNREADABLE as error:
            raise BundleError(f"{self.path / name} is damaged ({error}). {AGAIN}") from error
        if found.digest != digest:
            raise BundleError(f"{self.path / name} is not the program of its name. {AGAIN}")
        return found

    @cached_property
    def _weights(self) -> dict[tuple[str, str], tuple[str, str, str]]:
        """(key, dtype it is stored in) → (shard, tensor in it, digest)."""
        def entry(line: dict[str, Any]) -> tuple[tuple[str, str], tuple[str, str, str]]:
            where = strict.name(line, "file"), strict.name(line, "tensor"), strict.hexadecimal(line, "digest")
            return (strict.name(line, "key"), strict.one_of(line, "dtype", tuple(NUMPY))), where

        return dict(self._table(layout.WEIGHTS, entry))

    def digest_of_weight(self, key: str, dtype: str) -> str:
        """Equal for equal contents."""
        return self._weight(key, dtype)[2]

    def weight(self, key: str, dtype: str) -> HostArray:
        """A weight as it is stored on the device: a read-only view of its file, which is checked as a whole at its first use."""
        shard, tensor, _ = self._weight(key, dtype)
        if shard not in self._shards:
            self._shards[shard] = self._open_shard(shard)
        data, entries = self._shards[shard]
        entry = entries.get(tensor)
        if entry is None or entry.spec is None or entry.spec.dtype != dtype:
            raise BundleError(f"{self.path / shard} has no {dtype} tensor {tensor[:80]!a}. {AGAIN}")
        return data[entry.offset : entry.offset + entry.nbytes].view(NUMPY[dtype]).reshape(entry.spec.shape)

    def _weight(self, key: str, dtype: str) -> tuple[str, str, str]:
        if (key, dtype) not in self._weights:
            raise BundleError(f"{self.path} has no weight {key!a} in {dtype}. {AGAIN}")
        return self._weights[key, dtype]

    def _handed_out(self, key: str) -> HostArray:
        """A weight that the model gives as it is."""
        dtype = next((d for k, d in self._weights if k == key), "")
        return self.weight(key, dtype)

    def _open_shard(self, name: str) -> tuple[HostArray, Mapping[str, Entry]]:
        path = self._checked(name)
        try:
            with path.open("rb") as file:
                entries = header_of(file, path)
            return np.memmap(path, np.uint8, "r"), entries
        except (OSError, ValueError, BundleError) as error:
            raise BundleError(f"{path} cannot be read: {error}. {AGAIN}") from error

    @cached_property
    def _states(self) -> dict[str, HostArray]:
        specs = {p.key: p.spec for graph in self._graphs for p in graph.states}
        found = {key: np.zeros(spec.shape, NUMPY[spec.dtype]) for key, spec in specs.items()}
        if layout.STATES in self.manifest["files"]:
            for key, array in self._arrays(layout.STATES).items():
                spec = specs.get(key)
                if spec is None or (array.shape, dtype_name(array)) != (spec.shape, spec.dtype):
                    raise BundleError(f"{self.path / layout.STATES}: {key[:80]!a} is not {spec}. {AGAIN}")
                found[key] = array
        return found

    def _arrays(self, name: str) -> dict[str, HostArray]:
        """All that is in a file of arrays."""
        data, entries = self._open_shard(name)
        found: dict[str, HostArray] = {}
        for key, entry in entries.items():
            if entry.spec is None:
                raise BundleError(f"{self.path / name}: {key[:80]!a} has a dtype that no model here has. {AGAIN}")
            part = data[entry.offset : entry.offset + entry.nbytes]
            found[key] = part.view(NUMPY[entry.spec.dtype]).reshape(entry.spec.shape)
        return found

    def content(self, name: str) -> bytes:
        """A whole file, checked."""
        facts = self._facts(name)
        try:
            data = read_file(self.path, name, most=_LARGEST)
        except (OSError, *strict.UNREADABLE) as error:
            raise BundleError(f"{self.path / name} cannot be read ({error}). {AGAIN}") from error
        if len(data) != facts["bytes"] or digest(data) != facts["digest"]:
            raise BundleError(f"{self.path / name} was changed or cut off: it is not what was built. {AGAIN}")
        return data

    def _checked(self, name: str) -> Path:
        """A file too large to be read at once, checked."""
        facts = self._facts(name)
        path = path_in(self.path, name)
        try:
            found = file_digest(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}). {AGAIN}") from error
        if found != facts["digest"]:
            raise BundleError(f"{path} was changed or cut off: it is not what was built. {AGAIN}")
        return path

    def _facts(self, name: str) -> dict[str, Any]:
        files = self.manifest["files"]
        if name not in files:
            raise BundleError(f"{self.path} has no {name[:200]}. {AGAIN}")
        return dict(files[name])

    def _table(self, name: str, parse: Callable[[Any], T]) -> list[T]:
        found: list[T] = []
        for number, line in enumerate(self.content(name).splitlines(), 1):
            try:
                found.append(parse(strict.fields(strict.parse(line))))
            except strict.UNREADABLE as error:
                raise BundleError(f"{self.path / name} is damaged at line {number} ({error}). {AGAIN}") from error
        return found


def stored_of(programs: Mapping[str, Program], model: ModelData) -> dict[tuple[str, str], TensorSpec]:
    """Each weight that the programs read, by key and the dtype it is stored in."""
    found: dict[tuple[str, str], TensorSpec] = {}
    for operator in model.operators:
        for key, spec in zip(model.weight_keys(operator), programs[operator.name].inputs, strict=True):
            if key is not None:
                found[key, spec.dtype] = spec
    return found
