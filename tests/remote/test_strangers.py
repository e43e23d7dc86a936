"""An agent whose clients are strangers: what it offers them, what it says to whoever started it, and what a session leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tapml.cli.agent import notices
from tapml.devices import trial as trials
from tapml.devices.interface import DeviceInfo
from tapml.devices.null import NullDevice
from tapml.devices.sandbox import Measure
from tapml.devices.trial import Trial, trial_kernel
from tapml.errors import TargetError, UnavailableError
from tapml.kernels import Kernel
from tapml.remote.agent.offers import Offers, parse_offered
from tapml.remote.agent.opening import Opening
from tests.devices.strangers import DAEMON
from tests.remote.by_hand import SECONDS, Client
from tests.remote.driver import Driver
from tests.remote.processes import Agent, Hub, running_agent, running_hub

Need = Callable[[str], str]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("strangers")) as hub:
        yield hub


@pytest.fixture
def bench(need: Need, hub: Hub) -> Iterator[Agent]:
    need("cpu")
    with running_agent(hub.url, "bench", "--target", "cpu") as agent:
        agent.wait_ready("cpu")
        yield agent


def looked(monkeypatch: pytest.MonkeyPatch, words: list[str], software: bool) -> dict[str, Any]:
    """What an agent with these `--target` offers where every platform works."""
    def try_target(choice: Any, sandbox: Any) -> Trial:
        return Trial(choice.name, True, DeviceInfo(choice.name, "a device", "", software), "", 0.0)

    monkeypatch.setattr(trials, "try_target", try_target)
    offers = Offers(parse_offered(words), None, lambda: None)
    list(offers.look())
    return {name: (offer["state"], offer["reason"]) for name, offer in offers.listed().items()}


def test_native_code_is_offered_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    unnamed = looked(monkeypatch, [], software=True)
    assert "cpu" not in unnamed and unnamed["vulkan"] == ("ready", "") and unnamed["webgpu"] == ("ready", "")
    assert unnamed["opencl"][0] == "absent" and "started with --target opencl" in unnamed["opencl"][1]
    assert looked(monkeypatch, [], software=False)["opencl"] == ("ready", "")
    assert looked(monkeypatch, ["opencl", "cpu"], software=True) == {"opencl": ("ready", ""), "cpu": ("ready", "")}
    with pytest.raises(TargetError, match="started with --target cpu"):
        Offers(parse_offered([]), None, lambda: None).choice("cpu", None)


def test_a_clients_wish_does_not_get_around_that(need: Need, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's own choice is a GPU; the client asks for the driver on the processor by its number."""
    need("opencl")
    offers = Offers(parse_offered([]), None, lambda: None)
    offers._known["opencl"] = {"state": "ready", "info": {}, "reason": ""}
    with pytest.raises(UnavailableError, match="started with --target opencl"):
        Opening(offers).open("opencl", "0", 60.0)


def test_it_says_what_it_means(monkeypatch: pytest.MonkeyPatch) -> None:
    from tapml.devices import sandbox

    found = [Measure("network", "…"), Measure("files", "…", "no Landlock in this kernel")]
    monkeypatch.setattr(sandbox, "measures", lambda: found)
    lines = notices(["opencl", "cpu"], unconfined=False)
    assert "whoever may use this hub can run them on this machine" in lines[0]
    assert "opencl and cpu" in lines[1] and "native code" in lines[1]
    assert lines[2:] == [
        "Their process is confined in: network (tapml doctor says how).", "Not confined in files: no Landlock in this kernel."
    ]
    assert not any("native" in line for line in notices(["vulkan"], unconfined=False) + notices([], unconfined=False))
    assert "Not confined, as requested" in notices([], unconfined=True)[-1]


def test_nothing_of_a_session_outlives_it(hub: Hub, bench: Agent) -> None:
    assert "can run them on this machine" in bench.said()
    client = Client(hub.address, "bench")
    try:
        client.open()
        client.load(1, DAEMON)
        client.send(["allocate", 1, 256], ["launch", [[1, [1]]]])
        left = [int(number) for number in memoryview(client.ask("read", 1, 0, 8)).cast("f")]
        (child,) = (one for one in psutil.Process(bench.pid).children() if "tapml.devices.server" in one.cmdline())
        scratch = Path(child.environ()["HOME"])
        assert scratch.exists() and all(map(psutil.pid_exists, left)) and len(left) == 2
    finally:
        client.end()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and (scratch.exists() or any(map(running, left))):
        time.sleep(0.02)
    assert not scratch.exists() and not any(map(running, left))


@pytest.mark.parametrize("source", ['#include "NAME"', "#inc\\\nlude <NAME>", 'asm(".incbin \\"NAME\\"");'])
def test_a_text_that_reaches_out_meets_no_compiler(source: str) -> None:
    device = NullDevice()
    driver = Driver(device)
    driver.open()
    driver.load(1, Kernel("c", "f", f"void f(float* x) {{}}\n{source}", ("read_write",), (1, 1, 1), (1, 1, 1)))
    driver.post("allocate", 1, 16)
    driver.post("launch", [[1, [1]]])
    kind, stage, text = driver.fails("synchronize")
    assert (kind, stage) == ("device", "driver") and "refused to compile kernel f" in text
    driver.load(2, trial_kernel("c"))  # and the session goes on
    driver.ask("synchronize")


def running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
