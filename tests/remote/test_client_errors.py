"""Errors of what a client did not wait for, and for how long it waits: over a session in this process, without any network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tapml.devices.cpu import CpuDevice
from tapml.devices.faulty import Fault, FaultyDevice
from tapml.devices.interface import Launch
from tapml.errors import DeviceError, OutOfMemory
from tapml.remote.address import RemoteName
from tapml.remote.agent.session import Session
from tapml.remote.agent.store import Store
from tapml.remote.client import client as clients
from tapml.remote.client.client import GRACE_SECONDS, LOADS_TOGETHER, WAITING_ALLOCATE, RemoteDevice
from tapml.remote.client.link import Traffic
from tapml.runtime.buffers import BufferPool
from tapml.targets.parse import parse
from tests.devices import kernels
from tests.devices.kernels import COUNT, NBYTES
from tests.remote.driver import through

ONES = np.ones(COUNT, np.float32).tobytes()


class NoLink:
    """What `Link` is to a `RemoteDevice`, with the session at its other end at once. `packets` are the names of the requests,
    `limits` what was said with each packet and wait."""

    def __init__(self, session: Session) -> None:
        self.name = "near"
        self.traffic = Traffic()
        self.packets: list[list[str]] = []
        self.limits: list[float | None] = []
        self.label = ""
        self._session = session
        self._answers: dict[int, list[Any]] = {}

    def open(self) -> None: ...

    def check(self) -> None: ...

    def send(self, items: Sequence[Sequence[Any]], limit: float | None = None) -> None:
        self.packets.append([str(item[0]) for item in items])
        self.limits.append(limit)
        for item in items:
            answer = through(self._session, item)
            if answer is not None:
                self._answers[answer[1]] = answer

    def wait(self, ids: Sequence[int], limit: float | None = None) -> list[list[Any]]:
        self.limits.append(limit)
        return [self._answers.pop(number) for number in ids]

    def close(self, last: Sequence[Sequence[Any]] = ()) -> None:
        self._session.end()


Near = Callable[..., tuple[RemoteDevice, NoLink]]


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> Near:
    def make(*faults: Fault, memory: int | None = None) -> tuple[RemoteDevice, NoLink]:
        link = NoLink(Session(lambda *_: FaultyDevice(CpuDevice(), faults), Store(2**24), memory))

        def linked(*arguments: Any) -> NoLink:
            link.label = arguments[3]
            return link

        monkeypatch.setattr(clients, "Link", linked)
        return RemoteDevice(RemoteName.parse("near@http://127.0.0.1:1/?token=x"), parse("cpu"), 10.0), link

    return make


def test_a_write_without_room_is_not_taken_for_an_allocation_without_room(near: Near) -> None:
    """Else a pool would make room, try again, and nobody would hear that the write was not carried out."""
    device, _ = near(Fault("memory", "write", nth=1))
    pool = BufferPool(device)
    pool.release(pool.allocate(2**20))
    small = pool.allocate(NBYTES)
    device.write(small, ONES)
    pool.allocate(WAITING_ALLOCATE)
    with pytest.raises(OutOfMemory):
        device.read(small, 4)
    device.write(small, ONES)
    assert device.read(small, NBYTES) == ONES, "it is told once"


def test_an_allocation_without_room_is_told_at_once_and_after_what_came_before(near: Near) -> None:
    device, _ = near(Fault("refuse", "write", nth=1), memory=2 * WAITING_ALLOCATE)
    small = device.allocate(NBYTES)
    device.write(small, ONES)
    with pytest.raises(OutOfMemory, match="--memory"):
        device.allocate(2 * WAITING_ALLOCATE)
    with pytest.raises(DeviceError) as caught:
        device.synchronize()
    assert not isinstance(caught.value, OutOfMemory)
    device.allocate(WAITING_ALLOCATE)
    device.synchronize()


def test_an_error_is_told_once_though_the_read_that_tells_it_fails_too(near: Near) -> None:
    """And it is the older one that is told: the other may be its consequence."""
    device, _ = near(Fault("refuse", "load", entry="bad"), Fault("refuse", "read", nth=1))
    x, y = device.allocate(NBYTES), device.allocate(NBYTES)
    bad, good = device.load(kernels.elementwise("c", "x[i]", "bad")), device.load(kernels.PLUS_ONE)
    device.allocate(WAITING_ALLOCATE)
    device.run([Launch(good, (x, y))])
    with pytest.raises(DeviceError) as caught:
        device.read(y, 4)
    assert caught.value.stage == "driver"
    device.write(x, ONES)
    device.run([Launch(good, (x, y))])
    assert device.read(y, NBYTES) == np.full(COUNT, 2, np.float32).tobytes()
    device.unload(bad)


def test_kernels_that_are_loaded_together_have_the_time_for_it(near: Near) -> None:
    """Nothing is heard of a packet before all of it is done, and each kernel may take as long as any request."""
    device, link = near()
    assert device._limit() == 10.0 + GRACE_SECONDS
    for number in range(3 * LOADS_TOGETHER + 2):
        device.load(kernels.elementwise("c", f"x[i] + {number}", f"k{number}"))
    assert max(packet.count("load") for packet in link.packets) == LOADS_TOGETHER
    assert link.limits[-1] == 10.0 * (1 + LOADS_TOGETHER) + GRACE_SECONDS
    device.synchronize()
    assert link.limits[-1] == 10.0 * (1 + LOADS_TOGETHER) + GRACE_SECONDS
    device.synchronize()
    assert link.limits[-1] == 10.0 + GRACE_SECONDS


def test_a_label_is_fit_to_be_sent(near: Near, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tapml", "test", "caf\udce9" + "x" * 500])
    _, link = near()
    assert link.label.startswith("tapml test caf?xxx") and len(link.label) == 200
