"""A session of a device without any network, driven as a client would.

    driver = Driver(NullDevice())
    driver.open()
    driver.post("allocate", 1, 16)               requests that are not answered
    driver.ask("read", 1, 0, 16)                 the value of the answer
    driver.fails("synchronize")                  its error
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from tapml.devices.interface import Device
from tapml.kernels import Kernel
from tapml.remote import wire
from tapml.remote.agent.session import Session
from tapml.remote.agent.store import Store


class Driver:
    """A session, driven as a client would: requests by name, ids counted, everything through the codec both ways."""

    def __init__(self, device: Device | Exception, memory: int | None = None, store: Store | None = None) -> None:
        self.device = device
        self.asked: list[tuple[str, str | None, float | None]] = []
        self.session = Session(self._open, Store(2**24) if store is None else store, memory)
        self._id = 1

    def _open(self, target: str, device: str | None, deadline: float | None) -> Device:
        self.asked.append((target, device, deadline))
        if isinstance(self.device, Exception):
            raise self.device
        return self.device

    def tell(self, name: str, *arguments: Any) -> Any:
        return through(self.session, [name, *arguments])

    def post(self, name: str, *arguments: Any) -> None:
        assert self.tell(name, *arguments) is None

    def ask(self, name: str, *arguments: Any) -> Any:
        """The value of the answer; AssertionError with the error otherwise."""
        kind, number, *rest = self.tell(name, self._next(), *arguments)
        assert number == self._id
        assert kind == "ok", rest
        return rest[0]

    def fails(self, name: str, *arguments: Any) -> tuple[str, str, str]:
        """Kind, stage and text of the error."""
        kind, number, *rest = self.tell(name, self._next(), *arguments)
        assert (kind, number) == ("error", self._id)
        return rest[0], rest[1], rest[2]

    def open(self, **wish: Any) -> Any:
        return self.ask("open", {"target": "null", "device": None, "deadline": None} | wish)

    def keep(self, data: bytes) -> bytes:
        digest = hashlib.sha256(data).digest()
        for offset in range(0, max(1, len(data)), wire.PIECE):
            self.post("keep", digest, len(data), offset, data[offset : offset + wire.PIECE])
        return digest

    def load(self, number: int, kernel: Kernel) -> None:
        self.post("load", number, self.keep(json.dumps(kernel.to_json()).encode()))

    def _next(self) -> int:
        self._id += 1
        return self._id


def through(session: Session, item: Sequence[Any]) -> Any:
    """Packed, unpacked, carried out, and the same for the answer: nothing that is not on the wire's terms gets by."""
    packet = wire.decode(wire.packet(bytes(16), 1, 0, [item]))
    assert isinstance(packet, wire.Packet)
    answer = session.carry_out(packet.items[0])
    if answer is None:
        return None
    back = wire.decode(wire.packet(bytes(16), 1, 0, [answer]))
    assert isinstance(back, wire.Packet)
    return back.items[0]
