"""The hub's log: lines of bounded length, and of each kind so many in a minute. What is more is counted.

    book = Logbook(print)
    book.line("refused", "refused a connection from 192.0.2.1: …", now)
    book.tick(now)                        now and then: says how many lines of a minute that is over were left out

Whatever makes the hub write a line can be made to happen without end: by a stranger who connects, a phone that joins again and
again, a bug that is met with each packet. Each has a kind of its own, so that none hides the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

MINUTE = 60.0
LONGEST = 400
LONGEST_BUG = 4000

# Lines in a minute. "owner": what ends with the hub's own token do; "paired": what devices with their own token do; "refused":
# who is not let in; "trouble": what the event loop says of sockets and TLS; "bug": ours.
MOST = {"owner": 300, "paired": 20, "refused": 20, "trouble": 10, "bug": 5}


@dataclass
class _Kind:
    since: float
    written: int = 0
    left_out: int = 0


@dataclass
class Logbook:
    """`write` gets one line of text at a time; a bug has several."""

    write: Callable[[str], None]
    _kinds: dict[str, _Kind] = field(default_factory=dict)

    def line(self, kind: str, text: str, now: float) -> None:
        """`kind` is one of `MOST`; `now` in seconds of one monotonic clock."""
        found = self._kinds.get(kind)
        if found is None or now - found.since >= MINUTE:
            self._close(kind)
            found = self._kinds[kind] = _Kind(now)
        if found.written >= MOST[kind]:
            found.left_out += 1
            return
        found.written += 1
        longest = LONGEST_BUG if kind == "bug" else LONGEST
        self.write(text if len(text) <= longest else f"{text[: longest - 1]}…")

    def tick(self, now: float) -> None:
        for kind in [kind for kind, found in self._kinds.items() if now - found.since >= MINUTE]:
            self._close(kind)

    def close(self) -> None:
        """At the end: what was left out and not yet told."""
        for kind in list(self._kinds):
            self._close(kind)

    def _close(self, kind: str) -> None:
        found = self._kinds.pop(kind, None)
        if found is not None and found.left_out:
            more = "lines" if found.left_out > 1 else "line"
            self.write(f"left out {found.left_out} more {more} like these within a minute ({kind})")
