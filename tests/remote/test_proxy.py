"""The bad network does what it says: otherwise the tests that rely on it prove nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.remote.proxy import Proxy


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back whatever it gets."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(2**16):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listening.getsockname()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def connected(link: Proxy) -> socket.socket:
    return socket.create_connection(link.address, timeout=10)


def exactly(connection: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        got = connection.recv(nbytes - len(data))
        assert got, "closed"
        data += got
    return data


def test_it_passes_everything_and_counts_it(echo: tuple[str, int]) -> None:
    data = bytes(range(256)) * 2000
    with Proxy(echo) as link, connected(link) as one:
        sender = threading.Thread(target=one.sendall, args=(data,))
        sender.start()
        assert exactly(one, len(data)) == data
        sender.join()
        assert (link.up, link.down) == (len(data), len(data))
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""


def test_a_dropped_connection_ends_by_reset_or_by_fin(echo: tuple[str, int]) -> None:
    with Proxy(echo) as link:
        for reset in (True, False):
            with connected(link) as one:
                one.sendall(b"x")
                assert exactly(one, 1) == b"x"
                assert link.drop(reset) == 1
                if reset:
                    with pytest.raises(ConnectionResetError):
                        one.recv(1)
                else:
                    assert one.recv(1) == b""
        assert link.dropped == 2


def test_it_drops_so_many_times_after_so_many_bytes(echo: tuple[str, int]) -> None:
    endings = []
    with Proxy(echo) as link:
        link.drop_often(4, 40_000)
        while link.drops_left:
            with connected(link) as one:
                try:
                    while True:
                        one.sendall(bytes(1000))
                        if not one.recv(1000):
                            endings.append("fin")
                            break
                except OSError:
                    endings.append("rst")
        with connected(link) as one:
            one.sendall(bytes(200_000))
            exactly(one, 200_000)
    assert endings == ["rst", "fin", "rst", "fin"]


def test_latency_and_bandwidth(echo: tuple[str, int]) -> None:
    with Proxy(echo, latency=0.05, bandwidth=1e6) as link, connected(link) as one:
        start = time.monotonic()
        one.sendall(b"x")
        exactly(one, 1)
        assert time.monotonic() - start >= 0.1
        start = time.monotonic()
        threading.Thread(target=one.sendall, args=(bytes(300_000),)).start()
        exactly(one, 300_000)
        # Beyond the burst that passes at once, 300 kB at 1 MB/s: both directions at the same time, as of a real line.
        assert time.monotonic() - start >= 0.36


def test_silence_tells_nobody_and_holds_what_was_sent(echo: tuple[str, int]) -> None:
    with Proxy(echo) as link, connected(link) as one:
        one.sendall(b"x")
        exactly(one, 1)
        assert link.silence() == 1
        one.sendall(b"held")
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.recv(1)
        with connected(link) as other:
            other.sendall(b"y")
            assert exactly(other, 1) == b"y"
        link.restore()
        one.settimeout(10)
        assert exactly(one, 4) == b"held"


def test_new_connections_can_be_silent_too(echo: tuple[str, int]) -> None:
    with Proxy(echo) as link:
        link.silence(new=True)
        with connected(link) as one:
            one.settimeout(0.3)
            one.sendall(b"x")
            with pytest.raises(TimeoutError):
                one.recv(1)


def test_it_refuses_for_a_while(echo: tuple[str, int]) -> None:
    with Proxy(echo) as link, connected(link) as one:
        one.sendall(b"x")
        exactly(one, 1)
        link.refuse(0.3)
        with pytest.raises(ConnectionRefusedError):
            connected(link)
        one.sendall(b"y")
        assert exactly(one, 1) == b"y"
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                connected(link).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        else:
            pytest.fail("it did not listen again")


def test_a_hub_that_is_not_there_is_a_reset(echo: tuple[str, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()
    with Proxy(nobody) as link, pytest.raises(ConnectionResetError), connected(link) as one:
        one.recv(1)
