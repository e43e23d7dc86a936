"""Reading a run: the folder that carving writes and that all later stages share.

    run = RunFolder.open(path)
    for case in run.cases:
        inputs, expected = run.case_arrays(case)

Opening checks that the folder is a whole run of this version and that neither the manifest nor a table was changed; tables are
parsed when they are first used, and every other file (cases, states, example inputs, the tokenizer) is checked when it is read.
Anything wrong is a RunError that names the file, and the line of a table. Needs no torch. Writing is `tapml.carving.writer`, what
the files hold is in ARCHITECTURE.md ("A run on disk").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import tapml
from tapml import strict
from tapml.carving import layout
from tapml.carving.arrays import unpack
from tapml.carving.case import Case
from tapml.carving.consistent import check_consistent
from tapml.carving.late import Late
from tapml.carving.ties import leads
from tapml.carving.tolerance import Accuracy, Comparison, Reference, compare
from tapml.carving.writer import RunWriter
from tapml.errors import RunError, UsageError, nearest
from tapml.inside import read_file
from tapml.manifest import SEAL, digest, seal
from tapml.operators.graph import Body, Graph, Operator, Placeholder
from tapml.runtime.kinds import KINDS
from tapml.runtime.protocol import Cached, Generating, ModelProtocol
from tapml.source.weights import Weight, WeightTable
from tapml.tensors import FLOATS, NUMPY, HostArray, TensorSpec, dtype_name, spec_of

T = TypeVar("T")

# Bytes of a table or the manifest that are read at all.
_LARGEST_TABLE = 2**30


@dataclass(frozen=True)
class Prompt:
    """A prompt of a decoder, and what the source answered greedily (the stop token included)."""

    index: int
    text: str
    tokens: tuple[int, ...]
    generated: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"index": self.index, "text": self.text, "tokens": list(self.tokens), "generated": list(self.generated)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Prompt:
        tokens, generated = (strict.several(strict.whole, data, key) for key in ("tokens", "generated"))
        return Prompt(strict.whole(data, "index"), strict.text(data, "text"), tokens, generated)


@dataclass(frozen=True)
class State:
    """A state's spec, and the file with its first content (None: zeros)."""

    key: str
    spec: TensorSpec
    file: str | None

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "spec": self.spec.to_json(), "file": self.file}

    @staticmethod
    def from_json(data: dict[str, Any]) -> State:
        return State(strict.name(data, "key"), TensorSpec.from_json(data["spec"]), strict.maybe(strict.name, data, "file"))


class RunFolder:
    """A finished run. `manifest` is the content of `run.json`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @staticmethod
    def create(path: Path, fresh: bool = False) -> RunWriter:
        """A writer for a new run at `path`; see `tapml.carving.writer`."""
        return RunWriter.create(path, fresh)

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Raises RunError when there is no run, or when it is unfinished or damaged, or has another format or version."""
        try:
            path = path.resolve()
            manifest = _manifest(path)
        except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, links in a circle
            raise RunError(f"No run at {str(path)[:300]!a}: {error}.") from error
        run = RunFolder(path, manifest)
        for name, facts in manifest["tables"].items():
            run._verify(name, facts)
        check_consistent(run)
        return run

    @property
    def digest(self) -> str:
        """Identity of the content: two runs with the same digest have the same operators, cases and weights."""
        return str(self.manifest["digest"])

    @property
    def kind(self) -> str:
        """A name in `tapml.runtime.kinds`."""
        return str(self.manifest["kind"])

    @cached_property
    def protocol(self) -> ModelProtocol:
        """How the model is called."""
        return _protocol(self.manifest)

    @cached_property
    def graphs(self) -> tuple[Graph, ...]:
        return tuple(self._table(layout.GRAPHS, Graph.from_json))

    @cached_property
    def bodies(self) -> dict[str, Body]:
        """By signature."""
        return dict(self._table(layout.BODIES, _body))

    @cached_property
    def operators(self) -> tuple[Operator, ...]:
        """Of all graphs, each graph's in execution order."""
        return tuple(self._table(layout.OPERATORS, Operator.from_json))

    @cached_property
    def states(self) -> tuple[State, ...]:
        return tuple(self._table(layout.STATES, State.from_json))

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        return tuple(self._table(layout.CASES, Case.from_json))

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """Empty for a module that is not a decoder; see `examples`."""
        return tuple(self._table(layout.PROMPTS, Prompt.from_json)) if isinstance(self.protocol, Generating) else ()

    @cached_property
    def late(self) -> Late | None:
        """How the cache is filled to its end; None for a module that is not a decoder."""
        return next(iter(self._table(layout.LATE, Late.from_json)), None)

    @property
    def positions(self) -> dict[str, Any] | None:
        """Which positions of the cache were exercised (see `Late.positions`); None for a module that is not a decoder."""
        protocol = self.protocol
        return self.late.positions(protocol) if self.late is not None and isinstance(protocol, Cached) else None

    @cached_property
    def weights(self) -> WeightTable:
        return WeightTable(self._table(layout.WEIGHTS, Weight.from_json))

    @cached_property
    def oracle(self) -> tuple[dict[str, Any], ...]:
        """Lines {"prompt", "step", "graph", "source_error": {output key: error}, "excluded"} for the outputs of whole calls, and
        {"operator", "step", "source_error": [an error each output]} for operators at the first prompt."""
        return tuple(self._table(layout.ORACLE, _oracle_line))

    @cached_property
    def _by_name(self) -> dict[str, Operator]:
        return {o.name: o for o in self.operators}

    @cached_property
    def _by_id(self) -> dict[str, Case]:
        return {c.id: c for c in self.cases}

    @cached_property
    def _own_cases(self) -> dict[str, list[Case]]:
        found: dict[str, list[Case]] = defaultdict(list)
        for case in self.cases:
            found[case.operator].append(case)
            found[case.signature].append(case)
        return found

    @cached_property
    def _placeholders(self) -> dict[str, dict[str, Placeholder]]:
        return {graph.name: {p.name: p for p in graph.placeholders} for graph in self.graphs}

    @cached_property
    def _compound(self) -> dict[str, dict[int, tuple[float, ...]]]:
        return self._of_operators("source_error")

    @cached_property
    def _spread(self) -> dict[str, dict[int, tuple[float, ...]]]:
        return self._of_operators("spread")

    def _of_operators(self, key: str) -> dict[str, dict[int, tuple[float, ...]]]:
        found: dict[str, dict[int, tuple[float, ...]]] = defaultdict(dict)
        for line in self.oracle:
            if "operator" in line:
                found[line["operator"]][line["step"]] = tuple(line[key])
        return found

    def operator(self, name: str) -> Operator:
        if name not in self._by_name:
            raise UsageError(f"No operator {name!r} in {self.path}. {nearest(name, self._by_name)}")
        return self._by_name[name]

    def case(self, id: str) -> Case:
        if id not in self._by_id:
            raise UsageError(f"No case {id!r} in {self.path}; there are {len(self.cases)}, named case0 and so on.")
        return self._by_id[id]

    def cases_of(self, operator: str) -> tuple[Case, ...]:
        """The cases recorded from this operator itself; often none, since cases are kept per signature."""
        return tuple(self._own_cases.get(operator, ()))

    def cases_of_signature(self, signature: str) -> tuple[Case, ...]:
        """The cases of all operators with this signature."""
        return tuple(self._own_cases.get(signature, ()))

    def compound_error(self, operator: str) -> dict[int, tuple[float, ...]]:
        """The source's own compound error of an operator at the first prompt: for the first few steps, one number an output."""
        return self._compound.get(operator, {})

    def compound_spread(self, operator: str) -> dict[int, tuple[float, ...]]:
        """The root mean square of the errors of which `compound_error` has the largest."""
        return self._spread.get(operator, {})

    def weight(self, key: str) -> HostArray:
        """A weight as the model holds it: a read-only view of its file where that is possible."""
        return self.weights.read(key)

    def case_arrays(self, case: Case) -> tuple[list[HostArray], list[HostArray]]:
        """(all inputs in the body's order, weights among them; expected outputs). An expected output is a
        `numpy.ma.MaskedArray` where the source cannot decide some elements."""
        inputs, references = self.case_references(case)
        return inputs, [_masked(r.values, r.excluded) for r in references]

    def case_references(self, case: Case) -> tuple[list[HostArray], list[Reference]]:
        """(all inputs in the body's order, weights among them; what each output is judged by). A case's file holds for output k
        "o{k}", what the source gave; "r{k}", float64's answer less that (absent where it is 0); "x{k}", the elements on which the
        source cannot decide; "e{k}", "l{k}" and "h{k}", those at a jump, and the least and greatest right value of each; "t{k}",
        what indices lead to, where equal values are among it."""
        operator = self.operator(case.operator)
        body = self.bodies[operator.signature]
        placeholders = self._placeholders[operator.graph]
        arrays = self._arrays(case.file)
        try:
            inputs = [
                self.weight(placeholders[name].key) if role == "weight" else _fitting(arrays, f"i{k}", spec)
                for k, (name, role, spec) in enumerate(zip(operator.inputs, body.roles, body.inputs, strict=True))
            ]
            references = [_reference(k, arrays, case.accuracy[k], spec) for k, spec in enumerate(body.output_specs)]
            for k, lead in leads(body).items():
                if f"t{k}" in arrays:
                    x = _fitting(arrays, f"t{k}", lead.spec)
                    references[k] = replace(references[k], led=(x, lead.dim))
        except KeyError as error:
            raise RunError(f"{self.path / case.file} lacks tensor {error}. Carve again with --fresh.") from None
        except ValueError as error:
            raise RunError(f"{self.path / case.file} is damaged: {error}. Carve again with --fresh.") from None
        return inputs, references

    def compare(self, case: Case, actual: list[HostArray]) -> list[Comparison]:
        """Judges the outputs of one recorded call."""
        _, references = self.case_references(case)
        return [compare(y, r) for y, r in zip(actual, references, strict=True)]

    @cached_property
    def initial_states(self) -> dict[str, HostArray]:
        """Content of each state before the first call."""
        return {s.key: self._first(s) for s in self.states}

    def _first(self, state: State) -> HostArray:
        try:
            if state.file is None:
                return np.zeros(state.spec.shape, NUMPY[state.spec.dtype])
            return _fitting(self._arrays(state.file), "state", state.spec)
        except (KeyError, ValueError) as error:
            raise RunError(f"{self.path / str(state.file)} is damaged: {error}. Carve again with --fresh.") from None
        except MemoryError:
            raise RunError(f"There is no room for the state {state.key} of {self.path}: {state.spec}.") from None

    @cached_property
    def examples(self) -> tuple[dict[str, HostArray], ...]:
        """Recorded inputs by key, for a module that is not a decoder."""
        if isinstance(self.protocol, Generating):
            return ()
        specs = {p.key: p.spec for p in self.graphs[0].inputs}
        return tuple(self._example(file, specs) for file in self._table(layout.PROMPTS, lambda d: strict.name(d, "file")))

    def _example(self, file: str, specs: dict[str, TensorSpec]) -> dict[str, HostArray]:
        arrays = self._arrays(file)
        try:
            return arrays | {key: _fitting(arrays, key, spec) for key, spec in specs.items()}
        except (KeyError, ValueError) as error:
            raise RunError(f"{self.path / file} is damaged: {error}. Carve again with --fresh.") from None

    def content(self, name: str) -> bytes:
        """A file of the run that is no table, such as "tokenizer.json" or a case's. Raises RunError when it is gone or its bytes
        are not those that were written."""
        path = self.path / name
        try:
            data = read_file(self.path, name)
        except FileNotFoundError:
            raise RunError(f"{path} is missing, though the run refers to it. Carve again with --fresh.") from None
        if digest(data) != self.manifest["files"].get(name):
            raise RunError(f"{path} was changed after carving: its content is not what was recorded. Carve again with --fresh.")
        return data

    def _arrays(self, name: str) -> dict[str, HostArray]:
        return unpack(self.content(name), self.path / name)

    def _table(self, name: str, parse: Callable[[Any], T]) -> list[T]:
        path = self.path / name
        found: list[T] = []
        for number, line in enumerate(self._lines(name), 1):
            try:
                found.append(parse(strict.fields(strict.parse(line))))
            except strict.UNREADABLE as error:
                raise RunError(_damaged(path, number, error)) from error
        return found

    def _lines(self, name: str) -> list[bytes]:
        try:
            data = read_file(self.path, name, most=_LARGEST_TABLE)
        except FileNotFoundError:
            raise RunError(f"{self.path} is damaged: {name} is missing. Carve again with --fresh.") from None
        return data[:-1].split(b"\n") if data.endswith(b"\n") else data.split(b"\n") if data else []

    def _verify(self, name: str, facts: dict[str, Any]) -> None:
        path = self.path / name
        lines = self._lines(name)
        if digest(b"".join(line + b"\n" for line in lines)) == facts["digest"]:
            return
        count = 0
        for count, line in enumerate(lines, 1):
            try:
                strict.parse(line)
            except ValueError as error:
                raise RunError(_damaged(path, count, error)) from error
        raise RunError(
            f"{path} was changed after carving: it has {count} lines where {facts['lines']} were written, or other values in "
            "them. Carve again with --fresh."
        )


def _manifest(path: Path) -> dict[str, Any]:
    file = path / layout.MANIFEST
    if not path.exists():
        partial = path.with_name(path.name + layout.PARTIAL)
        hint = f" A carve to it was started and did not finish ({partial.name})." if partial.exists() else ""
        raise RunError(f"No run at {path}.{hint} Make one: tapml carve MODEL -o {path}")
    if not file.is_file():
        if (path / layout.BUNDLE).is_file():
            raise RunError(
                f"{path} is a bundle, not a run. Give the run that it was built from; whether the bundle's operators are right "
                f"together, too, is asked by tapml verify {path}"
            )
        if path.name.endswith(layout.PARTIAL):
            raise RunError(f"{path} is an unfinished run. Carve again, and use the folder without {layout.PARTIAL!r}.")
        raise RunError(f"{path} is not a run of TapML: it has no {layout.MANIFEST}. Make one: tapml carve MODEL -o RUN")
    try:
        manifest = strict.parse(read_file(path, layout.MANIFEST, most=_LARGEST_TABLE).decode("utf-8"))
    except ValueError as error:
        raise RunError(_damaged(file, getattr(error, "lineno", 1), error)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != layout.FORMAT:
        raise RunError(f"{file} is not the manifest of a TapML run. Make one: tapml carve MODEL -o RUN")
    if manifest.get("format_version") != layout.FORMAT_VERSION or manifest.get("version") != tapml.__version__:
        raise RunError(
            f"{path} was carved by TapML {manifest.get('version')} (format {manifest.get('format_version')}); this is TapML "
            f"{tapml.__version__} (format {layout.FORMAT_VERSION}). Carve the model again with --fresh, or use that version."
        )
    missing = {"digest", "tables", "files", "kind", "decoder", SEAL} - manifest.keys()
    if missing:
        raise RunError(f"{file} is damaged: it lacks {', '.join(sorted(missing))}. Carve again with --fresh.")
    try:
        if seal(manifest) != manifest[SEAL]:
            raise RunError(f"{file} was changed after carving: its content is not what was written. Carve again with --fresh.")
        _check_manifest(manifest)
    except strict.UNREADABLE as error:
        raise RunError(f"{file} is damaged ({type(error).__name__}: {error}). Carve again with --fresh.") from error
    return manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Raises ValueError and the like for a field that is not what it has to be; puts in what readers want and a run may lack."""
    strict.hexadecimal(manifest, "digest")
    if set(strict.inner(manifest, "tables")) != set(layout.TABLES):
        raise ValueError("'tables' has other tables than a run")
    for name in layout.TABLES:
        strict.hexadecimal(strict.inner(manifest["tables"], name), "digest")
        strict.whole(manifest["tables"][name], "lines")
    for name in strict.inner(manifest, "files"):
        strict.hexadecimal(manifest["files"], name)
    strict.one_of(manifest, "kind", tuple(KINDS))
    _protocol(manifest)
    for key, nothing in (("dtype", ""), ("model", {}), ("result", {}), ("generation", {})):
        manifest.setdefault(key, nothing)
    for key in {"dtype", "weights"} & manifest.keys():
        strict.text(manifest, key)
    strict.inner(manifest, "result")
    code = strict.inner({"code": manifest.setdefault("code", {})}, "code")
    for key in code:
        strict.text(code, key)
    model = strict.inner(manifest, "model")
    model.setdefault("name", "")
    model.setdefault("licence", "")
    for key in strict.inner(manifest, "generation"):
        strict.real(manifest["generation"], key)
    for key in {"name", "spec", "digest", "licence"} & model.keys():
        strict.maybe(strict.text, model, key)
    strict.refuse_deep(manifest)


def _protocol(manifest: dict[str, Any]) -> ModelProtocol:
    return KINDS[manifest["kind"]](manifest["decoder"])


def _body(line: dict[str, Any]) -> tuple[str, Body]:
    signature, body = strict.hexadecimal(line, "signature"), Body.from_json(strict.inner(line, "body"))
    if body.signature != signature:
        raise ValueError(f"its signature is {body.signature}, not {signature}")
    return signature, body


def _oracle_line(line: dict[str, Any]) -> dict[str, Any]:
    if "operator" in line:
        strict.name(line, "operator")
        strict.whole(line, "step")
        for key in ("source_error", "spread"):
            strict.several(strict.distance, line, key)
    else:
        strict.whole(line, "prompt")
        strict.whole(line, "step")
        strict.name(line, "graph")
        for key in ("source_error", "spread", "straddling", "excluded"):
            for name in strict.inner(line, key):
                strict.distance(line[key], name)
    return line


def _damaged(path: Path, line: int, error: Exception) -> str:
    return f"{path} is damaged at line {line} ({type(error).__name__}: {error}). Carve again with --fresh."


def reference_arrays(k: int, reference: Reference) -> dict[str, HostArray]:
    """What a case's file holds of an output besides the output itself; see `RunFolder.case_references`."""
    found: dict[str, HostArray] = {}
    if reference.exact is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            rest = (reference.exact - reference.values.astype(np.float64)).astype(np.float32)
        rest = np.where(np.isfinite(rest), rest, np.float32(0))  # an array also of a scalar, of which NumPy's results are none
        if rest.any():
            found[f"r{k}"] = rest
    if reference.excluded is not None:
        found[f"x{k}"] = reference.excluded
    if reference.led is not None:
        found[f"t{k}"] = reference.led[0]
    if reference.either is not None:
        found |= {f"e{k}": reference.either[0], f"l{k}": reference.either[1], f"h{k}": reference.either[2]}
    return found


def _fitting(arrays: dict[str, HostArray], name: str, spec: TensorSpec) -> HostArray:
    """The array of this name. Raises KeyError when it is not there, ValueError when it has another shape or dtype."""
    found = arrays[name]
    if spec_of(found) != spec:
        raise ValueError(f"tensor {name!r} is {spec_of(found)}, not {spec}")
    return found


def _reference(k: int, arrays: dict[str, HostArray], accuracy: Accuracy, spec: TensorSpec) -> Reference:
    values = _fitting(arrays, f"o{k}", spec)
    for letter, dtypes in (("r", FLOATS), ("x", ("bool",)), ("e", ("bool",))):
        other = arrays.get(f"{letter}{k}")
        if other is not None and (other.shape != values.shape or dtype_name(other) not in dtypes):
            raise ValueError(f"tensor '{letter}{k}' is {spec_of(other)} beside an output that is {spec}")
    if f"e{k}" in arrays:
        count = int(arrays[f"e{k}"].sum())
        for side in (f"l{k}", f"h{k}"):
            if arrays[side].shape != (count,):
                raise ValueError(f"tensor {side!r} is {spec_of(arrays[side])}, for {count} elements at a jump")
    exact = None
    if dtype_name(values) in FLOATS:
        exact = values.astype(np.float64)
        if f"r{k}" in arrays:
            exact = exact + arrays[f"r{k}"]
    either = (arrays[f"e{k}"], arrays[f"l{k}"], arrays[f"h{k}"]) if f"e{k}" in arrays else None
    return Reference(values, accuracy, exact, arrays.get(f"x{k}"), either)


def _masked(array: HostArray, mask: HostArray | None) -> HostArray:
    return array if mask is None else np.ma.MaskedArray(array, mask)
