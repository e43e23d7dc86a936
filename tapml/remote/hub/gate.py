"""How many connections the hub takes, so that strangers cannot use it up: those that have not said who they are are few in all,
fewer from one address, and cost little.

    gate.enter(peer)         a connection was made; False: there are too many, and it is only told so
    gate.leave(peer)         it was let in, or is gone
    gate.clear()             all that are not in are cut off
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

MOST_NEW = 64
MOST_NEW_OF_ONE = 32
MOST = 256

# Beyond this many, a connection is cut before a single byte of it is read (over TLS: after its handshake).
MOST_TOLD = 2 * MOST_NEW


class Stranger(Protocol):
    """A connection, with the address that it came from."""

    place: str

    def cut(self) -> None: ...


@dataclass
class Gate:
    """The connections that were not let in yet."""

    strangers: set[Stranger] = field(default_factory=set)

    def enter(self, stranger: Stranger) -> bool:
        self.strangers.add(stranger)
        if len(self.strangers) > MOST_TOLD:
            stranger.cut()
        same = sum(other.place == stranger.place for other in self.strangers)
        return len(self.strangers) <= MOST_NEW and same <= MOST_NEW_OF_ONE

    def leave(self, stranger: Stranger) -> None:
        self.strangers.discard(stranger)

    def clear(self) -> None:
        for stranger in list(self.strangers):
            stranger.cut()
