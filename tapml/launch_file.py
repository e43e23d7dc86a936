"""`launch.json`: how the kernels of one operator are launched, beside the files that hold their text. Reproducers are written so
(`tapml.diagnose.minimise.reproducer`), and a folder of somebody's own kernels is read so (`tapml.backends.own_folder`).

    kernels     [{"file": "norm.cl", "entry": "norm", "access": ["read", "read", "read_write"], "grid": [4, 1, 1],
                "block": [64, 1, 1], "uniform": []}]: as `tapml.kernels.Kernel` has them; the language is that of the suffix
    steps       [{"kernel": 0, "arguments": [["input", 0], ["input", 1], ["output", 0]]}], launched in this order
    inputs      [[shape, dtype], …] as the device stores them; outputs likewise
    scratch     sizes in bytes of buffers that steps share

What is read may leave out what follows from the rest: with one kernel the step that binds all inputs and then all outputs, the
access where inputs are read and the rest is written too, no uniform words, no scratch, and the inputs and outputs themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tapml import strict
from tapml.errors import nearest
from tapml.kernels import Argument, Kernel, Program, Step
from tapml.languages import LANGUAGES, Language
from tapml.tensors import TensorSpec

# What is read, and what reproducers have beside it.
_KEYS = ("kernels", "steps", "inputs", "outputs", "scratch")
_OF_KERNELS = ("file", "entry", "access", "grid", "block", "uniform")
_NOT_READ = ("device", "driver", "checks", "schedule", "repeats", "packed")

# Languages that kernels are written in by hand, by the suffix of their files.
BY_SUFFIX: dict[str, Language] = {one.suffix: one for one in LANGUAGES.values() if one.generated and one.lexer != "text"}


def launches(program: Program, files: Sequence[str]) -> dict[str, Any]:
    """As data for JSON; `files` has the name of each kernel's file."""
    return {
        "kernels": [
            {
                "file": file, "packed": packed_name(file, LANGUAGES[k.language]),
                "entry": k.entry, "access": list(k.access), "grid": list(k.grid), "block": list(k.block),
                "uniform": _whole_words(k.uniform),
            }
            for file, k in zip(files, program.kernels, strict=True)
        ],
        "steps": [{"kernel": s.kernel, "arguments": [[a.role, a.index] for a in s.arguments]} for s in program.steps],
        "inputs": [t.to_json() for t in program.inputs],
        "outputs": [t.to_json() for t in program.outputs],
        "scratch": list(program.scratch),
    }  # fmt: skip


def packed_name(file: str, language: Language) -> str:
    """The name of the file that engines read, "" where they read the text."""
    return str(Path(file).with_suffix(f".{language.packed_suffix}")) if language.packed is not None else ""


def _whole_words(words: tuple[int, ...]) -> list[int]:
    """The words of a uniform binding, without sign and filled to 16 bytes, as the binding takes them."""
    return [w & 0xFFFFFFFF for w in words] + [0] * (-len(words) % 4)


def program_of(
    data: Mapping[str, Any], text_of: Callable[[str], str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
    forwards: Mapping[int, int], schedule: str, also: Sequence[str] = (), stored: bool = True,
) -> Program:
    """The program of an operator that has these inputs and outputs; `stored`: as the target stores them, so that dtypes must
    agree with those that the data name. `forwards` has its outputs that are inputs, which no kernel writes. `text_of` gives the
    text of a file, `also` are keys that the caller reads himself. Raises ValueError that says what is wrong where, and what
    `text_of` raises."""
    _refuse_unknown("it", data, (*_KEYS, *_NOT_READ, *also))
    for role, specs in (("inputs", inputs), ("outputs", outputs)):
        _check_specs(role, data, specs, stored)
    computed = [k for k in range(len(outputs)) if k not in forwards]
    scratch = _read("it", data, "scratch", lambda d, k: strict.several(strict.whole, d, k)) if "scratch" in data else ()
    described = _read("it", data, "kernels", strict.items)
    steps = _steps(data, described, len(inputs), computed)
    _check_steps(steps, described, {"input": len(inputs), "output": len(outputs), "scratch": len(scratch)}, computed)
    kernels = [_kernel(number, each, steps, text_of) for number, each in enumerate(described)]
    if len(languages := {kernel.language for kernel in kernels}) > 1:
        raise ValueError(f"its kernels are in {' and '.join(sorted(languages))}, and a program is in one language")
    for number, step in enumerate(steps):
        _check_binding(number, step, kernels[step.kernel])
    return Program(tuple(kernels), steps, tuple(inputs), tuple(outputs), tuple(scratch), schedule, tuple(forwards.items()))


def _steps(data: Mapping[str, Any], kernels: Sequence[Any], inputs: int, computed: Sequence[int]) -> tuple[Step, ...]:
    if "steps" not in data and len(kernels) == 1:
        return (Step(0, (*(Argument("input", k) for k in range(inputs)), *(Argument("output", k) for k in computed))),)
    found = []
    for number, step in enumerate(_read("it", data, "steps", strict.items)):
        place = f"step {number}"
        _refuse_unknown(place, _object(place, step), ("kernel", "arguments"))
        arguments = []
        for pair in _read(place, step, "arguments", strict.items):
            try:
                arguments.append(Argument(strict.one_of(pair, 0, ("input", "output", "scratch")), strict.whole(pair, 1)))
            except strict.UNREADABLE as error:
                raise ValueError(f'{place}: an argument is ["input", NUMBER], or "output" or "scratch" ({error})') from None
        kernel = _read(place, step, "kernel", lambda d, k: strict.whole(d, k, 0, len(kernels) - 1)) if "kernel" in step else 0
        found.append(Step(kernel, tuple(arguments)))
    return tuple(found)


def _check_steps(
    steps: Sequence[Step], kernels: Sequence[Any], there: Mapping[str, int], computed: Sequence[int]
) -> None:
    written = set()
    for number, step in enumerate(steps):
        if step.kernel >= len(kernels):
            raise ValueError(f"step {number} launches kernel {step.kernel}, and there are {len(kernels)}")
        for a in step.arguments:
            if a.index >= there[a.role]:
                raise ValueError(f"step {number} binds {a.role} {a.index}, and the operator has {_count(there[a.role], a.role)}")
            if a.role == "output" and a.index not in computed:
                raise ValueError(f"step {number} binds output {a.index}, which is an input handed on: no kernel writes it")
            if a.role == "output":
                written.add(a.index)
    for k in computed:
        if k not in written:
            raise ValueError(f"no step binds output {k}, so nothing would write it")


def _kernel(number: int, data: Any, steps: Sequence[Step], text_of: Callable[[str], str]) -> Kernel:
    place = f"kernel {number}"
    _refuse_unknown(place, _object(place, data), (*_OF_KERNELS, *_NOT_READ))
    file = _read(place, data, "file", strict.name)
    place = f"kernel {number} ({file})"
    language = BY_SUFFIX.get(Path(file).suffix.removeprefix("."))
    if language is None:
        known = ", ".join(f".{suffix} ({one.title})" for suffix, one in BY_SUFFIX.items())
        raise ValueError(f"{place} is in no language that its suffix tells: {known}")
    bound = next((s.arguments for s in steps if s.kernel == number), ())
    access = tuple("read" if a.role == "input" else "read_write" for a in bound)
    if "access" in data:
        access = _read(place, data, "access", lambda d, k: strict.several(_access, d, k))
    extents = []
    for key, what in (("grid", "how many workgroups there are"), ("block", "how many threads one has")):
        if key not in data:
            raise ValueError(f'{place} lacks "{key}": {what}, as [x, y, z]')
        extents.append(_read(place, data, key, _extent))
    uniform = _read(place, data, "uniform", lambda d, k: strict.several(strict.whole, d, k, -(2**32), 2**32)) \
        if "uniform" in data else ()
    entry = _read(place, data, "entry", lambda d, k: strict.text(d, k, strict.LONGEST_NAME))
    return Kernel(language.name, entry, text_of(file), access, extents[0], extents[1], uniform)


def _access(data: Any, key: Any) -> str:
    return str(strict.one_of(data, key, ("read", "write", "read_write")))


def _extent(data: Any, key: str) -> tuple[int, int, int]:
    x, y, z = (strict.whole(strict.items(data, key, 3), k, 1, 2**31 - 1) for k in range(3))
    return x, y, z


def _check_binding(number: int, step: Step, kernel: Kernel) -> None:
    if len(step.arguments) != len(kernel.access):
        raise ValueError(
            f"step {number} binds {_count(len(step.arguments), 'buffer')}, and the access of {kernel.entry} is that of "
            f"{len(kernel.access)}"
        )
    for argument, access in zip(step.arguments, kernel.access, strict=True):
        if argument.role == "input" and access != "read":
            raise ValueError(f"step {number} binds input {argument.index} to be written; an operator only reads its inputs")


def _check_specs(role: str, data: Mapping[str, Any], specs: Sequence[TensorSpec], stored: bool) -> None:
    if role not in data:
        return
    try:
        said = [TensorSpec.from_json(item) for item in strict.items(data, role)]
    except strict.UNREADABLE as error:
        raise ValueError(f'"{role}" is no list of [shape, dtype]: {error}') from None
    if (said != list(specs)) if stored else ([s.shape for s in said] != [s.shape for s in specs]):
        raise ValueError(f"its {role} are {_listed(said)}, and those of the operator {_listed(specs)}")


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs)) or "none"


def _refuse_unknown(place: str, data: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in data:
        if key not in known:
            raise ValueError(f"{place} has a key {key!a:.60}, which means nothing. {nearest(key, set(known) - {*_NOT_READ})}")


def _object(place: str, data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{place} is no JSON object")
    return data


def _read(place: str, data: Mapping[str, Any], key: str, read: Callable[[Any, str], Any]) -> Any:
    if key not in data:
        raise ValueError(f'{place} lacks "{key}"')
    try:
        return read(data, key)
    except strict.UNREADABLE as error:
        raise ValueError(f"{place}: {error}") from None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
