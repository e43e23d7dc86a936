"""Floods at a real hub, plain and with TLS: from one address and from many, before TLS, before the hello and after it. Whoever
comes from elsewhere is let in all the same, the log stays short, and neither memory nor descriptors run out."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from websockets.sync.client import connect

from tapml.remote.connection import Refused
from tapml.remote.hub import door as door_module
from tapml.remote.hub.gate import MOST_NEW, MOST_NEW_OF_ONE, Gate, place_of
from tapml.remote.hub.leases import Joining, Leases, Offer, Wish
from tapml.remote.hub.logbook import LONGEST, MINUTE, MOST, Logbook
from tapml.remote.hub.naming import MOST_NAMES_OF_TOKEN, MOST_TOKENS, Naming
from tapml.remote.hub.room import FOR_OWNER, MOST_OF_PLACE, MOST_OF_TOKEN, Room
from tapml.remote.wire import Control, control, decode
from tests.remote.ends import INFO, client, device, watcher
from tests.remote.processes import Hub, Process, running_hub

ELSEWHERE = "127.0.0.2"
PROBES = 5
TRUSTING = ssl._create_unverified_context()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("plain")) as hub:
        yield hub


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("secured"), "--host", "0.0.0.0") as hub:
        yield hub


def connected(hub: Hub, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", hub.port), 10, (source, 0))


def is_let_in(hub: Hub, source: str = ELSEWHERE) -> bool:
    """Whether a watcher with the right token is, at the first try."""
    secure = hub.address.scheme == "https"
    address = f"{'wss' if secure else 'ws'}://127.0.0.1:{hub.port}/wire"
    try:
        trust = TRUSTING if secure else None
        with connect(address, sock=connected(hub, source), ssl=trust, open_timeout=5, close_timeout=1) as connection:
            connection.send(control("hello", {"version": 1, "role": "watch", "token": hub.address.token}))
            answer = decode(bytes(connection.recv(timeout=5)))  # type: ignore[arg-type]
    except (OSError, EOFError, TimeoutError):
        return False
    return isinstance(answer, Control) and answer.name == "welcome"


def probes(hub: Hub) -> int:
    """How many of them are let in."""
    return sum(is_let_in(hub) for _ in range(PROBES))


def here(hub: Hub) -> str:
    """The hub's address with its token, as this machine reaches it."""
    return hub.url.replace(hub.address.host, "127.0.0.1")


@contextmanager
def growing(hub: Hub, log_bytes: int, memory_bytes: int) -> Iterator[None]:
    """Meanwhile the hub writes no more than that, keeps no more than that, and says nothing of the event loop's making."""
    process = psutil.Process(hub.pid)
    before, rss = len(hub.said()), process.memory_info().rss
    yield
    said = hub.said()[before:]
    assert len(said) <= log_bytes, said[:3000]
    assert "Traceback" not in said and "socket.accept" not in said and "Fatal error" not in said, said[:3000]
    assert process.memory_info().rss - rss < memory_bytes


@pytest.mark.parametrize("kind", ["plain", "secured"])
def test_silent_connections_of_one_address_keep_no_other_out(kind: str, request: pytest.FixtureRequest) -> None:
    hub: Hub = request.getfixturevalue(kind)
    with ExitStack() as stack, growing(hub, 6000, 2**26):
        for _ in range(140):
            one = stack.enter_context(connected(hub))
            if kind == "secured":
                one = stack.enter_context(TRUSTING.wrap_socket(one))
        assert probes(hub) == PROBES


def test_silent_connections_of_many_addresses_make_room(plain: Hub) -> None:
    with ExitStack() as stack, growing(plain, 6000, 2**25):
        for k in range(150):
            stack.enter_context(connected(plain, f"127.0.1.{k % 5 + 1}"))
        assert probes(plain) == PROBES
        assert is_let_in(plain, "127.0.1.1"), "and who comes from a crowded address, and speaks"
        plain.wait_said("without a hello, to make room")


def test_refused_ones_that_linger_do_not_count(plain: Hub) -> None:
    """They were told no, and neither read it nor go."""
    begin = (
        f"GET /wire HTTP/1.1\r\nHost: 127.0.0.1:{plain.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    hello = control("hello", {"version": 1, "role": "watch", "token": "wrong"})
    refused = begin.encode() + b"\x82" + bytes([0x80 | len(hello)]) + bytes(4) + hello
    with ExitStack() as stack:
        for k in range(MOST_NEW + 20):
            stack.enter_context(connected(plain, f"127.0.1.{k % 3 + 1}")).sendall(refused)
        assert is_let_in(plain)


class SmallHub(Hub):
    """It may open 256 files, and may not raise that."""

    launcher = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh", *Process.launcher)


def test_hundreds_of_connections_that_never_begin_tls_cost_next_to_nothing(tmp_path: Path) -> None:
    hub = SmallHub(tmp_path, "--host", "0.0.0.0")
    try:
        process = psutil.Process(hub.pid)
        with ExitStack() as stack, growing(hub, 8000, 2**26):
            for k in range(700):
                stack.enter_context(connected(hub, f"127.0.1.{k % 3 + 1}"))
                if k % 100 == 0:
                    assert process.num_fds() < 256 - door_module.RESERVED // 2
            assert probes(hub) == PROBES
            assert process.num_fds() < 256 - door_module.RESERVED // 2
        assert "takes" in hub.said() and "ulimit" in hub.said()
        with device(here(hub), "bench"), client(here(hub)) as one:
            assert one.wait("granted")["name"] == "bench"
    finally:
        hub.end()


def test_broken_tls_leaves_nothing_but_a_few_lines(secured: Hub) -> None:
    junk = (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + bytes(200), os.urandom(300), b"\x16")
    with growing(secured, 6000, 2**26):
        for k in range(200):
            with contextlib.suppress(OSError), connected(secured) as one:
                one.sendall(junk[k % len(junk)])
                if k % 3:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        assert probes(secured) == PROBES


WIDE = {
    f"t{k}": {"state": "ready", "info": {**INFO, "features": [f"{k}-{j}-{'x' * 190}" for j in range(64)]}, "reason": "x" * 100}
    for k in range(16)
}


def paired(hub: Hub) -> str:
    """The hub's address with a token of a device that paired."""
    with watcher(hub.url) as watching:
        watching.tell("pair")
        url = watching.wait("pairing")["url"]
    with device(url, "pairing", offers={}) as phone:
        return f"{hub.address.redacted}/?token={phone.connection.welcome['token']}"


def test_a_paired_phone_that_joins_again_and_again_fills_neither_log_nor_memory(plain: Hub) -> None:
    url = paired(plain)
    with growing(plain, 20_000, 60 * 2**20):
        for k in range(100):
            with device(url, f"phone-{k}-{'x' * 40}", offers=WIDE):
                pass
        with device(url, "phone", offers=WIDE) as phone:
            for k in range(60):
                phone.tell("offers", {} if k % 2 else WIDE)
            assert phone.connection.welcome
        assert probes(plain) == PROBES


def test_wrong_tokens_and_codes_are_counted_rather_than_told(plain: Hub) -> None:
    with growing(plain, 6000, 2**25):
        for k in range(150):
            with pytest.raises(Refused):
                watcher(f"{plain.address.redacted}/?token=wrong-{k}").__enter__()


# What a paired device may have.


def test_a_paired_token_has_so_many_connections_and_the_owner_has_room(plain: Hub) -> None:
    url = paired(plain)
    with ExitStack() as stack:
        for k in range(MOST_OF_TOKEN):
            stack.enter_context(device(url, f"tab-{k}", offers={}))
        with pytest.raises(Refused) as refused:
            stack.enter_context(device(url, "one too many", offers={}))
        assert refused.value.code == "full"
        with client(plain.url, target="none") as one:
            assert one.wait("waiting")


def test_the_places_of_the_owner_are_kept_whatever_paired_devices_do() -> None:
    room = Room(64)
    for k in range(1000):
        holder, place = f"d-{k % 50}", f"192.0.2.{k % 5}"
        if not room.why_not(holder, place):
            room.enter(k, holder, place)
    taken = len(room._inside)
    assert taken == 48
    for k in range(64 - taken):
        assert not room.why_not("", "192.0.2.1")
        room.enter(f"owner {k}", "", "192.0.2.1")
    assert "takes no more" in room.why_not("", "192.0.2.1")
    wide = Room()
    for k in range(MOST_OF_PLACE):
        wide.enter(k, f"d-{k}", "192.0.2.1")
    assert "from this address" in wide.why_not("d-x", "192.0.2.1") and not wide.why_not("d-x", "192.0.2.2")
    assert not wide.why_not("", "192.0.2.1") and wide.most > FOR_OWNER


def test_a_paired_phone_takes_neither_an_absent_agents_name_nor_its_lease(plain: Hub) -> None:
    url = paired(plain)
    with device(plain.url, "rig") as rig, client(plain.url, "rig") as one:
        assert one.wait("granted")["boot"] == rig.boot
        rig.connection.close()
        assert "rig" in one.wait("away")
        with device(url, "rig") as phone, device(url, "rig", boot=rig.boot, session=one.session) as other:
            assert (phone.name, other.name) == ("rig-2", "rig-3")
            with device(plain.url, "rig", boot=rig.boot, session=one.session) as back:
                assert back.name == "rig"
                assert one.wait("granted") == {"name": "rig", "boot": rig.boot, "info": INFO}


def test_names_stay_with_the_token_that_first_had_them_longer_than_the_device_is_known() -> None:
    leases = Leases()
    offers = {"gpu": Offer("ready", INFO, "")}

    def join(name: str, number: int, holder: str, now: float) -> str:
        return leases.device_joined(Joining(name, bytes([number]) * 16, offers, None, holder), now)[0]

    assert join("rig", 1, "", 0.0) == "rig"
    leases.device_left("rig", 1.0)
    leases.tick(1000.0)
    assert leases.names() == []
    leases.client_joined(b"s" * 16, Wish("rig", "gpu", ""), 1000.0)
    assert join("rig", 2, "d-1", 1001.0) == "rig-2" and leases.device_of(b"s" * 16) is None
    for k in range(3, 100):
        name = join(f"n-{k}", k, "d-1", 1002.0)
        leases.device_left(name, 1002.0)
    assert len([name for name in leases.names() if not leases.connected(name)]) <= 16
    assert join("rig", 100, "d-1", 1003.0) == "rig-3", "the names of others are not forgotten for those of one"
    assert join("rig", 101, "d-2", 1003.0) == "rig-4"
    assert join("rig", 102, "", 1003.0) == "rig"
    assert leases.device_of(b"s" * 16) == "rig"
    assert join("rig-2", 103, "", 1003.0) == "rig-2-2", "not even the owner's takes one of a device that is known"


def test_what_is_remembered_of_names_is_bounded() -> None:
    names = Naming()
    names.note("rig", "")
    for k in range(3 * MOST_TOKENS):
        for j in range(MOST_NAMES_OF_TOKEN + 4):
            names.note(f"{k}-{j}", f"d-{k}")
    assert len(names._names) == MOST_TOKENS and all(len(theirs) <= MOST_NAMES_OF_TOKEN for theirs in names._names.values())
    assert not names.may_have("rig", "d-1") and names.may_have("rig", "")


# Gate, door and logbook by themselves.


class Coming:
    def __init__(self, place: str) -> None:
        self.place, self.is_cut = place, False

    def cut(self) -> None:
        self.is_cut = True


def test_the_oldest_of_the_most_crowded_address_makes_room() -> None:
    gate = Gate()
    crowd = [Coming("a") for _ in range(100)]
    for one in crowd:
        gate.enter(one)
    assert [one.is_cut for one in crowd] == [True] * (100 - MOST_NEW_OF_ONE) + [False] * MOST_NEW_OF_ONE
    few = [Coming(f"{k // 2}") for k in range(MOST_NEW)]
    for one in few:
        gate.enter(one)
    assert sum(one.is_cut for one in few) == 1, "one, when all addresses have as few"
    assert (gate.take_made_room(), gate.take_made_room()) == (100, 0)
    assert sum(not one.is_cut for one in crowd) == 1
    gone = [Coming("b") for _ in range(100)]
    for one in gone:
        gate.enter(one)
        gate.refuse(one)
    assert sum(one.is_cut for one in gone) == 36 and sum(one.is_cut for one in few) == 2
    gate.clear()
    assert all(one.is_cut for one in [*crowd, *few, *gone])


def test_what_addresses_are_counted_under() -> None:
    assert place_of("192.0.2.1") == place_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert place_of("2001:db8::1") == place_of("2001:db8::ffff:1") == "2001:db8::/64" != place_of("2001:db8:0:1::1")
    assert place_of("fe80::1%eth0") == "fe80::/64" and place_of("::1") == "::1" and place_of("what") == "what"


def test_with_no_descriptor_left_a_connection_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would stay in the queue, and the event loop would write a traceback each second."""
    import resource

    said: list[str] = []
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    with door_module.Door(listening, Gate(), 100, said.append) as door, ExitStack() as stack:
        door.setblocking(False)
        others = [stack.enter_context(socket.create_connection(door.getsockname(), 5)) for _ in range(3)]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            with pytest.raises(BlockingIOError):
                door.accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for number in held:
                os.close(number)
        assert len(said) == 3 and not door.open
        assert [other.recv(1) for other in others] == [b""] * 3
        stack.enter_context(socket.create_connection(door.getsockname(), 5))
        accepted, _ = door.accept()
        accepted.close()
        assert not door.open


def test_the_log_tells_how_much_it_left_out() -> None:
    lines: list[str] = []
    book = Logbook(lines.append)
    for k in range(1000):
        book.line("refused", f"{k} {'x' * 1000}", 0.0)
        book.line("paired", f"{k}", 0.0)
    assert len(lines) == MOST["refused"] + MOST["paired"] and max(map(len, lines)) == LONGEST
    book.tick(MINUTE - 1)
    assert len(lines) == MOST["refused"] + MOST["paired"]
    lines.clear()
    book.tick(MINUTE)
    told = "left out {} more lines like these within a minute ({})"
    assert lines == [told.format(1000 - MOST[kind], kind) for kind in ("refused", "paired")]
    book.line("refused", "again", MINUTE)
    assert lines[-1] == "again"
