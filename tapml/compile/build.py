"""One body for one target with one schedule: convert, lower, schedule, generate. Runs in a worker process.

    program = build(body, target, "blocked", on_stage=print)

Stages are reported as they begin: "convert" (to Relax), "lower" (to one TIR function in the target's dtypes), "schedule"
(pieces bound to threads), "codegen" (source text). Deterministic: equal arguments give equal programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tapml.compile import schedules
from tapml.compile.emit import Emitted, LimitError, device_target, emit, nbytes
from tapml.compile.importer import import_body
from tapml.compile.legalize import legalize
from tapml.compile.lower import lower
from tapml.compile.pieces import Piece, cut, prepare, split_kernels
from tapml.kernels import Argument, Kernel, Program, Step
from tapml.operators.graph import Body
from tapml.targets.target import Target
from tapml.tensors import TensorSpec


def build(body: Body, target: Target, schedule: str, on_stage: Callable[[str], None]) -> Program:
    """The program of a body. Raises whatever the stage that was last reported raised."""
    inputs = tuple(_stored(s, target) for s in body.inputs)
    outputs = tuple(_stored(s, target) for s in body.output_specs)
    on_stage("convert")
    imported = import_body(body)
    if not imported.computed:
        return Program((), (), inputs, outputs, (), schedule, imported.forwards)
    on_stage("lower")
    lowered = lower(imported.module)
    try:
        whole = _prepared(lowered, target, inline=True)
        emitted = _kernels(whole, body.kind, target, schedule, on_stage)
    except LimitError:
        # Inlining gathers buffers in one kernel; each block on its own needs the fewest.
        whole = _prepared(lowered, target, inline=False)
        emitted = _kernels(whole, body.kind, target, schedule, on_stage)
    assembly = _Assembly(whole, imported.computed)
    for each in emitted:
        assembly.add(each)
    return assembly.program(inputs, outputs, schedule, imported.forwards)


def _prepared(function: Any, target: Target, inline: bool) -> Any:
    """The function in the target's dtypes, inlined. Booleans become what they are stored as only in the buffers that remain after
    inlining: before it, expressions would turn them to integers and back at every step."""
    booleans = {k: v for k, v in target.storage.items() if k == "bool"}
    numbers = {k: v for k, v in target.storage.items() if k != "bool"}
    return legalize(prepare(legalize(function, numbers), inline), booleans)


def _stored(spec: TensorSpec, target: Target) -> TensorSpec:
    return TensorSpec(spec.shape, target.stored(spec.dtype))


def _kernels(function: Any, kind: str, target: Target, schedule: str, on_stage: Callable[[str], None]) -> list[Emitted]:
    tvm_target = device_target(target)
    emitted: list[Emitted] = []
    base = re.sub(r"\W", "_", kind) or "kernel"
    for number, piece in enumerate(cut(function)):
        made = _piece_kernels(piece, f"{base}_{number}", target, tvm_target, schedule, on_stage)
        emitted += made
    return emitted


def _piece_kernels(
    piece: Piece, base: str, target: Target, tvm_target: Any, schedule: str, on_stage: Callable[[str], None]
) -> list[Emitted]:
    """The kernels of one piece; "simple" stands in where the schedule asked for exceeds a limit."""
    on_stage("schedule")
    scheduled = schedules.apply(schedule, piece.function, target, tvm_target)
    parts = list(split_kernels(Piece(scheduled, piece.buffers, piece.writes), base))
    on_stage("codegen")
    try:
        return [emit(part, base if len(parts) == 1 else f"{base}_{k}", target, tvm_target) for k, (part, _) in enumerate(parts)]
    except LimitError:
        if schedule in ("simple", "serial"):
            raise
        return _piece_kernels(piece, base, target, tvm_target, "simple", on_stage)


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
        self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], schedule: str, forwards: tuple[tuple[int, int], ...]
    ) -> Program:
        return Program(
            tuple(self.kernels), tuple(self.steps), inputs, outputs, tuple(n for _, n in self.scratch), schedule, forwards
        )
