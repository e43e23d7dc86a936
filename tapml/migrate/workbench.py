"""What testing and migrating both stand on: one target, its device, the compiled operators, the weights that went up.

    with Workbench(run, "opencl") as bench:
        bench.compile(signatures)
        program = bench.program(operator)          None where compiling failed: bench.failure(operator) is the verdict
        with bench.guard():                        a lost device is opened anew, and the loss passes on as DeviceLost
            outputs = bench.run(operator, program, inputs, specs)

Each signature is compiled once. An injected fault is applied here, per operator, so that everybody runs the same kernels. A
device that is lost takes its weights, kernels and buffers along: everything that came from `runner` or `hybrid()` before is void.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from tapml.carve.folder import RunFolder
from tapml.compile.compiler import Compiler, Result
from tapml.devices.buffers import WeightCache
from tapml.devices.interface import Device
from tapml.devices.open import open_device
from tapml.devices.runner import ProgramRunner
from tapml.errors import DeviceLost, UnavailableError
from tapml.kernels import Program
from tapml.migrate.hybrid import Hybrid
from tapml.migrate.inject import Injection
from tapml.migrate.model import Model
from tapml.operators.graph import Operator
from tapml.targets.parse import parse
from tapml.targets.resolve import resolve
from tapml.tensors import HostArray, TensorSpec, convert
from tapml.verdicts import Verdict

# A device may be lost this often before the work stops: every loss costs seconds, and a driver that dies at everything
# will not do better at the next operator.
MOST_LOSSES = 32

# Seconds that one call to the device may take before it counts as hung.
DEADLINE = 120.0


class Progress(Protocol):
    """Told how far a stage is; see `tapml.report.progress`."""

    def __call__(self, stage: str, done: int, total: int, /) -> None: ...


class Workbench:
    """See the module's docstring. Opening raises TargetError, UsageError (the injected fault) and UnavailableError."""

    def __init__(self, run: RunFolder, target: str, device: str = "local", inject: str | None = None) -> None:
        self.choice = parse(target)
        self.injection = None if inject is None else Injection.load(inject)
        self.model = Model.of(run)
        self.losses = 0
        self._weights = run.weights
        self._where = device
        self._results: dict[str, Result] = {}
        self.compiled = 0
        self._programs: dict[str, Program] = {}
        self._hybrid: Hybrid | None = None
        self._open()
        self.target = resolve(self.choice, self.device.info)

    def _open(self) -> None:
        self.device: Device = open_device(self.choice, self._where, deadline=DEADLINE)
        self.runner = ProgramRunner(self.device)
        self._uploaded = WeightCache(self.runner.pool)
        self._hybrid = None

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the device. May be called twice."""
        self.device.close()

    def compile(self, signatures: Sequence[str], progress: Progress | None = None) -> None:
        """Compiles what was not compiled yet. `progress` gets the stage "compile"."""
        wanted = [s for s in dict.fromkeys(signatures) if s not in self._results]
        if not wanted:
            return
        done = 0

        def on_result(signature: str, result: Result) -> None:
            nonlocal done
            done += 1
            self.compiled += not result.cached
            if progress is not None:
                progress("compile", done, len(wanted))

        if progress is not None:
            progress("compile", 0, len(wanted))
        with Compiler(self.target) as compiler:
            self._results |= compiler.compile({s: self.model.bodies[s] for s in wanted}, on_result)

    def program(self, operator: Operator) -> Program | None:
        """What runs for this operator, the injected fault applied; None when it did not compile. Compiles it if need be."""
        self.compile([operator.signature])
        program = self._results[operator.signature].program
        if program is None:
            return None
        if operator.name not in self._programs:
            if self.injection is not None:
                program = self.injection.apply(operator.name, self.choice.name, program)
            self._programs[operator.name] = program
        return self._programs[operator.name]

    def schedules_that_failed(self, operator: Operator) -> str:
        """What the compiler said of the schedules that were tried before the one that was taken; "" when the first one was."""
        return self._results[operator.signature].message

    def programs(self, names: Sequence[str]) -> Mapping[str, Program]:
        """The programs of these operators, all of which compiled."""
        found: dict[str, Program] = {}
        for name in names:
            program = self.program(self.model.named[name])
            if program is None:
                raise ValueError(f"{name} did not compile")
            found[name] = program
        return found

    def failure(self, operator: Operator) -> Verdict:
        """The verdict of an operator that did not compile."""
        result = self._results[operator.signature]
        return Verdict(
            operator=operator.name, signature=operator.signature, op=operator.kind,
            status="crash" if result.status == "crash" else "error", stage=result.stage, error=None, bound=None,
            source_error=None, reason=result.message, seconds=result.seconds,
        )

    def run(
        self, operator: Operator, program: Program, inputs: Sequence[HostArray], outputs: Sequence[TensorSpec]
    ) -> list[HostArray]:
        """One isolated run over poisoned memory; weights are uploaded once, the other inputs each time. `outputs` are the
        specs in the graph."""
        given: list[HostArray | int] = []
        for array, key, spec in zip(inputs, self.model.weight_keys(operator), program.inputs, strict=True):
            given.append(array if key is None else self.weight_buffer(key, spec.dtype))
        results = self.runner.run_once(program, given, poison=True)
        return [convert(r.reshape(spec.shape), spec.dtype) for r, spec in zip(results, outputs, strict=True)]

    def weight_buffer(self, key: str, dtype: str) -> int:
        """The device's buffer with a weight, stored as `dtype`."""
        return self._uploaded.get(self._weights.entries[key].digest, dtype, lambda: self.model.weight(key))

    def hybrid(self) -> Hybrid:
        """The hybrid on this device: one as long as the device lives."""
        if self._hybrid is None:
            self._hybrid = Hybrid(self.model, self.runner, self.weight_buffer)
        return self._hybrid

    def trim(self) -> None:
        """Frees device memory that nobody uses."""
        with suppress(DeviceLost), self.guard():  # a device that was lost has nothing to free
            self.runner.pool.trim()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Opens the device anew when it is lost inside, and passes DeviceLost on. Raises UnavailableError instead when that
        has happened too often, or the device cannot be opened again."""
        try:
            yield
        except DeviceLost as error:
            self.device.close()
            self.losses += 1
            if self.losses >= MOST_LOSSES:
                raise UnavailableError(
                    f"Target {self.choice}: the device was lost {self.losses} times; giving up. The last time: {error}"
                ) from error
            self._open()
            raise
