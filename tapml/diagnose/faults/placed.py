"""A fault of a kernel in one operator, as a `Rewrite`: the two forms that the files beside this one need.

    Mutated(28, "prefill/lm_head", "half-accumulators", schedule=None)      put in by the compiler, on whatever target
    OtherProgram(28, "prefill/lm_head", "opencl", other)                    another program, on this target alone

Neither looks at any other operator. What a mutation does is `tapml.compile.mutations`, what a rewriting does is its function's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from tapml.backends.interface import Way
from tapml.backends.rewrite import Rewrite
from tapml.kernels import Program
from tapml.targets.target import Target

Other = Callable[[Program], Program]


@cache
def edition() -> str:
    """A hash of the catalogue's own sources: with other sources, a fault of the same name may be another fault."""
    text = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return text.hexdigest()


class Mutated(Rewrite):
    """One operator is compiled with a mutation, and with `schedule` first where one is given."""

    def __init__(self, number: int, operator: str, mutation: str, schedule: str | None = None) -> None:
        super().__init__(f"fault {number} in {operator}", f"fault {number} {mutation} {schedule} {edition()} in {operator}")
        self._operator, self._mutation, self._schedule = operator, mutation, schedule

    def way(self, operator: str, way: Way, target: Target) -> Way:
        if operator != self._operator:
            return way
        order = way.schedules
        if order is None and self._schedule is not None:
            order = (self._schedule, *(s for s in target.schedules if s != self._schedule))
        return replace(way, schedules=order, mutation=self._mutation)


class OtherProgram(Rewrite):
    """One operator's program is another one on one target. `other` returns the very same program where it finds nothing."""

    def __init__(self, number: int, operator: str, target: str, other: Other) -> None:
        super().__init__(f"fault {number} in {operator}", f"fault {number} {target} {edition()} in {operator}")
        self._operator, self._target, self._other = operator, target, other

    def program(self, operator: str, target: str, program: Program) -> Program:
        return self._other(program) if (operator, target) == (self._operator, self._target) else program
