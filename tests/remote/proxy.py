"""A bad network on purpose: a TCP proxy between an end and the hub, which breaks, delays, narrows and silences what passes.

    with Proxy(("127.0.0.1", 8765)) as link:
        connect to link.address
        link.drop(reset=True)                   every connection ends now, with RST; reset=False: with FIN, wherever the bytes are
        link.drop_often(200, nbytes=50_000)     200 times, after as many bytes each; with RST and FIN in turn
        link.silence()                          half-open: nothing passes any more, nobody is told; `restore` lets it pass again
        link.refuse(2.0)                        for so many seconds nobody listens

    Proxy(address, latency=0.2, bandwidth=1e6)  seconds one way, and bytes a second each way, by a token bucket; `slow` sets
                                                the same later

Runs an asyncio loop in a thread of its own; every method may be called from any thread. It knows nothing about what it passes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

CHUNK = 2**14
BURST = 2**15
# Bytes on the way in one direction of one connection, beside what latency and bandwidth account for.
BUFFER = 2**18
LINGER_SECONDS = 2.0


class TokenBucket:
    """`rate` bytes a second, at most `burst` at once. Takers may go into debt and wait until it is paid, so they are served in
    the order in which they came."""

    def __init__(self, rate: float, burst: int = BURST) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._then = time.monotonic()

    def debt(self, nbytes: int) -> float:
        """Takes `nbytes`; how many seconds to wait before they may pass."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate) - nbytes
        self._then = now
        return max(0.0, -self._tokens / self._rate)


class Proxy:
    """`up` and `down` count the bytes that passed towards the hub and back, `accepted` the connections that were made, `dropped`
    those that were broken on purpose."""

    def __init__(
        self, hub: tuple[str, int], latency: float = 0.0, bandwidth: float | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.up = self.down = self.accepted = self.dropped = 0
        self.slow(latency, bandwidth)
        self._hub = hub
        self._host = host
        self._port = 0
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._silent = False
        self._drops = self._drop_bytes = self._next_drop = 0
        self._server: asyncio.Server | None = None
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._do(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._port

    @property
    def open(self) -> int:
        """Connections that are up, the silent ones too."""
        return len(self._links)

    @property
    def drops_left(self) -> int:
        """How many of `drop_often` are still to come."""
        return self._drops

    def slow(self, latency: float, bandwidth: float | None) -> None:
        """From now on, for new connections at once and for those that are up as far as they have room for what is on the way."""
        self.latency = latency
        self.room = BUFFER + int(latency * (bandwidth or 0))
        self._buckets = [TokenBucket(bandwidth) if bandwidth else None for _ in range(2)]

    def drop(self, reset: bool) -> int:
        """Breaks all connections; how many there were."""

        async def drop() -> int:
            return self._drop(reset)

        return self._do(drop())

    def drop_often(self, times: int, nbytes: int) -> None:
        """From now on breaks all connections each time that `nbytes` more have passed (both ways together), `times` times."""
        self._drops, self._drop_bytes, self._next_drop = times, nbytes, self.up + self.down + nbytes

    def silence(self, new: bool = False) -> int:
        """No byte passes any more on the connections that are up, nor on new ones if `new`; how many fell silent."""

        async def silence() -> int:
            self._silent = new
            for link in self._links:
                link.flows.clear()
            return len(self._links)

        return self._do(silence())

    def restore(self) -> None:
        """What was held back passes again, if its connection still stands, and new connections work."""

        async def restore() -> None:
            self._silent = False
            for link in self._links:
                link.flows.set()

        self._do(restore())

    def refuse(self, seconds: float) -> None:
        """Nobody listens for a while. Returns at once; connections that are up stay."""

        async def refuse() -> None:
            assert self._server is not None
            self._server.close()
            self.loop.call_later(seconds, lambda: asyncio.ensure_future(self._listen()))

        self._do(refuse())

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def _listen(self) -> None:
        if self._server is not None and self._server.is_serving():
            return  # refused twice at once
        self._server = await asyncio.start_server(self._begin, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._drop(reset=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _drop(self, reset: bool) -> int:
        links, self._links = self._links, set()
        for link in links:
            link.end(reset)
        self.dropped += len(links)
        return len(links)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self.loop.create_task(self._accept(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward = await asyncio.open_connection(*self._hub)
        except OSError:
            _reset(writer)
            return
        self.accepted += 1
        link = _Link(self, (reader, writer), onward)
        self._links.add(link)
        if self._silent:
            link.flows.clear()
        await link.carry()
        self._links.discard(link)

    async def admit(self, direction: int, nbytes: int) -> None:
        """Waits until so many bytes may pass (direction 0 is up), and counts them."""
        bucket = self._buckets[direction]
        if bucket is not None and (wait := bucket.debt(nbytes)):
            await asyncio.sleep(wait)
        if direction == 0:
            self.up += nbytes
        else:
            self.down += nbytes
        if self._drops and self.up + self.down >= self._next_drop:
            self._drops -= 1
            self._next_drop = self.up + self.down + self._drop_bytes
            self._drop(reset=bool(self._drops % 2))


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection and the one that carries it on."""

    def __init__(self, proxy: Proxy, near: Stream, far: Stream) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self._proxy = proxy
        self._near = near
        self._far = far
        self._ended = False

    async def carry(self) -> None:
        """Passes bytes on until both sides are done or the connection is broken."""
        directions = [self._direction(0, self._near[0], self._far[1]), self._direction(1, self._far[0], self._near[1])]
        try:
            await asyncio.gather(*directions)
        finally:
            for _, writer in (self._near, self._far):
                writer.close()

    def end(self, reset: bool) -> None:
        """RST: both ends see a reset. FIN: both see the end of what has passed so far, wherever that was."""
        if self._ended:
            return
        self._ended = True
        self.flows.set()
        for _, writer in (self._near, self._far):
            if reset:
                _reset(writer)
            else:
                with contextlib.suppress(OSError, RuntimeError):
                    writer.write_eof()
                self._proxy.loop.call_later(LINGER_SECONDS, _reset, writer)

    async def _direction(self, direction: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=max(1, self._proxy.room // CHUNK))
        delivery = asyncio.ensure_future(self._deliver(under_way, writer))
        try:
            while data := await reader.read(CHUNK):
                if self._ended:
                    continue  # read and forgotten, so that closing sends a FIN and no RST
                await self.flows.wait()
                await self._proxy.admit(direction, len(data))
                await under_way.put((time.monotonic() + self._proxy.latency, data))
            await under_way.put((time.monotonic() + self._proxy.latency, b""))
            await delivery
        except OSError:
            self.end(reset=True)
        finally:
            delivery.cancel()

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        while True:
            due, data = await under_way.get()
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            await self.flows.wait()
            try:
                if data and not self._ended:
                    writer.write(data)
                    await writer.drain()
                elif not data and not self._ended:
                    writer.write_eof()
            except (OSError, RuntimeError):
                self.end(reset=True)
            if not data:
                return


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes at once and drops what was not sent: the peer sees a reset."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
