"""What testing, migrating and diagnosing stand on: one backend, the compiled operators, the weights that went up.

    with Workbench.on(run, "opencl") as bench:
        bench.compile(operators)
        program = bench.program(operator)          None where there is none: bench.failure(operator) is the verdict
        match bench.attempt(lambda: bench.run(operator, program, inputs, specs)):      see tapml.migrate.outcome
            case Ran(outputs): ...

Each operator is prepared once. What a backend makes of an operator is the backend's matter: one that was rewritten (an
injected fault, see `tapml.backends.rewrite`) looks like any other here. A device that is lost takes its weights, kernels and
buffers along: everything that came from `backend` or `hybrid()` before is void.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from tapml.backends.interface import PLAIN, Backend, Compiled, Prepared, Way
from tapml.backends.on_device import DEADLINE
from tapml.backends.open import open_backend
from tapml.backends.own_folder import OwnFolder
from tapml.backends.rewrite import Rewrite, Rewritten
from tapml.carving.folder import RunFolder
from tapml.devices.interface import DeviceInfo
from tapml.errors import ConnectionLost, DeviceError, DeviceLost, OutOfMemory, UnavailableError
from tapml.migrate.inject import Inject, loaded
from tapml.migrate.model import Model
from tapml.migrate.outcome import Attempted, Failed, Lost, NotCompiled, Ran, Refused
from tapml.operators.graph import Body, Operator
from tapml.runtime.buffers import WeightCache
from tapml.runtime.hybrid import Hybrid
from tapml.targets.parse import TargetChoice
from tapml.targets.target import Target
from tapml.tensors import HostArray, Layout, TensorSpec, as_read
from tapml.verdicts import Status, Verdict

T = TypeVar("T")

# The verdict on an operator that there is nothing to run for, by why that is.
_WITHOUT: dict[str, Status] = {"error": "error", "crash": "crash", "absent": "skipped"}

# A device may be lost this often before the work stops: every loss costs seconds, and a driver that dies at everything
# will not do better at the next operator.
MOST_LOSSES = 32

# A device across a connection that begins anew so often in a row at the same work is lost because of that work.
MOST_RESTARTS = 3


class Progress(Protocol):
    """Told how far a stage is; see `tapml.report.progress`."""

    def __call__(self, stage: str, done: int, total: int, /) -> None: ...


class Workbench:
    """See the module's docstring. It owns the backend and closes it, also when it cannot stand on it. `losses` counts how often
    the device was lost, `breaks` its connection."""

    def __init__(self, run: RunFolder, backend: Backend) -> None:
        self.backend = backend
        self.folder = run
        self.losses = 0
        self.breaks = 0
        self.compiled = 0
        self._prepared: dict[tuple[str, Way], Prepared] = {}
        self._hybrid: Hybrid | None = None
        self._weights = run.weights
        self._uploaded = WeightCache(backend.pool)
        self._pool = backend.pool
        self._own_weights: set[tuple[str, str]] = set()  # those of one operator, as the backend has it
        try:
            self.model = Model.of(run)
        except BaseException:
            backend.close()
            raise

    @staticmethod
    def on(
        run: RunFolder, target: str | Backend, device: str = "local", inject: Inject | None = None, deadline: float = DEADLINE,
        own: OwnFolder | None = None,
    ) -> Workbench:
        """On the backend that the texts of the command line mean, or on one that stays the caller's, with a fault put in; `own`
        are the only kernels that there are. Raises TargetError, UsageError (also for the injected fault) and UnavailableError."""
        fault = loaded(inject)
        backend = open_backend(target, device, deadline, own)
        return Workbench(run, backend if fault is None else Rewritten(backend, fault))

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

    @property
    def rewrite(self) -> Rewrite | None:
        """What was put in; see `Backend.rewrite`."""
        return self.backend.rewrite

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the backend, which gets back what was taken from its pool where it stays open. May be called twice."""
        self._give_back()
        self._uploaded.clear()
        self.backend.close()

    def change(self, backend: Backend) -> None:
        """Goes on with another backend over the same device, such as the same one rewritten. The weights that stay the same stay
        on the device, and what the backends have in common of what is prepared is not prepared again."""
        self._give_back()
        self.backend = backend
        self._prepared.clear()

    def _give_back(self) -> None:
        self._look_around()
        if self._hybrid is not None:
            self._hybrid.close()
            self._hybrid = None
        for digest, dtype in self._own_weights:
            self._uploaded.drop(digest, dtype)
        self._own_weights.clear()

    def _look_around(self) -> None:
        """Forgets what lay on a device that is no more: it was lost, or another stands before it."""
        if self._pool is not self.backend.pool:
            self._pool = self.backend.pool
            self._uploaded = WeightCache(self._pool)
            self._own_weights.clear()
            self._hybrid = None

    def body(self, operator: Operator, body: Body | None = None) -> Body:
        """What is really prepared for this operator in place of the source's body, or of another `body`."""
        return self.backend.body(operator.name, body or self.model.bodies[operator.signature])

    def compile(self, operators: Sequence[Operator], progress: Progress | None = None) -> None:
        """Compiles what was not compiled yet, and ends the compiler's workers. `progress` gets the stage "compile". Raises
        UsageError where a function that rewrites kernels changes none of these operators'."""
        moving = [o for o in operators if not self.model.why_it_stays(o)]
        wanted = {o.name: self.model.bodies[o.signature] for o in moving if (o.name, PLAIN) not in self._prepared}
        done = 0

        def on_prepared(operator: str, prepared: Prepared) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress("compile", done, len(wanted))

        if wanted:
            if progress is not None:
                progress("compile", 0, len(wanted))
            for name, prepared in self.backend.prepare(wanted, on_prepared).items():
                self._keep((name, PLAIN), prepared)
            self.backend.rest()
        self.require_change(moving)

    def require_change(self, operators: Sequence[Operator]) -> None:
        """Raises UsageError where a function that rewrites kernels changes none of these operators', which are compiled if need
        be."""
        if self.rewrite is not None:
            for operator in operators:
                self.program(operator)
            self.rewrite.require_change([o.name for o in operators], self.choice.name)

    def adopt(self, other: Workbench) -> None:
        """Takes over what another bench of the very same target has compiled."""
        self._prepared |= other._prepared

    def prepared(
        self, operator: Operator, schedules: Sequence[str] | None = None, body: Body | None = None,
        layouts: Sequence[tuple[int, Layout]] = (),
    ) -> Prepared:
        """What there is for this operator, prepared now if need be; the compiler's workers then stay ready for the next until the
        bench is closed. `schedules` are tried instead of the target's own. Another `body` is prepared as the operator's is;
        `layouts`, by input, say how inputs lie in memory."""
        key = operator.name, Way(None if schedules is None else tuple(schedules), layouts=tuple(layouts))
        if body is not None:
            return self.backend.prepare({operator.name: body}, None, key[1])[operator.name]
        if key not in self._prepared:
            clean = self.model.bodies[operator.signature]
            self._keep(key, self.backend.prepare({operator.name: clean}, None, key[1])[operator.name])
        return self._prepared[key]

    def _keep(self, key: tuple[str, Way], prepared: Prepared) -> None:
        self._prepared[key] = prepared
        self.compiled += not prepared.cached

    def program(self, operator: Operator, schedules: Sequence[str] | None = None) -> Compiled | None:
        """What runs for this operator; None when it did not compile, or stays on the source whatever the target."""
        return None if self.model.why_it_stays(operator) else self.prepared(operator, schedules).compiled

    def converted(self, operator: Operator, inputs: Sequence[HostArray]) -> list[HostArray] | str:
        """What the operator's body gives as the compiler converted it, before it is lowered for any target; or why that could not
        be run. On this machine's processor."""
        return self.backend.converted(operator.name, self.model.bodies[operator.signature], inputs)

    def variant(self, operator: Operator, **options: str) -> tuple[TargetChoice, Compiled | None]:
        """The target with other options, such as f16="0", and what would run there for this operator: it runs on this very
        device. None when it does not compile."""
        choice, prepared = self.backend.variant(operator.name, self.model.bodies[operator.signature], options)
        return choice, prepared.compiled

    def schedules_that_failed(self, operator: Operator) -> str:
        """What the compiler said of the schedules that were tried before the one that was taken; "" when the first one was."""
        return self.prepared(operator).message

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
        result = self.prepared(operator)
        return Verdict(
            operator=operator.name, signature=operator.signature, op=operator.kind,
            status=_WITHOUT[result.status], stage=result.stage, error=None, bound=None,
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
        """What runs for this operator on inputs that lie in memory in these ways, and the inputs as it takes them. Raises
        DeviceError where it cannot be prepared so."""
        prepared, how = self.prepared(operator, layouts=layouts), dict(layouts)
        if prepared.compiled is None:
            raise DeviceError("backend", f"for inputs as they lay in memory: {prepared.message}")
        return prepared.compiled, [how[k].laid_out(a) if k in how else a for k, a in enumerate(inputs)]

    def weight_buffer(self, operator: Operator | None, key: str, dtype: str) -> int:
        """The device's buffer with a weight as this operator gets it (None: as the model has it), stored as `dtype`."""
        self._look_around()
        digest, clean = self._weights.entries[key].digest, self.model.weight(key)
        name = "" if operator is None else operator.name
        array = self.backend.weight(name, key, clean)
        if array is not clean:
            digest = f"{digest} {name}"
            self._own_weights.add((digest, dtype))
        return self._uploaded.get(digest, dtype, lambda: array)

    def prepare(
        self, operators: Sequence[Operator], progress: Progress | None = None
    ) -> tuple[dict[str, Compiled], dict[str, NotCompiled]]:
        """Compiles all of them: the programs by operator, and why the others have none."""
        self.compile(operators, progress)
        programs = {o.name: program for o in operators if (program := self.program(o)) is not None}
        return programs, {o.name: NotCompiled(self.failure(o)) for o in operators if o.name not in programs}

    def load(
        self, operators: Sequence[Operator], progress: Progress | None = None
    ) -> tuple[dict[str, Compiled], dict[str, NotCompiled | Failed]]:
        """`prepare`, and which the device refuses before anything runs: their kernels, or their weights. It may say so later than
        at the operator itself, so it is asked one by one."""
        programs, not_compiled = self.prepare(operators, progress)
        failures: dict[str, NotCompiled | Failed] = {**not_compiled}
        loaded: dict[str, Attempted[None]] = {}
        for name, program in list(programs.items()):
            if program.digest not in loaded:
                loaded[program.digest] = self.attempt(partial(self.backend.load, program))
            outcome = loaded[program.digest]
            if isinstance(outcome, Ran):
                outcome = self.attempt(partial(self._upload, name, program))
            if not isinstance(outcome, Ran):
                failures[name] = outcome
                del programs[name]
        return programs, failures

    def _upload(self, name: str, program: Compiled) -> None:
        operator = self.model.named[name]
        for key, spec in zip(self.model.weight_keys(operator), program.inputs, strict=True):
            if key is not None:
                self.weight_buffer(operator, key, spec.dtype)

    def hybrid(self) -> Hybrid:
        """The hybrid on this device: one as long as the device lives and the backend stays."""
        self._look_around()
        if self._hybrid is None:
            self._hybrid = Hybrid(self.model, self.model.source, self.backend, self.weight_buffer, self.backend.value)
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
        self.backend.reopen()
