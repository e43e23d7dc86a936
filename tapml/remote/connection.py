"""One WebSocket to a hub, with its hello done: what clients and agents stand on.

    connection = Connection.open(address, hello, timeout=10.0)
    connection.welcome                       what the hub said: name, heartbeat, …
    connection.send(data)                    from any thread
    data = connection.receive()              from one thread; the hub's pings are answered in there
    connection.close()                       from any thread; `receive` then raises Broken
    connection.leave([data, …], 2.0)         sends, and closes when the other side has taken it, or is that late

A thread that is interrupted in the middle of a message leaves the rest of it to the next that sends.

The WebSocket protocol is the library's, the socket is driven here: a message is read by the very thread that wants it, with no
thread in between, since changing threads is most of a round trip on one machine. The socket does not block, and every call on it
is made under one lock, since a TLS connection must not be read and written at the same time.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from tapml.errors import UnavailableError
from tapml.remote.address import HubAddress
from tapml.remote.wire import MESSAGE_LIMIT, Control, WireError, control, decode, is_session

# Codes of a refusal that the hub may think otherwise about after a while.
PASSING = frozenset({"busy", "full", "size", "protocol"})

# A side that has heard nothing for so many heartbeats takes the connection for dead.
SILENT_HEARTBEATS = 3
LONGEST_HEARTBEAT = 3600.0
READ_BYTES = 2**18
# What the system may hold that it has not sent: more would hide for long that a slow link takes nothing, or a goodbye.
WRITE_BYTES = 2**16


class Unreachable(UnavailableError):
    """Nothing answers at the hub's address, or what answers is no hub. Trying again may help."""


class Refused(UnavailableError):
    """The hub said no, and why. Trying again the same way does not help. `code` is one of docs/wire.md."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Broken(Exception):
    """The connection is gone: closed by the other side, silent for too long, or cut."""


class Connection:
    """See the module's docstring. Made by `open`."""

    def __init__(self, plain: socket.socket, address: HubAddress, context: ssl.SSLContext | None, until: float) -> None:
        self.welcome: dict[str, Any] = {}
        self._silence = max(0.1, until - time.monotonic())
        self._heard = self._sent = time.monotonic()
        self._protocol = ClientProtocol(parse_uri(address.websocket), max_size=MESSAGE_LIMIT)
        self._arrived: deque[bytes] = deque()
        self._fragments: list[bytes] = []
        self._closed = False
        self._rest = memoryview(b"")
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WRITE_BYTES)
        plain.settimeout(self._silence)
        self._socket: socket.socket = (
            plain if context is None else context.wrap_socket(plain, server_hostname=address.host)
        )
        self._socket.setblocking(False)

    @staticmethod
    def open(address: HubAddress, hello: dict[str, Any], timeout: float = 10.0) -> Connection:
        """Connects and says hello; `hello` is the map of docs/wire.md, to which the token is added. Raises Unreachable, Refused,
        and UnavailableError for a certificate that is not to be trusted."""
        until = time.monotonic() + timeout
        connection: Connection | None = None
        credentials = {"token": address.token} if address.token else {"pair": address.pair}
        try:
            context = address.context(timeout)
            plain = socket.create_connection((address.host, address.port), max(0.1, until - time.monotonic()))
            try:
                connection = Connection(plain, address, context, until)
            except BaseException:
                plain.close()
                raise
            connection._shake_hands()
            with suppress(Broken):  # it may have said no before it heard anything: what it said is read below
                connection.send(control("hello", {**hello, **credentials}))
            connection._greet(decode(connection.receive()))
        except ssl.SSLCertVerificationError as error:
            raise UnavailableError(
                f"The certificate of the hub at {address.redacted} is not trusted: {error.verify_message}. Use the whole address "
                "that tapml hub prints: its token ends with the fingerprint of a certificate that the hub made itself."
            ) from error
        except (OSError, Broken, WebSocketException, WireError) as error:
            if connection is not None:
                connection.close()
            why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise Unreachable(
                f"The hub at {address.redacted} cannot be reached: {why}. Is tapml hub running there, and reachable from here?"
            ) from error
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        return connection

    def _shake_hands(self) -> None:
        with self._lock:
            self._protocol.send_request(self._protocol.connect())
            request = b"".join(self._protocol.data_to_send())
        self._write(request)
        while self._protocol.handshake_exc is None and self._protocol.state.name == "CONNECTING":
            self._read()
        if self._protocol.handshake_exc is not None:
            raise self._protocol.handshake_exc

    def _greet(self, answer: Any) -> None:
        if not isinstance(answer, Control) or answer.name not in ("welcome", "refused"):
            raise Broken("the server there is not a TapML hub")
        if answer.name == "refused":
            code, text = answer.arguments
            raise Refused(code, text)
        self.welcome = answer.arguments[0]
        self._silence = SILENT_HEARTBEATS * min(max(0.1, self.welcome["heartbeat"]), LONGEST_HEARTBEAT)

    def send(self, data: bytes) -> None:
        """Sends one message; waits while the other side takes nothing. Raises Broken."""
        with self._sending:
            with self._lock:
                if self._closed:
                    raise Broken("the connection is closed")
                try:
                    self._protocol.send_binary(data)
                except WebSocketException as error:
                    raise Broken(f"the connection is closed ({error})") from error
                self._owe(*self._protocol.data_to_send())
            self._write_rest()

    def receive(self) -> bytes:
        """The next message that is no ping. Raises Broken."""
        while True:
            while self._arrived:
                data = self._arrived.popleft()
                number = _pinged(data)
                if number is None:
                    return data
                self.send(control("pong", number))
            self._read()

    def close(self) -> None:
        """Says goodbye if that is possible at once. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._protocol.state.name == "OPEN" and not self._rest:
                with suppress(OSError, WebSocketException):  # it was gone already, or takes nothing
                    self._protocol.send_close(1000)
                    self._socket.send(b"".join(self._protocol.data_to_send()))
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
            self._socket.close()

    def leave(self, messages: Sequence[bytes], seconds: float) -> None:
        """Says these last things, and closes when the other side has closed, or after so many seconds: a socket that is closed
        with something unread throws away what has not left yet."""
        self._silence = min(self._silence, seconds)
        until = time.monotonic() + seconds
        with suppress(Broken):
            for message in messages:
                self.send(message)
            while time.monotonic() < until:
                self._arrived.clear()
                self._read()
        self.close()

    def _write(self, data: bytes) -> None:
        with self._sending:
            self._owe(data)
            self._write_rest()

    def _owe(self, *parts: bytes) -> None:
        """To be written after what an interrupted thread left."""
        self._rest = memoryview(parts[0] if len(parts) == 1 and not self._rest else b"".join((self._rest, *parts)))

    def _write_rest(self) -> None:
        self._sent = time.monotonic()
        while self._rest:
            try:
                with self._lock:
                    if self._closed:
                        raise Broken("the connection is closed")
                    self._rest = self._rest[self._socket.send(self._rest[:WRITE_BYTES]) :]
                self._sent = time.monotonic()
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                # A hub that holds this end up, since the other end is slow, is still heard.
                self._wait(select.POLLOUT, lambda: max(self._sent, self._heard), "nothing can be sent")
            except OSError as error:
                self._break(error)

    def _read(self) -> None:
        """Waits for more from the socket, and keeps the messages that are whole."""
        while True:
            try:
                with self._lock:
                    if self._closed:
                        raise Broken("the connection is closed")
                    data = self._socket.recv(READ_BYTES)
                break
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._wait(select.POLLIN, lambda: self._heard, "nothing was heard")
            except OSError as error:
                self._break(error)
        self._heard = time.monotonic()
        with self._lock:
            if data:
                self._protocol.receive_data(data)
            else:
                self._protocol.receive_eof()
            events = self._protocol.events_received()
            answer = b"".join(self._protocol.data_to_send())
        for event in events:
            if not isinstance(event, Response):
                self._keep(event)
        if answer:
            self._write(answer)
        if not data and not self._arrived:
            reason = getattr(self._protocol, "close_reason", None)
            raise Broken(f"the other side closed the connection{f' ({reason})' if reason else ''}")

    def _keep(self, event: Any) -> None:
        if not isinstance(event, Frame) or event.opcode not in (Opcode.BINARY, Opcode.CONT):
            return
        self._fragments.append(bytes(event.data))
        if event.fin:
            self._arrived.append(self._fragments[0] if len(self._fragments) == 1 else b"".join(self._fragments))
            self._fragments.clear()

    def _wait(self, event: int, since: Callable[[], float], what: str) -> None:
        """Until the socket is ready, or the silence since the last sign of life is too long."""
        poll = select.poll()
        with self._lock:
            if self._closed:
                raise Broken("the connection is closed")
            poll.register(self._socket.fileno(), event)
        while True:
            left = since() + self._silence - time.monotonic()
            if poll.poll(1000 * max(0.0, left)):
                return
            if left <= 0:
                raise Broken(f"{what} for {self._silence:.0f} s")

    def _break(self, error: OSError) -> NoReturn:
        raise Broken((error.strerror or str(error)).lower()) from error


def _pinged(data: bytes) -> int | None:
    """The number of the hub's ping; None for any other message."""
    if is_session(data):
        return None
    try:
        message = decode(data)
    except WireError:
        return None  # the owner decodes it too, and closes
    return message.arguments[0] if isinstance(message, Control) and message.name == "ping" else None
