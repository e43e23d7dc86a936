"""The browser's modules say what Python's say: the channel and the session, asked the same questions side by side. Besides, the
tests of single modules in `tests/remote/web/*.test.mjs`, and whether the page's colours can be read.

They run in Node, which takes tapml/web as it is; `tests/remote/web/answers.mjs` is asked. The codecs are compared in
`test_fuzz.py`; what only a browser has (WebGPU, the cache, the page) is in `test_browser.py`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.devices.handles import check_binding
from tapml.devices.interface import DeviceInfo, Launch
from tapml.devices.null import LARGEST, NullDevice
from tapml.errors import DeviceError, OutOfMemory
from tapml.kernels import Kernel
from tapml.limits import Limits
from tapml.remote.agent.session import Session
from tapml.remote.agent.store import Store
from tapml.remote.channel import Channel, Gap
from tapml.remote.hub.pages import WEB
from tapml.remote.wire import Packet, WireError, decode, packet

HERE = Path(__file__).parent / "web"
RANDOM = st.randoms(use_true_random=False)


def node_program() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("not run: no Node.js is here, which takes the browser's modules without a browser")
    return found


class Node:
    """`answers.mjs`, asked one question at a time."""

    def __init__(self) -> None:
        command = [node_program(), "--no-warnings", str(HERE / "answers.mjs")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *question: Any) -> list[Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        data = msgpack.packb(question)
        self.process.stdin.write(struct.pack(">I", len(data)) + data)
        self.process.stdin.flush()
        (size,) = struct.unpack(">I", self.process.stdout.read(4))
        answer = list(msgpack.unpackb(self.process.stdout.read(size)))
        assert answer[0] != "threw", answer[1]
        return answer


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.process.kill()
    node.process.communicate()


class Twin:
    """A Python channel and a JavaScript one that are told the same, and must say the same, byte by byte."""

    def __init__(self, node: Node, session: bytes) -> None:
        self.node = node
        self.channel = Channel(session)
        self.sent = 0
        node.ask("channel", "new", session)

    def pack(self, items: Sequence[Any]) -> bytes:
        data = self.channel.pack(items)
        self.sent += 1
        assert self.node.ask("channel", "pack", items) == ["ok", data]
        return data

    def bare(self) -> bytes:
        data = self.channel.bare()
        assert self.node.ask("channel", "bare") == ["ok", data]
        return data

    def take(self, data: bytes) -> Packet | None:
        message = decode(data)
        assert isinstance(message, Packet)
        try:
            taken: list[Any] = ["ok", self.channel.take(message)]
        except Gap:
            taken = ["gap"]
        except WireError:
            taken = ["malformed"]
        answer = self.node.ask("channel", "take", data)
        assert answer[: len(taken)] == taken
        return message if taken[0] == "ok" and taken[1] else None

    def done(self, message: Packet) -> None:
        self.channel.done(message)
        self.node.ask("channel", "done", packet(message.session, message.seq, message.ack, message.items))

    def due(self, idle: bool) -> bytes | None:
        data = self.channel.due(idle)
        assert self.node.ask("channel", "due", idle) == ["ok", data]
        return data

    def check(self) -> None:
        channel = self.channel
        assert self.node.ask("channel", "state") == ["ok", [channel.first, channel.taken, channel.in_flight]]
        assert self.node.ask("channel", "unacknowledged") == ["ok", channel.unacknowledged()]


@settings(max_examples=60)
@given(RANDOM)
def test_the_channel_is_the_same_machine(node: Node, rng: random.Random) -> None:
    """One end is both of them; the other is Python's. Packets are lost, doubled and sent again."""
    session = bytes(16)
    near, far = Twin(node, session), Channel(session)
    to_near: list[bytes] = []
    undone: list[Packet] = []
    for step in range(40):
        what = rng.choice((0, 1, 1, 2, 3, 4, 4, 4, 5, 5, 6, 7))
        if what == 0:
            data = near.pack([["free", step + 1]])
            if rng.random() < 0.7:
                message = decode(data)
                assert isinstance(message, Packet)
                try:
                    far.take(message)
                    far.done(message)
                except Gap:
                    to_near.append(far.bare([["resend"]]))
        elif what in (1, 2):
            to_near.append(far.pack([["write", 1, 0, bytes(rng.choice((1, 2**19)))]]))
        elif what == 3:
            to_near.append(far.bare())
        elif what == 4 and to_near:
            message = near.take(to_near.pop(rng.randrange(min(2, len(to_near)))))
            if message is not None and message.seq:
                undone.append(message)
        elif what == 5 and undone:
            near.done(undone.pop(0))
        elif what == 6:
            near.due(rng.random() < 0.5)
        elif what == 7:
            to_near += far.unacknowledged()[:3]
            if rng.random() < 0.5:
                to_near.insert(0, packet(session, 0, near.sent + rng.choice((0, 1, 1000)), []))
    near.bare()
    near.check()


class AddingDevice(NullDevice):
    """What `fake_gpu.mjs` is: a kernel whose source is "add N" adds N to each byte."""

    def __init__(self) -> None:
        super().__init__("webgpu")
        limits = Limits(max_buffer_bytes=LARGEST, max_binding_bytes=LARGEST)
        self._info = DeviceInfo("webgpu", "fake", "none", True, limits)

    def allocate(self, nbytes: int) -> int:
        if nbytes > 2**28:
            raise OutOfMemory("no room")
        return super().allocate(nbytes)

    def load(self, kernel: Kernel) -> int:
        if kernel.language != "wgsl" or "refused" in kernel.source:
            raise DeviceError("driver", "refused")
        return super().load(kernel)

    def run(self, batch: Sequence[Launch]) -> None:
        for launch in batch:
            check_binding("", self._kernels[launch.kernel].access, launch.buffers)
            if self._kernels[launch.kernel].grid[0] > 100:
                raise DeviceError("launch", "too many workgroups")
        super().run(batch)
        for launch in batch:
            source, target = self._buffers[launch.buffers[0]], self._buffers[launch.buffers[-1]]
            size = min(len(source), len(target))
            target[:size] = source[:size] + int(self._kernels[launch.kernel].source[4:])


WRONG: Sequence[dict[str, Any]] = (
    {}, {}, {}, {}, {"source": "refused"}, {"language": "cuda"}, {"grid": [101, 1, 1]}, {"access": ["read"]}, {"entry": "a b"},
)  # fmt: skip


def a_kernel(rng: random.Random, changes: Sequence[dict[str, Any]]) -> bytes:
    fields: dict[str, Any] = {
        "language": "wgsl", "entry": "main", "source": f"add {rng.randrange(3)}", "access": ["read", "read_write"],
        "grid": [1, 1, 1], "block": [1, 1, 1], "uniform": [-1, 2**32 - 1],
    }
    return json.dumps(fields | rng.choice(changes)).encode()


def some_requests(rng: random.Random) -> list[Any]:
    """Requests over a few handles, most of them sensible: [how, item] each."""
    things = [a_kernel(rng, ({},)), a_kernel(rng, WRONG), a_kernel(rng, WRONG)]
    things += [bytes([n]) * rng.choice((0, 1, 8, 12)) for n in range(3)]
    digests = [hashlib.sha256(thing).digest() for thing in things]
    steps: list[Any] = [["carry", ["open", 1, {"target": "webgpu", "device": None, "deadline": 5}]]]
    for handle in (1, 2):
        steps.append(["carry", ["allocate", handle, 12]])
        steps.append(["carry", ["keep", digests[handle - 1], len(things[handle - 1]), 0, things[handle - 1]]])
        steps.append(["carry", ["load", handle, digests[handle - 1]]])

    def number() -> int:
        return rng.choice((1, 1, 1, 2, 2, 3, 4))

    def launches() -> list[Any]:
        some = [[number(), [number(), number()]] for _ in range(rng.choice((1, 1, 1, 2, 0)))]
        return rng.choice(([[1, [1, 2]]], [[2, [2, 1]]], some))

    for answered in range(2, rng.choice((6, 30))):
        which = rng.randrange(len(things))
        thing, digest = things[which], digests[which]
        cut = rng.choice((0, len(thing)))
        item = rng.choice((
            ["allocate", number(), rng.choice((0, 1, 12, 12, 2**29, 2**40))],
            ["free", number()],
            ["write", number(), rng.choice((0, 0, 4, 1, 9, 13)), bytes([answered]) * rng.choice((0, 1, 4, 12))],
            ["keep", digest, len(thing), cut, rng.choice((thing[cut:], thing[cut:], thing[cut : cut + 2], thing + b"x"))],
            ["put", number(), rng.choice((0, 0, 4)), digest],
            ["load", number(), digest],
            ["unload", number()],
            ["launch", launches()],
            ["define", number(), launches()],
            ["run", number()], ["run", number()],
            ["forget", number()],
            ["synchronize", answered],
            ["open", answered, {"target": "webgpu", "device": None, "deadline": None}],
        ))
        if rng.random() < 0.02:
            item = ["close", answered]
        steps.append(["drop" if rng.random() < 0.05 else "carry", item])
        if rng.random() < 0.4:
            for n in range(rng.choice((1, 2, 3))):
                steps.append(["read", ["read", 1000 * answered + n, number(), rng.choice((0, 0, 4, 11)), rng.choice((0, 1, 12))]])
    return steps


@settings(max_examples=250)
@given(RANDOM)
def test_a_session_answers_the_same(node: Node, rng: random.Random) -> None:
    budget = rng.choice((50, 1000))
    steps = some_requests(rng)
    session = Session(lambda *_: AddingDevice(), Store(budget))
    expected = [session.drop(item) if how == "drop" else session.carry_out(item) for how, item in steps]
    session.end()
    kind, answers, launches, left = node.ask("session", budget, steps)
    assert kind == "ok" and left == 0
    for (how, item), theirs, ours in zip(steps, answers, expected, strict=True):
        assert shape(theirs) == shape(ours), repr((how, item, theirs, ours, steps))
    assert launches == session.launches


def shape(answer: Any) -> Any:
    """An answer without the text of an error, which each side words for itself."""
    return answer[:4] if answer is not None and answer[0] == "error" else answer


@pytest.mark.parametrize("file", sorted(HERE.glob("*.test.mjs")), ids=lambda path: str(path.name))
def test_in_node(file: Path) -> None:
    command = [node_program(), "--no-warnings", "--test", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


ON = (
    ("ink", "surface"), ("ink-2", "surface"), ("ink-2", "bg"), ("ink-3", "surface"), ("accent", "surface"),
    ("on-accent", "accent"),
    *((name, f"{name}-soft") for name in ("ready", "busy", "wait", "bad", "off")),
)  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(dark: bool) -> None:
    """At least 4.5 to 1, as WCAG 2.2 asks for (1.4.3)."""
    text = (WEB / "hub.css").read_text()
    light_text, dark_text = text.split("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", light_text))
    if dark:
        colours |= dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", dark_text))
    low = {pair: ratio for pair in ON if (ratio := contrast(*(colours[name] for name in pair))) < 4.5}
    assert not low


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, brighter = sorted((luminance(one), luminance(other)))
    return (brighter + 0.05) / (darker + 0.05)
