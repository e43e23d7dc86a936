"""A client by hand, for tests of agents: what docs/wire.md says of one, and nothing of `tapml.remote.client`.

    client = Client(hub.address, "bench")        waits for its lease
    client.open()
    client.ask("read", 1, 0, 16)                 the value of the answer
    client.connection.close(); client.connect()  a connection that broke, and was made anew
    client.end()
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tapml.kernels import Kernel
from tapml.remote import wire
from tapml.remote.address import HubAddress
from tapml.remote.channel import Channel
from tapml.remote.connection import Broken, Connection, Unreachable
from tests.devices import kernels
from tests.devices.kernels import COUNT, NBYTES, PLUS_ONE

SECONDS = 30.0


class Client:
    """See the module's docstring. `answers` by id; `lost`: why the device no longer holds the session."""

    def __init__(self, address: HubAddress, device: str, target: str = "cpu", session: bytes | None = None) -> None:
        self._address = address
        self._hello = {
            "version": 1, "role": "client", "session": session or os.urandom(16), "device": device, "target": target,
            "label": "a test",
        }
        self.channel = Channel(self._hello["session"])  # type: ignore[arg-type]
        self.answers: dict[int, list[Any]] = {}
        self.lost = ""
        self._id = 0
        self.connect()

    def connect(self) -> None:
        until = time.monotonic() + SECONDS
        while True:
            try:
                self.connection = Connection.open(self._address, self._hello, SECONDS)
                break
            except Unreachable:
                assert time.monotonic() < until
        self._resumed = False
        while not self._resumed and not self.lost:
            self._receive()

    def _receive(self) -> None:
        message = wire.decode(self.connection.receive())
        if isinstance(message, wire.Control):
            if message.name == "granted":
                self.connection.send(self.channel.bare([["resume", self.channel.first]]))
            return
        for item in self.channel.take(message):
            if item[0] in ("ok", "error"):
                self.answers[item[1]] = item
            elif item[0] == "lost":
                self.lost = item[1]
            elif item[0] in ("resumed", "resend"):
                self._resumed = True
                for data in self.channel.unacknowledged():
                    self.connection.send(data)
        self.channel.done(message)

    def send(self, *items: Sequence[Any]) -> None:
        self.connection.send(self.channel.pack(items))

    def wait(self, number: int) -> list[Any]:
        while number not in self.answers:
            self._receive()
        return self.answers[number]

    def begin(self, name: str, *arguments: Any) -> int:
        self._id += 1
        self.send([name, self._id, *arguments])
        return self._id

    def ask(self, name: str, *arguments: Any) -> Any:
        kind, _, value, *rest = self.wait(self.begin(name, *arguments))
        assert kind == "ok", (value, *rest)
        return value

    def fails(self, name: str, *arguments: Any) -> tuple[str, str]:
        """Kind and text of the error."""
        answer = self.wait(self.begin(name, *arguments))
        assert answer[0] == "error"
        return answer[2], answer[4]

    def open(self, target: str = "cpu", deadline: float | None = None) -> dict[str, Any]:
        return dict(self.ask("open", {"target": target, "device": None, "deadline": deadline}))

    def load(self, number: int, kernel: Kernel) -> None:
        text = json.dumps(kernel.to_json()).encode()
        digest = hashlib.sha256(text).digest()
        self.send(["keep", digest, len(text), 0, text], ["load", number, digest])

    def endless(self) -> None:
        """A kernel that never ends is under way."""
        self.load(1, kernels.endless("c"))
        self.send(["allocate", 1, 16], ["launch", [[1, [1]]]])

    def check(self) -> None:
        """The session computes."""
        x = np.arange(COUNT, dtype=np.float32)
        self.load(90, PLUS_ONE)
        self.send(["allocate", 90, NBYTES], ["allocate", 91, NBYTES], ["write", 90, 0, x.tobytes()], ["launch", [[90, [90, 91]]]])
        assert self.ask("read", 91, 0, NBYTES) == (x + 1).tobytes()

    def end(self) -> None:
        """The lease is given back. May be called twice."""
        with contextlib.suppress(Broken):
            self.connection.send(wire.control("end"))
        self.connection.close()
