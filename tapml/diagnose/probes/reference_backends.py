"""What diagnosis holds a target against: other backends that run the same operator.

    with ReferenceBackends(run, bench) as backends:
        there = backends.get(ANOTHER_TARGET)      a Workbench, or a text that says why there is none
        backends.put_in(rewrite)                  for the next fault: each gets what it shares of it

`REFERENCE_BACKENDS` lists them: how each is opened, or why it has nothing to say, and what it gets of the fault under diagnosis.
Each is opened when it is first asked for and kept for the next triage; one that is not here costs one attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

from tapml.backends.rewrite import Rewrite, rewritten
from tapml.carving.folder import RunFolder
from tapml.devices.interface import DeviceInfo
from tapml.devices.known import RUNNABLE, on_processor, others
from tapml.errors import TapmlError, TargetError
from tapml.migrate.workbench import Workbench
from tapml.operators.execute import host_function
from tapml.operators.graph import Operator
from tapml.runtime.engine import HostFunction
from tapml.targets.known import REFERENCE, TARGETS

# What a backend gets of the fault under diagnosis: nothing; what was done to the graph; that and what was done while lowering it.
Share = Literal["nothing", "graph", "lowering"]

# How many devices of a platform are looked at for another driver.
MOST_DEVICES = 4

B = TypeVar("B", covariant=True)

# Gives an operator as a function of its inputs, all of them in the body's order.
OnSource = Callable[[Operator], HostFunction]


class ReferenceBackends:
    """See the module's docstring. `bench` is the target under diagnosis and stays the caller's."""

    def __init__(self, run: RunFolder, bench: Workbench) -> None:
        self.bench = bench
        self._run = run
        self._rewrite = bench.rewrite
        self._opened: dict[tuple[str, Share], Workbench | str] = {}
        self._driver: Workbench | str | None = None

    def __enter__(self) -> ReferenceBackends:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes every backend that was opened."""
        for backend in self._opened.values():
            if isinstance(backend, Workbench):
                backend.close()
        self._opened.clear()

    def put_in(self, rewrite: Rewrite | None) -> None:
        """What was put in on the bench: the backends get what they share of it."""
        self._rewrite = rewrite
        for (_, share), backend in self._opened.items():
            if isinstance(backend, Workbench):
                backend.change(rewritten(backend.backend, self._of(share)))

    def get(self, backend: ReferenceBackend[B]) -> B | str:
        """The backend, or why it is not here or has nothing to say of this target."""
        return backend.open(self, backend.gets)

    def on(self, target: str, share: Share) -> Workbench | str:
        """A workbench on this machine."""
        if (target, share) not in self._opened:
            try:
                self._opened[target, share] = Workbench.on(self._run, target, inject=self._of(share))
            except TargetError as error:
                self._opened[target, share] = str(error)
            except TapmlError as error:
                self._opened[target, share] = f"{target} is not here: {error}"
        return self._opened[target, share]

    def other_driver(self, share: Share) -> Workbench | str:
        """A device of the same language with another driver."""
        if self._driver is None:
            self._driver = self._look_for_a_driver(share)
        return self._driver

    def _look_for_a_driver(self, share: Share) -> Workbench | str:
        language, own = self.bench.target.language, self.bench.info
        if on_processor(self.bench.choice.name):
            return "there is one C compiler"
        for target in (name for name in RUNNABLE if TARGETS[name].language == language):
            for number in range(MOST_DEVICES):
                backend = self.on(f"{target}:device={number}", share)
                if isinstance(backend, str):
                    break
                if _identity(backend.info) != _identity(own):
                    return backend
                backend.close()
                self._opened[f"{target}:device={number}", share] = "the same driver"
        return f"{own.name} is the only device here that takes {language}"

    def _of(self, share: Share) -> Rewrite | None:
        return None if self._rewrite is None or share == "nothing" else self._rewrite.elsewhere()


@dataclass(frozen=True)
class ReferenceBackend(Generic[B]):
    """`gets` is what it gets of the fault under diagnosis. `open` is told that, and gives the backend, or says why it is not here
    or has nothing to say."""

    name: str
    gets: Share
    open: Callable[[ReferenceBackends, Share], B | str]


def _processor(backends: ReferenceBackends, share: Share) -> Workbench | str:
    if backends.bench.choice.name == REFERENCE.name:
        return "the target is the processor itself"
    return backends.on(REFERENCE.name, share)


def _another_target(backends: ReferenceBackends, share: Share) -> Workbench | str:
    """Of another language: one that shares it has the same fault of the text."""
    reasons: list[str] = []
    for name in others(backends.bench.target):
        backend = backends.on(name, share)
        if isinstance(backend, Workbench):
            return backend
        reasons.append(backend)
    return "; ".join(reasons)


def _float64(backends: ReferenceBackends, share: Share) -> OnSource:
    """PyTorch in this process, in float64 throughout."""
    return lambda operator: backends.bench.model.exact(operator.signature)


def _graph(backends: ReferenceBackends, share: Share) -> OnSource:
    """PyTorch in this process, with the body that the bench prepares."""
    return lambda operator: host_function(backends.bench.body(operator))


# The one whose kernels are plain C, in one thread: neither a schedule nor a driver takes part.
CPU = ReferenceBackend(REFERENCE.name, "lowering", _processor)
FLOAT64 = ReferenceBackend("float64", "nothing", _float64)
GRAPH = ReferenceBackend("graph", "graph", _graph)
ANOTHER_TARGET = ReferenceBackend("another target", "lowering", _another_target)
# It runs the very same text, which holds the fault already.
OTHER_DRIVER = ReferenceBackend("other driver", "nothing", ReferenceBackends.other_driver)

REFERENCE_BACKENDS: tuple[ReferenceBackend[Any], ...] = (CPU, FLOAT64, GRAPH, ANOTHER_TARGET, OTHER_DRIVER)


def _identity(info: DeviceInfo) -> tuple[str, str]:
    return info.name, info.driver
