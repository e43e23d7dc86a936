"""What a client makes of what a hub says, where it takes long or says no: a hub by hand on the other side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from tapml.errors import UnavailableError
from tapml.remote.address import HubAddress
from tapml.remote.channel import Channel
from tapml.remote.client.link import Link
from tapml.remote.client.watching import listing
from tapml.remote.wire import VERSION, Control, control, decode
from tests.remote.ends import INFO
from tests.remote.server import server

BUSY = {
    "name": "phone", "kind": "agent", "system": "a test", "state": "busy", "target": "gpu", "label": "", "doing": "", "note": "",
    "seconds": 1.0, "waiting": 0, "launches_per_s": 0.0, "bytes_per_s": 0.0,
    "offers": {"gpu": {"state": "ready", "info": None, "reason": ""}},
}  # fmt: skip


@contextmanager
def hub(client: Callable[[ServerConnection, bytes], None]) -> Iterator[HubAddress]:
    """Watchers are told that the phone is busy; `client` gets each connection of a client, and its session."""

    def handle(connection: ServerConnection) -> None:
        hello = decode(connection.recv(decode=False))
        assert isinstance(hello, Control)
        connection.send(control("welcome", {"version": VERSION, "name": "me", "heartbeat": 5.0}))
        try:
            if hello.arguments[0]["role"] == "watch":
                connection.send(control("devices", [BUSY]))
                connection.recv()
            else:
                client(connection, hello.arguments[0]["session"])
        except ConnectionClosed:
            return

    with server(handle) as address:
        yield address


def grant(connection: ServerConnection, session: bytes, seconds: float = 0.0) -> None:
    """The device is the client's, and answers after so many seconds."""
    connection.send(control("granted", {"name": "phone", "boot": bytes(16), "info": INFO}))
    connection.recv()  # resume
    time.sleep(seconds)
    connection.send(Channel(session).bare([["resumed"]]))
    connection.recv()  # until it ends


def test_who_waited_longer_than_the_patience_lasts_gets_the_device_all_the_same() -> None:
    def client(connection: ServerConnection, session: bytes) -> None:
        connection.send(control("waiting", "phone is busy"))
        time.sleep(2.5)
        grant(connection, session, 0.5)

    with hub(client) as address:
        link = Link(address, "phone", "gpu", "a test", patience=2.0)
        link.open()
        assert link.name == "phone"
        link.close()


def test_a_hub_that_is_full_is_asked_again() -> None:
    asked: list[bytes] = []

    def refuse(connection: ServerConnection) -> None:
        asked.append(b"")
        connection.recv()
        connection.send(control("refused", "full", "Too many connections wait to be let in."))

    with server(refuse) as address:
        link = Link(address, "phone", "gpu", "a test", patience=1.0)
        with pytest.raises(UnavailableError, match="Too many connections"):
            link.open()
    assert len(asked) > 1


def test_who_gives_up_while_it_connects_gives_the_device_back() -> None:
    """Else nobody could have it until the hub misses the client."""
    said: list[str] = []
    came, leave = threading.Event(), threading.Event()

    def client(connection: ServerConnection, session: bytes) -> None:
        connection.send(control("granted", {"name": "phone", "boot": bytes(16), "info": INFO}))
        while not said or said[-1] != "end":
            message = decode(connection.recv(decode=False))
            said.append(message.name if isinstance(message, Control) else "packet")

    with hub(client) as address:
        link = Link(address, "phone", "gpu", "a test", patience=5.0)

        def open_it() -> None:
            with pytest.raises(ValueError, match="closed"):
                link.open()

        opening = threading.Thread(target=open_it)
        welcomed = Link._reconnect

        def reconnect(self: Link) -> None:
            came.set()
            assert leave.wait(10)
            welcomed(self)

        link._reconnect = reconnect.__get__(link)  # type: ignore[method-assign]
        opening.start()
        assert came.wait(10)
        link.close()
        leave.set()
        opening.join(10)
        until = time.monotonic() + 10
        while not said and time.monotonic() < until:
            time.sleep(0.01)
    assert said == ["end"]


@pytest.mark.parametrize("devices", [[7], [{}], [BUSY | {"offers": []}], [BUSY | {"state": "odd"}], [BUSY | {"seconds": None}]])
def test_a_list_of_devices_that_is_none_is_one_error(devices: list[object]) -> None:
    def handle(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(control("welcome", {"version": VERSION, "name": "me", "heartbeat": 2.0**53 - 1}))
        connection.send(control("devices", devices))
        connection.recv()

    with server(handle) as address, pytest.raises(UnavailableError, match="said nothing of its devices"):
        listing(address)
