"""The requests of docs/wire.md carried out over a device, without any network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tapml.devices.null import LARGEST, NullDevice
from tapml.devices.open import open_here
from tapml.errors import DeviceError, DeviceLost, OutOfMemory, TargetError, UnavailableError
from tapml.kernels import Kernel
from tapml.remote import wire
from tapml.remote.agent import session as sessions
from tapml.remote.agent.failures import MOST_TEXT
from tapml.remote.agent.store import Store
from tests.devices import kernels
from tests.devices.kernels import COUNT, NBYTES, PLUS_ONE
from tests.remote.driver import Driver

OPEN = ["open", 1, {"target": "null", "device": None, "deadline": None}]


@pytest.fixture
def null() -> Driver:
    driver = Driver(NullDevice())
    driver.open()
    return driver


@pytest.fixture
def cpu() -> Driver:
    try:
        driver = Driver(open_here("cpu", None))
    except UnavailableError as error:
        pytest.skip(f"not run: {error}")
    driver.open()
    return driver


def test_open_tells_what_the_device_is() -> None:
    store = Store(1000)
    driver = Driver(NullDevice(), store=store)
    answer = driver.open(target="opencl", device="1", deadline=2.5)
    assert driver.asked == [("opencl", "1", 2.5)]
    assert answer["info"]["name"] == "null" and answer["info"]["limits"] == {"max_buffer_bytes": LARGEST}
    assert (answer["room"], answer["stored"]) == (1000, [])
    digest = driver.keep(b"weights")
    driver.ask("close")
    assert Driver(NullDevice(), store=store).open() == answer | {"room": 993, "stored": [digest]}


def test_a_step_as_a_client_sends_it(cpu: Driver) -> None:
    x = np.arange(COUNT, dtype=np.float32)
    cpu.load(7, PLUS_ONE)
    for buffer in (1, 2, 3):
        cpu.post("allocate", buffer, NBYTES)
    cpu.post("define", 9, [[7, [1, 2]], [7, [2, 3]]])
    for step in range(3):
        cpu.post("write", 1, 0, (x + step).tobytes())
        cpu.post("run", 9)
        assert cpu.ask("read", 3, 0, NBYTES) == (x + step + 2).tobytes()
    cpu.post("launch", [[7, [3, 1]]])
    assert cpu.ask("read", 1, 4, 8) == (x + 5)[1:3].tobytes()
    assert cpu.session.launches == 7
    for name, handle in (("forget", 9), ("unload", 7), ("free", 1), ("free", 2), ("free", 3)):
        cpu.post(name, handle)
    cpu.ask("synchronize")
    cpu.ask("close")


def test_stored_bytes_are_put_into_buffers(null: Driver) -> None:
    data = np.random.default_rng(1).integers(0, 256, 2 * wire.PIECE + 5, np.uint8).tobytes()
    digest = null.keep(data)
    null.post("allocate", 1, len(data) + 4)
    null.post("put", 1, 3, digest)
    for offset in (0, wire.PIECE, 2 * wire.PIECE):
        assert null.ask("read", 1, offset + 3, 5) == data[offset : offset + 5]
    null.post("put", 1, 8, digest)
    assert "outside" in null.fails("synchronize")[2]
    assert null.ask("read", 1, 8, 5) == data[5:10]  # nothing of it was written


@pytest.mark.parametrize(("request_", "text"), [
    (["free", 5], "no buffer 5"),
    (["unload", 5], "no kernel 5"),
    (["forget", 5], "no batch 5"),
    (["run", 5], "no batch 5"),
    (["allocate", 1, 4], "buffer 1 exists already"),
    (["write", 5, 0, b"x"], "no buffer 5"),
    (["write", 1, 14, b"123"], "bytes 14 to 17 are outside of a buffer of 16 bytes"),
    (["write", 1, 2**53 - 1, b"x"], "outside"),
    (["put", 1, 0, bytes(32)], "nothing is stored"),
    (["load", 3, bytes(32)], "nothing is stored"),
    (["launch", [[5, [1, 2]]]], "no kernel 5"),
    (["launch", [[1, [1, 5]]]], "no buffer 5"),
    (["launch", [[1, [1]]]], "takes 2 buffers"),
    (["launch", [[1, [1, 1]]]], "writes buffer 1, which is also bound"),
    (["define", 3, [[1, [1, 5]]]], "no buffer 5"),
    (["keep", bytes(32), 3, 0, b"abc"], "another digest"),
    (["keep", bytes(32), 3, 1, b"a"], "does not follow"),
])
def test_a_mistake_is_told_at_the_next_answer_once(null: Driver, request_: list[Any], text: str) -> None:
    null.load(1, kernels.elementwise("c", "x[i]"))
    null.post("allocate", 1, 16)
    null.post("allocate", 2, 16)
    null.post(*request_)
    kind, stage, said = null.fails("synchronize")
    assert (kind, stage) == ("value", "") and text in said
    null.ask("synchronize")
    null.post("launch", [[1, [1, 2]]])
    null.ask("read", 2, 0, 16)


def test_mistakes_are_told_in_the_clients_own_numbers(null: Driver) -> None:
    null.load(70, PLUS_ONE)
    null.post("allocate", 71, 16)
    null.post("define", 72, [[70, [71, 71]]])
    assert "writes buffer 71" in null.fails("synchronize")[2]


def test_the_first_error_is_told_and_nothing_runs_until_then(null: Driver) -> None:
    null.load(1, PLUS_ONE)
    null.post("allocate", 1, 16)
    null.post("allocate", 2, 16)
    null.post("free", 77)
    null.post("free", 78)
    null.post("launch", [[1, [1, 2]]])
    null.post("write", 1, 0, b"abcd")  # writes go on
    assert null.session.launches == 0
    assert "77" in null.fails("read", 1, 0, 4)[2]
    assert null.ask("read", 1, 0, 4) == b"abcd"
    null.post("launch", [[1, [1, 2]]])
    assert null.session.launches == 1


class Refusing(NullDevice):
    """Refuses kernels and launches as it is told, the latter at the next wait, as a child process does."""

    def __init__(self) -> None:
        super().__init__()
        self.refuse: Exception | None = None
        self.late: Exception | None = None

    def load(self, kernel: Kernel) -> int:
        if self.refuse is not None:
            raise self.refuse
        return super().load(kernel)

    def allocate(self, nbytes: int) -> int:
        if self.refuse is not None:
            raise self.refuse
        return super().allocate(nbytes)

    def synchronize(self) -> None:
        late, self.late = self.late, None
        if late is not None:
            raise late


def test_the_devices_own_older_error_is_told_first() -> None:
    device = Refusing()
    driver = Driver(device)
    driver.open()
    device.late = DeviceError("launch", "too many workgroups")
    driver.post("free", 77)
    assert driver.fails("synchronize") == ("device", "launch", "too many workgroups")
    driver.ask("synchronize")


@pytest.mark.parametrize(("error", "told"), [
    (DeviceError("driver", "no such type"), ("device", "driver", "no such type")),
    (ValueError("grid"), ("value", "", "grid")),
    (MemoryError(), ("memory", "", "The device's process has no memory left.")),
])
def test_what_uses_a_kernel_that_failed_fails_with_the_same_error(error: Exception, told: tuple[str, str, str]) -> None:
    device = Refusing()
    driver = Driver(device)
    driver.open()
    driver.post("allocate", 1, 16)
    driver.post("allocate", 2, 16)
    device.refuse = error
    driver.load(1, PLUS_ONE)
    assert driver.fails("synchronize") == told
    driver.post("define", 1, [[1, [1, 2]]])
    assert driver.fails("read", 1, 0, 4) == told
    driver.post("run", 1)
    assert driver.fails("synchronize") == told
    driver.post("forget", 1)
    driver.post("unload", 1)
    device.refuse = None
    driver.load(1, PLUS_ONE)
    driver.post("launch", [[1, [1, 2]]])
    driver.ask("synchronize")


def test_no_room_on_the_device_is_of_its_own_kind() -> None:
    device = Refusing()
    driver = Driver(device)
    driver.open()
    driver.post("allocate", 1, 2**53 - 1)
    kind, stage, text = driver.fails("synchronize")
    assert (kind, stage) == ("memory", "") and str(LARGEST) in text
    device.refuse = OutOfMemory("out of memory")
    driver.post("allocate", 2, 4)
    assert driver.fails("synchronize") == ("memory", "", "out of memory")
    for buffer, text in ((1, str(LARGEST)), (2, "out of memory")):
        driver.post("write", buffer, 0, b"abcd")
        assert text in driver.fails("synchronize")[2]
        assert text in driver.fails("read", buffer, 0, 4)[2]
        driver.post("free", buffer)
    driver.ask("synchronize")


def test_a_session_may_not_allocate_more_than_its_limit() -> None:
    driver = Driver(NullDevice(), memory=100)
    assert driver.open()["info"]["limits"] == {"max_buffer_bytes": 100, "max_binding_bytes": 100}
    driver.post("allocate", 1, 60)
    driver.post("allocate", 2, 41)
    kind, _, text = driver.fails("synchronize")
    assert kind == "memory" and "60 of 100" in text
    driver.post("free", 2)
    driver.post("allocate", 3, 40)
    driver.ask("synchronize")
    driver.post("free", 1)
    driver.post("allocate", 4, 60)
    driver.ask("synchronize")


def test_a_lost_device_stays_lost() -> None:
    device = Refusing()
    driver = Driver(device)
    driver.open()
    driver.post("allocate", 1, 16)
    device.late = DeviceLost("was killed by SIGSEGV")
    lost = ("lost", "", "was killed by SIGSEGV")
    assert driver.fails("synchronize") == lost
    driver.post("write", 1, 0, b"x")
    assert driver.fails("read", 1, 0, 4) == lost
    assert driver.fails("open", OPEN[2]) == lost
    assert driver.fails("close") == lost
    assert driver.session.device is None


def test_a_loss_that_nobody_waited_for() -> None:
    device = Refusing()
    driver = Driver(device)
    driver.open()
    device.refuse = DeviceLost("gone")
    driver.post("allocate", 1, 16)
    driver.post("free", 1)
    assert driver.fails("synchronize") == ("lost", "", "gone")


@pytest.mark.parametrize(("error", "kind"), [
    (UnavailableError("no driver"), "unavailable"), (TargetError("no device 9"), "target"), (RuntimeError("odd"), "other"),
])
def test_a_device_that_does_not_open(error: Exception, kind: str) -> None:
    driver = Driver(error)
    assert driver.fails("open", OPEN[2])[0] == kind
    driver.post("allocate", 1, 16)
    assert "open comes first" in driver.fails("synchronize")[2]
    driver.device = NullDevice()
    driver.open()
    driver.post("allocate", 1, 16)
    driver.ask("synchronize")


def test_open_is_checked() -> None:
    driver = Driver(NullDevice())
    assert driver.fails("open", OPEN[2] | {"deadline": 0})[0] == "value"
    driver.open(deadline=2**53 - 1)
    assert driver.asked[-1][2] == sessions.MOST_SECONDS
    assert "open already" in driver.fails("open", OPEN[2])[2]
    driver.ask("close")
    assert "was closed" in driver.fails("open", OPEN[2])[2]
    assert "was closed" in driver.fails("synchronize")[2]


@pytest.mark.parametrize("change", [
    {"language": "python"}, {"entry": "a b"}, {"entry": ""}, {"entry": 5}, {"source": None}, {"source": "\ud800"},
    {"source": "a\0b"}, {"access": "read"}, {"access": ["read", "execute"]}, {"access": [["read"]]}, {"grid": [1, 1]},
    {"grid": [1, 1, 0]}, {"grid": [1, 1, 1.5]}, {"grid": [1, 1, True]}, {"grid": [1, 1, 2**32]}, {"block": None},
    {"uniform": [2**32]}, {"uniform": {}}, {"more": 1},
])
def test_the_text_of_a_kernel_is_checked(null: Driver, change: dict[str, Any]) -> None:
    text = json.dumps(PLUS_ONE.to_json() | change).encode()
    null.post("load", 1, null.keep(text))
    kind, _, said = null.fails("synchronize")
    assert kind == "value" and next(iter(change)).replace("more", "fields") in said


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"{}", b"7", b"[" * 100_000, b'{"grid": ' * 5000])
def test_what_is_no_kernel_is_refused(null: Driver, text: bytes) -> None:
    null.post("load", 1, null.keep(text))
    assert null.fails("synchronize")[0] == "value"
    null.ask("synchronize")


def test_a_kernel_arrives_whole(null: Driver) -> None:
    kernel = replace(kernels.elementwise("wgsl", "x[i]"), uniform=(1, 2**32 - 1, 0))
    null.load(1, kernel)
    null.ask("synchronize")
    assert isinstance(null.device, NullDevice) and null.device.loaded == [kernel]


def test_a_thing_that_was_not_kept_fails_what_needs_it_with_the_same_error() -> None:
    driver = Driver(NullDevice(), store=Store(10))
    driver.open()
    driver.post("allocate", 1, 16)
    digest = driver.keep(b"eleven bytes")
    assert driver.fails("synchronize")[0] == "memory"
    driver.post("put", 1, 0, digest)
    assert driver.fails("synchronize")[0] == "memory"


def test_a_batch_of_what_was_freed_is_refused(null: Driver) -> None:
    null.load(1, PLUS_ONE)
    for buffer in (1, 2):
        null.post("allocate", buffer, 16)
    null.post("define", 1, [[1, [1, 2]]])
    null.post("free", 2)
    null.post("allocate", 2, 16)  # another buffer of the same number
    null.post("run", 1)
    assert null.fails("synchronize")[0] == "value"


def test_cancelled_requests_leave_failed_handles(null: Driver) -> None:
    null.post("allocate", 1, 16)
    null.load(1, PLUS_ONE)
    digest = hashlib.sha256(b"x").digest()
    for item in (
        ["allocate", 2, 16], ["load", 2, digest], ["define", 2, []], ["keep", digest, 1, 0, b"x"], ["write", 1, 0, b"x"],
        ["run", 9], ["launch", [[1, [1, 2]]]], ["free", 1],
    ):
        assert null.session.drop(item) is None
    assert null.session.drop(["read", 5, 1, 0, 4]) == ["error", 5, "cancelled", "", "The request was cancelled."]
    null.ask("synchronize")
    for request in (["write", 2, 0, b"x"], ["launch", [[2, []]]], ["run", 2], ["load", 3, digest]):
        null.post(*request)
        assert null.fails("synchronize")[0] == "cancelled"
    assert "no buffer 1" in null.fails("read", 1, 0, 4)[2]  # what gives back is carried out


def test_the_end_frees_the_device(null: Driver) -> None:
    null.post("allocate", 1, 16)
    null.session.end()
    null.session.end()
    assert isinstance(null.device, NullDevice)
    with pytest.raises(ValueError, match="closed"):
        null.device.allocate(4)
    assert null.fails("read", 1, 0, 4)[0] == "value"


def test_handles_and_batches_are_limited(null: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MOST_HANDLES", 2)
    monkeypatch.setattr(sessions, "MOST_BINDINGS", 3)
    for buffer in (1, 2, 3):
        null.post("allocate", buffer, 4)
    assert null.fails("synchronize")[0] == "memory"
    null.load(1, PLUS_ONE)
    null.post("define", 1, [[1, [1, 2]]])
    null.ask("synchronize")
    null.post("define", 2, [[1, [1, 2]]])
    assert null.fails("synchronize")[0] == "memory"
    null.post("forget", 1)
    null.post("forget", 2)
    null.post("define", 2, [[1, [1, 2]]])
    null.ask("synchronize")


def test_an_endless_error_is_cut(null: Driver) -> None:
    device = Refusing()
    driver = Driver(device)
    driver.open()
    device.refuse = DeviceError("driver", "first " + "x" * 10**6 + "\ud800 last")
    driver.load(1, PLUS_ONE)
    text = driver.fails("synchronize")[2]
    assert len(text) <= MOST_TEXT and text.startswith("first") and text.endswith("last")
