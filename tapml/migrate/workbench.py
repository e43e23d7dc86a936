"""What testing, migrating and diagnosing stand on: one target, its device, the compiled operators, the weights that went up.

    with Workbench(run, "opencl") as bench:
        bench.compile(operators)
        program = bench.program(operator)          None where there is none: bench.failure(operator) is the verdict
        match bench.attempt(lambda: bench.run(operator, program, inputs, specs)):      see tapml.migrate.outcome
            case Ran(outputs): ...

Each signature is compiled once. An alteration (an injected fault, see `tapml.migrate.alteration`) is applied here, per
operator, so that everybody runs the same operators. A device that is lost takes its weights, kernels and buffers along:
everything that came from `runner` or `hybrid()` before is void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from tapml.carve.folder import RunFolder
from tapml.compile.compiler import Compiler, Result
from tapml.devices.buffers import WeightCache
from tapml.devices.interface import Device
from tapml.devices.open import address_of, open_device, redacted
from tapml.devices.runner import ProgramRunner
from tapml.errors import AnotherDevice, ConnectionLost, DeviceError, DeviceLost, OutOfMemory, UnavailableError
from tapml.kernels import Program
from tapml.migrate.hybrid import Hybrid
from tapml.migrate.inject import Inject, Injection, loaded
from tapml.migrate.model import Model
from tapml.migrate.outcome import Attempted, Failed, Lost, NotCompiled, Ran, Refused
from tapml.operators.graph import Body, Operator
from tapml.targets.parse import TargetChoice, parse
from tapml.targets.resolve import resolve
from tapml.targets.target import Target
from tapml.tensors import HostArray, TensorSpec, as_read
from tapml.verdicts import Verdict

T = TypeVar("T")

# A device may be lost this often before the work stops: every loss costs seconds, and a driver that dies at everything
# will not do better at the next operator.
MOST_LOSSES = 32

# A device across a connection that begins anew so often in a row at the same work is lost because of that work.
MOST_RESTARTS = 3

# Seconds that one call to the device may take before it counts as hung.
DEADLINE = 120.0


class Progress(Protocol):
    """Told how far a stage is; see `tapml.report.progress`."""

    def __call__(self, stage: str, done: int, total: int, /) -> None: ...


@dataclass(frozen=True)
class _Recipe:
    """Everything that decides what compiling an operator gives, but for the target."""

    signature: str
    schedules: tuple[str, ...]
    mutation: str | None


class Workbench:
    """See the module's docstring. Opening raises TargetError, UsageError (the injected fault) and UnavailableError. Where
    `device` means any of several, the first that is had stays the one. `device_name` is for records: what was asked for, without
    a token. `losses` counts how often the device was lost, `breaks` its connection."""

    def __init__(
        self, run: RunFolder, target: str, device: str = "local", inject: Inject | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        self._deadline = deadline
        self.choice = parse(target)
        self.alteration = loaded(inject)
        self.folder = run
        self.model = Model.of(run)
        self.losses = 0
        self.breaks = 0
        self.device_name = redacted(device)
        self._weights = run.weights
        self._where = device
        self._results: dict[_Recipe, Result] = {}
        self.compiled = 0
        self._programs: dict[tuple[str, tuple[str, ...]], Program] = {}
        self._bodies: dict[str, Body] = {}
        self._hybrid: Hybrid | None = None
        self.target = self._open()
        self._compiler = Compiler(self.target)
        self._variants: dict[str, Compiler] = {}

    def _open(self) -> Target:
        """The device, and what the choice means on it. One that cannot be used is closed again."""
        self._platform: Device = open_device(self.choice, self._where, deadline=self._deadline)
        try:
            self._where = address_of(self._platform, self._where)
            self._furnish()
            return resolve(self.choice, self.device.info)
        except BaseException:
            self._platform.close()
            raise

    def _furnish(self) -> None:
        """Everything that lies on the device, anew."""
        self.device: Device = self._platform if self.alteration is None else self.alteration.device(self._platform)
        self.runner = ProgramRunner(self.device)
        self._uploaded = WeightCache(self.runner.pool)
        self._hybrid = None

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the device and ends the compiler's workers. May be called twice."""
        for compiler in (self._compiler, *self._variants.values()):
            compiler.close()
        self.device.close()

    def alter(self, inject: Inject | None) -> None:
        """Takes another alteration, or none. The device, the weights on it and what was compiled stay."""
        before, self.alteration = self.device, loaded(inject)
        self._programs.clear()
        self._bodies.clear()
        if self._hybrid is not None:
            self._hybrid.close()
            self._hybrid = None
        altered = self._platform if self.alteration is None else self.alteration.device(self._platform)
        if before is not altered:
            self._uploaded.clear()
            self.runner.pool.trim()
            self._furnish()

    def body(self, operator: Operator) -> Body:
        """What is compiled for this operator: the source's body, or the altered one."""
        clean = self.model.bodies[operator.signature]
        if self.alteration is None:
            return clean
        if operator.name not in self._bodies:
            self._bodies[operator.name] = self.alteration.body(operator, clean)
        return self._bodies[operator.name]

    def altered(self, operator: Operator) -> bool:
        """Whether the alteration changes what runs for this operator: body, compiling, kernels, weights, or its device. A
        change of the values that are handed over between operators is none of one operator."""
        alteration = self.alteration
        if alteration is None:
            return False
        if (
            alteration.touches(operator)
            or self.body(operator) is not self.model.bodies[operator.signature]
            or alteration.mutation(operator) is not None
            or alteration.schedule(operator) is not None
        ):
            return True
        if self.model.why_it_stays(operator):
            return False
        recipe = self._recipe(operator)
        self._compile(recipe, self.body(operator))
        program = self._results[recipe].program
        if program is not None and alteration.program(operator, self.choice.name, program) is not program:
            return True
        keys = [key for key in self.model.weight_keys(operator) if key is not None]
        return any(alteration.weight(operator, key, self.model.weight(key)) is not self.model.weight(key) for key in keys)

    def compile(self, operators: Sequence[Operator], progress: Progress | None = None) -> None:
        """Compiles what was not compiled yet, and ends the compiler's workers. `progress` gets the stage "compile"."""
        moving = [o for o in operators if not self.model.why_it_stays(o)]
        wanted = {r: self.body(o) for o in moving if (r := self._recipe(o)) not in self._results}
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
        for schedules, mutation in dict.fromkeys((r.schedules, r.mutation) for r in wanted):
            alike = {r.signature: body for r, body in wanted.items() if (r.schedules, r.mutation) == (schedules, mutation)}
            found = self._compiler.compile(alike, on_result, schedules, mutation)
            self._results |= {_Recipe(signature, schedules, mutation): result for signature, result in found.items()}
        self._compiler.close()

    def check_injection(self, operators: Sequence[Operator]) -> None:
        """Raises UsageError where a function that rewrites kernels changes none of these operators', which are compiled if need
        be."""
        if isinstance(self.alteration, Injection):
            for operator in operators:
                self.program(operator)
            self.alteration.require_change([o.name for o in operators], self.choice.name)

    def adopt(self, other: Workbench) -> None:
        """Takes over what another bench of the very same target has compiled."""
        self._results |= other._results

    def program(self, operator: Operator, schedules: Sequence[str] | None = None) -> Program | None:
        """What runs for this operator, the alteration applied; None when it did not compile, or stays on the source whatever the
        target. Compiles it if need be. `schedules` are tried instead of the target's own."""
        if self.model.why_it_stays(operator):
            return None
        recipe = self._recipe(operator, schedules)
        self._compile(recipe, self.body(operator))
        program = self._results[recipe].program
        if program is None:
            return None
        key = (operator.name, recipe.schedules)
        if key not in self._programs:
            self._programs[key] = self._altered_program(operator, program)
        return self._programs[key]

    def compile_body(self, body: Body, operator: Operator | None = None, schedules: Sequence[str] | None = None) -> Result:
        """Compiles any body, with `operator`'s alteration of compiling and kernels where one is given. The compiler's workers
        stay ready for the next until the bench is closed."""
        recipe = replace(self._recipe(operator, schedules), signature=body.signature)
        self._compile(recipe, body)
        result = self._results[recipe]
        if result.program is None or operator is None:
            return result
        return replace(result, program=self._altered_program(operator, result.program))

    def converted(self, operator: Operator, inputs: Sequence[HostArray]) -> list[HostArray] | str:
        """What the operator's body gives as the compiler converted it, before it is lowered for any target, the alteration
        applied; or why that could not be run. On this machine's processor."""
        return self._compiler.evaluate(self.body(operator), inputs, self._recipe(operator).mutation)

    def variant(self, operator: Operator, **options: str) -> tuple[TargetChoice, Program | None]:
        """The target with other options, such as f16="0", and what would run there for this operator, the alteration applied: it
        runs on this very device. None when it does not compile."""
        choice = replace(self.choice, options={**self.choice.options, **options})
        if str(choice) not in self._variants:
            self._variants[str(choice)] = Compiler(resolve(choice, self.device.info))
        compiler, recipe = self._variants[str(choice)], self._recipe(operator)
        found = compiler.compile({recipe.signature: self.body(operator)}, None, recipe.schedules, recipe.mutation)
        program = found[recipe.signature].program
        return choice, None if program is None else self._altered_program(operator, program)

    def _altered_program(self, operator: Operator, program: Program) -> Program:
        return program if self.alteration is None else self.alteration.program(operator, self.choice.name, program)

    def _recipe(self, operator: Operator | None, schedules: Sequence[str] | None = None) -> _Recipe:
        order = self.target.schedules if schedules is None else tuple(schedules)
        if operator is None:
            return _Recipe("", order, None)
        alteration = self.alteration
        if alteration is None:
            return _Recipe(operator.signature, order, None)
        first = alteration.schedule(operator)
        if schedules is None and first is not None:
            order = (first, *(s for s in order if s != first))
        body = self.body(operator)
        clean = body is self.model.bodies[operator.signature]
        return _Recipe(operator.signature if clean else body.signature, order, alteration.mutation(operator))

    def _compile(self, recipe: _Recipe, body: Body) -> None:
        if recipe not in self._results:
            found = self._compiler.compile({recipe.signature: body}, None, recipe.schedules, recipe.mutation)
            self._results[recipe] = found[recipe.signature]
            self.compiled += not found[recipe.signature].cached

    def schedules_that_failed(self, operator: Operator) -> str:
        """What the compiler said of the schedules that were tried before the one that was taken; "" when the first one was."""
        return self._results[self._recipe(operator)].message

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
        """The verdict of an operator for which there is no program."""
        if why := self.model.why_it_stays(operator):
            return Verdict(
                operator=operator.name, signature=operator.signature, op=operator.kind, status="skipped", stage=None, error=None,
                bound=None, source_error=None, reason=f"stays on the source: {why}", seconds=0.0,
            )
        result = self._results[self._recipe(operator)]
        return Verdict(
            operator=operator.name, signature=operator.signature, op=operator.kind,
            status="crash" if result.status == "crash" else "error", stage=result.stage, error=None, bound=None,
            source_error=None, reason=result.message, seconds=result.seconds,
        )

    def run(
        self,
        operator: Operator,
        program: Program,
        inputs: Sequence[HostArray],
        outputs: Sequence[TensorSpec],
        resident: bool = True,
        keep: bool = False,
    ) -> list[HostArray]:
        """One isolated run over poisoned memory; weights are uploaded once, the other inputs each time. Without `resident` every
        input is uploaded as it is given. `outputs` are the specs in the graph; the results have their dtypes, but for integers
        out of their range (see `tapml.tensors.as_read`). `keep`: the same inputs come again, since they were recorded."""
        given: list[HostArray | int] = []
        keys = self.model.weight_keys(operator) if resident else (None,) * len(inputs)
        for array, key, spec in zip(inputs, keys, program.inputs, strict=True):
            given.append(array if key is None else self.weight_buffer(operator, key, spec.dtype))
        results = self.runner.run_once(program, given, poison=True, keep=keep)
        return [as_read(r.reshape(spec.shape), spec.dtype) for r, spec in zip(results, outputs, strict=True)]

    def weight_buffer(self, operator: Operator | None, key: str, dtype: str) -> int:
        """The device's buffer with a weight as this operator gets it (None: as the model has it), stored as `dtype`."""
        digest = self._weights.entries[key].digest
        if self.alteration is None or operator is None:
            return self._uploaded.get(digest, dtype, lambda: self.model.weight(key))
        clean = self.model.weight(key)
        array = self.alteration.weight(operator, key, clean)
        if array is not clean:
            digest = f"{digest} {self.alteration.digest} {operator.name}"
        return self._uploaded.get(digest, dtype, lambda: array)

    def prepare(
        self, operators: Sequence[Operator], progress: Progress | None = None
    ) -> tuple[dict[str, Program], dict[str, NotCompiled]]:
        """Compiles all of them: the programs by operator, and why the others have none."""
        self.compile(operators, progress)
        programs: dict[str, Program] = {}
        failures: dict[str, NotCompiled] = {}
        for operator in operators:
            program = self.program(operator)
            if program is None:
                failures[operator.name] = NotCompiled(self.failure(operator))
            else:
                programs[operator.name] = program
        return programs, failures

    def refusals(self, programs: Mapping[str, Program]) -> dict[str, Failed]:
        """Operators that the device refuses before anything runs: their kernels, or their weights. It may say so later than at
        the operator itself, so it is asked one by one."""
        loaded: dict[str, Attempted[None]] = {}
        found: dict[str, Failed] = {}
        for name, program in programs.items():
            if program.digest not in loaded:
                loaded[program.digest] = self.attempt(partial(self.load, program))
            outcome = loaded[program.digest]
            if isinstance(outcome, Ran):
                outcome = self.attempt(partial(self._upload, name, program))
            if not isinstance(outcome, Ran):
                found[name] = outcome
        return found

    def load(self, program: Program) -> None:
        """Gives the device the kernels. A device across a connection tells only when it is waited for what it thinks of them."""
        self.runner.load(program)
        self.device.synchronize()

    def _upload(self, name: str, program: Program) -> None:
        operator = self.model.named[name]
        for key, spec in zip(self.model.weight_keys(operator), program.inputs, strict=True):
            if key is not None:
                self.weight_buffer(operator, key, spec.dtype)

    def hybrid(self) -> Hybrid:
        """The hybrid on this device: one as long as the device lives and the alteration stays."""
        if self._hybrid is None:
            on_upload = None if self.alteration is None else self.alteration.value
            self._hybrid = Hybrid(self.model, self.runner, self.weight_buffer, on_upload)
        return self._hybrid

    def everything(self) -> Hybrid:
        """The hybrid with every operator on this device. All of them must have compiled (ValueError)."""
        hybrid = self.hybrid()
        hybrid.offload(self.programs([o.name for o in self.model.operators]))
        return hybrid

    def trim(self) -> None:
        """Frees device memory that nobody uses."""
        outcome = self.attempt(lambda: self.runner.pool.trim())
        if isinstance(outcome, Refused):  # a device that was lost has nothing to free
            outcome.get()

    def telling(self, progress: Progress | None) -> Progress:
        """`progress`, which also tells the hub of a device across a connection what goes on."""

        def tell(stage: str, done: int, total: int, /) -> None:
            if progress is not None:
                progress(stage, done, total)
            doing = getattr(self._platform, "doing", None)
            if doing is not None:
                doing(f"{stage} {done}/{total}" if total else stage)

        return tell

    def attempt(self, work: Callable[[], T]) -> Attempted[T]:
        """Work on the device, mostly done once. It is done again, with the device opened anew, after ConnectionLost, which says
        nothing about the work, and once after OutOfMemory, since the device then holds nothing else. So it must be repeatable,
        and take what it needs from the bench each time.

        A device that is lost over it is opened anew and not tried again; one that begins anew `MOST_RESTARTS` times at the same
        work is lost too. Raises UnavailableError when the device was lost too often or cannot be opened again, ConnectionLost
        when the connection cannot be had again, and whatever else the work raises."""
        restarts, emptied = 0, False
        while True:
            try:
                return Ran(work())
            except ConnectionLost as error:
                if error.final:
                    raise
                restarts += error.restarted
                if restarts >= MOST_RESTARTS:
                    return self._lost(DeviceLost(
                        f"it went away {restarts} times in a row while running this. The last time: {error}"))
                self.reopen(error)
            except OutOfMemory as error:
                if emptied:
                    return Refused(error)
                self.reopen(error)
                emptied = True
            except DeviceError as error:
                return Refused(error)
            except DeviceLost as error:
                return self._lost(error)

    def _lost(self, error: DeviceLost) -> Lost:
        self.reopen(error)
        return Lost(error)

    def reopen(self, error: UnavailableError) -> None:
        """The device anew, after DeviceLost, ConnectionLost or OutOfMemory; everything that was on it is gone. Raises
        UnavailableError or ConnectionLost instead when that has happened too often, or the device cannot be opened again."""
        self.device.close()
        if isinstance(error, DeviceLost):
            self.losses += 1
            if self.losses >= MOST_LOSSES:
                raise UnavailableError(
                    f"Target {self.choice}: the device was lost {self.losses} times; giving up. The last time: {error}"
                ) from error
        if isinstance(error, ConnectionLost):
            self.breaks += 1
            if self.breaks >= MOST_LOSSES:
                raise ConnectionLost(
                    f"Target {self.choice}: the connection to {self.device_name} was lost {self.breaks} times; giving up. The "
                    f"last time: {error}", final=True,
                ) from error
        try:
            target = self._open()
        except UnavailableError as again:
            if self.device_name == "local":
                raise
            raise ConnectionLost(str(again), final=True) from error
        if target.key != self.target.key:
            raise AnotherDevice(
                f"Device {self.device_name} came back as another one, {self.device.info.name}, with other limits or features. "
                "Begin anew to work with that one."
            ) from error
