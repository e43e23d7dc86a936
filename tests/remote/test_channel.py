"""The reliable channel: everything arrives once and in order, whatever a link loses, and what is acknowledged was done."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.remote.channel import Channel, Gap
from tapml.remote.wire import ACK_BYTES, Packet, WireError, decode

SESSION = bytes(16)


def opened(data: bytes) -> Packet:
    message = decode(data)
    assert isinstance(message, Packet)
    return message


def test_items_arrive_once() -> None:
    a, b = Channel(SESSION), Channel(SESSION)
    data = opened(a.pack([["free", 1], ["free", 2]]))
    assert b.take(data) == [["free", 1], ["free", 2]]
    assert b.take(data) == []
    assert b.taken == 1


def test_nothing_is_acknowledged_before_it_is_done() -> None:
    a, b = Channel(SESSION), Channel(SESSION)
    data = a.pack([["free", 1]])
    b.take(opened(data))
    assert b.due(idle=True) is None
    a.take(opened(b.bare()))
    assert a.in_flight == len(data) and a.unacknowledged() == [data]
    b.done(opened(data))
    acknowledgement = b.due(idle=True)
    assert acknowledgement is not None
    a.take(opened(acknowledgement))
    assert a.in_flight == 0 and a.unacknowledged() == []
    assert b.due(idle=True) is None


def test_a_busy_end_acknowledges_now_and_then() -> None:
    a, b = Channel(SESSION), Channel(SESSION)
    sent = 0
    while sent < ACK_BYTES:
        assert b.due(idle=False) is None
        data = a.pack([["write", 1, 0, bytes(2**17)]])
        sent += len(data)
        b.take(opened(data))
        b.done(opened(data))
    assert b.due(idle=False) is not None
    assert b.due(idle=False) is None


def test_an_answer_carries_the_acknowledgement() -> None:
    a, b = Channel(SESSION), Channel(SESSION)
    data = opened(a.pack([["synchronize", 1]]))
    b.take(data)
    b.done(data)
    a.take(opened(b.pack([["ok", 1, None]])))
    assert a.in_flight == 0
    assert b.due(idle=True) is None


def test_a_gap_is_noticed() -> None:
    a, b = Channel(SESSION), Channel(SESSION)
    first, second = opened(a.pack([["free", 1]])), opened(a.pack([["free", 2]]))
    with pytest.raises(Gap):
        b.take(second)
    assert b.take(first) == [["free", 1]]
    assert b.take(second) == [["free", 2]]


def test_an_acknowledgement_of_what_was_never_sent() -> None:
    a = Channel(SESSION)
    a.pack([["free", 1]])
    with pytest.raises(WireError, match="acknowledged"):
        a.take(Packet(SESSION, 0, 2, [], 10))


def test_first_is_what_can_be_sent_again() -> None:
    a, b = Channel(SESSION), Channel(SESSION)
    assert a.first == 1
    one, two = a.pack([["free", 1]]), a.pack([["free", 2]])
    b.take(opened(one))
    b.done(opened(one))
    a.take(opened(b.bare()))
    assert a.first == 2 and a.unacknowledged() == [two]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["a sends", "b sends", "to b", "to a", "b works", "a works", "break"]), max_size=60))
def test_a_link_that_breaks_loses_nothing(events: list[str]) -> None:
    """Two ends, a queue each way; a break loses what is in the queues, and both ends then send again what is not acknowledged."""
    ends = {"a": Channel(SESSION), "b": Channel(SESSION)}
    queue: dict[str, list[bytes]] = {"a": [], "b": []}  # on the way to
    work: dict[str, list[Packet]] = {"a": [], "b": []}
    sent: dict[str, list[int]] = {"a": [], "b": []}
    got: dict[str, list[int]] = {"a": [], "b": []}

    def deliver(end: str) -> None:
        data = opened(queue[end].pop(0))
        try:
            items = ends[end].take(data)
        except Gap:
            raise AssertionError("the link keeps the order, so nothing can be missing") from None
        if data.seq and items:
            got[end] += [item[1] for item in items]
            work[end].append(data)

    def carry_out(end: str) -> None:
        ends[end].done(work[end].pop(0))
        due = ends[end].due(idle=not work[end])
        if due is not None:
            queue["a" if end == "b" else "b"].append(due)

    def mend() -> None:
        for end, other in (("a", "b"), ("b", "a")):
            queue[other] = [ends[end].bare()]
        for end, other in (("a", "b"), ("b", "a")):
            queue[other] += ends[end].unacknowledged()

    for event in [*events, "break"]:
        end, _, what = event.partition(" ")
        if what == "sends":
            sent[end].append(len(sent[end]) + 1)
            queue["b" if end == "a" else "a"].append(ends[end].pack([["free", sent[end][-1]]]))
        elif event.startswith("to ") and queue[what]:
            deliver(what)
        elif what == "works" and work[end]:
            carry_out(end)
        elif event == "break":
            mend()
    while any(queue.values()) or any(work.values()):
        for end in ("a", "b"):
            if queue[end]:
                deliver(end)
            if work[end]:
                carry_out(end)
    assert got["b"] == sent["a"] and got["a"] == sent["b"]
    assert ends["a"].in_flight == ends["b"].in_flight == 0
