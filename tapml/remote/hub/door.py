"""The socket that the hub listens on, and those that it accepts: counted before anything is read from them or TLS begins.

    most = descriptors(384)                     how many connections this process may hold, of so many that are wanted
    door = Door(listening, gate, most, log)     in the place of the socket that was given
    guest = door.guest(transport)               the accepted socket below a transport
    guest.end = peer.abort                      how it is ended properly, once there is more to it than a socket

asyncio accepts from it as from any other socket. A connection counts from its `accept` until its descriptor is closed, whatever
lies between: a TLS handshake that never begins, a goodbye that nobody answers. What is too much is closed at once, and a
descriptor is kept in reserve to do so when there are no others: one that is never accepted would make the listening socket
readable for ever. What a connection leaves behind is collected now and then: with TLS that is 256 KiB in a cycle of references,
and Python by itself would let hundreds of them pile up.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tapml.errors import UsageError
from tapml.remote.hub.gate import Gate, place_of

# Descriptors for all else: files, the event loop's own, name servers, modules that are loaded late.
RESERVED = 48
# With less room than this a hub is of no use.
FEWEST = 24

# Connections that are accepted or turned away before the event loop does something else: so long, those that were cut off keep
# what they have.
AT_ONCE = 32

# So many connections are gone before what they left is collected.
COLLECTED = 32

_NONE_LEFT = (errno.EMFILE, errno.ENFILE)


class Guest(socket.socket):
    """An accepted connection. `place` is what it is counted under; `end` ends it and what was built on it."""

    place = "an unknown address"
    end: Callable[[], None] | None = None
    gone: Callable[[Guest], None] | None = None

    def cut(self) -> None:
        if self.end is not None:
            self.end()
        else:  # TLS has not begun, or is under way: whoever reads it finds its end
            with suppress(OSError):
                self.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self.gone is not None:
            self.gone(self)
        self.end = self.gone = None
        super().close()


class Door(socket.socket):
    """See the module's docstring. `log` hears of what was turned away. `open`: the connections that have a descriptor."""

    def __init__(self, listening: socket.socket, gate: Gate, most: int, log: Callable[[str], None]) -> None:
        super().__init__(listening.family, listening.type, listening.proto, listening.detach())
        self.open: dict[int, Guest] = {}
        self.gate, self._most, self._log = gate, most, log
        self._gone = self._taken = 0
        self._reserve = os.open(os.devnull, os.O_RDONLY)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection for which there is room. Raises BlockingIOError when none waits, or something else has its turn."""
        while self._taken < AT_ONCE:
            self._taken += 1
            try:
                plain, address = super().accept()
            except OSError as error:
                self._taken = 0
                if error.errno not in _NONE_LEFT or self._reserve < 0:
                    raise
                self._turn_away()
                continue
            guest = Guest(self.family, self.type, self.proto, plain.detach())
            guest.place = place_of(str(address[0]))
            if len(self.open) < self._most:
                guest.gone = self._note_gone
                self.open[guest.fileno()] = guest
                self.gate.enter(guest)
                return guest, address
            self._log(f"turned a connection from {guest.place} away: {self._most} are open")
            guest.close()
        self._taken = 0
        raise BlockingIOError

    def guest(self, transport: asyncio.BaseTransport) -> Guest:
        return self.open[transport.get_extra_info("socket").fileno()]

    def close(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        super().close()

    def _note_gone(self, guest: Guest) -> None:
        self.open.pop(guest.fileno(), None)
        self.gate.leave(guest)
        self._gone += 1
        if self._gone % COLLECTED == 0:
            gc.collect()

    def _turn_away(self) -> None:
        """Closes the connection that waits, with the descriptor in reserve. Raises BlockingIOError when none does."""
        os.close(self._reserve)
        self._reserve = -1
        try:
            super().accept()[0].close()
        finally:
            with suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY)
        self._log("turned a connection away: this process may open no more files")


def descriptors(wanted: int) -> int:
    """How many connections this process may hold beside what it needs itself: as many as are wanted, where its limit on open
    files allows that or can be raised. Raises UsageError when they are too few to be of use."""
    try:
        import resource
    except ImportError:  # no such limit on this system
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + RESERVED:
        raised = wanted + RESERVED if hard == resource.RLIM_INFINITY else min(wanted + RESERVED, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    room = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft - RESERVED)
    if room < FEWEST:
        raise UsageError(f"The hub may open {soft} files only. Allow more, at least {FEWEST + RESERVED}: ulimit -n 1024")
    return room
