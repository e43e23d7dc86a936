"""PyTorch in this process: the source, in the model's own dtype or another one, as a backend like any other.

    functions = Functions(Source(), model.bodies)              an operator by its signature, arrays in and out
    exact = Functions(Source("float64"), model.bodies)

Values lie on the host, so nothing is copied on the way to an operator. `Functions` makes any backend the source side of a hybrid:
two of our devices, or a device and PyTorch, may share a model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tapml.backends.interface import PLAIN, Backend, OnPrepared, Plain, Prepared, Way
from tapml.devices.handles import Handles, check_range
from tapml.devices.interface import DeviceInfo, Part
from tapml.errors import DeviceError, ModelError, first_line, is_confined
from tapml.operators.execute import host_function
from tapml.operators.graph import Body
from tapml.runtime.buffers import BufferPool, as_bytes
from tapml.runtime.engine import Compiled, HostFunction
from tapml.targets.parse import TargetChoice
from tapml.targets.pytorch import TARGET
from tapml.targets.resolve import resolve
from tapml.targets.target import Target
from tapml.tensors import NUMPY, HostArray, TensorSpec, as_read, convert


@dataclass(frozen=True)
class OnHost:
    """A body as a function of arrays. What the function raises is what PyTorch raises."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    digest: str
    run: HostFunction
    schedule: str = TARGET.schedules[0]
    scratch: tuple[int, ...] = ()
    forwards: tuple[tuple[int, int], ...] = ()


class Source(Plain):
    """Nothing waits here, and there is no device. `dtype`: the one that every floating point number has ("float64"); None: the
    model's own."""

    name = "local"

    def __init__(self, dtype: str | None = None) -> None:
        self.choice = TargetChoice(TARGET.name, {} if dtype is None else {"dtype": dtype})
        target = resolve(self.choice)
        self._target = target if dtype is not None else replace(target, storage={})
        self._dtype = dtype
        self._empty()

    def _empty(self) -> None:
        self._buffers: Handles[bytearray] = Handles("buffer")
        self._pool = BufferPool(self)

    @property
    def target(self) -> Target:
        return self._target

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo(TARGET.name, "PyTorch in this process", "", False)

    @property
    def pool(self) -> BufferPool:
        return self._pool

    def prepare(
        self, bodies: Mapping[str, Body], on_prepared: OnPrepared | None = None, way: Way = PLAIN
    ) -> dict[str, Prepared]:
        found: dict[str, Prepared] = {}
        for key, body in bodies.items():
            started = time.monotonic()
            try:
                given, made = self._stored(body.inputs), self._stored(body.output_specs)
                compiled = OnHost(given, made, f"{body.signature} {self.choice}", host_function(body, self._dtype))
                found[key] = Prepared(compiled, "ok", None, "", time.monotonic() - started)
            except ModelError as error:
                found[key] = Prepared(None, "error", "backend", str(error), time.monotonic() - started)
            if on_prepared is not None:
                on_prepared(key, found[key])
        return found

    def _stored(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(spec.shape, self.target.stored(spec.dtype)) for spec in specs)

    def allocate(self, nbytes: int) -> int:
        return self._buffers.add(bytearray(nbytes))

    def free(self, buffer: int) -> None:
        self._buffers.pop(buffer)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        held, given = self._buffers[buffer], memoryview(data).cast("B")
        check_range(len(held), offset, given.nbytes)
        held[offset : offset + given.nbytes] = given

    def read_many(self, parts: Sequence[Part]) -> list[bytes]:
        for buffer, nbytes, offset in parts:
            check_range(len(self._buffers[buffer]), offset, nbytes)
        return [bytes(self._buffers[buffer][offset : offset + nbytes]) for buffer, nbytes, offset in parts]

    def record(
        self, compiled: Compiled, inputs: Sequence[int], outputs: Sequence[int], scratch: Sequence[int] | None = None
    ) -> Sequence[Any]:
        return [(compiled, tuple(inputs), tuple(outputs))]

    def submit(self, work: Sequence[Any]) -> None:
        for compiled, inputs, outputs in work:
            made = self.run_once(compiled, inputs)
            for buffer, array in zip(outputs, made, strict=True):
                self.write(buffer, as_bytes(array))

    def run_once(
        self, compiled: Compiled, inputs: Sequence[HostArray | int], poison: bool = False, keep: bool = False
    ) -> list[HostArray]:
        assert isinstance(compiled, OnHost)
        given = [self._array(a, s) if isinstance(a, int) else a for a, s in zip(inputs, compiled.inputs, strict=True)]
        try:
            made = compiled.run(given)
        except Exception as error:
            if not is_confined(error):
                raise
            raise DeviceError("backend", first_line(error)) from error
        if any(array.shape != spec.shape for array, spec in zip(made, compiled.outputs, strict=True)):
            shapes = ", ".join(str(list(array.shape)) for array in made)
            raise DeviceError("backend", f"it gives {shapes}, not {', '.join(map(str, compiled.outputs))}")
        return [convert(array, spec.dtype) for array, spec in zip(made, compiled.outputs, strict=True)]

    def _array(self, buffer: int, spec: TensorSpec) -> HostArray:
        """What lies in a buffer, where it lies."""
        return np.frombuffer(self._buffers[buffer], NUMPY[spec.dtype], spec.elements).reshape(spec.shape)

    def load(self, compiled: Compiled) -> None:
        pass

    def reopen(self) -> None:
        self._empty()

    def close(self) -> None:
        self._empty()


class Functions:
    """The operators of a model on a backend, as functions of arrays in the model's dtypes; what a `Source` with a dtype gives has
    that dtype. Each body is prepared when it is first asked for: ModelError where that fails. The backend stays the caller's."""

    def __init__(self, backend: Backend, bodies: Mapping[str, Body]) -> None:
        self._backend = backend
        self._bodies = bodies
        self._made: dict[str, HostFunction] = {}

    def __call__(self, signature: str) -> HostFunction:
        if signature not in self._made:
            self._made[signature] = self._function(self._bodies[signature])
        return self._made[signature]

    def _function(self, body: Body) -> HostFunction:
        prepared = self._backend.prepare({"": body})[""]
        compiled = prepared.compiled
        if compiled is None:
            raise ModelError(prepared.message)
        if isinstance(compiled, OnHost):
            return compiled.run

        def run(inputs: Sequence[HostArray]) -> Sequence[HostArray]:
            made = self._backend.run_once(compiled, inputs)
            return [as_read(a.reshape(spec.shape), spec.dtype) for a, spec in zip(made, body.output_specs, strict=True)]

        return run
