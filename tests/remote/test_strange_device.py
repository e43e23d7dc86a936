"""A device is a stranger: whatever it answers, the client ends with one error that names it, in time and within its memory.

`benchmarks/fuzz_replies.py` does the last of these for a hundred thousand devices.
"""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tapml.errors import ConnectionLost, DeviceError, DeviceLost, OutOfMemory, TargetError, UnavailableError
from tapml.remote import wire
from tapml.remote.client.answers import MOST_TOLD
from tapml.remote.client.client import GRACE_SECONDS, RemoteDevice
from tests.remote.mutants import Mutant
from tests.remote.strange import NAME, Clock, items_of, strange, work

LARGE = wire.LARGEST


def tampering(name: str, change: Callable[[list[Any], dict[str, int]], None]) -> Callable[[list[bytes]], Sequence[bytes]]:
    """Changes the items of the packet that goes back at a time: "open" the first, "read" the second, and so on."""
    times = {"open": 1, "read": 2, "synchronize": 3}
    seen = {"packets": -1}

    def tamper(messages: list[bytes]) -> list[bytes]:
        seen["packets"] += 1
        if seen["packets"] != times[name]:
            return messages
        session, seq, ack, items = items_of(messages[-1])
        change(items, seen)
        return [*messages[:-1], wire.packet(session, seq, ack, items)]

    return tamper


def answer(within: str, /, **fields: Any) -> Callable[[list[bytes]], Sequence[bytes]]:
    """The answer to `open` with other fields; None leaves one out."""
    def change(items: list[Any], _: dict[str, int]) -> None:
        value = items[0][2]
        target = value["info"] if within == "info" else value
        for field, one in fields.items():
            if one is None:
                del target[field]
            else:
                target[field] = one

    return tampering("open", change)


def value(name: str, make: Callable[[Any], Any], at: int = 0) -> Callable[[list[bytes]], Sequence[bytes]]:
    def change(items: list[Any], _: dict[str, int]) -> None:
        items[at][2] = make(items[at][2])

    return tampering(name, change)


MALFORMED = {
    "open with a list": value("open", lambda _: []),
    "open with nothing": value("open", lambda _: None),
    "open without info": answer("open", info=None),
    "open without room": answer("open", room=None),
    "an info that is a text": answer("open", info="a GPU"),
    "an info without a name": answer("info", name=None),
    "an info with more than it has": answer("info", speed=1),
    "a name that is a number": answer("info", name=7),
    "a limit that is NaN": answer("info", limits={"max_buffer_bytes": float("nan")}),
    "a limit that is negative": answer("info", limits={"max_buffer_bytes": -1}),
    "a limit of nothing": answer("info", limits={"max_binding_bytes": 0}),
    "limits as a list": answer("info", limits=[1]),
    "features as a text": answer("info", features="float16"),
    "features within features": answer("info", features=[["float16"]]),
    "digests that are none": answer("open", stored=[b"x"]),
    "digests as a map": answer("open", stored={"a": 1}),
    "digests within digests": answer("open", stored=[[bytes(32)]]),
    "room that is a text": answer("open", room="all"),
    "room that is NaN": answer("open", room=float("nan")),
    "room that is negative": answer("open", room=-1),
    "a read too short": value("read", lambda data: data[:-1]),
    "a read too long": value("read", lambda data: data + b"\0"),
    "a read of a text": value("read", lambda data: "x" * len(data)),
    "a read of a list": value("read", list),
    "a read of nothing": value("read", lambda _: None),
    "a second read too short": value("read", lambda _: b"", at=1),
    "a value for what has none": value("synchronize", lambda _: bytes(2**19)),
    "a time for what has none": value("synchronize", lambda _: float("nan")),
    "an id that was not asked": tampering("read", lambda items, _: items[0].__setitem__(1, 10**6)),
    "an id twice": tampering("read", lambda items, _: items.append(items[0])),
    "answers that were not asked": tampering("read", lambda items, _: items.extend(["ok", 1000 + k, None] for k in range(8000))),
    "a request": tampering("read", lambda items, _: items.append(["free", 1])),
    "what is no message": lambda messages: [b"\1\xc1"],
    "an integer without end": lambda messages: [b"\1\x94\xc4\x10" + bytes(16) + b"\1\0\x91\x93\xa2ok\1\xcf" + b"\xff" * 8],
    "an acknowledgement of what was never sent": lambda messages: [wire.packet(items_of(messages[-1])[0], 0, LARGE, [])],
}  # fmt: skip


@pytest.mark.parametrize("tamper", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_answer_ends_in_one_error_that_names_the_device(tamper: Callable[[list[bytes]], Sequence[bytes]]) -> None:
    device: RemoteDevice | None = None
    with strange(tamper) as make:
        with pytest.raises(ConnectionLost, match=f"Device {NAME} does not keep to the format") as caught:
            device = make()
            work(device)
        assert caught.value.final and caught.value.exit_code == 3
        if device is not None:
            for _ in range(2):
                with pytest.raises(ConnectionLost, match=NAME):
                    device.synchronize()
            device.close()


@pytest.mark.parametrize("kind", ["value", "other", "device", "memory", "lost", "unavailable", "target", "cancelled"])
@pytest.mark.parametrize("when", ["open", "read"])
def test_an_error_of_any_kind_is_one_of_ours_and_not_endless(kind: str, when: str) -> None:
    text = "Traceback (most recent call last):\n" + "x" * 200_000 + "\nOdd: it does not work"

    def fail(items: list[Any], _: dict[str, int]) -> None:
        items[0] = ["error", items[0][1], kind, "", text]

    with strange(tampering(when, fail)) as make, pytest.raises((UnavailableError, TargetError), match="does not work") as caught:
        work(make())
    assert len(str(caught.value)) < MOST_TOLD + 200
    assert isinstance(caught.value, OutOfMemory) == (kind == "memory")


def test_what_a_device_says_of_itself_is_not_endless() -> None:
    with strange(answer("info", driver="d" * 200_000, features=["f" * 100] * 4000)) as make:
        info = make().info
    assert len(info.driver) < 500
    assert len(info.features) <= 256


def flood(message: Callable[[bytes, int], bytes], count: int) -> Callable[[list[bytes]], Sequence[bytes]]:
    """In place of the answer to the first read, the same message again and again."""
    seen = []

    def tamper(messages: list[bytes]) -> Sequence[bytes]:
        seen.append(messages)
        if len(seen) != 3:
            return messages
        session, seq, _, _ = items_of(messages[-1])
        return [message(session, seq)] * count

    return tamper


@pytest.mark.parametrize("message, count", [
    (lambda session, seq: wire.packet(session, seq, 0, [["ok", 10**6, bytes(2**20)]]), 2000),
    (lambda session, seq: wire.packet(session, seq - 1, 0, [["ok", 1, bytes(2**20)]]), 100),
    (lambda session, seq: wire.packet(session, seq + 1, 0, [["ok", 1, bytes(2**20)]]), 100),
    (lambda session, seq: wire.packet(bytes(16), seq, 0, [["ok", 1, bytes(2**20)]]), 100),
    (lambda session, seq: wire.packet(session, 0, 0, [["resend"]]), 3000),
    (lambda session, seq: wire.packet(session, 0, 0, [["resumed"]] * 8000), 1000),
    (lambda session, seq: wire.packet(session, 0, 0, []), 2**14 + 1),
], ids=["unasked", "doubles", "gaps", "another session", "resend", "resumed", "empty"])  # fmt: skip
def test_a_device_that_floods_is_dropped_and_costs_no_memory(message: Callable[[bytes, int], bytes], count: int) -> None:
    with strange(flood(message, count)) as make:
        device = make()
        tracemalloc.start()
        try:
            with pytest.raises(ConnectionLost, match=f"Device {NAME} does not keep to the format"):
                work(device)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 16 * 2**20


def test_only_an_answer_to_something_asked_is_progress() -> None:
    """A device that says something every second, and never what it was asked, did not answer in time."""
    clock = Clock()
    with strange(flood(lambda session, seq: wire.packet(session, 0, 0, [["resumed"]]), 1000), clock) as make:
        device = make()
        began, clock.step = clock.now, 1.0
        with pytest.raises(DeviceLost, match=f"{NAME} is connected and did not answer"):
            work(device)
        assert clock.now - began < 2 * (10.0 + GRACE_SECONDS)


def test_mutants() -> None:
    """Changes by chance."""
    ends: dict[str, int] = {}
    for seed in range(400):
        mutant = Mutant(random.Random(f"suite-{seed}"))
        device = None
        with strange(mutant) as make:
            try:
                device = make()
                work(device)
                end = "done"
            except (UnavailableError, TargetError) as error:
                end = type(error).__name__
            finally:
                if device is not None:
                    device.close()
        ends[end] = ends.get(end, 0) + 1
    assert ends["ConnectionLost"] > 100, "they are dropped"
    assert ends["done"] > 50, "and what is no harm is none"
    assert {DeviceError.__name__, DeviceLost.__name__} & set(ends)
