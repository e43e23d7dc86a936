"""Messages between a client, the hub and a device: packing, and unpacking with every field checked. The format is docs/wire.md.

    data = control("ping", 7)                                a message between an end and the hub
    data = packet(session, seq, ack, [["free", 3]])          one between client and device
    decode(data) -> Control | Packet                         raises WireError for anything that docs/wire.md does not allow

What comes out of `decode` has the shape that the tables below give for its name, so whoever handles it need not look again; what
the numbers refer to (handles, sizes, who may say what) is for them to check. Nothing is allocated on the word of a message: the
size of what is unpacked is bounded by the size of what came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

VERSION = 1

# The most raw bytes in one request or answer.
PIECE = 2**20

MESSAGE_LIMIT = PIECE + 2**16
CONTROL_LIMIT = 2**18

# The most bytes of packets on the way in one direction that were not acknowledged, and how many call for an acknowledgement.
WINDOW = 8 * 2**20
ACK_BYTES = 2**19

# Elements of an array, entries of a map, depth of nesting, characters of a text.
MOST_ELEMENTS = 8192
MOST_ENTRIES = 256
MOST_DEPTH = 8
MOST_TEXT = 2**18

SESSION_BYTES = 16
DIGEST_BYTES = 32
LARGEST = 2**53 - 1

# By the first byte of a value in MessagePack: the bytes that it takes, 0 for arrays, maps and what tells its length in the next
# bytes; and how many bytes that length takes. Extension types count as one byte, since the decoder refuses them.
_STEPS = bytes(
    [1] * 0x80 + [0] * 0x20 + [1 + n for n in range(32)] + [1] * 4 + [0] * 3 + [1] * 3 + [5, 9, 2, 3, 5, 9, 2, 3, 5, 9]
    + [1] * 5 + [0] * 7 + [1] * 32
)  # fmt: skip
_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}

_CONTROL = b"\0"
_SESSION = b"\1"

# Items of packets that are never numbered: they are about the channel itself.
BARE = frozenset({"resume", "resumed", "lost", "resend", "cancel"})
# Requests that are answered, each by the id that comes first in it.
ANSWERED = frozenset({"open", "read", "synchronize", "close"})


class WireError(Exception):
    """A message that docs/wire.md does not allow."""


@dataclass(frozen=True)
class Control:
    """A message between an end and the hub."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Packet:
    """A message between client and device. `nbytes` is the size of the message."""

    session: bytes
    seq: int
    ack: int
    items: list[list[Any]]
    nbytes: int


def control(name: str, *arguments: Any) -> bytes:
    """A control message. ValueError when it would be larger than CONTROL_LIMIT."""
    data: bytes = _CONTROL + msgpack.packb([name, *arguments])
    if len(data) > CONTROL_LIMIT:
        raise ValueError(f"a control message {name!r} of {len(data)} bytes is over the limit of {CONTROL_LIMIT}")
    return data


def packet(session: bytes, seq: int, ack: int, items: Sequence[Sequence[Any]]) -> bytes:
    """A session message. ValueError when it would be larger than MESSAGE_LIMIT."""
    data: bytes = _SESSION + msgpack.packb([session, seq, ack, items])
    if len(data) > MESSAGE_LIMIT:
        raise ValueError(f"a packet of {len(data)} bytes is over the limit of {MESSAGE_LIMIT}")
    return data


def is_session(data: bytes) -> bool:
    """Whether a message is one between client and device, by its first byte."""
    return data[:1] == _SESSION


def decode(data: bytes) -> Control | Packet:
    """Raises WireError for anything that docs/wire.md does not allow."""
    kind = data[:1]
    if kind not in (_CONTROL, _SESSION):
        raise WireError("a message of unknown kind")
    limit = CONTROL_LIMIT if kind == _CONTROL else MESSAGE_LIMIT
    if len(data) > limit:
        raise WireError(f"a message of {len(data)} bytes, where {limit} are allowed")
    _check_nesting(data)
    try:
        body = msgpack.unpackb(
            memoryview(data)[1:], raw=False, strict_map_key=True, max_str_len=MOST_TEXT, max_bin_len=PIECE,
            max_array_len=MOST_ELEMENTS, max_map_len=MOST_ENTRIES, max_ext_len=0, ext_hook=_no_extension,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError(f"not the MessagePack that is used here: {_short(error)}") from error
    if not isinstance(body, list):
        raise WireError("a message that is not an array")
    return _control(body) if kind == _CONTROL else _packet(body, len(data))


def _check_nesting(data: bytes) -> None:
    """Refuses what is nested too deep before anything is unpacked: MessagePack's decoder makes each array as long as its header
    says, so 3 kB of headers, each inside of the one before, would be 64 MiB."""
    at, end, remaining = 1, len(data), 1
    outer: list[int] = []
    while True:
        while not remaining:
            if not outer:
                return
            remaining = outer.pop()
        remaining -= 1
        if at >= end:
            return  # cut short: the decoder says so
        first = data[at]
        step = _STEPS[first]
        if step:
            at += step
            continue
        width = _WIDTHS.get(first, 0)
        length = int.from_bytes(data[at + 1 : at + 1 + width]) if width else first & 15
        at += 1 + width
        if 0xC4 <= first <= 0xDB:
            at += length
            continue
        outer.append(remaining)
        if len(outer) > MOST_DEPTH:
            raise WireError(f"nested more than {MOST_DEPTH} deep")
        is_map = first < 0x90 or first >= 0xDE
        remaining = 2 * length if is_map else length


def _control(body: list[Any]) -> Control:
    name, arguments = _called(body, CONTROLS, "message")
    return Control(name, tuple(arguments))


def _packet(body: list[Any], nbytes: int) -> Packet:
    if len(body) != 4:
        raise WireError(f"a packet of {len(body)} fields instead of 4")
    session, seq, ack, items = body
    if type(session) is not bytes or len(session) != SESSION_BYTES:
        raise WireError("a packet without a session of 16 bytes")
    if not (_natural(seq) and _natural(ack)):
        raise WireError("a packet whose numbers are not numbers")
    if type(items) is not list:
        raise WireError("a packet whose items are not an array")
    for item in items:
        if type(item) is not list:
            raise WireError("an item that is not an array")
        name, _ = _called(item, ITEMS, "item")
        if (name in BARE) != (seq == 0):
            raise WireError(f"item {name!r} in a packet {'without' if seq == 0 else 'with'} a number")
    if seq and not items:
        raise WireError("a numbered packet without items")
    return Packet(session, seq, ack, items, nbytes)


Check = Callable[[Any], bool]


def _called(body: list[Any], known: Mapping[str, tuple[Check, ...]], what: str) -> tuple[str, list[Any]]:
    """The name and the arguments, checked against the table."""
    if not body or type(body[0]) is not str:
        raise WireError(f"a {what} without a name")
    name, arguments = body[0], body[1:]
    checks = known.get(name)
    if checks is None:
        raise WireError(f"no {what} is called {name[:40]!r}")
    if len(arguments) != len(checks):
        raise WireError(f"{what} {name!r} has {len(checks)} arguments, not {len(arguments)}")
    for index, (check, argument) in enumerate(zip(checks, arguments, strict=True)):
        if not check(argument):
            raise WireError(f"argument {index + 1} of {what} {name!r} is not what it must be")
    return name, arguments


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:100]


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _handle(value: Any) -> bool:
    return type(value) is int and 1 <= value <= LARGEST


def _text(value: Any) -> bool:
    return type(value) is str


def _line(value: Any) -> bool:
    """A short text: a name, a label, a code."""
    return type(value) is str and len(value) <= 400


def _bool(value: Any) -> bool:
    return type(value) is bool


def _number(value: Any) -> bool:
    """A number of seconds and the like: finite and not negative."""
    return type(value) in (int, float) and 0 <= value <= LARGEST


def _session(value: Any) -> bool:
    return type(value) is bytes and len(value) == SESSION_BYTES


def _digest(value: Any) -> bool:
    return type(value) is bytes and len(value) == DIGEST_BYTES


def _piece(value: Any) -> bool:
    return type(value) is bytes and len(value) <= PIECE


def _size(value: Any) -> bool:
    """Of one read."""
    return type(value) is int and 0 <= value <= PIECE


def _or_nil(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _one_of(*values: str) -> Check:
    return lambda value: type(value) is str and value in values


def _array(check: Check) -> Check:
    return lambda value: type(value) is list and all(map(check, value))


def _map(check: Check) -> Check:
    return lambda value: type(value) is dict and all(type(k) is str and len(k) <= 400 and check(v) for k, v in value.items())


def _fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A map that has all of the required fields, perhaps optional ones, and no others."""
    known = {**required, **(optional or {})}

    def check(value: Any) -> bool:
        return (
            type(value) is dict
            and all(name in value for name in required)
            and all(name in known and known[name](item) for name, item in value.items())
        )

    return check


def _batch(value: Any) -> bool:
    """[[kernel, [buffer, …]], …]"""
    return type(value) is list and all(
        type(launch) is list and len(launch) == 2 and _handle(launch[0]) and type(launch[1]) is list
        and all(map(_handle, launch[1])) for launch in value
    )


def _has(required: Mapping[str, Check]) -> Check:
    """A map that has all of these fields, and perhaps others."""
    return lambda value: type(value) is dict and all(name in value and check(value[name]) for name, check in required.items())


def _plain(value: Any) -> bool:
    """Anything that MessagePack holds here; `_check_nesting` has seen how deep it is."""
    if type(value) is list:
        return all(map(_plain, value))
    if type(value) is dict:
        return all(type(k) is str and _plain(v) for k, v in value.items())
    if type(value) is int:
        return abs(value) <= LARGEST
    return value is None or type(value) in (bool, float, str, bytes)


INFO = _fields({
    "platform": _line, "name": _line, "driver": _text, "software": _bool, "limits": _map(_natural), "features": _array(_line),
})
OFFER = _fields({"state": _one_of("ready", "looking", "absent", "retired"), "info": _or_nil(INFO), "reason": _text})
OFFERS = _map(OFFER)
# One of `devices`, as whoever reads the list relies on it.
DEVICE = _has({
    "name": _line, "kind": _line, "system": _line, "offers": OFFERS, "state": _one_of("idle", "busy", "away", "retired"),
    "target": _line, "label": _line, "doing": _line, "seconds": _number, "waiting": _natural, "launches_per_s": _number,
    "bytes_per_s": _number, "note": _text,
})  # fmt: skip

_HELLO = {"version": _natural, "role": _one_of("client", "device", "watch")}
_OF_CLIENT = {"session": _session, "device": _line, "target": _line, "label": _line}
_OF_DEVICE = {
    "name": _line, "boot": _session, "kind": _one_of("agent", "browser"), "system": _line, "offers": OFFERS,
    "session": _or_nil(_session),
}
_HELLOS = {
    "client": _fields({**_HELLO, "token": _line, **_OF_CLIENT}),
    "device": _fields({**_HELLO, **_OF_DEVICE}, {"token": _line, "pair": _line}),
    "watch": _fields({**_HELLO, "token": _line}),
}


def _hello(value: Any) -> bool:
    """By its role; another version may have other fields, and is told so by the hub."""
    if type(value) is not dict or not _natural(value.get("version")):
        return False
    if value["version"] != VERSION:
        return _plain(value)
    role = value.get("role")
    return type(role) is str and role in _HELLOS and _HELLOS[role](value)


# The arguments of each control message.
CONTROLS: dict[str, tuple[Check, ...]] = {
    "hello": (_hello,),
    "welcome": (_fields({"version": _natural, "name": _line, "heartbeat": _number}, {"token": _line}),),
    "refused": (_line, _text),
    "ping": (_natural,),
    "pong": (_natural,),
    "waiting": (_text,),
    "granted": (_fields({"name": _line, "boot": _session, "info": INFO}),),
    "away": (_text,),
    "doing": (_line,),
    "end": (),
    "lease": (_fields({"session": _session, "target": _line, "label": _line}),),
    "release": (_session,),
    "offers": (OFFERS,),
    "status": (
        _fields({
            "state": _one_of("idle", "busy", "retired"), "launches": _natural, "received": _natural, "sent": _natural,
            "stored": _natural, "note": _text,
        }),
    ),
    "devices": (_array(_plain),),
    "pair": (),
    "pairing": (_fields({"code": _line, "url": _text, "svg": _text, "seconds": _number}),),
}

# The arguments of each item of a packet: requests, answers, and what the channel itself needs.
ITEMS: dict[str, tuple[Check, ...]] = {
    "open": (_handle, _fields({"target": _line, "device": _or_nil(_line), "deadline": _or_nil(_number)})),
    "allocate": (_handle, _natural),
    "free": (_handle,),
    "write": (_handle, _natural, _piece),
    "keep": (_digest, _natural, _natural, _piece),
    "put": (_handle, _natural, _digest),
    "load": (_handle, _digest),
    "unload": (_handle,),
    "launch": (_batch,),
    "define": (_handle, _batch),
    "run": (_handle,),
    "forget": (_handle,),
    "read": (_handle, _handle, _natural, _size),
    "synchronize": (_handle,),
    "close": (_handle,),
    "ok": (_handle, _plain),
    "error": (
        _handle,
        _one_of("device", "memory", "lost", "unavailable", "target", "value", "cancelled", "other"),
        _one_of("", "driver", "launch"),
        _text,
    ),
    "resume": (_handle,),
    "resumed": (),
    "lost": (_text,),
    "resend": (),
    "cancel": (_handle,),
}
