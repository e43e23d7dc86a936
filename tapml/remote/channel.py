"""One end of a session: packets in order, each once, over connections that break. The rules are in docs/wire.md, "Sessions".

    channel = Channel(session)
    send(channel.pack([["synchronize", 4]]))             numbered, and kept until the other end has carried it out
    for item in channel.take(packet): …                  what came, in order; nothing for a double
    channel.done(packet)                                 carried out: may be acknowledged
    for data in channel.unacknowledged(): send(data)     after the connection was made anew

No I/O, no clock, no threads: the owner sends, waits while `in_flight` is at the window, and locks.

Invariants. Packets that were packed and not acknowledged are kept, in order, `first` being the lowest. `taken` never goes down
and goes up by one at a time, so every item is handed out once and in order. What is acknowledged was carried out: a packet that
was taken and not yet done is not acknowledged, and if it comes again it is a double.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from tapml.remote.wire import ACK_BYTES, Packet, WireError, packet


class Gap(Exception):
    """A packet came whose predecessor is missing: ask for it with `bare([["resend"]])`."""


class Channel:
    def __init__(self, session: bytes) -> None:
        self.session = session
        self.taken = 0
        self.in_flight = 0
        self._next = 1
        self._kept: deque[tuple[int, bytes]] = deque()
        self._done = 0
        self._told = 0
        self._untold_bytes = 0

    @property
    def first(self) -> int:
        """The lowest number that can still be sent again; the next new one when all is acknowledged."""
        return self._kept[0][0] if self._kept else self._next

    def pack(self, items: Sequence[Sequence[Any]]) -> bytes:
        """The next packet, ready to be sent; it is kept until it is acknowledged."""
        data = packet(self.session, self._next, self._acknowledge(), items)
        self._kept.append((self._next, data))
        self._next += 1
        self.in_flight += len(data)
        return data

    def bare(self, items: Sequence[Sequence[Any]] = ()) -> bytes:
        """A packet without a number: an acknowledgement, with what the channel itself has to say."""
        return packet(self.session, 0, self._acknowledge(), items)

    def take(self, packet: Packet) -> list[list[Any]]:
        """Items to carry out, in order: none for a double. Raises Gap when a packet before this one is missing, WireError when
        something is acknowledged that was never sent."""
        if packet.ack >= self._next:
            raise WireError(f"packet {packet.ack} is acknowledged, and {self._next - 1} were sent")
        while self._kept and self._kept[0][0] <= packet.ack:
            self.in_flight -= len(self._kept.popleft()[1])
        if packet.seq == 0:
            return packet.items
        if packet.seq > self.taken + 1:
            raise Gap
        if packet.seq <= self.taken:
            return []
        self.taken = packet.seq
        return packet.items

    def done(self, packet: Packet) -> None:
        """The items of this packet are carried out."""
        if packet.seq == self._done + 1:
            self._done = packet.seq
            self._untold_bytes += packet.nbytes

    def due(self, idle: bool) -> bytes | None:
        """An acknowledgement that should be sent now: the other end waits for it, or has nothing to wait for."""
        if self._done > self._told and (idle or self._untold_bytes >= ACK_BYTES):
            return self.bare()
        return None

    def unacknowledged(self) -> list[bytes]:
        """What has to be sent again on a new connection, in order."""
        return [data for _, data in self._kept]

    def _acknowledge(self) -> int:
        self._told = self._done
        self._untold_bytes = 0
        return self._done
