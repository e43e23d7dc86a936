"""Messages to try the decoder with: valid ones of every name, and ways to spoil them.

    maker = Maker(random.Random(7))
    data = maker.message()              a valid message, packed, of any name
    data = spoil(rng, data)             the same with one to four things wrong: its values, its structure or its bytes

    answers = browsers_answers(frames)  what the decoder of tapml/web says of the same frames, in Node

Everything comes from the `random.Random` that is given, so hypothesis can drive it (`st.randoms`), and a seed repeats it. The
values lie mostly near the edges of what docs/wire.md allows. Used by `test_fuzz.py` and `benchmarks/fuzz_wire.py`.
"""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack

from tapml.remote.wire import BARE, CONTROLS, ITEMS, LARGEST, PIECE, Control, Packet, WireError, control, decode, packet

HERE = Path(__file__).parent
STATES = ("ready", "looking", "absent", "retired")
KINDS = ("device", "memory", "lost", "unavailable", "target", "value", "cancelled", "other")
WORDS = ("", "a", "opencl", "layers.0.self_attn.q_proj", "é", "\x00", "日本語", "../../etc/passwd", "x" * 400)
NUMBERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 65535, 65536, 2**31, 2**32 - 1, 2**32, LARGEST - 1, LARGEST)
JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, -(2**31), -(2**63), LARGEST + 1, 2**63, 2**64 - 1, 0.0, -0.0, 0.5, float("nan"), float("inf"),
    "", "ok", "hello", "\ud7ff", "x" * 401, "x" * 70000, b"", b"\0" * 15, b"\0" * 16, b"\0" * 17, b"\0" * 31, b"\0" * 32,
    [], [[]], [[[[[[[[[]]]]]]]]], {}, {"": {}}, {1: 2}, {"version": 1}, msgpack.ExtType(1, b""), msgpack.ExtType(5, b"\0" * 300),
    msgpack.Timestamp(0), [0] * 300,
)  # fmt: skip
# Lengths in headers, and what opens an array or a map that goes deeper.
PROMISED = (0, 255, 65536, 2**31, 2**32 - 1)
OPENINGS = (b"\x91", b"\x81\xa0", b"\xdc\x20\x00", b"\xdf\x00\x00\x01\x00\xa0")


class Maker:
    """Valid messages. `named` makes one of a given name."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def message(self) -> bytes:
        return self.packet() if self.rng.random() < 0.6 else self.control(self.rng.choice(list(CONTROLS)))

    def control(self, name: str) -> bytes:
        return control(name, *self.arguments(name, CONTROL_ARGUMENTS))

    def packet(self, name: str | None = None) -> bytes:
        """With items of that name, or of any names that may stand together."""
        rng = self.rng
        chosen = name if name is not None else rng.choice(list(ITEMS))
        bare = chosen in BARE
        fitting = [other for other in ITEMS if (other in BARE) == bare] if name is None else [chosen]
        names = [chosen, *(rng.choice(fitting) for _ in range(rng.choice((0, 0, 1, 5))))]
        items = [[one, *self.arguments(one, ITEM_ARGUMENTS)] for one in names]
        return packet(self.session(), 0 if bare else self.handle(), self.natural(), items)

    def arguments(self, name: str, table: dict[str, tuple[Callable[[Maker], Any], ...]]) -> list[Any]:
        return [make(self) for make in table[name]]

    def natural(self) -> int:
        return self.rng.choice(NUMBERS)

    def handle(self) -> int:
        return self.rng.choice(NUMBERS[1:])

    def number(self) -> int | float:
        return self.rng.choice((0, 0.0, 0.5, 5, 1e9))

    def text(self) -> str:
        return self.rng.choice(WORDS)

    def flag(self) -> bool:
        return self.rng.random() < 0.5

    def session(self) -> bytes:
        return bytes([self.rng.randrange(256)]) * 16

    def digest(self) -> bytes:
        return bytes([self.rng.randrange(256)]) * 32

    def piece(self) -> bytes:
        return b"\xc1" * self.rng.choice((0, 1, 31, 255, 256, 4096, 70000))

    def size(self) -> int:
        return self.rng.choice((0, 1, 4, PIECE))

    def choice(self, *values: str) -> str:
        return self.rng.choice(values)

    def maybe(self, make: Callable[[Maker], Any]) -> Any:
        return make(self) if self.flag() else None

    def several(self, make: Callable[[Maker], Any]) -> list[Any]:
        return [make(self) for _ in range(self.rng.choice((0, 1, 1, 2, 16)))]

    def batch(self) -> list[Any]:
        return self.several(lambda m: [m.handle(), m.several(Maker.handle)])

    def plain(self, depth: int = 5) -> Any:
        kind = self.rng.randrange(9 if depth else 7)
        if kind == 7:
            return [self.plain(depth - 1) for _ in range(self.rng.randrange(3))]
        if kind == 8:
            return {name: self.plain(depth - 1) for name in self.rng.sample(WORDS, self.rng.randrange(3))}
        return (None, self.flag(), self.natural(), -self.natural(), 0.5, self.text(), self.piece())[kind]

    def info(self) -> dict[str, Any]:
        return {
            "platform": self.text(), "name": self.text(), "driver": self.text(), "software": self.flag(),
            "limits": {"max_buffer_bytes": self.natural()}, "features": self.several(Maker.text),
        }  # fmt: skip

    def offer(self) -> dict[str, Any]:
        return {"state": self.choice(*STATES), "info": self.maybe(Maker.info), "reason": self.text()}

    def offers(self) -> dict[str, Any]:
        return {name: self.offer() for name in self.rng.sample(("cpu", "opencl", "webgpu"), self.rng.randrange(3))}

    def hello(self) -> dict[str, Any]:
        role = self.choice("client", "device", "watch")
        hello: dict[str, Any] = {"version": 1, "role": role}
        if role == "device":
            hello |= {
                "name": self.text(), "boot": self.session(), "kind": self.choice("agent", "browser"), "system": self.text(),
                "offers": self.offers(), "session": self.maybe(Maker.session),
            }  # fmt: skip
            return hello | {self.choice("token", "pair"): self.text()}
        if role == "client":
            hello |= {"session": self.session(), "device": self.text(), "target": self.text(), "label": self.text()}
        return hello | {"token": self.text()}

    def welcome(self) -> dict[str, Any]:
        welcome = {"version": self.natural(), "name": self.text(), "heartbeat": self.number()}
        return welcome | ({"token": self.text()} if self.flag() else {})

    def status(self) -> dict[str, Any]:
        counts = {name: self.natural() for name in ("launches", "received", "sent", "stored")}
        return {"state": self.choice("idle", "busy", "retired"), "note": self.text(), **counts}


Make = Callable[[Maker], Any]

CONTROL_ARGUMENTS: dict[str, tuple[Make, ...]] = {
    "hello": (Maker.hello,),
    "welcome": (Maker.welcome,),
    "refused": (Maker.text, Maker.text),
    "ping": (Maker.natural,),
    "pong": (Maker.natural,),
    "waiting": (Maker.text,),
    "granted": (lambda m: {"name": m.text(), "boot": m.session(), "info": m.info()},),
    "away": (Maker.text,),
    "doing": (Maker.text,),
    "end": (),
    "lease": (lambda m: {"session": m.session(), "target": m.text(), "label": m.text()},),
    "release": (Maker.session,),
    "offers": (Maker.offers,),
    "status": (Maker.status,),
    "devices": (lambda m: m.several(lambda one: {"name": one.text(), "offers": one.offers()}),),
    "pair": (),
    "pairing": (lambda m: {"code": m.text(), "url": m.text(), "svg": m.text(), "seconds": m.number()},),
}

ITEM_ARGUMENTS: dict[str, tuple[Make, ...]] = {
    "open": (Maker.handle, lambda m: {"target": m.text(), "device": m.maybe(Maker.text), "deadline": m.maybe(Maker.number)}),
    "allocate": (Maker.handle, Maker.natural),
    "free": (Maker.handle,),
    "write": (Maker.handle, Maker.natural, Maker.piece),
    "keep": (Maker.digest, Maker.natural, Maker.natural, Maker.piece),
    "put": (Maker.handle, Maker.natural, Maker.digest),
    "load": (Maker.handle, Maker.digest),
    "unload": (Maker.handle,),
    "launch": (Maker.batch,),
    "define": (Maker.handle, Maker.batch),
    "run": (Maker.handle,),
    "forget": (Maker.handle,),
    "read": (Maker.handle, Maker.handle, Maker.natural, Maker.size),
    "synchronize": (Maker.handle,),
    "close": (Maker.handle,),
    "ok": (Maker.handle, Maker.plain),
    "error": (Maker.handle, lambda m: m.choice(*KINDS), lambda m: m.choice("", "driver", "launch"), Maker.text),
    "resume": (Maker.handle,),
    "resumed": (),
    "lost": (Maker.text,),
    "resend": (),
    "cancel": (Maker.handle,),
}


def browsers_answers(frames: Sequence[bytes]) -> list[str]:
    """For each frame "refused", "wrong …", or "ok " and the message packed again by the browser's encoder, in hex. Needs
    `node`."""
    frames_file = b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)
    command = ["node", str(HERE / "decode.mjs"), str(HERE.parents[1] / "tapml" / "web")]
    done = subprocess.run(command, input=frames_file, capture_output=True, check=True)
    return done.stdout.decode().splitlines()


def disagreement(frame: bytes, browsers: str) -> str:
    """What the two decoders see differently in a frame; "" where they agree. JavaScript has one kind of number, so a whole number
    that came as a float is one to the browser and none to Python: that is no disagreement."""
    try:
        message = decode(frame)
    except WireError as error:
        if browsers == "refused":
            return ""
        try:
            decode(bytes.fromhex(browsers.removeprefix("ok ")))
        except (ValueError, WireError):
            return f"refused here ({error}), there: {browsers[:200]}"
        return "" if _has_whole_float(frame) else f"refused here ({error}) and taken there"
    if not browsers.startswith("ok "):
        return f"taken here, there: {browsers[:200]}"
    again = bytes.fromhex(browsers[3:])
    return "" if _numbers_whole(repacked(message)) == _numbers_whole(again) else "decoded differently"


def repacked(message: Control | Packet) -> bytes:
    """A message that was decoded, as bytes again."""
    if isinstance(message, Control):
        return control(message.name, *message.arguments)
    return packet(message.session, message.seq, message.ack, message.items)


def _has_whole_float(frame: bytes) -> bool:
    return repr(msgpack.unpackb(frame[1:])) != _numbers_whole(frame)


def _numbers_whole(frame: bytes) -> str:
    """What a message holds, with whole floats as integers."""

    def whole(value: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, list):
            return [whole(item) for item in value]
        return {key: whole(item) for key, item in value.items()} if isinstance(value, dict) else value

    return repr(whole(msgpack.unpackb(frame[1:])))


def spoil(rng: random.Random, data: bytes) -> bytes:
    """The message with something wrong with it, as a rule: a change can also leave it valid, or make another valid one of it."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _spoil_values(rng, data) if rng.random() < 0.7 else _spoil_bytes(rng, data)
    return data


def _spoil_values(rng: random.Random, data: bytes) -> bytes:
    """Another value, one more, one less or one twice, at any place of what the bytes say."""
    try:
        body = msgpack.unpackb(data[1:], strict_map_key=False)
    except (ValueError, TypeError):
        return _spoil_bytes(rng, data)
    places: list[tuple[Any, Any]] = []
    _collect(body, places)
    if not places:
        return data[:1] + msgpack.packb(rng.choice(JUNK))
    holder, key = rng.choice(places)
    how = rng.randrange(4)
    if how == 0 and isinstance(holder, list):
        del holder[key]
    elif how == 1 and isinstance(holder, list):
        holder.insert(key, rng.choice((*JUNK, holder[key])))
    elif how == 2 and isinstance(holder, dict):
        value = holder.pop(key)
        if rng.random() < 0.5:
            holder[rng.choice(("", "version", "role", "x" * 401, 0, b"", str(key) + " "))] = value
    else:
        holder[key] = rng.choice(JUNK)
    return data[:1] + msgpack.packb(body)


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    if isinstance(value, list):
        keys: Any = range(len(value))
    elif isinstance(value, dict):
        keys = list(value)
    else:
        return
    for key in keys:
        places.append((value, key))
        _collect(value[key], places)


def _spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    spoiled = bytearray(data or b"\1")
    at = rng.randrange(len(spoiled))
    how = rng.randrange(8)
    if how == 0:
        spoiled[at] ^= 1 << rng.randrange(8)
    elif how == 1:
        spoiled[at] = rng.randrange(256)
    elif how == 2:
        del spoiled[at:]
    elif how == 3:
        spoiled += rng.randbytes(rng.choice((1, 2, 9, 300)))
    elif how == 4:  # a header that promises much: array, map, text, bytes, extension
        spoiled[at : at + 1] = bytes([rng.randrange(0xC4, 0xE0)]) + struct.pack(">I", rng.choice(PROMISED))
    elif how == 5:  # deep nesting
        spoiled[at:at] = rng.choice(OPENINGS) * rng.choice((8, 9, 600, 2000))
    elif how == 6:
        del spoiled[at : at + rng.choice((1, 2, 8))]
    else:
        spoiled = bytearray(rng.choice((b"\0", b"\1", b"\2", b""))) + rng.randbytes(rng.choice((0, 1, 8, 64)))
    return bytes(spoiled)
