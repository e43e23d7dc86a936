"""A whole session: whatever requests come, and a real device behind it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.devices.interface import Device, Launch
from tapml.devices.null import LARGEST, NullDevice
from tapml.devices.open import open_here
from tapml.devices.trial import try_device
from tapml.errors import UnavailableError
from tapml.kernels import Kernel
from tapml.remote.agent.session import Session
from tapml.remote.agent.store import Store
from tapml.targets.known import TARGETS
from tests.devices import kernels
from tests.devices.kernels import PLUS_ONE
from tests.remote.driver import Driver, through

OPEN = ["open", 1, {"target": "null", "device": None, "deadline": None}]

# Few numbers, so that requests often mean the same things.
HANDLE = st.integers(1, 4)
ID = st.integers(1, 2**53 - 1)
SIZE = st.one_of(st.integers(0, 40), st.sampled_from([LARGEST, 2**45, 2**53 - 1]))
OFFSET = st.one_of(st.integers(0, 20), st.just(2**53 - 1))
KERNEL_TEXTS = [json.dumps(k.to_json()).encode() for k in (PLUS_ONE, kernels.elementwise("wgsl", "x[i]"))] + [b"{}", b"data"]
DIGEST = st.sampled_from([hashlib.sha256(text).digest() for text in KERNEL_TEXTS] + [bytes(32)])
BATCH = st.lists(st.tuples(HANDLE, st.lists(HANDLE, max_size=3).map(list)).map(list), max_size=3)
WISH = st.fixed_dictionaries({
    "target": st.sampled_from(["null", "cpu", ""]), "device": st.none() | st.text(max_size=5),
    "deadline": st.none() | st.floats(0, 2.0**53 - 1) | st.integers(0, 9),
})


def asked(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.tuples(st.just(name), *arguments).map(list)


@st.composite
def whole_keep(draw: st.DrawFn) -> list[Any]:
    text = draw(st.sampled_from(KERNEL_TEXTS))
    return ["keep", hashlib.sha256(text).digest(), len(text), 0, text]


REQUEST = st.one_of(
    asked("open", ID, WISH), asked("allocate", HANDLE, SIZE), asked("free", HANDLE),
    asked("write", HANDLE, OFFSET, st.binary(max_size=20)), asked("keep", DIGEST, SIZE, OFFSET, st.binary(max_size=20)),
    whole_keep(),
    asked("put", HANDLE, OFFSET, DIGEST), asked("load", HANDLE, DIGEST), asked("unload", HANDLE), asked("launch", BATCH),
    asked("define", HANDLE, BATCH), asked("run", HANDLE), asked("forget", HANDLE),
    asked("read", ID, HANDLE, OFFSET, st.integers(0, 40)),
    asked("synchronize", ID), asked("close", ID),
)


@settings(max_examples=300)
@given(
    requests=st.lists(st.tuples(REQUEST, st.booleans()), max_size=30), late=st.booleans(),
    memory=st.none() | st.integers(1, 100), opened=st.booleans(),
)
def test_no_sequence_of_requests_does_harm(
    requests: list[tuple[list[Any], bool]], late: bool, memory: int | None, opened: bool
) -> None:
    """Whatever comes, in whatever order: nothing is raised, all that wants an answer gets one of its id, and the session still
    ends with nothing left over."""
    device = NullDevice()
    session = Session(lambda *_: device, Store(500), memory)
    if opened:
        session.carry_out(OPEN)
    for item, dropped in requests:
        answer = session.drop(item) if dropped and late else through(session, item)
        if item[0] in ("open", "read", "synchronize", "close"):
            assert answer is not None and answer[0] in ("ok", "error") and answer[1] == item[1]
            assert answer[0] == "ok" or answer[2] != "other", answer
        else:
            assert answer is None
    session.end()
    for _ in range(2):  # the first may tell an older error
        last = session.carry_out(["synchronize", 99])
    assert last is not None and last[:3] == ["error", 99, "value"]


class OverSession:
    """As much of the runtime interface over a session as the trial of a device needs."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._last = 0
        self.write = functools.partial(self._post, "write")
        self.free = functools.partial(self._post, "free")
        self.unload = functools.partial(self._post, "unload")
        self.allocate = functools.partial(self._make, "allocate")

    def _post(self, name: str, *arguments: Any) -> None:
        if name == "write":
            arguments = (arguments[0], 0, bytes(arguments[1]))
        self._driver.post(name, *arguments)

    def _make(self, name: str, *arguments: Any) -> int:
        self._last += 1
        self._driver.post(name, self._last, *arguments)
        return self._last

    def load(self, kernel: Kernel) -> int:
        return self._make("load", self._driver.keep(json.dumps(kernel.to_json()).encode()))

    def run(self, batch: Sequence[Launch]) -> None:
        self._driver.post("launch", [[launch.kernel, list(launch.buffers)] for launch in batch])

    def read(self, buffer: int, nbytes: int) -> bytes:
        return bytes(self._driver.ask("read", buffer, 0, nbytes))


@pytest.mark.parametrize("target", ["opencl", "vulkan", "cpu"])
def test_a_real_device_passes_its_trial_over_a_session(target: str) -> None:
    try:
        device = open_here(target, None)
    except UnavailableError as error:
        pytest.skip(f"not run: {error}")
    driver = Driver(device)
    driver.open()
    assert try_device(cast(Device, OverSession(driver)), TARGETS[target].language) == ""
    driver.ask("close")
