"""Which client a device belongs to: a state machine without any I/O, which the hub feeds with what happened and the time.

    leases = Leases()
    name, said = leases.device_joined(Joining("phone", boot, offers, session=None), now)
    said = leases.client_joined(session, Wish("any", "webgpu", "test llama"), now)      [Said("device", name, "lease", …), …]
    said = leases.tick(now)                  about once a second: what follows from time alone

Every call returns the control messages to be sent, in order. They are not made where something happens: after each event the
machine compares what every connected end was told last with what holds now, and says the difference. So an end that
missed a message, or comes back on a new connection, is told what it needs whatever it missed.

Invariants, which hold after every call:

1. A lease joins one client and one device. No device has two, no client has two.
2. No device stands idle while a connected client waits that it could serve, but for invariant 5.
3. Clients are served in the order in which they first came. A client whose connection is broken keeps its place for the grace
   time, and is passed over; so is one that waits for a device that is busy, or for a target that nobody offers.
4. A lease lasts until its client ends it, or one of the two was away for longer than the grace time. A client whose device
   did not come back waits again, at its old place.
5. A device that comes with a session that the hub does not know (the hub was restarted) is kept for that session's client
   for the grace time.
6. A device has the place of another, with its name and its lease, only if it came with the same token.
7. A connected device was told exactly the lease that it has; a connected client exactly whether it has one, and why not.

Times are seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tapml.remote.hub.naming import Naming

GRACE_SECONDS = 20.0
ANY = "any"

# Words that mean something else where a device's name is asked for.
NO_NAMES = frozenset({ANY, "all", "local", ""})

# How many sessions that are over are remembered, to tell a device so that comes back with one.
MOST_ENDED = 1024

# Devices that are away and remembered for the grace time, of one paired token and in all. Of more, those that left first are
# forgotten.
MOST_AWAY_OF_TOKEN = 16
MOST_AWAY = 256

# Characters of why a client waits: with hundreds of devices it would be a long list.
LONGEST_WHY = 2000

# A waiting client hears for how long the device has been busy, so often.
TELL_SECONDS = 10.0


@dataclass(frozen=True)
class Offer:
    """What a device says of one target. `info` is nil unless the state is "ready"."""

    state: str
    info: dict[str, Any] | None
    reason: str

    @property
    def ready(self) -> bool:
        return self.state == "ready" and self.info is not None


Offers = Mapping[str, Offer]


@dataclass(frozen=True)
class Joining:
    """A device that connects: the name that it wishes for, its boot, what it offers, the session that it still holds, and which
    token it came with ("": the hub's own)."""

    name: str
    boot: bytes
    offers: Offers
    session: bytes | None
    holder: str = ""


@dataclass(frozen=True)
class Wish:
    """What a client wants: a device's name or "any", a target, and a line that says what for."""

    device: str
    target: str
    label: str


@dataclass(frozen=True)
class Said:
    """A control message to one end: a client by its session, or a device by its name."""

    role: Literal["client", "device"]
    to: bytes | str
    message: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Held:
    """A lease as people see it."""

    wish: Wish
    doing: str
    seconds: float


@dataclass
class _Client:
    session: bytes
    wish: Wish
    order: int
    connected: bool = True
    gone: float = 0.0
    device: str | None = None
    since: float = 0.0
    doing: str = ""
    told: tuple[object, ...] | None = None


@dataclass
class _Device:
    name: str
    holder: str
    boot: bytes
    offers: Offers
    order: int
    connected: bool = True
    gone: float = 0.0
    retired: bool = False
    connection: int = 0
    session: bytes | None = None
    kept_for: bytes | None = None
    kept_until: float = 0.0
    told: bytes | None = None

    def ready(self, target: str) -> bool:
        offer = self.offers.get(target)
        return offer is not None and offer.ready

    def matches(self, wish: Wish) -> bool:
        """Whether it is one that the client means, whatever it is doing."""
        return wish.device in (ANY, self.name) and self.ready(wish.target) and not self.retired

    def free_for(self, client: _Client) -> bool:
        return self.connected and self.session is None and self.kept_for in (None, client.session) and self.matches(client.wish)


@dataclass
class Leases:
    """See the module's docstring."""

    grace: float = GRACE_SECONDS
    _clients: dict[bytes, _Client] = field(default_factory=dict)
    _devices: dict[str, _Device] = field(default_factory=dict)
    _ended: dict[bytes, None] = field(default_factory=dict)
    _naming: Naming = field(default_factory=Naming)
    _count: int = 0

    # What happens.

    def device_joined(self, joining: Joining, now: float) -> tuple[str, list[Said]]:
        """What the device is called, and what is to be said. A device with the boot of one that is here takes its place, on a
        newer connection; so does one with the name of one that is away. Both must have come with the same token."""
        mine = [device for device in self._devices.values() if device.holder == joining.holder]
        known = next((device for device in mine if device.boot == joining.boot), None)
        if known is None:
            known = next((device for device in mine if device.name == joining.name and not device.connected), None)
        if known is None:
            name = self._free_name(joining.name, joining.holder)
            known = self._devices[name] = _Device(name, joining.holder, joining.boot, joining.offers, self._next())
        self._naming.note(known.name, known.holder)
        known.boot, known.offers, known.retired, known.connected = joining.boot, joining.offers, False, True
        known.connection = self._next()
        known.told = joining.session
        if joining.session is None or known.session is not None or not self._may_return(joining.session):
            known.kept_for = None
        elif known.kept_for != joining.session:
            known.kept_for, known.kept_until = joining.session, now + self.grace
        return known.name, self._settle(now)

    def device_left(self, name: str, now: float) -> list[Said]:
        """Its connection broke."""
        device = self._devices[name]
        device.connected, device.gone = False, now
        # It says anew what it offers when it comes back, and describing itself can take a quarter of a megabyte.
        device.offers = {target: _short(offer) for target, offer in device.offers.items()}
        away = sorted((other for other in self._devices.values() if not other.connected), key=lambda other: other.gone)
        same = [other for other in away if other.holder == device.holder]
        if device.holder and len(same) > MOST_AWAY_OF_TOKEN:
            self._forget_device(same[0])
        elif len(away) > MOST_AWAY:
            self._forget_device(away[0])
        return self._settle(now)

    def offers(self, name: str, offers: Offers, now: float) -> list[Said]:
        self._devices[name].offers = offers
        return self._settle(now)

    def retired(self, name: str, retired: bool, now: float) -> list[Said]:
        """Whether the device says that it takes nobody new. A lease that it has goes on."""
        self._devices[name].retired = retired
        return self._settle(now)

    def client_joined(self, session: bytes, wish: Wish, now: float) -> list[Said]:
        """A client connected; with a session that is known, it is that client on a newer connection."""
        client = self._clients.get(session)
        if client is None:
            client = self._clients[session] = _Client(session, wish, self._next())
        elif client.device is None:
            client.wish = wish
        client.connected, client.told = True, None
        return self._settle(now)

    def client_left(self, session: bytes, now: float) -> list[Said]:
        """Its connection broke."""
        self._clients[session].connected, self._clients[session].gone = False, now
        return self._settle(now)

    def client_ended(self, session: bytes, now: float) -> list[Said]:
        """It gave its lease back, or stopped waiting."""
        self._forget(self._clients[session])
        return self._settle(now)

    def doing(self, session: bytes, text: str) -> None:
        self._clients[session].doing = text

    def tick(self, now: float) -> list[Said]:
        return self._settle(now)

    # What holds.

    def device_of(self, session: bytes) -> str | None:
        """The device that this client's packets go to: leased to it, both connected."""
        client = self._clients.get(session)
        if client is None or client.device is None or not client.connected:
            return None
        return client.device if self._devices[client.device].connected else None

    def client_of(self, name: str) -> bytes | None:
        """The client that this device's packets go to: with its lease, both connected."""
        device = self._devices.get(name)
        if device is None or device.session is None or not device.connected:
            return None
        return device.session if self._clients[device.session].connected else None

    def names(self) -> list[str]:
        """Of all devices, those that are away for less than the grace time too, in the order in which they first came."""
        return list(self._devices)

    def connected(self, name: str) -> bool:
        return name in self._devices and self._devices[name].connected

    def is_retired(self, name: str) -> bool:
        return self._devices[name].retired

    def holder_of(self, name: str) -> str:
        """Which token it came with; "" for the hub's own, and for a device that is not known."""
        return self._devices[name].holder if name in self._devices else ""

    def may_take_over(self, joining: Joining) -> bool:
        """Whether a device of the wished name is known that is another one, which this one would follow if it is gone."""
        known = self._devices.get(joining.name)
        return known is not None and known.boot != joining.boot and known.holder == joining.holder

    def offers_of(self, name: str) -> Offers:
        return self._devices[name].offers

    def held(self, name: str, now: float) -> Held | None:
        """The lease of a device."""
        session = self._devices[name].session
        if session is None:
            return None
        client = self._clients[session]
        return Held(client.wish, client.doing, now - client.since)

    def waiting_for(self, name: str) -> int:
        """How many clients wait that this device could serve."""
        return sum(client.device is None and self._devices[name].matches(client.wish) for client in self._clients.values())

    # How it follows.

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _free_name(self, wished: str, holder: str) -> str:
        """Not one of a device that is known, nor one of a device that is gone and had another token."""
        if wished not in NO_NAMES and self._is_free(wished, holder):
            return wished
        base, number = wished or "device", 2
        while not self._is_free(f"{base}-{number}", holder):
            number += 1
        return f"{base}-{number}"

    def _is_free(self, name: str, holder: str) -> bool:
        return name not in self._devices and self._naming.may_have(name, holder)

    def _may_return(self, session: bytes) -> bool:
        """Whether the client of a session that a device holds may still come for it."""
        client = self._clients.get(session)
        return session not in self._ended if client is None else client.device is None

    def _settle(self, now: float) -> list[Said]:
        self._expire(now)
        for client in self._queue():
            if client.connected:
                self._grant(client, now)
        return [*self._say_to_devices(), *self._say_to_clients(now)]

    def _expire(self, now: float) -> None:
        for client in list(self._clients.values()):
            if not client.connected and now >= client.gone + self.grace:
                self._forget(client)
        for device in list(self._devices.values()):
            if not device.connected and now >= device.gone + self.grace:
                self._forget_device(device)
            elif device.session is not None and self._withdrawn(device):
                self._end(device)
            if device.kept_for is not None and now >= device.kept_until:
                self._remember_ended(device.kept_for)
                device.kept_for = None

    def _withdrawn(self, device: _Device) -> bool:
        """Whether the device came back without the target that it was leased for. While it serves its client, it is for the
        client to find out."""
        client = self._clients[self._session(device)]
        if not device.connected or client.told == self._serving(device):
            return False
        offer = device.offers.get(client.wish.target)
        return offer is None or offer.state in ("absent", "retired")

    def _forget(self, client: _Client) -> None:
        """The session is over."""
        if client.device is not None:
            self._end(self._devices[client.device])
        del self._clients[client.session]
        self._remember_ended(client.session)

    def _forget_device(self, device: _Device) -> None:
        self._end(device)
        del self._devices[device.name]

    def _remember_ended(self, session: bytes) -> None:
        self._ended[session] = None
        while len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]

    def _end(self, device: _Device) -> None:
        """The lease of a device is over, if it has one. Its client waits again."""
        if device.session is not None:
            client = self._clients[device.session]
            client.device, client.doing = None, ""
            device.session = None

    def _queue(self) -> list[_Client]:
        """Those who wait, in the order in which they first came."""
        return sorted((c for c in self._clients.values() if c.device is None), key=lambda c: c.order)

    def _grant(self, client: _Client, now: float) -> None:
        """Gives the client the device that kept its session, else the first that is free for it."""
        free = [device for device in self._devices.values() if device.free_for(client)]
        if free:
            device = min(free, key=lambda d: (d.kept_for != client.session, d.order))
            device.session, device.kept_for = client.session, None
            client.device, client.since = device.name, now

    def _session(self, device: _Device) -> bytes:
        assert device.session is not None
        return device.session

    def _serving(self, device: _Device) -> tuple[object, ...]:
        return ("granted", device.name, device.connection)

    def _say_to_devices(self) -> Iterable[Said]:
        for device in self._devices.values():
            wanted = device.session or device.kept_for
            if not device.connected or device.told == wanted:
                continue
            if device.told is not None:
                yield Said("device", device.name, "release", (device.told,))
            if device.session is not None:
                wish = self._clients[device.session].wish
                lease = {"session": device.session, "target": wish.target, "label": wish.label}
                yield Said("device", device.name, "lease", (lease,))
            device.told = wanted

    def _say_to_clients(self, now: float) -> Iterable[Said]:
        for client in sorted(self._clients.values(), key=lambda c: c.order):
            if not client.connected:
                continue
            if client.device is None:
                state, said = self._why_waiting(client, now)
            else:
                state, said = self._how_served(client, self._devices[client.device])
            if state != client.told:
                client.told = state
                yield said

    def _how_served(self, client: _Client, device: _Device) -> tuple[tuple[object, ...], Said]:
        state = self._serving(device)
        if device.connected and (client.told == state or device.ready(client.wish.target)):
            info = device.offers[client.wish.target].info if client.wish.target in device.offers else None
            granted = {"name": device.name, "boot": device.boot, "info": info}
            return state, Said("client", client.session, "granted", (granted,))
        if device.connected:
            text = f"{device.name} is back, and is checking whether it can still offer {client.wish.target}"
        else:
            text = f"the connection to {device.name} broke; it has {self.grace:.0f} s to come back"
        return ("away", device.connected), Said("client", client.session, "away", (text,))

    def _why_waiting(self, client: _Client, now: float) -> tuple[tuple[object, ...], Said]:
        wish = client.wish
        ahead = sum(other.order < client.order and _rivals(other.wish, wish) for other in self._queue())
        turn = f"; {ahead} {'client is' if ahead == 1 else 'clients are'} ahead" if ahead else ""
        text = self._why_any(wish, now) if wish.device == ANY else self._why_not(wish, self._devices.get(wish.device), now)
        whole = (text if len(text) <= LONGEST_WHY else f"{text[:LONGEST_WHY]}…") + turn
        return ("waiting", whole), Said("client", client.session, "waiting", (whole,))

    def _why_not(self, wish: Wish, device: _Device | None, now: float) -> str:
        if device is None:
            here = [other.name for other in self._devices.values() if other.connected]
            connected = f"connected: {', '.join(here)}" if here else "no device is connected"
            return f"no device is called {wish.device} ({connected})"
        return self._state_of(device, wish.target, now)

    def _why_any(self, wish: Wish, now: float) -> str:
        known = list(self._devices.values())
        offering = [device for device in known if device.matches(wish)]
        if offering:
            return "; ".join(self._state_of(device, wish.target, now) for device in offering)
        if not known:
            return "no device is connected"
        return f"no device offers {wish.target}: {'; '.join(self._state_of(device, wish.target, now) for device in known)}"

    def _state_of(self, device: _Device, target: str, now: float) -> str:
        """Why this device serves nobody new for that target."""
        if not device.connected:
            return f"{device.name} is away"
        offer = device.offers.get(target)
        if device.retired:
            return f"{device.name} takes no more work"
        if offer is None:
            return f"{device.name} offers {', '.join(t for t, o in device.offers.items() if o.ready) or 'nothing'}, not {target}"
        if offer.state == "looking":
            return f"{device.name} is still checking whether it can offer {target}"
        if not offer.ready:
            return f"{device.name} does not offer {target}{f' ({offer.reason})' if offer.reason else ''}"
        if device.session is not None:
            client = self._clients[device.session]
            spent = (now - client.since) // TELL_SECONDS * TELL_SECONDS
            lasting = f" for {_span(spent)}" if spent else ""
            return f"{device.name} is busy with {client.wish.label or 'another client'}{lasting}"
        return f"{device.name} is reserved for a client whose connection broke"


def _short(offer: Offer) -> Offer:
    return offer if offer.info is None else replace(offer, info={**offer.info, "limits": {}, "features": []})


def _rivals(one: Wish, other: Wish) -> bool:
    """Whether two who wait may wait for the same device."""
    return one.target == other.target and (one.device == other.device or ANY in (one.device, other.device))


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
