"""A real hub as a second process, and ends that connect to it: leases over connections that come and go, packets passed on, the
live listing, and ends that are slow, silent or frozen."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.sync.client import ClientConnection, connect

from tapml.remote.connection import Broken, Refused
from tapml.remote.wire import PIECE, Control, control, decode, packet
from tests.remote.ends import GPU, IDLE, INFO, End, client, client_hello, device, watcher
from tests.remote.processes import Hub, running_hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Shared: each test uses a target and names of its own."""
    with running_hub(tmp_path_factory.mktemp("state")) as running:
        yield running
        assert "Traceback" not in running.said()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One that takes an end for dead that says nothing for one and a half seconds."""
    with running_hub(tmp_path_factory.mktemp("state"), "--heartbeat", "0.5") as running:
        yield running
        assert "Traceback" not in running.said()


def offering(target: str, info: dict[str, Any] = INFO) -> dict[str, Any]:
    return {target: {**GPU["gpu"], "info": info}}


def small(session: bytes, seq: int = 1) -> bytes:
    return packet(session, seq, 0, [["synchronize", seq]])


def until(watching: End, name: str, state: str | None) -> dict[str, Any]:
    """How that device is listed, once it is in that state (None: once it is gone)."""
    while True:
        found = {one["name"]: one for one in watching.wait("devices")}
        if state is None and name not in found:
            return {}
        if name in found and found[name]["state"] == state:
            return found[name]


def test_a_lease_from_beginning_to_end(hub: Hub) -> None:
    with client(hub.url, target="t1", label="test llama") as one:
        assert one.wait("waiting")
        with device(hub.url, "first", offers=offering("t1")) as other:
            assert other.name == "first"
            assert other.wait("lease") == {"session": one.session, "target": "t1", "label": "test llama"}
            assert one.wait("granted") == {"name": "first", "boot": other.boot, "info": INFO}
            for seq, data in enumerate((small(one.session), packet(one.session, 2, 0, [["write", 1, 0, os.urandom(PIECE)]])), 1):
                one.send(data)
                assert other.packet() == data, seq
                other.send(data)
                assert one.packet() == data, seq
            one.tell("end")
            assert other.wait("release") == one.session
            assert one.told() == [], "the connection is closed"


def test_packets_go_to_the_partner_only_and_in_order(hub: Hub) -> None:
    with ExitStack() as stack:
        pairs = []
        for k in range(3):
            other = stack.enter_context(device(hub.url, f"order-{k}", offers=offering("t2")))
            one = stack.enter_context(client(hub.url, f"order-{k}", "t2"))
            one.wait("granted")
            pairs.append((one, other))
        for seq in range(1, 200):
            for one, _ in pairs:
                one.send(small(one.session, seq))
        for one, other in pairs:
            assert [other.packet() for _ in range(1, 200)] == [small(one.session, seq) for seq in range(1, 200)]


def test_a_packet_without_a_lease_goes_nowhere(hub: Hub) -> None:
    with device(hub.url, "lone", offers=offering("t3")) as other, client(hub.url, "nobody", "t3") as stray:
        stray.send(small(stray.session))
        other.send(small(bytes(16)))
        with client(hub.url, "lone", "t3") as one:
            one.wait("granted")
            one.send(small(one.session, 7))
            assert other.packet() == small(one.session, 7)


def test_the_next_client_is_served_when_the_one_before_is_gone(hub: Hub) -> None:
    with device(hub.url, "busy", offers=offering("t4")), client(hub.url, "busy", "t4", "the first") as one:
        one.wait("granted")
        with client(hub.url, "busy", "t4", "the second") as two:
            assert two.wait("waiting") == "busy is busy with the first"
            one.tell("end")
            assert two.wait("granted")["name"] == "busy"


def test_both_ends_may_come_back_on_a_newer_connection(hub: Hub) -> None:
    with device(hub.url, "flaky", offers=offering("t5")) as other, client(hub.url, "flaky", "t5") as one:
        one.wait("granted")
        with device(hub.url, "flaky", other.boot, offering("t5"), one.session) as newer:
            assert newer.name == "flaky"
            assert one.wait("granted")["boot"] == other.boot
            assert other.wait("refused")[0] == "busy", "the old connection is told why it is closed"
            with client(hub.url, "flaky", "t5", session=one.session) as again:
                again.wait("granted")
                assert one.wait("refused")[0] == "busy"
                again.send(small(one.session))
                assert newer.packet() == small(one.session)
            newer.connection.close()
        with device(hub.url, "flaky", offers=offering("t5")) as restarted:
            assert restarted.name == "flaky"
            assert restarted.wait("lease")["session"] == one.session


def test_a_client_hears_that_its_device_is_away(hub: Hub) -> None:
    with device(hub.url, "leaver", offers=offering("t6")) as other, client(hub.url, "leaver", "t6") as one:
        one.wait("granted")
        other.connection.close()
        assert "leaver" in one.wait("away")


def test_a_name_is_taken_by_the_living_only(hub: Hub) -> None:
    with device(hub.url, "twin", offers={}) as living:
        asking = threading.Thread(target=living.told, daemon=True)
        asking.start()  # answers the hub's pings
        with device(hub.url, "twin", offers={}) as second:
            assert second.name == "twin-2"
    with device(hub.url, "ghost", offers={}), device(hub.url, "ghost", offers={}) as reloaded:
        assert reloaded.name == "ghost", "the first answers nothing"


def test_watchers_see_all_and_are_not_flooded(hub: Hub) -> None:
    with watcher(hub.url) as watching, device(hub.url, "seen", offers=offering("t7")) as other:
        listed = until(watching, "seen", "idle")
        assert (listed["kind"], listed["system"], listed["offers"]["t7"]["info"]) == ("agent", "a test", INFO)
        with client(hub.url, "seen", "t7", "test llama") as one:
            one.tell("doing", "layers.3.mlp")
            begun = time.monotonic()
            for count in range(1, 101):
                other.tell("status", {**IDLE, "state": "busy", "launches": count, "received": 10 * count, "note": "warm"})
                time.sleep(0.01)
            messages = 0
            while listed["launches"] < 100 or not listed["doing"]:
                messages += 1
                listed = until(watching, "seen", "busy")
            assert messages < 5 + 2 * (time.monotonic() - begun), "100 statuses are no 100 listings"
            while not listed["launches_per_s"]:
                count += 100
                other.tell("status", {**IDLE, "state": "busy", "launches": count, "received": 10 * count, "note": "warm"})
                listed = until(watching, "seen", "busy")
            assert (listed["label"], listed["target"], listed["note"]) == ("test llama", "t7", "warm")
            assert listed["doing"] == "layers.3.mlp"
            assert listed["bytes_per_s"] == pytest.approx(10 * listed["launches_per_s"])
            one.tell("end")
        assert until(watching, "seen", "idle")["label"] == ""
        other.tell("offers", {"t7": {"state": "absent", "info": None, "reason": "the driver\x1b[2J is gone"}})
        while (offer := until(watching, "seen", "idle")["offers"]["t7"])["state"] != "absent":
            pass
        assert offer["reason"] == "the driver [2J is gone", "nothing that steers a terminal"
        other.tell("status", {**IDLE, "state": "retired"})
        until(watching, "seen", "retired")
        other.connection.close()
        until(watching, "seen", "away")


def test_a_slow_device_holds_up_its_own_client_only_and_costs_no_memory(strict: Hub) -> None:
    rss = psutil.Process(strict.pid).memory_info().rss
    hello = {"version": 1, "token": strict.address.token, **client_hello("slow", "t8")}
    with device(strict.url, "slow", offers=offering("t8")) as slow, connect(strict.address.websocket, compression=None) as held:
        held.send(control("hello", hello))
        wait(held, "granted")
        data = packet(hello["session"], 1, 0, [["write", 1, 0, bytes(PIECE)]])
        sent, silent = [0], threading.Event()

        def pump() -> None:
            for _ in range(256):
                held.send(data)
                sent[0] += 1

        def live() -> None:
            with suppress(Broken):
                while not silent.wait(0.3):
                    slow.tell("pong", 1)

        pumping, living = threading.Thread(target=pump, daemon=True), threading.Thread(target=live)
        pumping.start()  # into a device that never reads
        living.start()  # but is there
        with device(strict.url, "quick", offers=offering("t8")) as other, client(strict.url, "quick", "t8") as one:
            one.wait("granted")
            for seq in range(1, 50):
                one.send(small(one.session, seq))
                assert other.packet() == small(one.session, seq)
        time.sleep(2.5)
        grown = psutil.Process(strict.pid).memory_info().rss - rss
        assert sent[0] < 100 and grown < 32 * PIECE, f"{sent[0]} MiB were taken, {grown} bytes kept"
        # In the end it is cut off, though it speaks. Its client could not be heard for longer, and is not.
        assert "slow" in wait(held, "away")
        silent.set()
        living.join()
        pumping.join(20)
        assert sent[0] == 256


def wait(connection: ClientConnection, name: str) -> Any:
    """The argument of the next message of that name, on a connection that answers no pings."""
    while True:
        message = decode(connection.recv())
        assert isinstance(message, Control)
        if message.name == name:
            return message.arguments[0]


def test_an_end_that_goes_silent_is_cut_off(strict: Hub) -> None:
    with watcher(strict.url) as watching, device(strict.url, "silent", offers={}):
        until(watching, "silent", "idle")
        until(watching, "silent", "away")


def test_a_hub_that_stood_still_cuts_nobody_off(strict: Hub) -> None:
    with device(strict.url, "patient", offers=offering("t9")) as other, client(strict.url, "patient", "t9") as one:
        one.wait("granted")
        strict.freeze()
        time.sleep(2.5)  # five heartbeats
        strict.thaw()
        one.send(small(one.session))
        assert other.packet() == small(one.session)
        assert strict.said().count("patient left") == 0


def test_a_restarted_hub_gives_a_session_its_device_back(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub, ExitStack() as stack:
        other = stack.enter_context(device(hub.url, "phone"))
        one = stack.enter_context(client(hub.url, "phone"))
        one.wait("granted")
        url = hub.url
        hub.restart()
        assert hub.url == url
        again = stack.enter_context(device(url, "phone", other.boot, session=one.session))
        rival = stack.enter_context(client(url, "any"))
        assert "reserved" in rival.wait("waiting")
        back = stack.enter_context(client(url, "phone", session=one.session))
        back.wait("granted")
        back.send(small(one.session))
        assert again.packet() == small(one.session)


def test_a_paired_device_has_a_token_that_outlives_the_hub(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        with watcher(hub.url) as watching:
            watching.tell("pair")
            pairing = watching.wait("pairing")
        assert pairing["url"].endswith(f"/?pair={pairing['code']}") and pairing["svg"].startswith("<svg")
        with device(pairing["url"], "phone") as phone:
            token = phone.connection.welcome["token"]
        hub.restart()
        with device(f"{hub.address.redacted}/?token={token}", "phone") as phone:
            assert phone.name == "phone" and "token" not in phone.connection.welcome


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told_to_with_ends_connected(tmp_path: Path, number: signal.Signals) -> None:
    with running_hub(tmp_path) as hub, device(hub.url, "phone"), watcher(hub.url):
        hub.send(number)
        assert hub.process.wait(20) == 0
        assert "Traceback" not in hub.said()


def test_log_lines_tell_who_came_and_what_was_done(hub: Hub) -> None:
    with device(hub.url, "logged", offers=offering("t10")), client(hub.url, "logged", "t10", "bench\x1b[0m") as one:
        one.wait("granted")
        one.tell("end")
        hub.wait_said("logged is free again")
    with pytest.raises(Refused):
        client(f"{hub.address.redacted}/?token=wrong").__enter__()
    hub.wait_said("logged left")
    said = hub.said()
    assert "logged joined (agent, a test), offers t10" in said
    assert "logged works on t10 for bench [0m" in said
    assert "refused a connection from 127.0.0.1: The token is wrong" in said
    assert "\x1b" not in said and hub.address.token not in said


def test_hundreds_of_offers_are_listed_without_their_descriptions(hub: Hub) -> None:
    wide = {**INFO, "features": [f"feature-{k:03}-{'x' * 80}" for k in range(100)]}
    offers = {f"t{k}": {"state": "ready", "info": wide, "reason": "x" * 400} for k in range(20)}
    with ExitStack() as stack:
        for k in range(7):
            stack.enter_context(device(hub.url, f"wide-{k}", offers=offers))
        listed = {one["name"]: one for one in hub.devices()}
        assert len(control("devices", list(listed.values()))) < 2**18
        assert {f"wide-{k}" for k in range(7)} <= listed.keys()
        assert len(listed["wide-0"]["offers"]) == 16 and listed["wide-0"]["offers"]["t0"]["info"] is None
        assert listed["wide-0"]["offers"]["t0"]["reason"] == "x" * 400
        for k in range(7, 60):
            stack.enter_context(device(hub.url, f"wide-{k}", offers=offers))
        listed = {one["name"]: one for one in hub.devices()}
        assert {f"wide-{k}" for k in range(60)} <= listed.keys(), "what is left out are words, not devices"
        assert listed["wide-0"]["offers"]["t0"] == {"state": "ready", "info": None, "reason": ""}


def test_a_device_that_describes_itself_endlessly_can_be_had(hub: Hub) -> None:
    """What the hub says of it to its client fits into a message, whatever it said to the hub."""
    wide = {**INFO, "features": [f"{k:05}{'x' * 395}" for k in range(640)]}
    with device(hub.url, "endless", offers=offering("t12", wide)) as other, client(hub.url, "endless", "t12") as one:
        info = one.wait("granted")["info"]
        assert info["name"] == INFO["name"] and len(info["features"]) == 64
        one.tell("end")
        other.wait("release")


def test_a_role_says_what_is_its_own_to_say(hub: Hub) -> None:
    others = {"watch": ("end", "offers"), "client": ("pair", "offers"), "device": ("pair", "end")}
    made = {"watch": watcher, "client": client, "device": lambda url: device(url, "stranger", offers={})}
    for role, names in others.items():
        for name in names:
            with made[role](hub.url) as one:
                one.tell(name, *([{}] if name == "offers" else []))
                assert one.wait("refused")[0] == "protocol", f"{name} of a {role}"
