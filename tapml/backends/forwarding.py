"""Backends that stand before another one: `Forwarding` hands every call on, which is what decorators of a backend begin with.

    with Workbench(run, Lent(backend)) as bench: ...        the bench closes what it is given, and `backend` stays open
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tapml.backends.interface import PLAIN, Backend, Compiled, OnPrepared, Prepared, Way
from tapml.devices.interface import Device, DeviceInfo, Part
from tapml.errors import UnavailableError
from tapml.operators.graph import Body
from tapml.runtime.buffers import BufferPool
from tapml.targets.parse import TargetChoice
from tapml.targets.target import Target
from tapml.tensors import HostArray

if TYPE_CHECKING:
    from tapml.backends.rewrite import Rewrite


class Forwarding:
    """A backend that is `inner` in everything, and closes it."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.choice = inner.choice
        self.name = inner.name

    @property
    def target(self) -> Target:
        return self.inner.target

    @property
    def info(self) -> DeviceInfo:
        return self.inner.info

    @property
    def has_kernels(self) -> bool:
        return self.inner.has_kernels

    @property
    def keeps_layouts(self) -> bool:
        return self.inner.keeps_layouts

    @property
    def pool(self) -> BufferPool:
        return self.inner.pool

    @property
    def rewrite(self) -> Rewrite | None:
        return self.inner.rewrite

    def body(self, operator: str, body: Body) -> Body:
        return self.inner.body(operator, body)

    def weight(self, operator: str, key: str, array: HostArray) -> HostArray:
        return self.inner.weight(operator, key, array)

    def value(self, graph: str, key: str, array: HostArray) -> HostArray:
        return self.inner.value(graph, key, array)

    def prepare(
        self, bodies: Mapping[str, Body], on_prepared: OnPrepared | None = None, way: Way = PLAIN
    ) -> dict[str, Prepared]:
        return self.inner.prepare(bodies, on_prepared, way)

    def variant(
        self, operator: str, body: Body, options: Mapping[str, str], way: Way = PLAIN
    ) -> tuple[TargetChoice, Prepared]:
        return self.inner.variant(operator, body, options, way)

    def converted(
        self, operator: str, body: Body, inputs: Sequence[HostArray], way: Way = PLAIN
    ) -> list[HostArray] | str:
        return self.inner.converted(operator, body, inputs, way)

    def rest(self) -> None:
        self.inner.rest()

    def load(self, compiled: Compiled) -> None:
        self.inner.load(compiled)

    def record(
        self, compiled: Compiled, inputs: Sequence[int], outputs: Sequence[int], scratch: Sequence[int] | None = None
    ) -> Sequence[Any]:
        return self.inner.record(compiled, inputs, outputs, scratch)

    def submit(self, work: Sequence[Any]) -> None:
        self.inner.submit(work)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        self.inner.write(buffer, data, offset, keep)

    def read_many(self, parts: Sequence[Part]) -> list[bytes]:
        return self.inner.read_many(parts)

    def run_once(
        self, compiled: Compiled, inputs: Sequence[HostArray | int], poison: bool = False, keep: bool = False
    ) -> list[HostArray]:
        return self.inner.run_once(compiled, inputs, poison, keep)

    def doing(self, text: str) -> None:
        self.inner.doing(text)

    def through(self, wrap: Callable[[Device], Device] | None) -> None:
        self.inner.through(wrap)

    def reopen(self) -> None:
        self.inner.reopen()

    def close(self) -> None:
        self.inner.close()


class Lent(Forwarding):
    """Somebody else's backend: closing this leaves it open, and its device as it really is."""

    def close(self) -> None:
        self.inner.rest()
        with suppress(UnavailableError):  # one that was lost holds nothing any more
            self.inner.through(None)
