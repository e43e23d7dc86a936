"""A folder with somebody's own kernels, read for one run: which operator each of them is for.

    own = OwnFolder.read(Path("my-kernels"), run.operators, run.bodies)
    own.launched[signature], own.called[signature]       kernels by signature, and functions of Python
    own.lacking(operators)                               those that it has nothing for

What is in it (docs/own-kernels.md):

    NAME.json                          how kernels are launched (`tapml.launch_file`), with the key "operator": whom they are for
    *.wgsl, *.cl, *.cu, …              their text, which such a file names
    KIND.py                            a function KIND(*tensors) for operators of a kind, such as rms_norm.py
    OP__OVERLOAD/…_implementation*.py  as BackendBench has them: OP_kernel_impl(*args, **kwargs) in place of one call of PyTorch

Names that begin with "_" or "." are left alone, and so are files of other kinds, such as a README. All that can be known to be
wrong without running anything is a UsageError here, with the file's name.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapml import strict
from tapml.errors import UsageError, nearest
from tapml.inside import open_regular
from tapml.kernels import Program
from tapml.languages import LANGUAGES, pytorch
from tapml.launch_file import BY_SUFFIX, program_of
from tapml.manifest import digest
from tapml.operators.graph import Body, Operator
from tapml.targets.target import Target
from tapml.tensors import TensorSpec
from tapml.words import plural

OPERATOR = "operator"
SCHEDULE = "own"
_LARGEST = 2**26


@dataclass(frozen=True)
class Launched:
    """Kernels for one signature; `file` says how they are launched, `texts` has the files that it names."""

    file: Path
    data: Mapping[str, Any]
    texts: Mapping[str, str]
    language: str

    def program(self, body: Body, target: Target) -> Program:
        """Raises ValueError where the file names other inputs and outputs than the target stores."""
        return _program(self.data, self.texts.__getitem__, body, target)


@dataclass(frozen=True)
class Called:
    """Functions of Python for one signature, by the call of PyTorch in whose place each stands; "" for the whole operator."""

    functions: Mapping[str, Function]


@dataclass(frozen=True)
class Function:
    """A function in a file, under the first of `names` that it has. `digest` is that of the text as it was read."""

    file: Path
    names: tuple[str, ...]
    digest: str


@dataclass
class OwnFolder:
    """See the module's docstring. `unused` are calls of PyTorch that it has functions for and that the run does not make."""

    path: Path
    launched: dict[str, dict[str, Launched]] = field(default_factory=dict)
    called: dict[str, Called] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    digest: str = ""

    @staticmethod
    def read(path: Path, operators: Sequence[Operator], bodies: Mapping[str, Body]) -> OwnFolder:
        """Raises UsageError for a folder that cannot be used, and for a file in it that is for no operator."""
        return _Reader(path, operators, bodies).read()

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of its kernels; Python counts as PyTorch's."""
        found = {one.language for some in self.launched.values() for one in some.values()}
        return tuple(name for name in LANGUAGES if name in found or (name == pytorch.LANGUAGE.name and self.called))

    @property
    def languages_named(self) -> str:
        """In words: "OpenCL C, WGSL"."""
        return ", ".join(LANGUAGES[name].title for name in self.languages)

    def has(self, signature: str, language: str) -> bool:
        return signature in self.called if language == pytorch.LANGUAGE.name else language in self.launched.get(signature, {})

    def lacks(self, signature: str, language: str) -> str:
        """Why there is nothing for it in this language; "" where there is something."""
        if self.has(signature, language):
            return ""
        others = [LANGUAGES[name].title for name in self.languages if self.has(signature, name)]
        if not others:
            return f"not tested: no kernel in {self.path}"
        return f"not tested: the kernel in {self.path} is in {' and '.join(others)}, not in {LANGUAGES[language].title}"


class _Reader:
    def __init__(self, path: Path, operators: Sequence[Operator], bodies: Mapping[str, Body]) -> None:
        self.path = path
        self.operators = operators
        self.bodies = bodies
        self.found = OwnFolder(path)
        self.hash = hashlib.blake2b(digest_size=8)
        self.named: dict[str, str] = {}

    def read(self) -> OwnFolder:
        if not self.path.is_dir():
            raise UsageError(f"--kernels {self.path}: there is no such folder.")
        try:
            entries = sorted(p for p in self.path.iterdir() if not p.name.startswith("."))
        except OSError as error:
            raise UsageError(f"--kernels {self.path} cannot be read: {error.strerror}.") from error
        folders = self._backend_bench([p for p in entries if p.is_dir()])
        files = [p for p in entries if not p.is_dir() and not p.name.startswith("_")]
        for path in files:
            if path.suffix == ".json":
                self._launches(path)
            elif path.suffix == ".py":
                self._functions(path)
        for path in files:
            if path.suffix.removeprefix(".") in BY_SUFFIX and path.name not in self.named:
                raise UsageError(
                    f"{path}: no launch file in {self.path} names it, so nothing says which operator it is for. Write "
                    f"{path.with_suffix('.json').name} with \"operator\", \"kernels\" (see docs/own-kernels.md)."
                )
        if not self.found.launched and not self.found.called:
            here = f"it has {plural(folders, 'function')} for other calls than this run makes" if folders else "it has none"
            raise UsageError(f"--kernels {self.path}: no kernel is for an operator of this run; {here}. See docs/own-kernels.md.")
        self.found.digest = self.hash.hexdigest()
        return self.found

    def _text(self, path: Path) -> str:
        try:
            with open_regular(path, UsageError) as file:
                data = file.read(_LARGEST + 1)
            text = data.decode("utf-8")
        except FileNotFoundError:
            raise UsageError(f"{path} is not there.") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
        if len(data) > _LARGEST:
            raise UsageError(f"{path} has more than {_LARGEST:,} bytes: it is no kernel.")
        self.hash.update(f"{path.name}\0{len(data)}\0".encode(errors="surrogatepass") + data)
        return text

    def _launches(self, path: Path) -> None:
        try:
            data = strict.fields(strict.parse(self._text(path), unique=True))
        except strict.UNREADABLE as error:
            raise UsageError(f"{path} is no JSON object: {error}.") from error
        if not isinstance(data.get(OPERATOR), str):
            raise UsageError(f'{path} lacks "{OPERATOR}": the name of the operator that it is for, or its signature or kind.')
        signature = self._signature(path, data)
        texts: dict[str, str] = {}

        def text_of(name: str) -> str:
            if "/" in name or name in ("..", "."):
                raise ValueError(f"{name!a:.80} is not the name of a file in the same folder")
            texts[name] = self.named[name] = self._text(path.parent / name)
            return texts[name]

        try:
            program = _program(data, text_of, self.bodies[signature], None)
        except ValueError as error:
            raise UsageError(f"{path}, for {data[OPERATOR]}: {error}.") from error
        if not program.kernels:
            raise UsageError(f"{path}, for {data[OPERATOR]}: it has no kernel.")
        language = program.kernels[0].language
        others = self.found.launched.setdefault(signature, {})
        if language in others:
            raise UsageError(f"{path} and {others[language].file} are both for {self._called(signature)}. Remove one.")
        others[language] = Launched(path, data, texts, language)

    def _signature(self, path: Path, data: Mapping[str, Any]) -> str:
        """The one signature that a launch file is for."""
        asked = data[OPERATOR]
        if asked in self.bodies:
            return str(asked)
        matching = {o.signature for o in self.operators if o.kind == asked or fnmatch.fnmatchcase(o.name, asked)}
        if not matching:
            names = {o.name for o in self.operators} | {o.kind for o in self.operators}
            raise UsageError(f"{path}: no operator is called {asked!a}. {nearest(asked, names)}")
        fitting = {s for s in matching if _shapes_fit(data, self.bodies[s])}
        if len(fitting) == 1:
            return next(iter(fitting))
        several = sorted(self._called(s) for s in fitting or matching)
        listed = "; ".join(several[:4]) + ("; …" if len(several) > 4 else "")
        if not fitting:
            raise UsageError(f'{path}: its "inputs" and "outputs" are not those of {asked!a}, which are {listed}.')
        raise UsageError(
            f"{path}: {asked!a} means operators of {len(several)} signatures, and a launch file is for one: {listed}. Name one "
            'of them, or say its "inputs".'
        )

    def _called(self, signature: str) -> str:
        first = next(o for o in self.operators if o.signature == signature)
        body = self.bodies[signature]
        return f"{first.name} ({signature}) of {', '.join(map(str, body.inputs))}"

    def _functions(self, path: Path) -> None:
        kinds = {body.kind for body in self.bodies.values()}
        if path.stem not in kinds:
            raise UsageError(
                f"{path}: no operator of this run is of the kind {path.stem!a}. {nearest(path.stem, kinds)} A file whose name "
                "begins with _ is left alone."
            )
        function = Function(path.resolve(), (path.stem,), digest(self._text(path).encode()))
        for signature, body in self.bodies.items():
            if body.kind == path.stem:
                self.found.called[signature] = Called({"": function})

    def _backend_bench(self, folders: Sequence[Path]) -> int:
        """How many functions there are for single calls of PyTorch."""
        by_call: dict[str, Function] = {}
        for folder in folders:
            op, _, overload = folder.name.rpartition("__")
            names = [name for name in (folder.name, op) if name]
            files = sorted(p for p in folder.iterdir() if p.suffix == ".py" and _is_implementation(p.name, names))
            if not files:
                continue
            text = self._text(files[0]).encode()
            function = Function(files[0].resolve(), tuple(f"{n}_kernel_impl" for n in names), digest(text))
            by_call[f"aten.{op}.{overload}" if op and overload else f"aten.{folder.name}."] = function
        made: set[str] = set()
        for signature, body in self.bodies.items():
            found = {n.target: f for n in body.nodes if (f := _for_call(n.target, by_call)) is not None}
            if found:
                self.found.called[signature] = Called(found)
                made |= found.keys()
        self.found.unused = tuple(sorted(call for call in by_call if not any(t == call or t.startswith(call) for t in made)))
        return len(by_call)


def _is_implementation(file: str, names: Sequence[str]) -> bool:
    return any(file.startswith(f"{name}_implementation") for name in names)


def _for_call(target: str, by_call: Mapping[str, Function]) -> Function | None:
    """A folder is for one overload, or without one in its name for all of an operator."""
    return by_call.get(target) or by_call.get(f"{target.rpartition('.')[0]}.")


def _shapes_fit(data: Mapping[str, Any], body: Body) -> bool:
    """Whether a launch file may be for this body; what it does not say fits all."""
    try:
        return all(
            key not in data or [tuple(item[0]) for item in strict.items(data, key)] == [spec.shape for spec in specs]
            for key, specs in (("inputs", body.inputs), ("outputs", body.output_specs))
        )
    except strict.UNREADABLE:
        return True  # said by whoever reads it


def _program(data: Mapping[str, Any], text_of: Any, body: Body, target: Target | None) -> Program:
    """As the target stores it; None: as the graph has it."""

    def specs(some: Sequence[TensorSpec]) -> list[TensorSpec]:
        return [TensorSpec(s.shape, s.dtype if target is None else target.stored(s.dtype)) for s in some]

    places = {f"i{k}": k for k in range(len(body.inputs))}
    forwards = {k: places[name] for k, name in enumerate(body.outputs) if name in places}
    return program_of(
        data, text_of, specs(body.inputs), specs(body.output_specs), forwards, SCHEDULE, (OPERATOR,), target is not None
    )
