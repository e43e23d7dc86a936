"""PyTorch as a backend: each operator is a function of Python that PyTorch runs, on any of its devices, compiled or not.

The function's text says all of it (`tapml.operators.to_text`), so a fault can be put into it as into a kernel's, and it runs
alone. What happens inside of PyTorch is one stage.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from tapml.backends.interface import OnPrepared, Prepared, Way
from tapml.backends.on_device import OnDevice
from tapml.errors import ModelError
from tapml.kernels import Argument, Kernel, Program, Step
from tapml.operators.graph import Body
from tapml.operators.to_text import python_text
from tapml.targets.pytorch import PROCESSOR
from tapml.tensors import Layout, TensorSpec


class PyTorch(OnDevice):
    """Implements `tapml.backends.interface.Backend`."""

    keeps_layouts = True

    def _prepare(self, bodies: Mapping[str, Body], tell: OnPrepared, way: Way) -> None:
        for signature, body in bodies.items():
            started = time.monotonic()
            try:
                prepared = Prepared(self._program(body, dict(way.layouts)), "ok", None, "", time.monotonic() - started)
            except ModelError as error:
                prepared = Prepared(None, "error", "backend", str(error), time.monotonic() - started)
            tell(signature, prepared)

    def _program(self, body: Body, layouts: Mapping[int, Layout]) -> Program:
        target = self.target
        entry = re.sub(r"\W", "_", body.kind).strip("_") or "operator"
        lying = [layouts.get(k) for k in range(len(body.inputs))]
        text = python_text(body, f"{entry}_0", self.choice.device or PROCESSOR, target.stored, lying)
        places = {f"i{k}": k for k in range(len(body.inputs))}
        forwards = tuple((k, places[name]) for k, name in enumerate(body.outputs) if name in places)
        computed = [k for k, name in enumerate(body.outputs) if name not in places]
        access = ("read",) * len(body.inputs) + ("read_write",) * len(computed)
        kernel = Kernel(target.language, f"{entry}_0", text, access, (1, 1, 1), (1, 1, 1))
        arguments = [Argument("input", k) for k in range(len(body.inputs))] + [Argument("output", k) for k in computed]
        return Program(
            (kernel,) if computed else (), (Step(0, tuple(arguments)),) if computed else (),
            tuple(
                TensorSpec(s.shape if how is None else (how.elements(s.shape),), target.stored(s.dtype))
                for s, how in zip(body.inputs, lying, strict=True)
            ),
            tuple(TensorSpec(s.shape, target.stored(s.dtype)) for s in body.output_specs), (), target.schedules[0], forwards,
        )  # fmt: skip
