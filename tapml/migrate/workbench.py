"""What testing, migrating and diagnosing stand on: one backend, the compiled operators, the weights that went up.

    with Workbench.on(run, "opencl") as bench:
        bench.compile(operators)
        program = bench.program(operator)          None where there is none: bench.failure(operator) is the verdict
        match bench.attempt(lambda: bench.run(operator, program, inputs, specs)):      see tapml.migrate.outcome
            case Ran(outputs): ...

Each signature is compiled once. An alteration (an injected fault, see `tapml.migrate.alteration`) is applied here, per
operator, so that everybody runs the same operators. A device that is lost takes its weights, kernels and buffers along:
everything that came from `backend` or `hybrid()` before is void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from tapml.backends.interface import Backend, Compiled, Prepared, Way
from tapml.backends.on_device import DEADLINE
from tapml.backends.open import open_backend
from tapml.carving.folder import RunFolder
from tapml.devices.interface import DeviceInfo
from tapml.errors import ConnectionLost, DeviceError, DeviceLost, OutOfMemory, UnavailableError
from tapml.kernels import Program
from tapml.migrate.inject import Inject, Injection, loaded
from tapml.migrate.model import Model
from tapml.migrate.outcome import Attempted, Failed, Lost, NotCompiled, Ran, Refused
from tapml.operators.graph import Body, Operator
from tapml.runtime.buffers import WeightCache
from tapml.runtime.hybrid import Hybrid
from tapml.targets.parse import TargetChoice
from tapml.targets.target import Target
from tapml.tensors import HostArray, Layout, TensorSpec, as_read
from tapml.verdicts import Verdict

T = TypeVar("T")

# A device may be lost this often before the work stops: every loss costs seconds, and a driver that dies at everything
# will not do better at the next operator.
MOST_LOSSES = 32

# A device across a connection that begins anew so often in a row at the same work is lost because of that work.
MOST_RESTARTS = 3


class Progress(Protocol):
    """Told how far a stage is; see `tapml.report.progress`."""

    def __call__(self, stage: str, done: int, total: int, /) -> None: ...


@dataclass(frozen=True)
class _Recipe:
    """Everything that decides what compiling an operator gives, but for the target."""

    signature: str
    way: Way


class Workbench:
    """See the module's docstring. It owns the backend and closes it, also when it cannot stand on it (UsageError: the injected
    fault). `losses` counts how often the device was lost, `breaks` its connection."""

    def __init__(self, run: RunFolder, backend: Backend, inject: Inject | None = None) -> None:
        self.backend = backend
        self.folder = run
        self.losses = 0
        self.breaks = 0
        self.compiled = 0
        self._results: dict[_Recipe, Prepared] = {}
        self._programs: dict[tuple[str, Way], Compiled] = {}
        self._bodies: dict[str, Body] = {}
        self._hybrid: Hybrid | None = None
        self._weights = run.weights
        self._uploaded = WeightCache(backend.pool)
        try:
            self.model = Model.of(run)
            self.alteration = loaded(inject)
            self._pass_through()
        except BaseException:
            backend.close()
            raise

    @staticmethod
    def on(
        run: RunFolder, target: str | Backend, device: str = "local", inject: Inject | None = None, deadline: float = DEADLINE
    ) -> Workbench:
        """On the backend that the texts of the command line mean, or on one that stays the caller's. Raises TargetError,
        UsageError (also for the injected fault) and UnavailableError."""
        return Workbench(run, open_backend(target, device, deadline), inject)

    @property
    def choice(self) -> TargetChoice:
        return self.backend.choice

    @property
    def target(self) -> Target:
        return self.backend.target

    @property
    def info(self) -> DeviceInfo:
        return self.backend.info

    @property
    def device_name(self) -> str:
        """What was asked for, without a token: for records."""
        return self.backend.name

    def _pass_through(self) -> None:
        """The device as the alteration has it, with nothing on it where that is another than before."""
        alteration = self.alteration
        if self.backend.through(None if alteration is None else alteration.device):
            self._void()

    def _void(self) -> None:
        self._uploaded = WeightCache(self.backend.pool)
        self._hybrid = None

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the backend, which gets back what was taken from its pool where it stays open. May be called twice."""
        if self._hybrid is not None:
            self._hybrid.close()
            self._hybrid = None
        self._uploaded.clear()
        self.backend.close()

    def alter(self, inject: Inject | None) -> None:
        """Takes another alteration, or none. The device, the weights on it and what was compiled stay."""
        self.alteration = loaded(inject)
        self._programs.clear()
        self._bodies.clear()
        if self._hybrid is not None:
            self._hybrid.close()
            self._hybrid = None
        self._pass_through()

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
        compiled = self._results[recipe].compiled
        if compiled is not None and self._altered_program(operator, compiled) is not compiled:
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

        def on_prepared(signature: str, prepared: Prepared) -> None:
            nonlocal done
            done += 1
            self.compiled += not prepared.cached
            if progress is not None:
                progress("compile", done, len(wanted))

        if progress is not None:
            progress("compile", 0, len(wanted))
        for way in dict.fromkeys(r.way for r in wanted):
            alike = {r.signature: body for r, body in wanted.items() if r.way == way}
            found = self.backend.prepare(alike, on_prepared, way)
            self._results |= {_Recipe(signature, way): prepared for signature, prepared in found.items()}
        self.backend.rest()

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

    def program(self, operator: Operator, schedules: Sequence[str] | None = None) -> Compiled | None:
        """What runs for this operator, the alteration applied; None when it did not compile, or stays on the source whatever the
        target. Compiles it if need be. `schedules` are tried instead of the target's own."""
        if self.model.why_it_stays(operator):
            return None
        recipe = self._recipe(operator, schedules)
        self._compile(recipe, self.body(operator))
        compiled = self._results[recipe].compiled
        if compiled is None:
            return None
        key = (operator.name, recipe.way)
        if key not in self._programs:
            self._programs[key] = self._altered_program(operator, compiled)
        return self._programs[key]

    def compile_body(self, body: Body, operator: Operator | None = None, schedules: Sequence[str] | None = None) -> Prepared:
        """Compiles any body, with `operator`'s alteration of compiling and kernels where one is given. The compiler's workers
        stay ready for the next until the bench is closed."""
        recipe = replace(self._recipe(operator, schedules), signature=body.signature)
        self._compile(recipe, body)
        prepared = self._results[recipe]
        if prepared.compiled is None or operator is None:
            return prepared
        return replace(prepared, compiled=self._altered_program(operator, prepared.compiled))

    def converted(self, operator: Operator, inputs: Sequence[HostArray]) -> list[HostArray] | str:
        """What the operator's body gives as the compiler converted it, before it is lowered for any target, the alteration
        applied; or why that could not be run. On this machine's processor."""
        return self.backend.converted(self.body(operator), inputs, self._recipe(operator).way)

    def variant(self, operator: Operator, **options: str) -> tuple[TargetChoice, Compiled | None]:
        """The target with other options, such as f16="0", and what would run there for this operator, the alteration applied: it
        runs on this very device. None when it does not compile."""
        choice, prepared = self.backend.variant(self.body(operator), self._recipe(operator).way, options)
        compiled = prepared.compiled
        return choice, None if compiled is None else self._altered_program(operator, compiled)

    def _altered_program(self, operator: Operator, compiled: Compiled) -> Compiled:
        if self.alteration is None or not isinstance(compiled, Program):
            return compiled
        return self.alteration.program(operator, self.choice.name, compiled)

    def _recipe(self, operator: Operator | None, schedules: Sequence[str] | None = None) -> _Recipe:
        order = self.target.schedules if schedules is None else tuple(schedules)
        if operator is None:
            return _Recipe("", Way(order))
        alteration = self.alteration
        if alteration is None:
            return _Recipe(operator.signature, Way(order))
        first = alteration.schedule(operator)
        if schedules is None and first is not None:
            order = (first, *(s for s in order if s != first))
        body = self.body(operator)
        clean = body is self.model.bodies[operator.signature]
        return _Recipe(operator.signature if clean else body.signature, Way(order, alteration.mutation(operator)))

    def _compile(self, recipe: _Recipe, body: Body) -> None:
        if recipe not in self._results:
            found = self.backend.prepare({recipe.signature: body}, None, recipe.way)
            self._results[recipe] = found[recipe.signature]
            self.compiled += not found[recipe.signature].cached

    def schedules_that_failed(self, operator: Operator) -> str:
        """What the compiler said of the schedules that were tried before the one that was taken; "" when the first one was."""
        return self._results[self._recipe(operator)].message

    def programs(self, names: Sequence[str]) -> Mapping[str, Compiled]:
        """The programs of these operators, all of which compiled."""
        found: dict[str, Compiled] = {}
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
        program: Compiled,
        inputs: Sequence[HostArray],
        outputs: Sequence[TensorSpec],
        resident: bool = True,
        keep: bool = False,
        layouts: Sequence[tuple[int, Layout]] = (),
    ) -> list[HostArray]:
        """One isolated run over poisoned memory; weights are uploaded once, the other inputs each time. Without `resident` every
        input is uploaded as it is given. `outputs` are the specs in the graph; the results have their dtypes, but for integers
        out of their range (see `tapml.tensors.as_read`). `keep`: the same inputs come again, since they were recorded. `layouts`,
        by input: what runs is the operator prepared for inputs that lie so in memory."""
        if layouts:
            program, inputs = self.lying(operator, inputs, layouts)
        given: list[HostArray | int] = []
        keys = self.model.weight_keys(operator) if resident else (None,) * len(inputs)
        for array, key, spec in zip(inputs, keys, program.inputs, strict=True):
            given.append(array if key is None else self.weight_buffer(operator, key, spec.dtype))
        results = self.backend.run_once(program, given, poison=True, keep=keep)
        return [as_read(r.reshape(spec.shape), spec.dtype) for r, spec in zip(results, outputs, strict=True)]

    def lying(
        self, operator: Operator, inputs: Sequence[HostArray], layouts: Sequence[tuple[int, Layout]]
    ) -> tuple[Compiled, list[HostArray]]:
        """What runs for this operator on inputs that lie in memory in these ways, the alteration applied, and the inputs as it
        takes them. Raises DeviceError where it cannot be prepared so."""
        recipe = self._recipe(operator)
        recipe = replace(recipe, way=replace(recipe.way, layouts=tuple(layouts)))
        self._compile(recipe, self.body(operator))
        compiled, how = self._results[recipe].compiled, dict(layouts)
        if compiled is None:
            raise DeviceError("backend", f"for inputs as they lay in memory: {self._results[recipe].message}")
        return self._altered_program(operator, compiled), [how[k].laid_out(a) if k in how else a for k, a in enumerate(inputs)]

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
    ) -> tuple[dict[str, Compiled], dict[str, NotCompiled]]:
        """Compiles all of them: the programs by operator, and why the others have none."""
        self.compile(operators, progress)
        programs: dict[str, Compiled] = {}
        failures: dict[str, NotCompiled] = {}
        for operator in operators:
            program = self.program(operator)
            if program is None:
                failures[operator.name] = NotCompiled(self.failure(operator))
            else:
                programs[operator.name] = program
        return programs, failures

    def refusals(self, programs: Mapping[str, Compiled]) -> dict[str, Failed]:
        """Operators that the device refuses before anything runs: their kernels, or their weights. It may say so later than at
        the operator itself, so it is asked one by one."""
        loaded: dict[str, Attempted[None]] = {}
        found: dict[str, Failed] = {}
        for name, program in programs.items():
            if program.digest not in loaded:
                loaded[program.digest] = self.attempt(partial(self.backend.load, program))
            outcome = loaded[program.digest]
            if isinstance(outcome, Ran):
                outcome = self.attempt(partial(self._upload, name, program))
            if not isinstance(outcome, Ran):
                found[name] = outcome
        return found

    def _upload(self, name: str, program: Compiled) -> None:
        operator = self.model.named[name]
        for key, spec in zip(self.model.weight_keys(operator), program.inputs, strict=True):
            if key is not None:
                self.weight_buffer(operator, key, spec.dtype)

    def hybrid(self) -> Hybrid:
        """The hybrid on this device: one as long as the device lives and the alteration stays."""
        if self._hybrid is None:
            on_upload = None if self.alteration is None else self.alteration.value
            self._hybrid = Hybrid(self.model, self.model.source, self.backend, self.weight_buffer, on_upload)
        return self._hybrid

    def everything(self) -> Hybrid:
        """The hybrid with every operator on this device. All of them must have compiled (ValueError)."""
        hybrid = self.hybrid()
        hybrid.offload(self.programs([o.name for o in self.model.operators]))
        return hybrid

    def trim(self) -> None:
        """Frees device memory that nobody uses."""
        outcome = self.attempt(lambda: self.backend.pool.trim())
        if isinstance(outcome, Refused):  # a device that was lost has nothing to free
            outcome.get()

    def telling(self, progress: Progress | None) -> Progress:
        """`progress`, which also tells the hub of a device across a connection what goes on."""

        def tell(stage: str, done: int, total: int, /) -> None:
            if progress is not None:
                progress(stage, done, total)
            self.backend.doing(f"{stage} {done}/{total}" if total else stage)

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
        """The backend anew, after DeviceLost, ConnectionLost or OutOfMemory; everything that was on it is gone. Raises
        UnavailableError or ConnectionLost instead when that has happened too often, or it cannot be opened again."""
        if isinstance(error, DeviceLost):
            self.losses += 1
            if self.losses >= MOST_LOSSES:
                self.close()
                raise UnavailableError(
                    f"Target {self.choice}: the device was lost {self.losses} times; giving up. The last time: {error}"
                ) from error
        if isinstance(error, ConnectionLost):
            self.breaks += 1
            if self.breaks >= MOST_LOSSES:
                self.close()
                raise ConnectionLost(
                    f"Target {self.choice}: the connection to {self.device_name} was lost {self.breaks} times; giving up. The "
                    f"last time: {error}", final=True,
                ) from error
        self._hybrid = None  # its buffers are gone, whether the device comes back or not
        self.backend.reopen()
        self._void()
