"""Runs compiled operators on a device.

    runner = ProgramRunner(device)
    device.run(runner.launches(program, inputs, outputs))     buffers in, nothing read back
    arrays = runner.run_once(program, arrays)                 one isolated run, host arrays in and out

It is an engine (`tapml.runtime.engine`) over the device. Each kernel is loaded once, by its digest, whichever programs it is in.
What the numbers mean is for others to judge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tapml.devices.interface import Device, Launch, Part
from tapml.kernels import Argument, Kernel, Program
from tapml.runtime.buffers import BufferPool, as_bytes, padded
from tapml.runtime.engine import Compiled
from tapml.tensors import NUMPY, HostArray, convert

# Poison: these bytes are NaN in every float dtype, -1 in signed integers.
POISON = 0xFF


class ProgramRunner:
    """`pool` may be shared with others of the same device; without one the runner has its own."""

    def __init__(self, device: Device, pool: BufferPool | None = None) -> None:
        self.device = device
        self.pool = pool if pool is not None else BufferPool(device)
        self._kernels: dict[str, int] = {}
        self._scratch: dict[tuple[int, int], int] = {}

    def load(self, program: Program) -> tuple[int, ...]:
        """Handles of the program's kernels. DeviceError('driver') when one is refused."""
        return tuple(self._load(kernel) for kernel in program.kernels)

    def _load(self, kernel: Kernel) -> int:
        if kernel.digest not in self._kernels:
            self._kernels[kernel.digest] = self.device.load(kernel)
        return self._kernels[kernel.digest]

    def unload(self, program: Program) -> None:
        """Forgets the program's kernels; other programs that share them load them again at their next launch."""
        for kernel in program.kernels:
            handle = self._kernels.pop(kernel.digest, None)
            if handle is not None:
                self.device.unload(handle)

    def launches(
        self, program: Program, inputs: Sequence[int], outputs: Sequence[int], scratch: Sequence[int] | None = None
    ) -> list[Launch]:
        """The launches of one operator over these buffers, in order. An output in `program.forwards` has no launch: its buffer
        is not touched, and the caller uses the input's instead. Without `scratch`, all programs share the runner's own
        scratch buffers, which launches in order may do."""
        _check_count("inputs", program.inputs, inputs)
        _check_count("outputs", program.outputs, outputs)
        if scratch is None:
            scratch = [self._shared_scratch(i, nbytes) for i, nbytes in enumerate(program.scratch)]
        _check_count("scratch buffers", program.scratch, scratch)
        kernels = self.load(program)
        buffers = {"input": inputs, "output": outputs, "scratch": scratch}

        def bound(argument: Argument) -> int:
            return buffers[argument.role][argument.index]

        return [Launch(kernels[step.kernel], tuple(map(bound, step.arguments))) for step in program.steps]

    def record(
        self, compiled: Compiled, inputs: Sequence[int], outputs: Sequence[int], scratch: Sequence[int] | None = None
    ) -> Sequence[Launch]:
        """`launches`, of what is a program."""
        if not isinstance(compiled, Program):
            raise ValueError("this runs on no device: it has no kernels")
        return self.launches(compiled, inputs, outputs, scratch)

    def submit(self, work: Sequence[Launch]) -> None:
        self.device.run(work)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        self.device.write(buffer, data, offset, keep)

    def read_many(self, parts: Sequence[Part]) -> list[bytes]:
        return self.device.read_many(parts)

    def _shared_scratch(self, index: int, nbytes: int) -> int:
        key = (index, padded(nbytes))
        if key not in self._scratch:
            self._scratch[key] = self.pool.allocate(nbytes)
        return self._scratch[key]

    def run_once(
        self, program: Program, inputs: Sequence[HostArray | int], poison: bool = False, keep: bool = False
    ) -> list[HostArray]:
        """Uploads the inputs, runs, and returns the outputs as the device stores them (`program.outputs`). An input that is an
        int is a buffer already on the device. With `poison`, outputs and scratch are filled with NaN bytes first, so that
        memory that the kernels forget to write shows. `keep`: the inputs may be wanted again (see `Device.write`). ValueError for
        inputs of other shapes than `program.inputs`; DeviceError, DeviceLost and ConnectionLost from the device."""
        _check_count("inputs", program.inputs, inputs)
        with self.pool.borrowed() as borrow:

            def take(nbytes: int, poisoned: bool) -> int:
                buffer = borrow(nbytes)
                if poisoned:
                    self.device.write(buffer, bytes([POISON]) * nbytes)
                return buffer

            given: list[int] = []
            for spec, value in zip(program.inputs, inputs, strict=True):
                if isinstance(value, int):
                    given.append(value)
                    continue
                if tuple(value.shape) != spec.shape:
                    raise ValueError(f"an input of shape {tuple(value.shape)} was given for {spec}")
                buffer = take(spec.nbytes, False)
                self.device.write(buffer, as_bytes(convert(value, spec.dtype)), keep=keep)
                given.append(buffer)
            outputs = [take(spec.nbytes, poison) for spec in program.outputs]
            scratch = [take(nbytes, poison) for nbytes in program.scratch]
            self.device.run(self.launches(program, given, outputs, scratch))
            sources = dict(enumerate(outputs)) | {o: given[i] for o, i in program.forwards}
            made = self.device.read_many([(sources[i], spec.nbytes, 0) for i, spec in enumerate(program.outputs)])
            return [
                np.frombuffer(data, NUMPY[spec.dtype]).reshape(spec.shape)
                for data, spec in zip(made, program.outputs, strict=True)
            ]


def _check_count(what: str, expected: Sequence[object], given: Sequence[object]) -> None:
    if len(expected) != len(given):
        raise ValueError(f"the program has {len(expected)} {what}; {len(given)} were given")
