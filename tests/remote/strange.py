"""A device that says what it likes, at the other end of a real client: no network, and a clock that jumps instead of waiting.

    with strange(tamper) as make:                    `tamper(messages) -> messages`, for each list of packets that goes back
        device = make()                              a RemoteDevice, its link real, its connection in memory
        device.read(…)

The session behind it is a real one over a device that computes nothing. What the hub between the two would not pass on (what does
not begin as a session message) gets lost here too. When the client waits and nothing is left to come, an hour passes at once.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tapml.devices.null import NullDevice
from tapml.remote import wire
from tapml.remote.address import RemoteName
from tapml.remote.agent.session import Session
from tapml.remote.agent.store import Store
from tapml.remote.channel import Channel
from tapml.remote.client import link as links
from tapml.remote.client.client import RemoteDevice
from tapml.remote.connection import Broken
from tapml.targets.parse import parse
from tests.remote.ends import INFO

Tamper = Callable[[list[bytes]], Sequence[bytes]]

NAME = "odd"


class Clock:
    """What `time` is to the link. `step`: seconds that pass with each message that comes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.step = 0.0

    def monotonic(self) -> float:
        return self.now


class StrangeConnection:
    """What `Connection` is to the link: a hub that grants the device at once, and the device."""

    def __init__(self, hello: dict[str, Any], tamper: Tamper, clock: Clock) -> None:
        self.device = Channel(hello["session"])
        self.session = Session(lambda *_: NullDevice(), Store(2**22))
        self.clock = clock
        self.link: links.Link | None = None
        self.closed = False
        self._tamper = tamper
        self._lock = threading.Lock()
        granted = {"name": NAME, "boot": bytes(16), "info": INFO}
        self._coming: deque[bytes] = deque([wire.control("granted", granted)])

    def send(self, data: bytes) -> None:
        message = wire.decode(data)
        if not isinstance(message, wire.Packet):
            return
        answers: list[list[Any]] = []
        back: list[bytes] = []
        for item in self.device.take(message):
            if item[0] == "resume":
                back.append(self.device.bare([["resumed"]]))
            elif item[0] == "resend":
                back += self.device.unacknowledged()
            elif item[0] != "cancel":
                answer = self.session.carry_out(item)
                answers += [] if answer is None else [answer]
        self.device.done(message)
        if answers:
            back.append(self.device.pack(answers))
        if back:
            with self._lock:
                self._coming += [m for m in self._tamper(back) if wire.is_session(m) and len(m) <= wire.MESSAGE_LIMIT]

    def receive(self) -> bytes:
        with self._lock:
            data = self._coming.popleft() if self._coming and not self.closed else None
        passed = 3600.0 if data is None else self.clock.step
        if passed and self.link is not None and not self.closed:
            self.clock.now += passed
            self.link._watch()
        if data is not None and not self.closed:
            return data
        raise Broken("nothing comes any more")

    def leave(self, messages: Sequence[bytes], seconds: float) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True
        self.session.end()


@contextmanager
def strange(tamper: Tamper, clock: Clock | None = None) -> Iterator[Callable[[], RemoteDevice]]:
    """See the module's docstring."""
    clock = clock or Clock()
    made: list[links.Link] = []

    class Linked(links.Link):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    def connect(address: Any, hello: dict[str, Any], timeout: float) -> StrangeConnection:
        connection = StrangeConnection(hello, tamper, clock)
        connection.link = made[-1]
        return connection

    def make() -> RemoteDevice:
        return RemoteDevice(RemoteName.parse(f"{NAME}@http://127.0.0.1:1/?token=x"), parse("cpu"), 10.0)

    with (
        mock.patch.object(links, "time", SimpleNamespace(monotonic=clock.monotonic)),
        mock.patch.object(links, "Connection", SimpleNamespace(open=connect)),
        mock.patch("tapml.remote.client.client.Link", Linked),
    ):
        try:
            yield make
        finally:
            for link in made:
                link.close()


def items_of(data: bytes) -> list[Any]:
    """The body of a packet, [session, seq, ack, items], as plain lists that may be changed."""
    message = wire.decode(data)
    assert isinstance(message, wire.Packet)
    return [message.session, message.seq, message.ack, message.items]


def work(device: RemoteDevice) -> list[bytes]:
    """One of everything that a client asks of a device; what was read."""
    x, y = device.allocate(64), device.allocate(64)
    device.write(x, os.urandom(64))
    parts = [(x, 64, 0), (y, 16, 4), (x, 0, 0)]
    first = device.read_many(parts)
    assert [len(data) for data in first] == [nbytes for _, nbytes, _ in parts]
    device.synchronize()
    large = device.allocate(2**22)
    first.append(device.read(large, 1000, 24))
    device.free(large)
    device.synchronize()
    return first
