"""Ends of connections to a hub, as small as they can be: they say hello, and then what a test has them say.

    with client(hub.url, target="gpu") as one, device(hub.url, "phone") as other:
        granted = one.wait("granted")        the argument of the next message of that name; others are passed over
        one.send(packet(one.session, 1, 0, [["synchronize", 1]]))
        other.packet()                       the next packet, as bytes
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tapml.remote.address import HubAddress
from tapml.remote.connection import Broken, Connection
from tapml.remote.wire import Control, control, decode, is_session

INFO = {"platform": "p", "name": "a GPU", "driver": "d", "software": True, "limits": {"max_buffer_bytes": 4096}, "features": []}
GPU = {"gpu": {"state": "ready", "info": INFO, "reason": ""}}
IDLE = {"state": "idle", "launches": 0, "received": 0, "sent": 0, "stored": 0, "note": ""}


class End:
    """One connection, its hello done. `session` is a client's, `boot` a device's."""

    def __init__(self, url: str, hello: dict[str, Any]) -> None:
        self.session, self.boot = hello.get("session"), hello.get("boot")
        self.connection = Connection.open(HubAddress.parse(url), {"version": 1, **hello})

    @property
    def name(self) -> str:
        return str(self.connection.welcome["name"])

    def send(self, data: bytes) -> None:
        self.connection.send(data)

    def tell(self, name: str, *arguments: Any) -> None:
        self.send(control(name, *arguments))

    def next(self) -> Control:
        """The next message of the hub that is no ping."""
        while True:
            data = self.connection.receive()
            if not is_session(data):
                message = decode(data)
                assert isinstance(message, Control)
                return message

    def wait(self, name: str) -> Any:
        while True:
            message = self.next()
            if message.name == name:
                return message.arguments[0] if len(message.arguments) == 1 else message.arguments

    def packet(self) -> bytes:
        while True:
            data = self.connection.receive()
            if is_session(data):
                return data

    def told(self) -> list[str]:
        """The names of the messages until the hub closes the connection."""
        names = []
        try:
            while True:
                names.append(self.next().name)
        except Broken:
            return names


@contextmanager
def end(url: str, **hello: Any) -> Iterator[End]:
    made = End(url, hello)
    try:
        yield made
    finally:
        made.connection.close()


def client_hello(device: str = "any", target: str = "gpu", label: str = "work", session: bytes | None = None) -> dict[str, Any]:
    return {"role": "client", "session": session or os.urandom(16), "device": device, "target": target, "label": label}


def device_hello(
    name: str, boot: bytes | None = None, offers: dict[str, Any] | None = None, session: bytes | None = None
) -> dict[str, Any]:
    return {
        "role": "device", "name": name, "boot": boot or os.urandom(16), "kind": "agent", "system": "a test",
        "offers": GPU if offers is None else offers, "session": session,
    }  # fmt: skip


def client(url: str, *arguments: Any, **keywords: Any) -> Any:
    """A context manager that gives an End."""
    return end(url, **client_hello(*arguments, **keywords))


def device(url: str, *arguments: Any, **keywords: Any) -> Any:
    """A context manager that gives an End."""
    return end(url, **device_hello(*arguments, **keywords))


def watcher(url: str) -> Any:
    """A context manager that gives an End."""
    return end(url, role="watch")
