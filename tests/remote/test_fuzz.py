"""Whatever arrives is decoded or refused: the decoder, the channel behind it, and a real hub on a real socket.

`benchmarks/fuzz_wire.py` does the same for a million frames.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect

from tapml.kernels import Kernel
from tapml.remote.channel import Channel, Gap
from tapml.remote.wire import BARE, CONTROLS, ITEMS, LARGEST, PIECE, Packet, WireError, control, decode, packet
from tests.remote.messages import CONTROL_ARGUMENTS, ITEM_ARGUMENTS, Maker, browsers_answers, disagreement, repacked, spoil
from tests.remote.processes import Hub, running_agent, running_hub

SESSION = b"s" * 16

RANDOM = st.randoms(use_true_random=False)
fast = settings(max_examples=1000)


def test_the_makers_know_every_message() -> None:
    assert set(CONTROL_ARGUMENTS) == set(CONTROLS)
    assert set(ITEM_ARGUMENTS) == set(ITEMS)


@fast
@given(RANDOM)
def test_valid_messages_come_through_unchanged(rng: random.Random) -> None:
    maker = Maker(rng)
    for data in (maker.packet(), maker.control(rng.choice(list(CONTROLS)))):
        assert repacked(decode(data)) == data


@fast
@given(RANDOM)
def test_spoiled_messages_are_refused_or_are_other_valid_ones(rng: random.Random) -> None:
    data = spoil(rng, Maker(rng).message())
    try:
        message = decode(data)
    except WireError:
        return
    assert repacked(decode(repacked(message))) == repacked(message)


def test_the_browsers_decoder_sees_the_same() -> None:
    if shutil.which("node") is None:
        pytest.skip("not run: there is no node here")
    rng = random.Random(12)
    maker = Maker(rng)
    frames = [frame for _ in range(600) for valid in [maker.message()] for frame in (valid, spoil(rng, valid), spoil(rng, valid))]
    found = [disagreement(frame, answer) for frame, answer in zip(frames, browsers_answers(frames), strict=True)]
    assert not list(filter(None, found))


@fast
@given(st.binary(max_size=200))
def test_bytes_are_refused_or_decoded(data: bytes) -> None:
    for kind in (b"", b"\0", b"\1"):
        try:
            decode(kind + data)
        except WireError:
            continue


def test_small_messages_take_no_large_memory() -> None:
    """Headers of arrays inside of each other, each of as many elements as one may have: refused before room is made for any."""
    maps = (b"\x81\xa0", b"\xde\x01\x00\xa0", b"\xdf\x00\x00\x01\x00\xa0")
    for header in (b"\x91", b"\xdc\x20\x00", b"\xdd\x00\x00\x20\x00", *maps):
        for kind in (b"\0", b"\1"):
            try:
                decode(kind + header * 1000)
            except WireError as error:
                assert "deep" in str(error)
            else:
                raise AssertionError(header)


packets = st.builds(
    Packet, st.just(SESSION), st.integers(0, 6), st.integers(0, 6), st.just([["synchronize", 1]]), st.sampled_from((30, 2**20))
)


@fast
@given(st.lists(st.one_of(packets, st.just("pack"))))
def test_a_channel_takes_any_packets_and_keeps_its_promises(steps: list[Packet | str]) -> None:
    channel = Channel(SESSION)
    sent = 0
    for step in steps:
        taken = channel.taken
        if step == "pack":
            channel.pack([["run", 1]])
            sent += 1
            continue
        assert isinstance(step, Packet)
        try:
            items = channel.take(step)
        except Gap:
            assert step.seq > taken + 1
            assert channel.taken == taken
        except WireError:
            assert step.ack > sent
            assert channel.taken == taken
        else:
            new = step.seq == taken + 1
            assert channel.taken == taken + new
            assert bool(items) == (new or step.seq == 0)
            channel.done(step)
        kept = channel.unacknowledged()
        assert channel.first == sent - len(kept) + 1
        assert channel.in_flight == sum(map(len, kept))
        for number, data in enumerate(kept, channel.first):
            again = decode(data)
            assert isinstance(again, Packet)
            assert again.seq == number
        due = channel.due(idle=True)
        told = decode(due) if due else None
        assert told is None or (isinstance(told, Packet) and told.ack <= channel.taken)


KERNEL = json.dumps(Kernel("c", "f", "void f(float *x) { x[0] += 1; }", ("read_write",), (1, 1, 1), (1, 1, 1)).to_json()).encode()
THINGS = (KERNEL, b"data", b"", b"{}", b"[" * 2000)


REQUESTS = [name for name in ITEMS if name not in BARE | {"ok", "error", "close"}]


class Senseless:
    """Requests in any order about a few handles that may not be there, and sizes that may not fit."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def request(self) -> list[Any]:
        name = self.rng.choice(REQUESTS) if self.rng.random() < 0.98 else "close"
        if name == "keep" and self.rng.random() < 0.7:
            thing = self.rng.choice(THINGS)
            return ["keep", hashlib.sha256(thing).digest(), len(thing), 0, thing]
        arguments = {
            "open": lambda: [self.few(), {"target": "cpu", "device": None, "deadline": self.rng.choice((None, 0, 1, 2.0**53))}],
            "write": lambda: [self.few(), self.size(), bytes(self.rng.randrange(64))],
            "keep": lambda: [self.digest(), self.size(), self.size(), bytes(self.rng.randrange(8))],
            "put": lambda: [self.few(), self.size(), self.digest()], "load": lambda: [self.few(), self.digest()],
            "allocate": lambda: [self.few(), self.size()], "launch": lambda: [self.batch()],
            "define": lambda: [self.few(), self.batch()],
            "read": lambda: [self.few(), self.few(), self.size(), self.rng.choice((0, 1, 4, 64, PIECE))],
        }  # fmt: skip
        return [name, *(arguments[name]() if name in arguments else [self.few()])]

    def few(self) -> int:
        return self.rng.choice((1, 1, 1, 2, 2, 3))

    def size(self) -> int:
        return self.rng.choice((0, 0, 0, 1, 4, 8, 16, 60, 64, 65, LARGEST))

    def digest(self) -> bytes:
        return hashlib.sha256(self.rng.choice((KERNEL, KERNEL, *THINGS))).digest()

    def batch(self) -> list[Any]:
        return [[self.few(), [self.few() for _ in range(self.rng.choice((1, 1, 1, 2)))]] for _ in range(self.rng.randrange(3))]


class Stranger:
    """A connection that says senseless things to a hub until the hub has enough of it."""

    def __init__(self, hub: Hub, rng: random.Random) -> None:
        self.hub, self.rng, self.maker = hub, rng, Maker(rng)

    def talk(self) -> None:
        if self.rng.random() < 0.2:
            with socket.create_connection(("127.0.0.1", self.hub.port), 5) as plain:
                start = self.rng.choice((b"", b"GET /wire HTTP/1.1\r\n", b"GET /" + b"a" * 9000, b"\x16\x03\x01"))
                plain.sendall(start + self.rng.randbytes(self.rng.choice((1, 100, 5000))))
                plain.settimeout(0.2)
                with contextlib.suppress(OSError):
                    plain.recv(4096)
            return
        with (
            contextlib.suppress(ConnectionClosed, OSError, InvalidHandshake),
            connect(self.hub.address.websocket, compression=None, open_timeout=5, close_timeout=0.2) as connection,
        ):
            if self.rng.random() < 0.7:
                connection.send(control("hello", self.hello()))
            for _ in range(self.rng.choice((1, 5, 20))):
                connection.send(self.message())
            connection.recv(timeout=0.1)

    def hello(self) -> dict[str, Any]:
        hello = self.maker.hello()
        hello.pop("pair", None)
        if hello["role"] == "client" and self.rng.random() < 0.7:
            hello |= {"device": "bench", "target": "cpu", "session": SESSION}
        return hello | {"token": self.hub.address.token}

    def message(self) -> bytes | str:
        kind = self.rng.randrange(12)
        if kind == 0:
            return "text"
        if kind < 4:
            return packet(SESSION, 0, 0, [["resume", 1]])
        if kind < 8:
            return packet(SESSION, self.rng.randrange(1, 5), 0, [Senseless(self.rng).request()])
        return spoil(self.rng, self.maker.message()) if kind < 10 else self.maker.message()


def test_a_hub_outlives_senseless_connections(tmp_path: Path) -> None:
    """Random bytes, broken frames, and right ones that make no sense, before and after the hello, some of them passed on to an
    agent: afterwards both work as before, have met no bug, and have not grown."""
    with running_hub(tmp_path) as hub, running_agent(hub.url, "bench", "--target", "cpu") as agent, ThreadPoolExecutor(8) as pool:
        agent.wait_ready("cpu")

        def talk(seed: int) -> None:
            with contextlib.suppress(TimeoutError):
                Stranger(hub, random.Random(seed)).talk()

        list(pool.map(talk, range(60)))
        before = [psutil.Process(one.pid).memory_info().rss for one in (hub, agent)]
        list(pool.map(talk, range(60, 200)))
        after = [psutil.Process(one.pid).memory_info().rss for one in (hub, agent)]
        assert all(now - then < 32 * 2**20 for then, now in zip(before, after, strict=True)), (before, after)
        agent.wait_ready("cpu")
        assert hub.process.poll() is None
        assert "Traceback" not in hub.said() + agent.said(), hub.said() + agent.said()
