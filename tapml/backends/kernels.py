"""Kernels that TapML generates, on a device: the backend of every target that has a kernel language.

Bodies are compiled in worker processes (`tapml.compile.compiler`), with a cache between; what comes out is a `Program`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tapml.backends.interface import PLAIN, OnPrepared, Prepared, Way
from tapml.backends.on_device import DEADLINE, OnDevice
from tapml.compile.compiler import Compiler
from tapml.compile.result import Result
from tapml.operators.graph import Body
from tapml.targets.parse import TargetChoice
from tapml.targets.resolve import resolve
from tapml.tensors import HostArray


class Kernels(OnDevice):
    """Implements `tapml.backends.interface.Backend`."""

    has_kernels = True

    def __init__(self, choice: TargetChoice, device: str = "local", deadline: float = DEADLINE) -> None:
        super().__init__(choice, device, deadline)
        self._compiler = Compiler(self.target)
        self._variants: dict[str, Compiler] = {}

    def _prepare(self, bodies: Mapping[str, Body], tell: OnPrepared, way: Way) -> None:
        self._compiler.compile(bodies, lambda signature, made: tell(signature, _prepared(made)), way.schedules, way.mutation)

    def variant(
        self, operator: str, body: Body, options: Mapping[str, str], way: Way = PLAIN
    ) -> tuple[TargetChoice, Prepared]:
        choice = replace(self.choice, options={**self.choice.options, **options})
        if str(choice) not in self._variants:
            self._variants[str(choice)] = Compiler(resolve(choice, self.info))
        found = self._variants[str(choice)].compile({operator: body}, None, way.schedules, way.mutation)
        return choice, _prepared(found[operator])

    def converted(
        self, operator: str, body: Body, inputs: Sequence[HostArray], way: Way = PLAIN
    ) -> list[HostArray] | str:
        return self._compiler.evaluate(body, inputs, way.mutation)

    def rest(self) -> None:
        self._compiler.close()

    def close(self) -> None:
        for compiler in (self._compiler, *self._variants.values()):
            compiler.close()
        super().close()


def _prepared(result: Result) -> Prepared:
    return Prepared(result.program, result.status, result.stage, result.message, result.seconds, result.cached)
