"""One body for one target with one schedule: convert, lower, schedule, generate. Runs in a worker process.

    program = build(body, target, "blocked", on_stage=print, on_note=print)

Stages are reported as they begin: "convert" (to Relax), "lower" (to one TIR function in the target's dtypes), "schedule"
(pieces bound to threads), "codegen" (source text). Where the schedule cannot do one piece of the operator, "simple" does it,
and a note says so. Deterministic: equal arguments give equal programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tapml.compile import schedules
from tapml.compile.emit import Emitted, device_target, emit, nbytes
from tapml.compile.importer import import_body
from tapml.compile.legalize import IN_FLOAT32, legalize, rounded_last
from tapml.compile.lower import lower
from tapml.compile.pieces import Piece, cut, prepare, split_kernels
from tapml.kernels import Argument, Kernel, Program, Step
from tapml.limits import LimitError
from tapml.operators.graph import Body
from tapml.targets.schedules import FALLBACKS, ONE_EACH
from tapml.targets.target import Target
from tapml.tensors import TensorSpec

# A schedule that unrolls a long expression makes text by the hundred kilobytes, with which a browser's compiler takes minutes.
LONGEST_TEXT = 150_000

Forwards = tuple[tuple[int, int], ...]


def build(
    body: Body,
    target: Target,
    schedule: str,
    on_stage: Callable[[str], None],
    on_note: Callable[[str], None] = lambda note: None,
    mutation: str | None = None,
) -> Program:
    """The program of a body. `mutation` names a fault of `tapml.compile.mutations` to put in. Raises whatever the stage that was
    last reported raised."""
    faults = Faults(mutation)
    inputs = tuple(_stored(s, target) for s in body.inputs)
    outputs = tuple(_stored(s, target) for s in body.output_specs)
    on_stage("convert")
    imported = import_body(body, on_note)
    if not imported.computed:
        return Program((), (), inputs, outputs, (), schedule, imported.forwards)
    on_stage("lower")
    lowered = faults.lowered(lower(imported.module, faults.converted))
    try:
        whole = _prepared(lowered, target, inline=True)
        emitted = _kernels(whole, body.kind, target, schedule, on_stage, on_note, faults)
    except LimitError as error:
        # Inlining gathers buffers in one kernel; each block on its own needs the fewest.
        on_note(f"{error}; without inlining instead")
        whole = _prepared(lowered, target, inline=False)
        emitted = _kernels(whole, body.kind, target, schedule, on_stage, on_note, faults)
    assembly = _Assembly(whole, imported.computed)
    for each in emitted:
        assembly.add(each)
    return assembly.program(inputs, outputs, schedule, imported.forwards)


def _prepared(function: Any, target: Target, inline: bool) -> Any:
    """The function in the target's dtypes, half precision computed in float32, inlined. Booleans become what they are stored as
    only in the buffers that remain after inlining: before it, expressions would turn them to integers and back at every step."""
    booleans = {k: v for k, v in target.storage.items() if k == "bool"}
    numbers = {k: v for k, v in target.storage.items() if k != "bool"}
    return legalize(prepare(legalize(rounded_last(function), numbers, IN_FLOAT32), inline), booleans)


def _stored(spec: TensorSpec, target: Target) -> TensorSpec:
    return TensorSpec(spec.shape, target.stored(spec.dtype))


def _kernels(
    function: Any, kind: str, target: Target, schedule: str, on_stage: Callable[[str], None], on_note: Callable[[str], None],
    faults: Faults,
) -> list[Emitted]:
    tvm_target = device_target(target)
    emitted: list[Emitted] = []
    base = re.sub(r"\W", "_", kind).strip("_") or "kernel"
    for number, piece in enumerate(cut(function)):
        name = f"{base}_{number}"
        try:
            emitted += _piece_kernels(piece, name, target, tvm_target, schedule, on_stage, faults)
        except Exception as error:
            if schedule in FALLBACKS:
                raise
            on_note(f"{schedule} cannot do {name} ({type(error).__name__}: {_first_line(error)}); {ONE_EACH} instead")
            emitted += _piece_kernels(piece, name, target, tvm_target, ONE_EACH, on_stage, faults)
    return emitted


def _piece_kernels(
    piece: Piece, base: str, target: Target, tvm_target: Any, schedule: str, on_stage: Callable[[str], None], faults: Faults
) -> list[Emitted]:
    """The kernels of one piece, in order."""
    on_stage("schedule")
    scheduled = faults.scheduled(schedule, schedules.apply(schedule, piece.function, target, tvm_target))
    parts = split_kernels(Piece(scheduled, piece.buffers, piece.writes))
    on_stage("codegen")
    names = [base] if len(parts) == 1 else [f"{base}_{k}" for k in range(len(parts))]
    kernels = [faults.emitted(schedule, emit(part, name, target, tvm_target)) for name, part in zip(names, parts, strict=True)]
    for each in kernels:
        if schedule not in FALLBACKS and len(each.kernel.source) > LONGEST_TEXT:
            raise ValueError(f"{len(each.kernel.source):,} characters of text, more than {LONGEST_TEXT:,}")
    return kernels


class Faults:
    """The fault that a caller asked for, if any; without one nothing of `tapml.compile.mutations` is loaded."""

    def __init__(self, name: str | None) -> None:
        self._name = name

    def converted(self, module: Any) -> Any:
        if self._name is None:
            return module
        from tapml.compile import mutations

        return mutations.converted(self._name, module)

    def lowered(self, function: Any) -> Any:
        if self._name is None:
            return function
        from tapml.compile import mutations

        return mutations.lowered(self._name, function)

    def scheduled(self, schedule: str, function: Any) -> Any:
        if self._name is None:
            return function
        from tapml.compile import mutations

        return mutations.scheduled(self._name, schedule, function)

    def emitted(self, schedule: str, each: Emitted) -> Emitted:
        if self._name is None:
            return each
        from tapml.compile import mutations

        kernel = each.kernel
        source = mutations.emitted(self._name, schedule, kernel.source, kernel.language)
        return replace(each, kernel=replace(kernel, source=source))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


@dataclass
class _Assembly:
    """Numbers buffers and kernels as they come. Parameters of the whole function are inputs by name, then outputs."""

    whole: Any
    computed: tuple[int, ...]
    kernels: list[Kernel] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    scratch: list[tuple[Any, int]] = field(default_factory=list)

    def add(self, each: Emitted) -> None:
        if each.kernel in self.kernels:
            number = self.kernels.index(each.kernel)
        else:
            number = len(self.kernels)
            self.kernels.append(each.kernel)
        self.steps.append(Step(number, tuple(self._argument(b) for b in each.buffers)))

    def _argument(self, buffer: Any) -> Argument:
        parameters = list(self.whole.params)
        outputs = parameters[len(parameters) - len(self.computed) :]
        for k, p in enumerate(outputs):
            if p.same_as(buffer):
                return Argument("output", self.computed[k])
        for p in parameters[: len(parameters) - len(outputs)]:
            if p.same_as(buffer):
                return Argument("input", int(p.name[1:]))
        for k, (known, _) in enumerate(self.scratch):
            if known.same_as(buffer):
                return Argument("scratch", k)
        self.scratch.append((buffer, nbytes(buffer)))
        return Argument("scratch", len(self.scratch) - 1)

    def program(
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], schedule: str, forwards: Forwards
    ) -> Program:
        scratch = tuple(n for _, n in self.scratch)
        return Program(tuple(self.kernels), tuple(self.steps), inputs, outputs, scratch, schedule, forwards)
