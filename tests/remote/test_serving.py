"""A session over connections that break: packets in any order, answers once each, requests that are cancelled. No sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tapml.devices.null import NullDevice
from tapml.errors import DeviceLost
from tapml.remote import wire
from tapml.remote.agent import serving as servings
from tapml.remote.agent.serving import Serving
from tapml.remote.agent.session import Session
from tapml.remote.agent.store import Store
from tapml.remote.channel import Channel, Gap

NAME = bytes(range(16))
SECONDS = 20.0
WISH = {"target": "null", "device": None, "deadline": None}


class Slow(NullDevice):
    """Whose `synchronize` lasts until it is let go, or killed."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go = threading.Event()
        self.killed = False
        self.dies = True
        self.go.set()

    def synchronize(self) -> None:
        self.begun.set()
        assert self.go.wait(SECONDS)
        if self.killed:
            raise DeviceLost("was killed by SIGKILL")

    def kill(self) -> None:
        self.killed = True
        if self.dies:
            self.go.set()


class Bench:
    """A `Serving`, with the client's end of the channel by hand. `cut` drops what the device sends, as a broken connection."""

    def __init__(self) -> None:
        self.device = Slow()
        self.cut = False
        self.answers: list[list[Any]] = []
        self.said: list[list[Any]] = []
        self.packets = self.bares = 0
        self._news = threading.Condition()
        self.channel = Channel(NAME)
        self.serving = Serving(NAME, Session(lambda *_: self.device, Store(100)), self.device.kill, self._arrived)

    def _arrived(self, data: bytes) -> None:
        with self._news:
            if self.cut:
                return
            packet = wire.decode(data)
            assert isinstance(packet, wire.Packet)
            try:
                items = self.channel.take(packet)
            except Gap:
                return  # what was lost when the connection was cut comes again
            self.channel.done(packet)
            self.packets += bool(packet.seq)
            self.bares += not packet.seq
            (self.answers if packet.seq else self.said).extend(items)
            self._news.notify_all()

    def pack(self, *items: Sequence[Any]) -> bytes:
        with self._news:
            return self.channel.pack(items)

    def send(self, *items: Sequence[Any]) -> None:
        self.deliver(self.pack(*items))

    def bare(self, *items: Sequence[Any]) -> None:
        with self._news:
            data = self.channel.bare(items)
        self.deliver(data)

    def deliver(self, data: bytes) -> None:
        packet = wire.decode(data)
        assert isinstance(packet, wire.Packet)
        self.serving.take(packet)

    def wait(self, met: Any) -> None:
        with self._news:
            assert self._news.wait_for(met, SECONDS), (self.answers, self.said)

    def wait_answered(self, *ids: int) -> None:
        self.wait(lambda: [answer[1] for answer in self.answers] == list(ids))

    def resume(self) -> None:
        """The connection is back."""
        self.cut = False
        self.bare(["resume", self.channel.first])
        self.wait(lambda: ["resumed"] in self.said)
        with self._news:
            kept = self.channel.unacknowledged()
        for data in kept:
            self.deliver(data)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.send(["open", 1, WISH], ["allocate", 1, 64])
    bench.wait_answered(1)
    yield bench
    bench.serving.end()
    bench.device.go.set()
    assert bench.serving.freed(SECONDS)


def test_one_packet_there_and_one_back(bench: Bench) -> None:
    before = bench.packets
    bench.send(["write", 1, 0, b"abcd"], ["read", 2, 1, 0, 4], ["read", 3, 1, 1, 2], ["synchronize", 4])
    bench.wait_answered(1, 2, 3, 4)
    assert [answer[2] for answer in bench.answers[1:]] == [b"abcd", b"bc", None]
    assert bench.packets == before + 1
    bench.wait(lambda: bench.channel.in_flight == 0)


def test_what_is_not_waited_for_is_acknowledged_all_the_same(bench: Bench) -> None:
    bench.send(["write", 1, 0, b"abcd"])
    bench.wait(lambda: bench.channel.in_flight == 0)


@pytest.mark.parametrize(("seconds", "acks"), [(0.0, 1), (1000.0, 0)])
def test_a_long_row_of_packets_gives_signs_of_life(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, seconds: float, acks: int
) -> None:
    monkeypatch.setattr(servings, "SIGN_SECONDS", seconds)
    bench.device.go.clear()
    bench.send(["synchronize", 2])
    assert bench.device.begun.wait(SECONDS)
    before = bench.bares
    bench.send(["write", 1, 0, b"abcd"])
    bench.send(["synchronize", 3])
    bench.device.go.set()
    bench.wait_answered(1, 2, 3)
    assert bench.bares == before + acks


def test_a_session_that_ended_by_itself_says_so_as_often_as_it_is_asked(bench: Bench) -> None:
    """What was said of the end may have been lost with a connection."""
    bench.cut = True
    bench.serving.end()
    assert bench.serving.freed(SECONDS)
    bench.cut = False
    bench.bare(["resume", bench.channel.first])
    assert [item[0] for item in bench.said] == ["lost"]


def test_a_packet_that_is_missing_is_asked_for_and_a_double_is_dropped(bench: Bench) -> None:
    first, second = bench.pack(["write", 1, 0, b"abcd"]), bench.pack(["read", 2, 1, 0, 4])
    bench.deliver(second)
    assert bench.said[-1] == ["resend"]
    for data in (first, first, second, second):
        bench.deliver(data)
    bench.wait_answered(1, 2)
    bench.send(["synchronize", 3])
    bench.wait_answered(1, 2, 3)


def test_answers_survive_a_connection_that_breaks(bench: Bench) -> None:
    bench.cut = True
    for number in range(2, 6):
        bench.send(["write", 1, 0, bytes([number])], ["read", number, 1, 0, 1])
    bench.resume()
    bench.wait_answered(1, 2, 3, 4, 5)
    assert [answer[2] for answer in bench.answers[1:]] == [bytes([n]) for n in range(2, 6)]
    bench.send(["synchronize", 6])
    bench.wait_answered(1, 2, 3, 4, 5, 6)


def test_a_client_that_takes_nothing_is_waited_for(bench: Bench) -> None:
    """The device keeps no more than a window of answers, and goes on as soon as they are acknowledged."""
    bench.send(["allocate", 2, wire.PIECE])
    bench.cut = True
    count = 3 * wire.WINDOW // wire.PIECE
    for number in range(2, count + 2):
        bench.send(["read", number, 2, 0, wire.PIECE])
    until = time.monotonic() + SECONDS
    while (kept := bench.serving._channel.in_flight) < wire.WINDOW and time.monotonic() < until:
        time.sleep(0.01)
    assert wire.WINDOW <= kept <= wire.WINDOW + wire.MESSAGE_LIMIT
    bench.resume()
    while len(bench.answers) < count + 1 and time.monotonic() < until:
        bench.bare()  # an acknowledgement
        time.sleep(0.01)
    bench.wait_answered(*range(1, count + 2))


def test_more_than_a_window_is_not_taken(bench: Bench) -> None:
    bench.device.go.clear()
    bench.send(["synchronize", 2])
    assert bench.device.begun.wait(SECONDS)
    bench.send(["allocate", 2, wire.PIECE])
    for number in range(3, 20):
        bench.send(["write", 2, 0, bytes(wire.PIECE)], ["synchronize", number])
    assert bench.serving._queued <= servings.MOST_QUEUED
    bench.device.go.set()
    bench.wait(lambda: len(bench.answers) > 2)


def test_an_acknowledgement_of_what_was_never_sent_ends_the_session(bench: Bench) -> None:
    bench.deliver(wire.packet(NAME, 0, 99, []))
    bench.wait(lambda: bench.said and bench.said[-1][0] == "lost")
    assert bench.serving.freed(SECONDS)
    with pytest.raises(ValueError, match="closed"):
        bench.device.allocate(4)


def test_cancelling_drops_what_was_not_begun(bench: Bench) -> None:
    bench.device.go.clear()
    bench.send(["synchronize", 2])
    assert bench.device.begun.wait(SECONDS)
    bench.send(["write", 1, 0, b"x"], ["synchronize", 3], ["synchronize", 4])
    bench.bare(["cancel", 4])
    bench.device.go.set()
    bench.send(["read", 5, 1, 0, 1])
    bench.wait_answered(1, 2, 3, 4, 5)
    assert [answer[0] for answer in bench.answers] == ["ok", "ok", "error", "error", "ok"]
    assert [answer[2] for answer in bench.answers[2:4]] == ["cancelled", "cancelled"]
    assert bench.answers[4][2] == b"\0"  # the write was dropped too


def test_a_cancel_that_overtakes_its_request(bench: Bench) -> None:
    bench.bare(["cancel", 2])
    bench.send(["write", 1, 0, b"x"])
    bench.send(["synchronize", 2], ["write", 1, 1, b"y"], ["read", 3, 1, 0, 2])
    bench.wait_answered(1, 2, 3)
    assert bench.answers[1][2] == "cancelled"
    assert bench.answers[2][2] == b"\0y"


def test_a_cancelled_request_that_does_not_end_is_ended_with_the_device(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servings, "CANCEL_SECONDS", 0.2)
    bench.device.go.clear()
    bench.send(["synchronize", 2])
    assert bench.device.begun.wait(SECONDS)
    bench.bare(["cancel", 2])
    bench.wait_answered(1, 2)
    assert bench.answers[1][2] == "lost" and "cancelled" in bench.answers[1][4]
    bench.send(["synchronize", 3])
    bench.wait_answered(1, 2, 3)
    assert bench.answers[2][2] == "lost"


def test_a_cancel_of_what_is_done_touches_nothing_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servings, "CANCEL_SECONDS", 0.05)
    bench.send(["synchronize", 2])
    bench.wait_answered(1, 2)
    bench.device.go.clear()
    bench.device.begun.clear()
    bench.send(["synchronize", 3])
    assert bench.device.begun.wait(SECONDS)
    bench.bare(["cancel", 2])
    time.sleep(0.2)
    assert not bench.device.killed
    bench.device.go.set()
    bench.wait_answered(1, 2, 3)
    assert bench.answers[2][0] == "ok"


def test_a_cancelled_request_that_ends_in_time_spares_what_follows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servings, "CANCEL_SECONDS", 1.0)
    bench.device.go.clear()
    bench.send(["synchronize", 2])
    assert bench.device.begun.wait(SECONDS)
    bench.bare(["cancel", 2])
    bench.device.go.set()
    bench.wait_answered(1, 2)
    bench.device.go.clear()
    bench.send(["synchronize", 3])
    time.sleep(1.3)
    assert not bench.device.killed
    bench.device.go.set()
    bench.wait_answered(1, 2, 3)
    assert bench.answers[2][0] == "ok"


def test_the_end_does_not_wait_for_a_request_and_the_next_session_waits_for_the_end(bench: Bench) -> None:
    bench.device.go.clear()
    bench.device.dies = False
    bench.send(["synchronize", 2])
    assert bench.device.begun.wait(SECONDS)
    bench.serving.end()
    assert bench.device.killed
    opened = threading.Event()

    def open_device(*wish: Any) -> NullDevice:
        assert bench.serving.freed(0)
        opened.set()
        return NullDevice()

    after = Serving(NAME, Session(open_device, Store(100)), lambda: None, lambda data: None, bench.serving)
    packet = wire.decode(Channel(NAME).pack([["open", 1, WISH]]))
    assert isinstance(packet, wire.Packet)
    after.take(packet)
    assert not opened.wait(0.2)
    bench.device.go.set()
    assert opened.wait(SECONDS)
    after.end()
    assert after.freed(SECONDS)
    assert len(bench.answers) == 1
