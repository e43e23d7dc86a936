"""One WebSocket to a hub: a real server of the library on the other side, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.sync.server import ServerConnection

from tapml.remote.address import HubAddress
from tapml.remote.connection import Broken, Connection, Refused, Unreachable
from tapml.remote.wire import MESSAGE_LIMIT, Control, control, decode, packet
from tests.devices.ctrl_c import ctrl_c
from tests.remote.server import server

HELLO = {"version": 1, "role": "client", "session": bytes(16), "device": "any", "target": "cpu", "label": "a test"}
SESSION = bytes(16)


@contextmanager
def by_hand(handle: Callable[[socket.socket, ServerProtocol], None]) -> Iterator[HubAddress]:
    """A server of one connection; its `handle` is called when the answer to the handshake waits to be sent."""

    def run() -> None:
        taken, _ = listening.accept()
        protocol = ServerProtocol(max_size=MESSAGE_LIMIT)
        with taken:
            while not (requests := protocol.events_received()):
                protocol.receive_data(taken.recv(10_000))
            assert isinstance(requests[0], Request)
            protocol.send_response(protocol.accept(requests[0]))
            handle(taken, protocol)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
        threading.Thread(target=run, daemon=True).start()
        yield HubAddress("http", "127.0.0.1", listening.getsockname()[1], token="secret")


def greet(connection: ServerConnection, heartbeat: float = 5.0) -> dict[str, object]:
    hello = decode(connection.recv(decode=False))
    assert isinstance(hello, Control)
    connection.send(control("welcome", {"version": 1, "name": "me", "heartbeat": heartbeat}))
    said: dict[str, object] = hello.arguments[0]
    return said


def test_hello_carries_the_token_and_messages_go_both_ways() -> None:
    hellos = []

    def echo(connection: ServerConnection) -> None:
        hellos.append(greet(connection))
        for data in connection:
            connection.send(data)

    sizes = (0, 1, 1000, 2**16, 2**20)
    with server(echo) as address:
        connection = Connection.open(address, HELLO)
        for size in sizes:
            data = packet(SESSION, 1, 0, [["write", 1, 0, bytes([size % 251]) * size]])
            connection.send(data)
            assert connection.receive() == data
        connection.close()
    assert hellos == [{**HELLO, "token": "secret"}]
    assert connection.welcome["name"] == "me"


def test_pings_are_answered_and_not_handed_on() -> None:
    answers = []

    def ping(connection: ServerConnection) -> None:
        greet(connection)
        connection.send(control("ping", 17))
        answers.append(decode(connection.recv(decode=False)))
        connection.send(control("away", "gone"))

    with server(ping) as address:
        connection = Connection.open(address, HELLO)
        assert decode(connection.receive()) == Control("away", ("gone",))
        connection.close()
    assert answers == [Control("pong", (17,))]


def test_a_silent_hub_is_taken_for_dead() -> None:
    leave = threading.Event()

    def silent(connection: ServerConnection) -> None:
        greet(connection, heartbeat=0.1)
        leave.wait(10)

    with server(silent) as address:
        connection = Connection.open(address, HELLO)
        with pytest.raises(Broken, match="nothing was heard"):
            connection.receive()
        connection.close()
        leave.set()


def test_closing_wakes_the_one_who_reads() -> None:
    leave = threading.Event()
    found: list[Exception] = []

    def silent(connection: ServerConnection) -> None:
        greet(connection)
        leave.wait(10)

    with server(silent) as address:
        connection = Connection.open(address, HELLO)

        def read() -> None:
            try:
                connection.receive()
            except Broken as error:
                found.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.05)
        connection.close()
        reader.join(10)
        leave.set()
        with pytest.raises(Broken):
            connection.send(b"x")
    assert len(found) == 1


def test_a_message_that_was_interrupted_is_ended_before_the_next() -> None:
    """Ctrl-C comes while much is being sent, and what is said then must not be taken for the rest of it."""
    read = threading.Event()
    came: list[bytes] = []

    def slow(connection: ServerConnection) -> None:
        greet(connection)
        assert read.wait(30)
        while not came or came[-1] != control("end"):
            came.append(connection.recv(decode=False))

    big = packet(SESSION, 1, 0, [["write", 1, 0, bytes(2**20)]])
    with server(slow) as address:
        connection = Connection.open(address, HELLO)
        with pytest.raises(KeyboardInterrupt), ctrl_c(1.0):
            for _ in range(1000):
                connection.send(big)
        read.set()
        connection.leave([control("end")], 10.0)
    assert len(came) > 1 and set(came[:-1]) == {big} and came[-1] == control("end")


def test_what_a_slow_link_takes_is_a_sign_of_life() -> None:
    """One message takes five times as long as the silence after which a connection is dead, and nothing is read meanwhile."""
    big = packet(SESSION, 1, 0, [["write", 1, 0, bytes(2**20)]])

    def slow(taken: socket.socket, protocol: ServerProtocol) -> None:
        taken.sendall(b"".join(protocol.data_to_send()))
        while not protocol.events_received():
            protocol.receive_data(taken.recv(10_000))
        protocol.send_binary(control("welcome", {"version": 1, "name": "me", "heartbeat": 0.2}))
        left = len(big)
        while left > 0:
            protocol.send_binary(control("ping", 1))
            taken.sendall(b"".join(protocol.data_to_send()))
            left -= len(taken.recv(2**15))
            time.sleep(0.1)
        protocol.send_binary(control("away", "all of it came"))
        taken.sendall(b"".join(protocol.data_to_send()))
        taken.recv(10_000)

    with by_hand(slow) as address:
        connection = Connection.open(address, HELLO)
        connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**15)
        begun = time.monotonic()
        connection.send(big)
        assert time.monotonic() - begun > 2.0
        assert decode(connection.receive()) == Control("away", ("all of it came",))
        connection.close()


def test_a_refusal_has_its_code() -> None:
    def refuse(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(control("refused", "token", "The token is wrong."))

    with server(refuse) as address, pytest.raises(Refused, match="token is wrong") as caught:
        Connection.open(address, HELLO)
    assert caught.value.code == "token"


def test_nobody_there() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    with pytest.raises(Unreachable, match="refused"):
        Connection.open(HubAddress("http", "127.0.0.1", port, token="x"), HELLO)


def test_something_else_is_there() -> None:
    def other(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(control("away", "I am no hub"))

    with server(other) as address, pytest.raises(Unreachable, match="not a TapML hub"):
        Connection.open(address, HELLO)


def test_what_is_said_before_the_hello_is_heard_though_the_connection_is_closed() -> None:
    def refuse(taken: socket.socket, protocol: ServerProtocol) -> None:
        protocol.send_binary(control("refused", "full", "Too many are here."))
        protocol.send_close(1013)
        taken.sendall(b"".join(protocol.data_to_send()))
        taken.recv(10_000)

    with by_hand(refuse) as address, pytest.raises(Refused, match="Too many are here"):
        Connection.open(address, HELLO)


def test_no_websocket_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def answer() -> None:
            taken, _ = listening.accept()
            taken.recv(1000)
            taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            taken.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(Unreachable):
            Connection.open(HubAddress("http", "127.0.0.1", listening.getsockname()[1], token="x"), HELLO)


def test_a_server_that_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(Unreachable, match="nothing was heard"):
        Connection.open(HubAddress("http", "127.0.0.1", listening.getsockname()[1], token="x"), HELLO, timeout=0.3)
