"""A backend whose operator is one text that an engine runs whole: PyTorch's, ONNX Runtime's.

The text says all of it, so a fault can be put into it as into a kernel's, and it runs alone. What happens inside of the engine is
one stage, "backend".
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from tapml.backends.interface import OnPrepared, Prepared, Way
from tapml.backends.on_device import OnDevice
from tapml.kernels import Argument, Kernel, Program, Step
from tapml.operators.graph import Body
from tapml.tensors import Layout, TensorSpec
from tapml.verdicts import Stage


class NotWritten(Exception):
    """A body has no text: the message says why, `stage` whose fault that is."""

    def __init__(self, stage: Stage, why: str) -> None:
        super().__init__(why)
        self.stage = stage


class OneText(OnDevice, ABC):
    """All of `tapml.backends.interface.Backend` but `_text` and whether it keeps layouts."""

    @abstractmethod
    def _text(self, body: Body, entry: str, lying: Sequence[Layout | None]) -> tuple[str, str]:
        """The text, whose entry has that name, and what there is to say of it. `lying` is how each input lies in memory. Raises
        NotWritten."""

    def _prepare(self, bodies: Mapping[str, Body], tell: OnPrepared, way: Way) -> None:
        for signature, body in bodies.items():
            started = time.monotonic()
            try:
                program, note = self._program(body, dict(way.layouts))
                prepared = Prepared(program, "ok", None, note, time.monotonic() - started)
            except NotWritten as error:
                prepared = Prepared(None, "error", error.stage, str(error), time.monotonic() - started)
            tell(signature, prepared)

    def _program(self, body: Body, layouts: Mapping[int, Layout]) -> tuple[Program, str]:
        target = self.target
        entry = (re.sub(r"\W", "_", body.kind, flags=re.ASCII).strip("_") or "operator") + "_0"
        lying = [layouts.get(k) for k in range(len(body.inputs))]
        text, note = self._text(body, entry, lying)
        places = {f"i{k}": k for k in range(len(body.inputs))}
        forwards = tuple((k, places[name]) for k, name in enumerate(body.outputs) if name in places)
        computed = [k for k, name in enumerate(body.outputs) if name not in places]
        access = ("read",) * len(body.inputs) + ("read_write",) * len(computed)
        kernel = Kernel(target.language, entry, text, access, (1, 1, 1), (1, 1, 1))
        arguments = [Argument("input", k) for k in range(len(body.inputs))] + [Argument("output", k) for k in computed]
        program = Program(
            (kernel,) if computed else (), (Step(0, tuple(arguments)),) if computed else (),
            tuple(
                TensorSpec(s.shape if how is None else (how.elements(s.shape),), target.stored(s.dtype))
                for s, how in zip(body.inputs, lying, strict=True)
            ),
            tuple(TensorSpec(s.shape, target.stored(s.dtype)) for s in body.output_specs), (), target.schedules[0], forwards,
        )  # fmt: skip
        return program, note
