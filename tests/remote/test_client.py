"""Driving a device across a real hub and a real agent: what travels, what is waited for, and what becomes of failures."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tapml.devices.batches import BATCHES
from tapml.devices.interface import Launch
from tapml.errors import ConnectionLost, DeviceError, DeviceLost, OutOfMemory, UnavailableError
from tapml.migrate.operator_test import OperatorTester
from tapml.remote.client.absent import judge
from tapml.remote.client.client import RemoteDevice
from tapml.remote.open import open_device
from tapml.runtime.buffers import BufferPool
from tapml.runtime.decoder import Decoder
from tapml.runtime.protocol import greedy
from tests.conftest import MakeRun
from tests.devices import kernels
from tests.devices.ctrl_c import ctrl_c
from tests.devices.kernels import COUNT, NBYTES
from tests.models import VOCABULARY
from tests.remote.processes import Agent, Hub, running_agent, running_hub

Served = tuple[Hub, Agent]
Opened = Callable[..., RemoteDevice]


@pytest.fixture
def opened(served: Served) -> Iterator[Opened]:
    """`opened("cpu", deadline=3)`: the agent's device; closed after the test."""
    hub, agent = served
    made: list[RemoteDevice] = []

    def open_one(target: str = "cpu", name: str = "bench", deadline: float = 120.0) -> RemoteDevice:
        agent.wait_ready(target)
        device = open_device(target, f"{name}@{hub.url}", deadline=deadline)
        assert isinstance(device, RemoteDevice)
        made.append(device)
        return device

    yield open_one
    for device in made:
        device.close()


def test_a_decode_step_is_one_packet_each_way(make_run: MakeRun, need: Callable[[str], str], served: Served) -> None:
    """With token and position one way, logits the other, and besides them commands only."""
    run, target = make_run("llama"), need("opencl")
    hub, agent = served
    agent.wait_ready(target)
    assert isinstance(run.protocol, Decoder)
    with OperatorTester(run, target, f"bench@{hub.url}") as tester:
        bench, device = tester.bench, tester.bench.backend.device
        assert isinstance(device, RemoteDevice)
        bench.compile(run.operators)
        hybrid = bench.hybrid()
        hybrid.offload(bench.programs([o.name for o in run.operators]))
        prompt = run.prompts[0]
        steps: list[tuple[int, ...]] = []
        for _ in greedy(hybrid, prompt.tokens, run.protocol, 14, ignore_stop=True):
            t = device.traffic
            steps.append((t.packets_sent, t.packets_received, device.round_trips, device.uploaded, t.sent, t.received))
    made = [tuple(b - a for a, b in zip(one, two, strict=True)) for one, two in itertools.pairwise(steps)]
    for packets_out, packets_in, round_trips, uploaded, sent, received in made[-6:]:
        assert (packets_out, packets_in, round_trips) == (1, 1, 1)
        assert 0 < uploaded <= 64
        assert sent < uploaded + 120
        assert VOCABULARY * 4 <= received < VOCABULARY * 4 + 80


def test_what_was_uploaded_once_is_not_uploaded_again(make_run: MakeRun, need: Callable[[str], str], tmp_path: Path) -> None:
    """Weights, kernels, recorded inputs: the next session finds them in the store, which is empty at first: the agent is new."""
    run, target = make_run("encoder"), need("cpu")
    uploaded: list[int] = []
    with running_hub(tmp_path) as hub, running_agent(hub.url, "bench", "--target", target) as agent:
        agent.wait_ready(target)
        for _ in range(2):
            with OperatorTester(run, target, f"any@{hub.url}") as tester:
                device = tester.bench.backend.device
                assert isinstance(device, RemoteDevice) and device.address == f"bench@{hub.url}"
                assert {verdict.status for verdict in tester.test_all("*")} == {"pass"}
                uploaded.append(device.uploaded)
                assert device.traffic.sent > device.uploaded
    weights = sum({w.digest: w.nbytes for w in run.weights.entries.values()}.values())
    assert uploaded[0] > weights * 0.9
    assert uploaded[1] < uploaded[0] / 20


def test_a_busy_device_is_waited_for(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    first = opened()
    found: list[RemoteDevice] = []
    waiting = threading.Thread(target=lambda: found.append(opened()))
    with caplog.at_level(logging.INFO, "tapml.remote"):
        waiting.start()
        until = time.monotonic() + 30
        while "bench is busy with" not in caplog.text:
            assert time.monotonic() < until, caplog.text
            time.sleep(0.01)
        assert first.allocate(8) and not found
        first.close()
        waiting.join(30)
    (second,) = found
    buffer = second.allocate(4)
    second.write(buffer, b"abcd")
    assert second.read(buffer, 4) == b"abcd"
    assert "token" not in caplog.text


def test_a_posted_failure_comes_at_the_next_wait_with_its_class(opened: Opened) -> None:
    device = opened()
    x, y = device.allocate(NBYTES), device.allocate(NBYTES)
    device.write(x, np.ones(COUNT, np.float32).tobytes())
    device.write(y, bytes(NBYTES))
    good = device.load(kernels.PLUS_ONE)
    bad = device.load(kernels.elementwise("c", "no_such_name[i]", "bad"))
    device.run([Launch(good, (x, y))])  # not carried out, since something before it failed
    assert device.allocate(8 * 2**20), "it waits, and is not to be blamed for the kernel"
    with pytest.raises(DeviceError, match="no_such_name") as caught:
        device.read(y, 4)
    assert caught.value.stage == "driver" and not isinstance(caught.value, OutOfMemory)
    assert device.read(y, 4) == bytes(4)
    device.run([Launch(bad, (x, y))])
    with pytest.raises(DeviceError, match="no_such_name"):
        device.synchronize()
    device.run([Launch(good, (x, y))])
    assert device.read(y, 4) == np.float32(2).tobytes()


def test_batches_get_numbers_and_lose_them(opened: Opened) -> None:
    """More batches than are kept, each run several times, some over buffers that are freed and come anew."""
    device = opened()
    plus = device.load(kernels.elementwise("c", "y[i] + x[i]"))
    one = device.allocate(NBYTES)
    device.write(one, np.ones(COUNT, np.float32).tobytes())
    buffers: list[int] = []
    expected: dict[int, int] = {}

    def fresh() -> int:
        buffer = device.allocate(NBYTES)
        device.write(buffer, bytes(NBYTES))
        expected[buffer] = 0
        return buffer

    buffers = [fresh() for _ in range(BATCHES + 10)]
    batches = {b: (Launch(plus, (one, b)),) * 3 for b in buffers}
    for round_number in range(4):
        for index, buffer in enumerate(buffers):
            if round_number == 2 and index % 7 == 0:
                device.free(buffer)
                buffer = buffers[index] = fresh()
                batches[buffer] = (Launch(plus, (one, buffer)),) * 3
            for _ in range(2):
                device.run(batches[buffer] if index % 2 else list(batches[buffer]))
                expected[buffer] += 3
    assert len(device._batches) == BATCHES and device.round_trips == 1
    for buffer in buffers:
        assert device.read(buffer, NBYTES) == np.full(COUNT, expected[buffer], np.float32).tobytes()


def test_memory_that_runs_out(served: Served) -> None:
    """A large allocation says so at once, so that a pool can make room; a small one at the next wait. Where the store has no
    room, content goes up each time."""
    hub, _ = served
    with running_agent(hub.url, "small", "--target", "cpu", "--memory", "32M", "--store", "1M") as agent:
        agent.wait_ready("cpu")
        device = open_device("cpu", f"small@{hub.url}")
        assert isinstance(device, RemoteDevice)
        pool = BufferPool(device)
        pool.release(pool.allocate(24 * 2**20))
        buffer = pool.allocate(20 * 2**20)
        assert pool.held == 20 * 2**20
        device.write(buffer, b"here", 20 * 2**20 - 4)
        with pytest.raises(OutOfMemory, match="32"):
            device.allocate(16 * 2**20)
        assert device.read(buffer, 4, 20 * 2**20 - 4) == b"here"
        small = [device.allocate(3 * 2**20) for _ in range(5)]
        device.write(small[-1], b"no room")
        with pytest.raises(OutOfMemory):
            device.synchronize()
        for each in small:
            device.free(each)
        device.synchronize()
        content = os.urandom(2 * 2**20)
        before = device.uploaded
        for _ in range(2):
            device.write(buffer, content, keep=True)
            assert device.read(buffer, len(content)) == content
        assert device.uploaded - before == 2 * len(content)
        with pytest.raises(DeviceError, match="can bind") as caught:
            device.allocate(2**45)
        assert not isinstance(caught.value, OutOfMemory)
        device.close()


def test_ctrl_c_in_a_call_gives_the_device_up_and_frees_it(opened: Opened) -> None:
    device = opened()
    device.run([Launch(device.load(kernels.endless("c")), (device.allocate(16),))])
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.5):
        device.synchronize()
    with pytest.raises(DeviceLost, match="in the middle of a call"):
        device.allocate(4)
    again = opened()
    assert again.read(again.allocate(4), 4) is not None


def test_a_kernel_that_never_ends_meets_the_deadline(opened: Opened) -> None:
    device = opened(deadline=1.5)
    device.run([Launch(device.load(kernels.endless("c")), (device.allocate(16),))])
    with pytest.raises(DeviceLost, match=r"deadline of 1\.5 s"):
        device.synchronize()
    with pytest.raises(DeviceLost, match=r"deadline of 1\.5 s"):
        device.allocate(4)
    device.close()
    again = opened()
    assert again.read(again.allocate(4), 4) is not None


def test_a_connection_is_kept_while_the_client_computes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And made anew without the client's help when the hub is started again; the device's memory stays what it was."""
    with running_hub(tmp_path, "--heartbeat", "1") as hub, running_agent(hub.url, "bench", "--target", "cpu") as agent:
        agent.wait_ready("cpu")
        device = open_device("cpu", f"bench@{hub.url}")
        assert isinstance(device, RemoteDevice)
        buffer = device.allocate(8)
        device.write(buffer, b"12345678")
        device.synchronize()
        time.sleep(6.0)  # twice what a hub takes for silence
        assert device.read(buffer, 8) == b"12345678" and not caplog.text
        device.write(buffer, b"xy")
        hub.restart()
        device.write(buffer, b"z", 2)
        assert device.read(buffer, 8) == b"xyz45678"
        assert "broke" in caplog.text
        device.close()


def test_a_device_that_forgot_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent was started anew; or it is gone, for longer than the patience lasts."""
    monkeypatch.setenv("TAPML_PATIENCE", "20")
    with running_hub(tmp_path) as hub, running_agent(hub.url, "bench", "--target", "cpu") as agent:
        agent.wait_ready("cpu")
        device = open_device("cpu", f"bench@{hub.url}")
        buffer = device.allocate(8)
        device.synchronize()
        agent.restart()
        with pytest.raises(ConnectionLost, match="bench was restarted") as caught:
            device.read(buffer, 8)
        assert caught.value.restarted
        with pytest.raises(ConnectionLost, match="restarted"):
            device.write(buffer, b"x")
        device.close()
        agent.wait_ready("cpu")
        monkeypatch.setenv("TAPML_PATIENCE", "3")
        device = open_device("cpu", f"bench@{hub.url}")
        buffer = device.allocate(8)
        agent.kill()
        with pytest.raises(ConnectionLost, match=r"within 3 s\. Check that tapml hub runs") as caught:
            device.read(buffer, 8)
        assert not caught.value.restarted and "token" not in str(caught.value)
        device.close()
        with pytest.raises(UnavailableError, match=r"bench is not connected to the hub http://127.*Connected: none"):
            open_device("cpu", f"bench@{hub.url}")


def test_what_is_not_there_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPML_PATIENCE", "2")
    hub, agent = served
    agent.wait_ready("cpu")
    with pytest.raises(UnavailableError, match=r"phone is not connected to the hub .*Connected: bench \(.*cpu.*\)"):
        open_device("cpu", f"phone@{hub.url}")
    with pytest.raises(UnavailableError, match="not metal"):
        open_device("metal", f"any@{hub.url}")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        open_device("cpu", "bench@http://127.0.0.1:9/?token=secret")
    wrong = hub.url.replace("token=", "token=not")
    with pytest.raises(UnavailableError) as caught:
        open_device("cpu", f"bench@{wrong}")
    assert hub.address.token not in str(caught.value)
    assert os.environ["TAPML_PATIENCE"] == "2"


def test_absence_is_judged() -> None:
    def device(name: str, state: str = "idle", **offers: str) -> dict[str, object]:
        return {"name": name, "state": state, "offers": {t: {"state": s, "reason": "no driver."} for t, s in offers.items()}}

    def said(*devices: dict[str, object], name: str = "a") -> tuple[str, bool]:
        absent = judge(devices, "http://h:1", name, "opencl")
        return absent.reason, absent.final

    for state in ("ready", "looking"):
        for busy in ("idle", "busy"):
            assert said(device("a", busy, opencl=state)) == said(device("a", busy, opencl=state), name="any") == ("", False)
    assert said(device("b", cpu="ready"))[0].startswith(
        "Device a is not connected to the hub http://h:1. Connected: b (cpu). Start its agent"
    )
    assert said(device("a", "away", opencl="ready")) == said()
    assert said(device("a", opencl="absent", cpu="ready")) == (
        "Device a does not offer opencl: no driver. tapml devices URL lists what others offer.", True
    )
    assert said(device("a", cpu="ready", vulkan="absent")) == (
        "Device a offers cpu, not opencl. tapml devices URL lists what others offer.", True
    ), "it will not offer another target by waiting"
    assert said(device("a", cpu="ready", vulkan="looking"))[1] is False, "what it offers in the end is not known"
    assert said(device("a", cpu="ready"), name="any")[1] is False, "another device may still come"
    assert said(device("a", "retired", opencl="ready"))[0].startswith("Device a takes no more work")
    assert said(device("a", opencl="absent"), device("b"), name="any") == (
        "No device at the hub http://h:1 offers opencl: a does not offer opencl: no driver; b offers nothing yet, not opencl. "
        "Start its agent, or open its page, and run the same command again.", False
    )
