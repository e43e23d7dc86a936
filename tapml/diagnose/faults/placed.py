"""A fault of a kernel in one operator, as an `Alteration`: the two forms that the files beside this one need.

    Mutated(28, "prefill/lm_head", "half-accumulators", schedule=None)      put in by the compiler, on whatever target
    Rewritten(28, "prefill/lm_head", "opencl", rewrite)                     another program, on this target alone

Neither looks at any other operator. What a mutation does is `tapml.compile.mutations`, what a rewriting does is its function's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tapml.kernels import Program
from tapml.migrate.alteration import Alteration
from tapml.operators.graph import Operator

Rewrite = Callable[[Program], Program]


@cache
def edition() -> str:
    """A hash of the catalogue's own sources: with other sources, a fault of the same name may be another fault."""
    text = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return text.hexdigest()


class Mutated(Alteration):
    """One operator is compiled with a mutation, and with `schedule` first where one is given."""

    def __init__(self, number: int, operator: str, mutation: str, schedule: str | None = None) -> None:
        super().__init__(f"fault {number} in {operator}", f"fault {number} {mutation} {schedule} {edition()} in {operator}")
        self._operator, self._mutation, self._schedule = operator, mutation, schedule

    def mutation(self, operator: Operator) -> str | None:
        return self._mutation if operator.name == self._operator else None

    def schedule(self, operator: Operator) -> str | None:
        return self._schedule if operator.name == self._operator else None


class Rewritten(Alteration):
    """One operator's program is another one on one target. `rewrite` returns the very same program where it finds nothing."""

    def __init__(self, number: int, operator: str, target: str, rewrite: Rewrite) -> None:
        super().__init__(f"fault {number} in {operator}", f"fault {number} {target} {edition()} in {operator}")
        self._operator, self._target, self._rewrite = operator, target, rewrite

    def program(self, operator: Operator, target: str, program: Program) -> Program:
        return self._rewrite(program) if (operator.name, target) == (self._operator, self._target) else program
