"""Who gets which device: examples that tell the rules one by one, then any order of events at all against the invariants."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tapml.remote.hub.leases import GRACE_SECONDS, Joining, Leases, Offer, Offers, Said, Wish
from tapml.remote.wire import control, decode

INFO = {"platform": "p", "name": "n", "driver": "d", "software": True, "limits": {}, "features": []}


def ready(*targets: str) -> Offers:
    return {target: Offer("ready", INFO, "") for target in targets}


def session(number: int) -> bytes:
    return bytes([number]) * 16


def boot(number: int) -> bytes:
    return bytes([128 + number]) * 16


class Told:
    """A hub's leases, and what each end was told last, by its session or name."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.last: dict[bytes | str, tuple[str, Any]] = {}
        self.all: list[Said] = []

    def hear(self, said: list[Said]) -> list[Said]:
        for one in said:
            self.last[one.to] = (one.message, one.arguments[0])
        self.all += said
        return said

    def device(
        self, name: str, number: int, now: float, *targets: str, holds: bytes | None = None, offers: Offers | None = None
    ) -> str:
        offered = ready(*(targets or ("gpu",))) if offers is None else offers
        called, said = self.leases.device_joined(Joining(name, boot(number), offered, holds), now)
        self.hear(said)
        return called

    def client(self, number: int, now: float, device: str = "any", target: str = "gpu", label: str = "work") -> str:
        """What it is told now."""
        self.hear(self.leases.client_joined(session(number), Wish(device, target, label), now))
        return self.of(number)

    def of(self, number: int) -> str:
        """What client `number` was told last: "granted phone", "waiting …" or "away …"."""
        message, argument = self.last[session(number)]
        return f"{message} {argument['name'] if message == 'granted' else argument}"


def test_a_free_device_is_granted_and_the_device_hears_whose_it_is() -> None:
    hub = Told()
    assert hub.client(1, 0.0) == "waiting no device is connected"
    hub.device("phone", 1, 1.0)
    assert hub.of(1) == "granted phone"
    assert hub.last["phone"] == ("lease", {"session": session(1), "target": "gpu", "label": "work"})
    assert hub.last[session(1)][1] == {"name": "phone", "boot": boot(1), "info": INFO}
    hub.hear(hub.leases.client_ended(session(1), 2.0))
    assert hub.last["phone"] == ("release", session(1))


def test_those_who_wait_are_served_in_order_and_told_why_they_wait() -> None:
    hub = Told()
    hub.device("phone", 1, 0.0)
    assert hub.client(1, 0.0, label="test llama") == "granted phone"
    assert hub.client(2, 1.0) == "waiting phone is busy with test llama"
    assert hub.client(3, 2.0, device="phone") == "waiting phone is busy with test llama; 1 client is ahead"
    hub.hear(hub.leases.tick(31.0))
    assert hub.of(2) == "waiting phone is busy with test llama for 30 s"
    hub.hear(hub.leases.client_ended(session(1), 32.0))
    assert hub.of(2) == "granted phone"
    assert hub.of(3) == "waiting phone is busy with work"


def test_a_client_that_is_away_keeps_its_place_and_is_passed_over() -> None:
    hub = Told()
    hub.client(1, 0.0)
    hub.client(2, 1.0)
    hub.client(3, 2.0)
    hub.hear(hub.leases.client_left(session(1), 3.0))
    hub.device("phone", 1, 4.0)
    assert hub.of(2) == "granted phone"
    assert hub.client(1, 5.0) == "waiting phone is busy with work"
    hub.hear(hub.leases.client_ended(session(2), 6.0))
    assert hub.of(1) == "granted phone"


def test_why_a_client_waits() -> None:
    hub = Told()
    hub.device("old", 1, 0.0, offers={"gpu": Offer("absent", None, "no driver"), "cpu": Offer("ready", INFO, "")})
    hub.device("new", 2, 0.0, offers={"gpu": Offer("looking", None, "")})
    assert hub.client(1, 0.0, device="phone") == "waiting no device is called phone (connected: old, new)"
    assert hub.client(2, 0.0, device="old", target="vulkan") == "waiting old offers cpu, not vulkan"
    assert hub.client(3, 0.0, device="new") == "waiting new is still checking whether it can offer gpu"
    whole = "waiting no device offers gpu: old does not offer gpu (no driver); new is still checking whether it can offer gpu"
    assert hub.client(4, 0.0) == f"{whole}; 2 clients are ahead"
    hub.hear(hub.leases.retired("new", True, 1.0))
    hub.hear(hub.leases.offers("new", ready("gpu"), 1.0))
    assert hub.of(3) == "waiting new takes no more work"
    hub.hear(hub.leases.device_left("old", 2.0))
    assert hub.of(2) == "waiting old is away"


def test_a_lease_outlives_a_broken_connection_of_either_end() -> None:
    hub = Told()
    hub.device("phone", 1, 0.0)
    hub.client(1, 0.0)
    hub.hear(hub.leases.device_left("phone", 10.0))
    assert hub.of(1).startswith("away the connection to phone broke")
    assert hub.client(2, 11.0) == "waiting phone is away" or "away" in hub.of(2)
    hub.all.clear()
    assert hub.device("other name", 1, 29.0, holds=session(1)) == "phone"
    assert [s.message for s in hub.all if s.to == "phone"] == []  # it knows
    assert hub.of(1) == "granted phone"
    hub.hear(hub.leases.client_left(session(1), 30.0))
    hub.hear(hub.leases.tick(49.0))
    hub.all.clear()
    assert hub.client(1, 49.5) == "granted phone"
    assert [s.message for s in hub.all] == ["granted"]


def test_a_device_that_was_started_anew_gets_its_lease_anew() -> None:
    hub = Told()
    hub.device("phone", 1, 0.0)
    hub.client(1, 0.0)
    hub.hear(hub.leases.device_left("phone", 1.0))
    hub.all.clear()
    hub.device("phone", 2, 2.0, offers={"gpu": Offer("looking", None, "")})
    assert [s.message for s in hub.all] == ["lease", "away"]
    hub.hear(hub.leases.offers("phone", ready("gpu"), 3.0))
    assert hub.last[session(1)] == ("granted", {"name": "phone", "boot": boot(2), "info": INFO})


def test_a_device_that_comes_back_without_the_target_ends_the_lease() -> None:
    hub = Told()
    hub.device("phone", 1, 0.0)
    hub.client(1, 0.0)
    hub.hear(hub.leases.device_left("phone", 1.0))
    hub.device("phone", 2, 2.0, offers={"gpu": Offer("absent", None, "the driver is gone")})
    assert hub.of(1) == "waiting no device offers gpu: phone does not offer gpu (the driver is gone)"
    assert hub.leases.held("phone", 2.0) is None


def test_the_grace_time_ends_a_lease_on_either_side() -> None:
    hub = Told()
    hub.device("a", 1, 0.0)
    hub.device("b", 2, 0.0)
    assert (hub.client(1, 0.0), hub.client(2, 0.0)) == ("granted a", "granted b")
    hub.client(3, 1.0)
    hub.hear(hub.leases.client_left(session(1), 10.0))
    hub.hear(hub.leases.device_left("b", 10.0))
    hub.hear(hub.leases.tick(10.0 + GRACE_SECONDS - 0.1))
    assert hub.of(3).startswith("waiting") and hub.of(2).startswith("away")
    hub.hear(hub.leases.tick(10.0 + GRACE_SECONDS))
    assert hub.of(2) == "granted a", "it came before 3, and its own device is gone"
    assert hub.of(3).startswith("waiting a is busy")
    assert hub.leases.names() == ["a"]


def test_after_a_restart_of_the_hub_a_device_is_kept_for_the_session_that_it_holds() -> None:
    hub = Told()
    hub.device("phone", 1, 0.0, holds=session(7))
    assert hub.client(1, 1.0) == "waiting phone is reserved for a client whose connection broke"
    assert hub.client(7, 2.0) == "granted phone"
    assert "phone" not in hub.last, "the device knows: it is told nothing"
    assert hub.of(1).startswith("waiting phone is busy")
    hub.hear(hub.leases.client_ended(session(7), 3.0))
    assert hub.of(1) == "granted phone"


def test_a_client_of_any_device_gets_the_one_that_holds_its_session() -> None:
    hub = Told()
    hub.device("free", 1, 0.0)
    hub.device("phone", 2, 0.0, holds=session(7))
    assert hub.client(7, 1.0) == "granted phone"


def test_a_newer_connection_of_a_device_is_told_to_its_client() -> None:
    hub = Told()
    hub.device("phone", 1, 0.0)
    hub.client(1, 0.0)
    hub.all.clear()
    hub.device("phone", 1, 1.0, holds=session(1))
    assert [s.message for s in hub.all] == ["granted"], "what was on the way is lost, so the session must be resumed"


def test_a_device_is_kept_for_so_long_only() -> None:
    hub = Told()
    hub.device("phone", 1, 0.0, holds=session(7))
    hub.client(1, 1.0)
    hub.hear(hub.leases.device_left("phone", 5.0))
    hub.device("phone", 1, 6.0, holds=session(7))
    hub.hear(hub.leases.tick(GRACE_SECONDS))
    assert [s.message for s in hub.all if s.to == "phone"] == ["release", "lease"]
    assert hub.of(1) == "granted phone"
    hub.device("other", 2, 0.0, holds=session(8))
    hub.hear(hub.leases.tick(2 * GRACE_SECONDS))
    hub.device("other", 2, 2 * GRACE_SECONDS + 1, holds=session(8))
    assert hub.last["other"] == ("release", session(8)), "not kept for it once more"
    assert hub.client(2, 2 * GRACE_SECONDS + 2) == "granted other"


def test_a_device_that_missed_the_release_hears_it_when_it_comes_back() -> None:
    hub = Told()
    hub.device("phone", 1, 0.0)
    hub.client(1, 0.0)
    hub.hear(hub.leases.device_left("phone", 1.0))
    hub.hear(hub.leases.client_ended(session(1), 2.0))
    hub.client(2, 3.0)
    hub.all.clear()
    hub.device("phone", 1, 4.0, holds=session(1))
    assert [(s.message, s.to) for s in hub.all] == [("release", "phone"), ("lease", "phone"), ("granted", session(2))]


def test_names() -> None:
    hub = Told()
    assert [hub.device(name, k, 0.0) for k, name in enumerate(("phone", "phone", "any", "local", ""))] == [
        "phone", "phone-2", "any-2", "local-2", "device-2",
    ]  # fmt: skip
    hub.hear(hub.leases.device_left("phone", 1.0))
    assert hub.device("phone", 9, 2.0) == "phone", "started anew"
    assert hub.device("phone", 9, 3.0) == "phone", "on a newer connection"


# Any order of events.

SESSIONS = [session(k) for k in range(5)]
BOOTS = [boot(k) for k in range(5)]
NAMES = ("p", "q")
TARGETS = ("gpu", "cpu")
wishes = st.builds(Wish, st.sampled_from(("any", *NAMES)), st.sampled_from(TARGETS), st.just("w"))
states = st.sampled_from(("ready", "ready", "ready", "looking", "absent"))
offerings = st.dictionaries(
    st.sampled_from(TARGETS), states.map(lambda s: Offer(s, INFO if s == "ready" else None, "")), min_size=1
)


@dataclass
class End:
    """What an end knows: a device its session, by what it was told; a client its device, or why it has none."""

    connected: bool = True
    gone: float = 0.0
    knows: Any = None
    boot: bytes = b""
    wish: Wish | None = None
    order: int = 0
    retired: bool = False
    offers: Offers = field(default_factory=dict)


class AnyOrder(RuleBasedStateMachine):
    """Ends come, go, come back with or without their memory, end and wait, in any order; messages to an end that is not connected
    are lost. `clients` and `devices` are what those ends know, which is compared with the machine after every event."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = Leases()
        self.now = 0.0
        self.clients: dict[bytes, End] = {}
        self.devices: dict[str, End] = {}
        self.count = 0

    def hear(self, said: list[Said]) -> None:
        held = {device.knows for device in self.devices.values()}
        waiting = {s: c for s, c in self.clients.items() if c.connected and (c.knows is None or c.knows[0] == "waiting")}
        for one in said:
            assert decode(control(one.message, *one.arguments)), "it can be sent"
            end = self.clients[one.to] if isinstance(one.to, bytes) else self.devices[one.to]
            assert end.connected, "said to nobody"
            if one.message == "lease":
                assert end.knows is None, "a device that has a lease got another"
                end.knows = one.arguments[0]["session"]
            elif one.message == "release":
                assert end.knows == one.arguments[0]
                end.knows = None
            else:
                if one.message == "granted" and one.to in waiting and one.to not in held:
                    self.in_order(one, waiting)
                end.knows = (one.message, one.arguments[0])

    def in_order(self, granted: Said, waiting: dict[bytes, End]) -> None:
        """Nobody who came before and got none could have been given that device."""
        name, served = granted.arguments[0]["name"], waiting[bytes(granted.to)]  # type: ignore[arg-type]
        for other, client in waiting.items():
            if client.order < served.order and self.leases.device_of(other) is None and client.wish is not None:
                fits = client.wish.device in ("any", name) and self.ready(name, client.wish.target)
                assert not fits, f"{granted.to!r} overtook {other!r}"

    def ready(self, name: str, target: str) -> bool:
        device = self.devices[name]
        return not device.retired and target in device.offers and device.offers[target].ready

    @rule(name=st.sampled_from(NAMES), which=st.sampled_from(BOOTS), offers=offerings, holds=st.sampled_from([None, *SESSIONS]))
    def device_joins(self, name: str, which: bytes, offers: Offers, holds: bytes | None) -> None:
        """A device that is known by its boot tells what it really holds; another may hold anything, from an earlier hub."""
        known = next((d for d in self.devices.values() if d.boot == which), None)
        held = holds if known is None else known.knows
        called, said = self.leases.device_joined(Joining(name, which, offers, held), self.now)
        before = self.devices.get(called)
        assert known is None or known is before, "a device lost its name"
        assert before is None or before.boot == which or not before.connected, "a name was taken from one that is connected"
        self.devices[called] = End(knows=held, boot=which, offers=offers)
        self.hear(said)

    @rule(who=st.sampled_from(SESSIONS), wish=wishes)
    def client_joins(self, who: bytes, wish: Wish) -> None:
        client = self.clients.get(who)
        if client is None:
            self.count += 1
            client = self.clients[who] = End(order=self.count)
        if client.wish is None or self.device_of(who) is None:
            client.wish = wish
        client.connected, client.knows = True, None
        self.hear(self.leases.client_joined(who, wish, self.now))

    def device_of(self, who: bytes) -> str | None:
        return next((name for name, device in self.leases._devices.items() if device.session == who), None)

    @precondition(lambda self: any(d.connected for d in self.devices.values()))
    @rule(data=st.data())
    def device_leaves(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, d in self.devices.items() if d.connected)))
        self.devices[name].connected, self.devices[name].gone = False, self.now
        self.hear(self.leases.device_left(name, self.now))

    @precondition(lambda self: any(d.connected for d in self.devices.values()))
    @rule(data=st.data(), offers=offerings, retired=st.booleans())
    def device_changes(self, data: st.DataObject, offers: Offers, retired: bool) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, d in self.devices.items() if d.connected)))
        self.devices[name].offers, self.devices[name].retired = offers, retired
        self.hear(self.leases.offers(name, offers, self.now) if not retired else [])
        self.hear(self.leases.retired(name, retired, self.now))
        self.hear(self.leases.offers(name, offers, self.now))

    @precondition(lambda self: any(c.connected for c in self.clients.values()))
    @rule(data=st.data(), ends=st.booleans())
    def client_leaves(self, data: st.DataObject, ends: bool) -> None:
        who = data.draw(st.sampled_from(sorted(s for s, c in self.clients.items() if c.connected)))
        if ends:
            del self.clients[who]
            self.hear(self.leases.client_ended(who, self.now))
        else:
            self.clients[who].connected, self.clients[who].gone = False, self.now
            self.hear(self.leases.client_left(who, self.now))

    @rule(spent=st.sampled_from((0.5, 5.0, GRACE_SECONDS / 2, GRACE_SECONDS)))
    def time_passes(self, spent: float) -> None:
        self.now += spent
        for ends in (self.clients, self.devices):
            for key, end in list(ends.items()):
                if not end.connected and self.now >= end.gone + GRACE_SECONDS:
                    del ends[key]  # type: ignore[attr-defined]
        self.hear(self.leases.tick(self.now))

    @invariant()
    def each_lease_joins_two(self) -> None:
        leases = {name: d.session for name, d in self.leases._devices.items() if d.session is not None}
        assert len(set(leases.values())) == len(leases)
        assert leases == {c.device: s for s, c in self.leases._clients.items() if c.device is not None}

    @invariant()
    def nobody_is_forgotten_and_nobody_stays(self) -> None:
        assert set(self.leases._clients) == set(self.clients)
        assert set(self.leases.names()) == set(self.devices)

    @invariant()
    def each_end_knows_what_holds(self) -> None:
        for name, device in self.devices.items():
            kept = self.leases._devices[name]
            if device.connected:
                assert device.knows == (kept.session or kept.kept_for)
        for who, client in self.clients.items():
            if not client.connected:
                continue
            assert client.knows is not None, "a client was told nothing"
            mine, served = self.device_of(who), self.leases.device_of(who)
            assert (client.knows[0] == "waiting") == (mine is None)
            if client.knows[0] == "granted":
                assert client.knows[1]["name"] == mine == served
                assert client.knows[1]["boot"] == self.devices[str(mine)].boot
            if mine is not None and served is not None and self.ready(mine, str(client.wish and client.wish.target)):
                assert client.knows[0] == "granted"

    @invariant()
    def no_device_is_idle_while_somebody_waits_for_it(self) -> None:
        for who, client in self.clients.items():
            if not client.connected or client.wish is None or self.device_of(who) is not None:
                continue
            for name, device in self.devices.items():
                inside = self.leases._devices[name]
                free = device.connected and inside.session is None and inside.kept_for in (None, who)
                assert not (free and client.wish.device in ("any", name) and self.ready(name, client.wish.target))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40)
