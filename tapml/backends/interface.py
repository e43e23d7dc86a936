"""The seam between TapML and whatever executes operators: kernels of ours on a device, PyTorch, another engine.

A backend prepares bodies, holds buffers, and carries out work that was recorded. What it makes of a body is a `Compiled`, which
says which buffers one run of the operator needs, and nothing of how it runs. Handles of buffers are small integers of the
backend's own. Work that was submitted runs in order, each part seeing what the ones before it wrote; `submit` may return before
it is done, and `read_many` waits for it.

Errors are those of `tapml.devices.interface`: DeviceError for one refused request, after which the backend still works;
DeviceLost and ConnectionLost when it is gone, after which only `reopen` and `close` may be called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from tapml.devices.interface import Device, DeviceInfo
from tapml.operators.graph import Body
from tapml.runtime.engine import Compiled as Compiled
from tapml.runtime.engine import Engine
from tapml.targets.parse import TargetChoice
from tapml.targets.target import Target
from tapml.tensors import HostArray, Layout
from tapml.verdicts import Stage

if TYPE_CHECKING:
    from tapml.backends.rewrite import Rewrite


@dataclass(frozen=True)
class Prepared:
    """What preparing one body gave. `compiled` is None unless `status` is "ok"; `stage` and `message` say what failed then (the
    backend may have nothing for it, "absent"), else `message` says what was tried before. `seconds` is what it took, also when it
    came from a cache, or from an equal body (`cached`)."""

    compiled: Compiled | None
    status: Literal["ok", "error", "crash", "absent"]
    stage: Stage | None
    message: str
    seconds: float
    cached: bool = False


@dataclass(frozen=True)
class Way:
    """What is asked of preparing besides the target: `schedules` to be tried instead of the target's own (None: those), and a
    fault to put in by its name (`tapml.compile.mutations`), which only backends with kernels know. `layouts`, by input, are how
    it lies in memory, for backends that keep layouts: the buffer of such an input holds what `Layout.laid_out` gives."""

    schedules: tuple[str, ...] | None = None
    mutation: str | None = None
    layouts: tuple[tuple[int, Layout], ...] = ()


PLAIN = Way()

# Told the operator of a body as soon as it is prepared.
OnPrepared = Callable[[str, Prepared], None]


class Backend(Engine, Protocol):
    """See the module's docstring; `tapml.runtime.engine.Engine` is the part of it that running a model needs. `name` is
    what was asked for, without a token; `key` of `target` is equal where bodies are prepared equally."""

    choice: TargetChoice
    name: str

    @property
    def target(self) -> Target:
        """What the choice means here: the dtypes that values are stored in, and limits."""

    @property
    def info(self) -> DeviceInfo: ...

    @property
    def has_kernels(self) -> bool:
        """Whether what runs are kernels that TapML generated: with a text, launches, schedules, and stages of a compiler of ours
        that can be told apart. What is none of that is one stage, "backend"."""

    @property
    def keeps_layouts(self) -> bool:
        """Whether an input may be handed over as it lies in memory (`Way.layouts`)."""

    @property
    def rewrite(self) -> Rewrite | None:
        """What makes it do something else than it is asked; None for a backend that does as it is told."""

    def body(self, operator: str, body: Body) -> Body:
        """What is really prepared for an operator in place of its body."""

    def weight(self, operator: str, key: str, array: HostArray) -> HostArray:
        """What really goes up for an operator in place of a weight: the very same array, unless it is rewritten."""

    def value(self, graph: str, key: str, array: HostArray) -> HostArray:
        """What really goes up in place of a graph's input or state."""

    def prepare(
        self, bodies: Mapping[str, Body], on_prepared: OnPrepared | None = None, way: Way = PLAIN
    ) -> dict[str, Prepared]:
        """One for each body, by the name of the operator that it is for. Equal bodies may share what comes out. Never raises for
        a body that cannot be prepared."""

    def variant(
        self, operator: str, body: Body, options: Mapping[str, str], way: Way = PLAIN
    ) -> tuple[TargetChoice, Prepared]:
        """The target with other options, such as f16="0", and what an operator is there: it runs on this very device. Of backends
        with kernels only (ValueError)."""

    def converted(
        self, operator: str, body: Body, inputs: Sequence[HostArray], way: Way = PLAIN
    ) -> list[HostArray] | str:
        """What the body gives as the compiler converted it, before it is lowered for any target; or why that could not be run. On
        this machine's processor. Of backends with kernels only (ValueError)."""

    def rest(self) -> None:
        """Ends processes that only preparing needs."""

    def load(self, compiled: Compiled) -> None:
        """Hands it to whatever runs it, and waits for what that says. Raises DeviceError when it is refused."""

    def run_once(
        self, compiled: Compiled, inputs: Sequence[HostArray | int], poison: bool = False, keep: bool = False
    ) -> list[HostArray]:
        """One isolated run, host arrays (or buffers) in, outputs as the backend stores them. With `poison`, outputs and scratch
        hold garbage before. `keep` as in `write`."""

    def doing(self, text: str) -> None:
        """Tells whoever watches the device what goes on."""

    def through(self, wrap: Callable[[Device], Device] | None) -> None:
        """From now on everything runs through the device that `wrap` gives; None: as it is. Where that changes anything, `pool`
        is another one and what lay on the device is gone. A backend without a device stays as it is."""

    def reopen(self) -> None:
        """Anew, after it was lost or ran out of memory: everything that lay on it is gone. Raises as opening does, and
        AnotherDevice where something else came back, which prepares differently."""

    def close(self) -> None:
        """May be called twice."""


class Plain:
    """What is the same for every backend that does as it is told, and has no kernels: to begin one with."""

    choice: TargetChoice
    has_kernels = False
    keeps_layouts = False
    rewrite: Rewrite | None = None

    def body(self, operator: str, body: Body) -> Body:
        return body

    def weight(self, operator: str, key: str, array: HostArray) -> HostArray:
        return array

    def value(self, graph: str, key: str, array: HostArray) -> HostArray:
        return array

    def variant(
        self, operator: str, body: Body, options: Mapping[str, str], way: Way = PLAIN
    ) -> tuple[TargetChoice, Prepared]:
        raise ValueError(f"{self.choice} has no kernels")

    def converted(
        self, operator: str, body: Body, inputs: Sequence[HostArray], way: Way = PLAIN
    ) -> list[HostArray] | str:
        raise ValueError(f"{self.choice} has no kernels")

    def rest(self) -> None:
        pass

    def doing(self, text: str) -> None:
        pass

    def through(self, wrap: Callable[[Device], Device] | None) -> None:
        pass
