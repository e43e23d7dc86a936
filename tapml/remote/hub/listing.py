"""What watchers are told about the devices: one map a device, as docs/wire.md describes it.

    shown = Shown("agent", "Linux 6.1, x86-64")         kept by the hub for each device, beside its lease
    shown.status(fields, now)                           its counters, of which the rates are made
    records = listing(leases, shown_by_name, now)
    data = pack(records)                                the message, within the limit of its size
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tapml.remote.hub.hello import line
from tapml.remote.hub.leases import Leases
from tapml.remote.wire import control

# A device that works says so each second. After this the last rates are history.
FRESH_SECONDS = 3.0

# Two statuses that come close together, after a hold-up, say nothing about a rate.
RATE_SECONDS = 0.2

_COUNTS = ("launches", "received", "sent", "stored")


@dataclass
class Shown:
    """What a device said of itself, besides what it offers. The counts are those since its start."""

    kind: str
    system: str
    launches: int = 0
    received: int = 0
    sent: int = 0
    stored: int = 0
    note: str = ""
    launches_per_s: float = 0.0
    bytes_per_s: float = 0.0
    base: tuple[float, int, int] | None = None

    def status(self, fields: Mapping[str, Any], now: float) -> None:
        """Takes a `status` message's counts, and makes rates of them since `base`: when, launches, bytes."""
        for name in _COUNTS:
            setattr(self, name, fields[name])
        self.note = line(fields["note"])
        base, new = self.base, (now, self.launches, self.received + self.sent)
        if base is None or fields["state"] != "busy" or new[1] < base[1] or new[2] < base[2]:
            self.launches_per_s = self.bytes_per_s = 0.0
            self.base = new  # its first, or it does nothing, or it started anew
        elif now - base[0] >= RATE_SECONDS:
            spent = now - base[0]
            self.launches_per_s, self.bytes_per_s = (new[1] - base[1]) / spent, (new[2] - base[2]) / spent
            self.base = new

    def fresh(self, now: float) -> bool:
        return self.base is not None and now - self.base[0] <= FRESH_SECONDS


def listing(leases: Leases, shown: Mapping[str, Shown], now: float) -> list[dict[str, Any]]:
    return [_record(leases, name, shown[name], now) for name in leases.names()]


def _record(leases: Leases, name: str, shown: Shown, now: float) -> dict[str, Any]:
    held, fresh = leases.held(name, now), shown.fresh(now)
    if not leases.connected(name):
        state = "away"
    elif held is not None:
        state = "busy"
    else:
        state = "retired" if leases.is_retired(name) else "idle"
    offers = {
        target: {"state": offer.state, "info": offer.info, "reason": offer.reason}
        for target, offer in leases.offers_of(name).items()
    }
    return {
        "name": name,
        "kind": shown.kind,
        "system": shown.system,
        "offers": offers,
        "state": state,
        "target": held.wish.target if held else "",
        "label": held.wish.label if held else "",
        "doing": held.doing if held else "",
        "seconds": held.seconds if held else 0.0,
        "waiting": leases.waiting_for(name),
        "launches_per_s": shown.launches_per_s if fresh else 0.0,
        "bytes_per_s": shown.bytes_per_s if fresh else 0.0,
        "launches": shown.launches,
        "received": shown.received,
        "sent": shown.sent,
        "stored": shown.stored,
        "note": shown.note,
    }


def pack(records: list[dict[str, Any]]) -> bytes:
    """With hundreds of devices it can be too much for one message: then without their descriptions, then without reasons, then
    only the first ones."""
    for short in _shorter(records):
        with suppress(ValueError):
            return control("devices", short)
    raise AssertionError("an empty list is too long")


def _shorter(records: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    yield records
    for left in ({"info": None}, {"info": None, "reason": ""}):
        records = [record | {"offers": {t: o | left for t, o in record["offers"].items()}} for record in records]
        yield records
    while records:
        records = records[: len(records) // 2]
        yield records
