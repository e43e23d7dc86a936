"""One connection at the hub: telling it something, passing a packet on to it, and noticing that it went silent.

The WebSocket is the library's; what is added is how the hub sends. `tell` is for the few small messages of the hub itself and
never waits, so that what the hub decides is said in the order in which it was decided. A packet is passed on to the partner,
unread and not copied, at the moment when it arrived. Only when the partner has not taken enough of what was sent before does it
wait in the queue of its own connection, and with it all that this end sends afterwards: whoever sends faster than the other reads
is held up, and the hub holds no more than `WRITE_LIMIT` and a few messages for a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from typing import Any, TypeGuard

from websockets.asyncio.server import ServerConnection
from websockets.frames import BINARY, Frame
from websockets.protocol import OPEN, Event
from websockets.typing import BytesLike

from tapml.remote.hub.door import Door, Guest
from tapml.remote.wire import CONTROL_LIMIT, MESSAGE_LIMIT, control, is_session

# Bytes kept for an end that reads slowly before those that send to it are held up.
WRITE_LIMIT = 2**20

# More than that is held only for an end that asks and asks, and reads no answer: it is cut off.
MOST_UNREAD = 8 * 2**20

# The same for one that was not let in, and what it may send in one message: a stranger has a hello to say, or a page to load.
MOST_UNREAD_OF_STRANGER = 2**20
LONGEST_OF_STRANGER = CONTROL_LIMIT + 1024

# Messages that arrived and were not looked at yet, before no more are read.
READ_QUEUE = 2

# A message of this size or more is worth a system call of its own rather than a copy.
_LARGE = 2**14

_BINARY = 0x82


class Peer(ServerConnection):
    """See the module's docstring. `heard` is when any byte came from it last, on the event loop's clock; `held_up`: it waits
    until its partner takes what it sent, so that it cannot be heard; `place`: the address that it came from, as it is counted.
    `partner` gives the connection at the other end of its lease, None while there is none."""

    def __init__(self, door: Door, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.heard = self.loop.time()
        self.held_up = False
        self.partner: Callable[[], Peer | None] | None = None
        self.place = "an unknown address"
        self._unread, self._taken = 0, self.heard
        self._most_unread = MOST_UNREAD_OF_STRANGER
        self.protocol.max_message_size = LONGEST_OF_STRANGER
        self._door = door
        self._guest: Guest | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._guest = self._door.guest(transport)
        self._guest.end = self.make_room
        self.place = self._guest.place

    def let_in(self) -> None:
        """It said who it is, and is no longer counted among the strangers."""
        if self._guest is not None:
            self._door.gate.leave(self._guest)
        self._most_unread = MOST_UNREAD
        self.protocol.max_message_size = MESSAGE_LIMIT

    def refused(self) -> None:
        """It will be closed, and has a moment to read why."""
        if self._guest is not None:
            self._door.gate.refuse(self._guest)

    def make_room(self) -> None:
        """It is cut off for those who came later."""
        self.tell("refused", "full", "Too many connections wait to be let in, and this one said no hello. Try again.")
        self.cut()

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        super().data_received(data)
        self._check_unread()

    def silent_for(self, now: float) -> float:
        """For how many seconds nothing came from it; while it has more to read than it has taken so far: took none of that."""
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if self._unread < before:
            self._taken = self.heard = now  # it was not pinged meanwhile
        elif not self.paused:
            self._taken = now
        return now - (self._taken if self.paused else self.heard)

    def tell(self, name: str, *arguments: Any) -> None:
        """A control message, sent at once; nothing if the connection is closing."""
        self._put(control(name, *arguments))

    def process_event(self, event: Event) -> None:
        """A whole packet goes on at once, unless an earlier message of this end still waits, or the partner is slow."""
        if self.partner is None or self.held_up or self.recv_messages.frames or not _whole_packet(event):
            super().process_event(event)
            return
        partner = self.partner()
        if partner is not None and partner.paused:
            super().process_event(event)
        elif partner is not None:
            partner._put(event.data)

    async def pass_on(self, data: bytes) -> None:
        """A packet that waited."""
        partner = self.partner() if self.partner is not None else None
        if partner is not None:
            self.held_up = True
            await partner.send_slowly(data)
            self.held_up, self.heard = False, self.loop.time()

    async def send_slowly(self, data: bytes) -> None:
        """Sends, and waits until enough was taken. If this connection breaks meanwhile, the message is lost: its sender keeps a
        packet until it is acknowledged."""
        self._put(data)
        if self.paused:
            with contextlib.suppress(OSError):
                await self.drain()

    def cut(self) -> None:
        """Ends the connection without a goodbye."""
        self.transport.abort()

    def _put(self, data: BytesLike) -> None:
        if self.protocol.state is not OPEN:
            return
        size = len(data)
        if size < 126:
            header = struct.pack("!BB", _BINARY, size)
        elif size < 65536:
            header = struct.pack("!BBH", _BINARY, 126, size)
        else:
            header = struct.pack("!BBQ", _BINARY, 127, size)
        if size < _LARGE:
            self.transport.write(header + bytes(data))
        else:
            self.transport.write(header)
            self.transport.write(memoryview(data))
        self._check_unread()

    def _check_unread(self) -> None:
        if self.transport.get_write_buffer_size() > self._most_unread:
            self.cut()


def _whole_packet(event: Event) -> TypeGuard[Frame]:
    return isinstance(event, Frame) and event.opcode is BINARY and event.fin and is_session(bytes(event.data[:1]))
