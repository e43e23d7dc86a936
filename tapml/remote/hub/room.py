"""How many ends are in at once: in all, with one paired token, and with paired tokens from one address. Some places are for the
hub's own token only, so that paired devices, whatever they do, cannot keep its owner out.

    room = Room()
    room.why_not(holder, place)            "" or why nobody else may come in so; `holder`: "" for the hub's own token
    room.enter(peer, holder, place)
    room.leave(peer)
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST = 256
FOR_OWNER = 64

# A browser's tabs, and old connections of theirs that were not found dead yet.
MOST_OF_TOKEN = 16
MOST_OF_PLACE = 64


@dataclass
class Room:
    """`most` places, a quarter of them for the hub's own token."""

    most: int = MOST
    _inside: dict[object, tuple[str, str]] = field(default_factory=dict)

    def why_not(self, holder: str, place: str) -> str:
        paired = [one for one in self._inside.values() if one[0]]
        if len(self._inside) >= self.most:
            return f"The hub has {self.most} connections, and takes no more. Try again later."
        if holder and sum(one[0] == holder for one in paired) >= MOST_OF_TOKEN:
            return f"This device's token has {MOST_OF_TOKEN} connections, and gets no more. Close other pages of this hub."
        if holder and sum(one[1] == place for one in paired) >= MOST_OF_PLACE:
            return f"{MOST_OF_PLACE} paired devices are connected from this address, and no more are taken. Try again later."
        if holder and len(paired) >= self.most - self.most * FOR_OWNER // MOST:
            return "The hub has as many paired devices as it takes. Try again later."
        return ""

    def enter(self, end: object, holder: str, place: str) -> None:
        self._inside[end] = holder, place

    def leave(self, end: object) -> None:
        self._inside.pop(end, None)
