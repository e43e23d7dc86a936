"""The codec: what docs/wire.md allows comes back as it was, and nothing else is taken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tapml.remote import wire
from tapml.remote.wire import BARE, CONTROLS, ITEMS, MESSAGE_LIMIT, PIECE, Control, Packet, WireError, control, decode, packet

SESSION = bytes(range(16))
DIGEST = bytes(32)
INFO = {
    "platform": "opencl", "name": "a GPU", "driver": "1.0", "software": True, "limits": {"max_buffer_bytes": 2**40},
    "features": ["x"],
}
OFFERS = {
    "opencl": {"state": "ready", "info": INFO, "reason": ""},
    "cpu": {"state": "absent", "info": None, "reason": "no compiler"},
}

HELLO = {"version": 1, "token": "t"}
CLIENT = {**HELLO, "role": "client", "session": SESSION, "device": "any", "target": "opencl", "label": "x"}
DEVICE = {
    **HELLO, "role": "device", "name": "n", "boot": SESSION, "kind": "agent", "system": "s", "offers": OFFERS, "session": None,
}

GOOD_CONTROLS: dict[str, list[tuple[Any, ...]]] = {
    "hello": [(CLIENT,), (DEVICE,), ({**HELLO, "role": "watch"},), ({"version": 7, "anything": [1]},)],
    "welcome": [({"version": 1, "name": "n", "heartbeat": 5.0},), ({"version": 1, "name": "n", "heartbeat": 0.5, "token": "t"},)],
    "refused": [("token", "no")],
    "ping": [(0,), (2**53 - 1,)],
    "pong": [(3,)],
    "waiting": [("busy",)],
    "granted": [({"name": "n", "boot": SESSION, "info": INFO},)],
    "away": [("gone",)],
    "doing": [("testing",)],
    "end": [()],
    "lease": [({"session": SESSION, "target": "cpu", "label": "l"},)],
    "release": [(SESSION,)],
    "offers": [(OFFERS,), ({},)],
    "status": [({"state": "busy", "launches": 1, "received": 2, "sent": 3, "stored": 4, "note": ""},)],
    "devices": [([],), ([{"name": "n"}],)],
    "pair": [()],
    "pairing": [({"code": "C", "url": "u", "svg": "<svg/>", "seconds": 300},)],
}
GOOD_ITEMS: dict[str, list[list[Any]]] = {
    "open": [[1, {"target": "cpu", "device": None, "deadline": 1.5}], [1, {"target": "cpu", "device": "0", "deadline": None}]],
    "allocate": [[1, 0]],
    "free": [[1]],
    "write": [[1, 0, b""], [1, 5, bytes(PIECE)]],
    "keep": [[DIGEST, 10, 0, b"x"]],
    "put": [[1, 0, DIGEST]],
    "load": [[1, DIGEST]],
    "unload": [[1]],
    "launch": [[[[1, [1, 2]], [2, []]]], [[]]],
    "define": [[1, [[1, [1]]]]],
    "run": [[1]],
    "forget": [[1]],
    "read": [[1, 1, 0, PIECE]],
    "synchronize": [[1]],
    "close": [[1]],
    "ok": [[1, None], [1, b"abc"], [1, {"info": INFO, "room": 5, "stored": [DIGEST]}]],
    "error": [[1, "device", "driver", "the log"], [1, "lost", "", ""]],
    "resume": [[1]],
    "resumed": [[]],
    "lost": [["restarted"]],
    "resend": [[]],
    "cancel": [[1]],
}


def test_the_tables_here_are_whole() -> None:
    assert set(GOOD_CONTROLS) == set(CONTROLS)
    assert set(GOOD_ITEMS) == set(ITEMS)


def test_the_page_names_them_all() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "wire.md").read_text()
    named = set(re.findall(r'\["(\w+)"', page))
    assert named == set(CONTROLS) | set(ITEMS)
    assert f"{MESSAGE_LIMIT:,}" in page


@pytest.mark.parametrize("name", CONTROLS)
def test_control_messages_come_back(name: str) -> None:
    for arguments in GOOD_CONTROLS[name]:
        assert decode(control(name, *arguments)) == Control(name, arguments)


@pytest.mark.parametrize("name", ITEMS)
def test_items_come_back(name: str) -> None:
    for arguments in GOOD_ITEMS[name]:
        item = [name, *arguments]
        data = packet(SESSION, int(name not in BARE), 7, [item])
        assert decode(data) == Packet(SESSION, int(name not in BARE), 7, [item], len(data))


@pytest.mark.parametrize("name", ITEMS)
def test_a_wrong_number_of_arguments(name: str) -> None:
    for arguments in GOOD_ITEMS[name]:
        for wrong in ([name, *arguments, 1], [name, *arguments[:-1]] if arguments else [name, 1]):
            with pytest.raises(WireError, match="arguments"):
                decode(packet(SESSION, int(name not in BARE), 0, [wrong]))


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


WRONG = [None, True, -1, 2**53, 1.5, "x" * 500, b"x", [], {}, [[]], {"a": 1}, float("nan")]


@pytest.mark.parametrize("name", [name for name in ITEMS if name not in ("ok", "lost")])
def test_wrong_arguments(name: str) -> None:
    """Each argument replaced by things of other types: at least most of them are refused, and nothing else is raised."""
    for arguments in GOOD_ITEMS[name]:
        for place in range(len(arguments)):
            refused = 0
            for wrong in WRONG:
                changed = [*arguments[:place], wrong, *arguments[place + 1 :]]
                try:
                    decode(packet(SESSION, int(name not in BARE), 0, [[name, *changed]]))
                except WireError:
                    refused += 1
            assert refused >= len(WRONG) - 3, f"{name}, argument {place}"


@pytest.mark.parametrize("hello", [CLIENT, DEVICE, {**HELLO, "role": "watch"}])
def test_a_hello_has_its_fields_and_no_others(hello: dict[str, Any]) -> None:
    for field in hello:
        if field not in ("token", "version"):
            with pytest.raises(WireError):
                decode(control("hello", {k: v for k, v in hello.items() if k != field}))
        if field != "version":
            with pytest.raises(WireError):
                decode(control("hello", {**hello, field: 1}))
    with pytest.raises(WireError):
        decode(control("hello", {**hello, "more": 1}))


def raw(body: Any, kind: bytes = b"\1") -> bytes:
    packed: bytes = kind + msgpack.packb(body)
    return packed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\2" + msgpack.packb([]),
        b"\0",
        b"\1",
        raw([], b"\0"),
        raw(["nonsense"], b"\0"),
        raw({"name": "end"}, b"\0"),
        raw([["end"]], b"\0"),
        raw(["end"], b"\0") + b"\0",
        raw([SESSION, 1, 0]),
        raw([SESSION[:15], 1, 0, [["free", 1]]]),
        raw([SESSION, -1, 0, [["free", 1]]]),
        raw([SESSION, 1, 2**60, [["free", 1]]]),
        raw([SESSION, 1, 0, []]),
        raw([SESSION, 0, 0, [["free", 1]]]),
        raw([SESSION, 1, 0, [["resumed"]]]),
        raw([SESSION, 1, 0, ["free"]]),
        raw([SESSION, 1, 0, [[1]]]),
        raw([SESSION, 1, 0, [["nonsense"]]]),
        raw([SESSION, 1, 0, [["free", msgpack.ExtType(5, b"x")]]]),
        raw([SESSION, 1, 0, [["free", msgpack.Timestamp(1, 1)]]]),
        raw([SESSION, 1, 0, [["ok", 1, {1: 2}]]]),
        raw([SESSION, 1, 0, [["ok", 1, nested(9)]]]),
        b"\1" + b"\x91" * 5000,
        b"\1" + b"\xdd\xff\xff\xff\xff" * 1000,
        b"\1" + b"\xdd\x00\x00\x20\x00" * 1000,
        b"\1" + b"\xc6\xff\xff\xff\xff",
        b"\1" + b"\xdf\xff\xff\xff\xff",
        b"\0" + bytes(wire.CONTROL_LIMIT + 1),
        b"\1" + bytes(MESSAGE_LIMIT),
        raw([SESSION, 1, 0, [["error", 1, "lost", "", b"\xff"]]]),
        b"\0" + b"\x92\xa4ping\xc1",
        b"\0" + b"\x92\xa7waiting\xa1\xff",
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


def test_what_is_too_large_is_not_packed() -> None:
    with pytest.raises(ValueError, match="limit"):
        packet(SESSION, 1, 0, [["write", 1, 0, bytes(PIECE)], ["write", 1, 0, bytes(2**17)]])
    with pytest.raises(ValueError, match="limit"):
        control("waiting", "x" * wire.CONTROL_LIMIT)
