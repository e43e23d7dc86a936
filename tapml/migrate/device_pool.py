"""Several devices of one target that test the operators of a run together.

    with DevicePool(run, "webgpu", "phone,tablet@http://…") as pool:         or "all@…": whatever offers the target at the hub
        for verdict in pool.test(run.operators, progress): ...         as they come, in any order
        pool.measures_of(verdict.operator), pool.shares
        bench = pool.bench                                             one of those that are still there, for what comes after

Each device has a tester and a thread of its own, and takes the next operator when it is done with one, so a slow device does
less. Operators that may share a verdict (no weights, the same kernels) stay together, in their order, so that what comes out is
what one device would have said. Kernels are compiled once: a device for which they would be others is left out.

A device that is busy joins when it is free. One that is lost for good hands back what it was at, and the others go on; when
none is left, that is an UnavailableError.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from tapml.backends.interface import Backend
from tapml.backends.own_folder import OwnFolder
from tapml.carving.folder import RunFolder
from tapml.devices.interface import DeviceInfo
from tapml.errors import UnavailableError
from tapml.migrate.inject import Inject, loaded
from tapml.migrate.model import Model
from tapml.migrate.operator_test import OperatorTester
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Operator
from tapml.remote.address import RemoteName
from tapml.remote.open import redacted, require_remote
from tapml.targets.parse import parse
from tapml.verdicts import Measure, Verdict

logger = logging.getLogger("tapml.remote")


def are_several(device: str) -> bool:
    """Whether a `--device` means several devices."""
    if "@" not in device:
        return False
    names = RemoteName.parse(device).names
    return len(names) > 1 or names == ("all",)


def opened(
    run: RunFolder, target: str | Backend, device: str, inject: Inject | None = None, own: OwnFolder | None = None
) -> OperatorTester | DevicePool:
    """What tests the operators of a run: one device, or several where `device` means several."""
    if isinstance(target, str) and are_several(device):
        return DevicePool(run, target, device, inject, own)
    return OperatorTester(run, target, device, inject, own)


@dataclass(frozen=True)
class Share:
    """What one device did: how many operators. `info` is None for one that never joined, and `gone` says why one left."""

    name: str
    operators: int
    info: DeviceInfo | None
    gone: str = ""

    def to_json(self) -> dict[str, Any]:
        info = None if self.info is None else self.info.to_json()
        return {"name": self.name, "operators": self.operators, "info": info, "gone": self.gone}


@dataclass
class _Unit:
    """Operators that one device tests one after the other, and the verdicts that another one left when it was lost."""

    operators: deque[Operator]
    before: list[Verdict] = field(default_factory=list)


@dataclass
class _Member:
    name: str
    tester: OperatorTester | None = None
    info: DeviceInfo | None = None
    done: int = 0
    gone: UnavailableError | None = None


def units_of(model: Model, operators: Sequence[Operator]) -> list[_Unit]:
    """What is handed out at once, in execution order of the first operator of each."""
    found: dict[str, _Unit] = {}
    for operator in operators:
        weightless = all(key is None for key in model.weight_keys(operator))
        key = f"signature {operator.signature}" if weightless else f"operator {operator.name}"
        found.setdefault(key, _Unit(deque())).operators.append(operator)
    return list(found.values())


class DevicePool:
    """See the module's docstring. Waits until the first device is there. Raises UsageError and TargetError as a tester does, and
    UnavailableError when there is no device at all."""

    def __init__(
        self, run: RunFolder, target: str, device: str, inject: Inject | None = None, own: OwnFolder | None = None
    ) -> None:
        self.run = run
        self.device_name = redacted(device)
        self._target = target
        self._inject = loaded(inject)
        self._own = own
        self._asked = RemoteName.parse(device)
        names = self._asked.names if self._asked.names != ("all",) else _offering(self._asked, parse(target).name)
        self._members = [_Member(name) for name in names]
        self._units: deque[_Unit] = deque()
        self._operators: Sequence[Operator] = ()
        self._progress: Progress | None = None
        self._compiled: Workbench | None = None
        self._target_key = ""
        self._measures: dict[str, tuple[Measure, ...]] = {}
        self._pictures: dict[str, dict[str, Any]] = {}
        self._remembered: list[Verdict] = []
        self._over = False
        self._state = threading.Condition()
        self._compiling = threading.Lock()
        self._telling = threading.Lock()
        self._events: SimpleQueue[Verdict | _Member | BaseException] = SimpleQueue()
        for member in self._members:
            threading.Thread(target=self._work, args=(member,), name=f"tapml {member.name}", daemon=True).start()
        try:
            while not any(member.tester for member in self._members):
                self._heard(self._events.get())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DevicePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def tester(self) -> OperatorTester:
        """Of a device that is there."""
        return next(member.tester for member in self._members if member.tester is not None)

    @property
    def bench(self) -> Workbench:
        return self.tester.bench

    @property
    def shares(self) -> tuple[Share, ...]:
        return tuple(Share(m.name, m.done, m.info, "" if m.gone is None else str(m.gone)) for m in self._members)

    def measures_of(self, name: str) -> tuple[Measure, ...]:
        """The calls that were measured for an operator."""
        return self._measures.get(name, ())

    def picture_of(self, name: str) -> dict[str, Any] | None:
        """As that of an `OperatorTester`."""
        return self._pictures.get(name)

    def remember(self, verdict: Verdict) -> None:
        """A verdict from before, as `OperatorTester.remember`."""
        with self._state:
            self._remembered.append(verdict)
            for member in self._members:
                if member.tester is not None:
                    member.tester.remember(verdict)

    def test(self, operators: Sequence[Operator], progress: Progress | None = None) -> Iterator[Verdict]:
        """Compiles these operators and yields the verdict of each as it comes."""
        with self._state:
            self._operators, self._progress = operators, progress
            self._units.extend(units_of(self.bench.model, operators))
            self._state.notify_all()
        for count in range(1, len(operators) + 1):
            verdict = None
            while verdict is None:
                verdict = self._heard(self._events.get())
            yield verdict
            self._tell("test", count, len(operators))

    def dismiss(self) -> None:
        """All but one device are closed; `tester` is the one that stays."""
        with self._state:
            self._over = True
            self._state.notify_all()
            kept = self.tester
            others = [m.tester for m in self._members if m.tester is not None and m.tester is not kept]
        for tester in others:
            tester.close()

    def close(self) -> None:
        """May be called twice. A device that is still awaited is released as soon as it is granted."""
        with self._state:
            self._over = True
            self._state.notify_all()
            testers = [m.tester for m in self._members if m.tester is not None]
        for tester in testers:
            tester.close()

    def _heard(self, event: Verdict | _Member | BaseException) -> Verdict | None:
        """What a device's thread said, in the caller's thread; raises what cannot be worked around."""
        if isinstance(event, Verdict):
            return event
        if isinstance(event, BaseException):
            raise event
        if event.gone is not None and all(member.gone is not None for member in self._members):
            told = " ".join(f"{member.name}: {member.gone}" for member in self._members)
            raise UnavailableError(f"No device is left at {self._asked.hub.redacted}. {told}")
        return None

    def _tell(self, stage: str, done: int, total: int, /) -> None:
        if self._progress is not None:
            with self._telling:
                self._progress(stage, done, total)

    # A device's thread.

    def _work(self, member: _Member) -> None:
        try:
            if self._join(member):
                while (unit := self._next()) is not None:
                    self._carry_out(member, unit)
                    if member.gone is not None:
                        return
        except UnavailableError as error:
            self._left(member, error)
        except BaseException as error:
            if not self._over:
                self._events.put(error)

    def _join(self, member: _Member) -> bool:
        """Opens the device; whether it can work with the others."""
        tester = OperatorTester(self.run, self._target, str(self._asked.one(member.name)), self._inject, self._own)
        with self._state:
            key = tester.bench.target.key
            over = self._over
            fits = not over and self._target_key in ("", key)
            if fits:
                self._target_key = key
                member.tester, member.info = tester, tester.bench.info
                for verdict in self._remembered:
                    tester.remember(verdict)
        if not fits:
            tester.close()
            if not over:
                why = "Its limits or features need other kernels than those of the other devices."
                self._left(member, UnavailableError(why))
            return False
        self._events.put(member)
        return True

    def _next(self) -> _Unit | None:
        with self._state:
            while not self._units and not self._over:
                self._state.wait()
            return None if self._over else self._units.popleft()

    def _carry_out(self, member: _Member, unit: _Unit) -> None:
        tester = member.tester
        assert tester is not None
        try:
            self._compile(tester.bench)
            for verdict in unit.before:
                tester.remember(verdict)
            doing = tester.bench.telling(None)
            while unit.operators:
                doing("test", member.done, len(self._operators))
                verdict = tester.test(unit.operators[0].name)
                self._measures[verdict.operator] = tester.measures_of(verdict.operator)
                drawn = tester.picture_of(verdict.operator)
                if drawn is not None:
                    self._pictures[verdict.operator] = drawn
                unit.before.append(verdict)
                unit.operators.popleft()
                member.done += 1
                self._events.put(verdict)
        except UnavailableError as error:
            with self._state:
                self._units.appendleft(unit)
                self._state.notify_all()
            self._left(member, error)

    def _compile(self, bench: Workbench) -> None:
        with self._compiling:
            if self._compiled is None:
                bench.compile(self._operators, self._tell)
                self._compiled = bench
            elif self._compiled is not bench:
                bench.adopt(self._compiled)

    def _left(self, member: _Member, error: UnavailableError) -> None:
        with self._state:
            tester, member.tester, member.gone = member.tester, None, error
            over = self._over
        if tester is not None:
            tester.close()
        if not over:
            logger.warning("%s does not take part: %s", member.name, error)
        self._events.put(member)


def _offering(asked: RemoteName, target: str) -> tuple[str, ...]:
    """The devices at the hub that offer a target, or may when they have looked."""
    require_remote()
    from tapml.remote.client.watching import listing

    devices = listing(asked.hub)
    states = {d["name"]: d["offers"].get(target, {"state": "absent"})["state"] for d in devices if d["state"] in ("idle", "busy")}
    found = tuple(sorted(name for name, state in states.items() if state in ("ready", "looking")))
    if not found:
        here = ", ".join(d["name"] for d in devices) or "none"
        raise UnavailableError(
            f"No device at the hub {asked.hub.redacted} offers {target}. Connected: {here}. "
            "tapml devices URL lists what each of them offers."
        )
    return found
