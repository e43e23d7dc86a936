"""Which connections wait to be let in, and which of them make room for others: those that have not said who they are are few in
all, and fewer from one address.

    gate = Gate(most=64, most_of_one=32, most_leaving=64)
    gate.enter(stranger)       a connection was made; others may be cut off for it
    gate.refuse(stranger)      it is told no, and may take a moment to hear it
    gate.leave(stranger)       it was let in, or is gone
    gate.clear()               all that are not in are cut off

A newcomer is always taken. When there are too many, the oldest one of the address that has most of them makes room: whoever says
hello at once is let in within milliseconds, and whoever stays silent pays for it first. So an address with few connections is not
kept out by one with many, and even the owner of a crowded address gets through. Who is refused does not count among those who
wait, and lingers for a while beside them; of those too the oldest make room.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

MOST_NEW = 64
MOST_NEW_OF_ONE = 32
MOST_LEAVING = 64

# Whoever has one IPv6 address has all of its network.
IPV6_NETWORK_BITS = 64


class Stranger(Protocol):
    """A connection, with the address that it came from."""

    place: str

    def cut(self) -> None:
        """Ends it at once."""


@dataclass
class Gate:
    """The connections that were not let in yet."""

    most: int = MOST_NEW
    most_of_one: int = MOST_NEW_OF_ONE
    most_leaving: int = MOST_LEAVING
    _made_room: int = 0
    _waiting: dict[Stranger, None] = field(default_factory=dict)
    _leaving: dict[Stranger, None] = field(default_factory=dict)

    def enter(self, stranger: Stranger) -> None:
        self._waiting[stranger] = None
        counts = Counter(other.place for other in self._waiting)
        if counts[stranger.place] > self.most_of_one:
            self._cut_oldest_of(stranger.place)
        elif len(self._waiting) > self.most:
            most = max(counts.values())
            self._cut_oldest_of(next(other.place for other in self._waiting if counts[other.place] == most))

    def refuse(self, stranger: Stranger) -> None:
        self._waiting.pop(stranger, None)
        self._leaving[stranger] = None
        if len(self._leaving) > self.most_leaving:
            oldest = next(iter(self._leaving))
            self.leave(oldest)
            oldest.cut()

    def leave(self, stranger: Stranger) -> None:
        self._waiting.pop(stranger, None)
        self._leaving.pop(stranger, None)

    def take_made_room(self) -> int:
        """How many were cut off for others since this was asked last."""
        count, self._made_room = self._made_room, 0
        return count

    def clear(self) -> None:
        for stranger in [*self._waiting, *self._leaving]:
            self.leave(stranger)
            stranger.cut()

    def _cut_oldest_of(self, place: str) -> None:
        oldest = next(other for other in self._waiting if other.place == place)
        self.leave(oldest)
        self._made_room += 1
        oldest.cut()


def place_of(host: str) -> str:
    """What connections from this address are counted under: itself, for IPv6 its network."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, ipaddress.IPv6Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return host if address.is_loopback else str(ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False))
