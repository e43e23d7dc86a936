"""Real agents at real hubs: they serve kernels, outlive drivers, connections and hubs, and need little to be installed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from websockets.sync.server import ServerConnection, serve

from tapml.cli.agent import checked_name
from tapml.cli.main import main
from tapml.devices import trial as trials
from tapml.devices.cpu import find_compiler
from tapml.devices.interface import DeviceInfo
from tapml.devices.trial import Trial
from tapml.errors import TargetError, UnavailableError, UsageError
from tapml.kernels import Kernel
from tapml.remote import wire
from tapml.remote.address import HubAddress
from tapml.remote.agent import agent as agents
from tapml.remote.agent.agent import Agent
from tapml.remote.agent.offers import Offers, parse_offered
from tapml.remote.agent.opening import Opening
from tests.remote.by_hand import SECONDS, Client
from tests.remote.processes import ROOT, Hub, running_agent, running_hub
from tests.remote.processes import Agent as AgentProcess

Need = Callable[[str], str]
Connect = Callable[[HubAddress, str], Client]
ONE = (1, 1, 1)


def nap(seconds: float) -> Kernel:
    """Computes nothing for a while, then writes 1."""
    source = f"int usleep(unsigned);\nvoid nap(float* x) {{ usleep({seconds * 1e6:.0f}); x[0] = 1; }}"
    return Kernel("c", "nap", source, ("read_write",), ONE, ONE)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """`connect(hub.address, "bench")`: a client that has the device; none has it after the test."""
    clients: list[Client] = []

    def client(address: HubAddress, device: str) -> Client:
        clients.append(Client(address, device))
        return clients[-1]

    yield client
    for one in clients:
        one.end()


def children(agent: AgentProcess) -> list[psutil.Process]:
    """The processes in which it runs kernels."""
    found = []
    for child in psutil.Process(agent.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "tapml.devices.server" in child.cmdline():
                found.append(child)
    return found


def eventually(met: Callable[[], bool]) -> bool:
    until = time.monotonic() + SECONDS
    while not met():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("agent")) as hub:
        yield hub


@pytest.fixture
def agent(hub: Hub, bench: AgentProcess) -> AgentProcess:
    """Free, and ready for the target cpu."""
    assert eventually(lambda: bench.wait_ready("cpu")["state"] == "idle")
    return bench


@pytest.fixture(scope="module")
def bench(hub: Hub) -> Iterator[AgentProcess]:
    if find_compiler() is None:
        pytest.skip("not run: there is no C compiler for the target cpu")
    with running_agent(hub.url, "bench", "--target", "cpu", "--memory", "300M", "--store", "1M") as agent:
        agent.wait_ready("cpu")
        yield agent


def test_a_session_from_lease_to_release(hub: Hub, agent: AgentProcess, connect: Connect) -> None:
    client = connect(hub.address, "bench")
    opened = client.open()
    assert opened["info"]["platform"] == "cpu" and opened["info"]["limits"]["max_buffer_bytes"] == 300 * 2**20
    assert opened["room"] <= 2**20
    client.check()
    client.send(["allocate", 5, 300 * 2**20])
    assert client.fails("synchronize")[0] == "memory"
    assert client.ask("read", 91, 0, 4) == np.float32(1).tobytes()
    assert len(children(agent)) == 1
    client.end()
    assert eventually(lambda: not children(agent))
    agent.wait_said("Free again.")
    assert "In use: a test on cpu" in agent.said()
    assert eventually(lambda: (agent.listed() or {}).get("launches", 0) >= 1)


def test_what_was_kept_is_there_in_the_next_session(hub: Hub, agent: AgentProcess, connect: Connect) -> None:
    data = os.urandom(1000)
    digest = hashlib.sha256(data).digest()
    first = connect(hub.address, "bench")
    first.open()
    first.send(["keep", digest, 1000, 0, data])
    first.ask("close")
    first.end()
    second = connect(hub.address, "bench")
    assert digest in second.open()["stored"]
    second.send(["allocate", 1, 1000], ["put", 1, 0, digest])
    assert second.ask("read", 1, 0, 1000) == data


def test_a_kernel_that_never_ends_costs_its_session_only(hub: Hub, agent: AgentProcess, connect: Connect) -> None:
    client = connect(hub.address, "bench")
    client.open(deadline=1.0)
    client.endless()
    kind, text = client.fails("synchronize")
    assert kind == "lost" and "deadline of 1 s" in text
    assert client.fails("read", 1, 0, 4)[0] == "lost"
    client.end()
    after = connect(hub.address, "bench")
    after.open()
    after.check()


def test_a_driver_that_is_killed_costs_its_session_only(hub: Hub, agent: AgentProcess, connect: Connect) -> None:
    client = connect(hub.address, "bench")
    client.open()
    client.check()
    children(agent)[0].send_signal(signal.SIGKILL)
    kind, text = client.fails("synchronize")
    assert kind == "lost" and "SIGKILL" in text
    client.end()
    after = connect(hub.address, "bench")
    after.open()
    after.check()


def test_a_request_that_is_cancelled_is_ended_with_its_device(hub: Hub, agent: AgentProcess, connect: Connect) -> None:
    client = connect(hub.address, "bench")
    client.open()
    client.endless()
    first, second = client.begin("synchronize"), client.begin("synchronize")
    before = children(agent)[0].cpu_times().user
    assert eventually(lambda: children(agent)[0].cpu_times().user > before + 1.0)  # the kernel runs
    client.connection.send(client.channel.bare([["cancel", second]]))
    answer = client.wait(first)
    assert answer[2] == "lost" and "cancelled" in answer[4]
    assert client.wait(second)[2] in ("cancelled", "lost")


def test_the_end_of_a_lease_ends_what_still_runs(hub: Hub, agent: AgentProcess, connect: Connect) -> None:
    client = connect(hub.address, "bench")
    client.open()
    client.endless()
    client.begin("synchronize")
    assert eventually(lambda: len(children(agent)) == 1)
    client.end()
    assert eventually(lambda: not children(agent))
    after = connect(hub.address, "bench")
    after.open()
    after.check()


def test_only_what_is_offered_is_opened(hub: Hub, agent: AgentProcess, connect: Connect) -> None:
    client = connect(hub.address, "bench")
    kind, text = client.fails("open", {"target": "opencl", "device": None, "deadline": None})
    assert kind == "target" and "It offers: cpu" in text
    assert client.fails("open", {"target": "cpu", "device": "77", "deadline": None})[0] == "target"
    client.open()


def test_a_session_that_is_not_held_is_lost(hub: Hub, agent: AgentProcess, connect: Connect) -> None:
    client = connect(hub.address, "bench")
    client.open()
    client.connection.send(wire.control("end"))
    agent.wait_said("Free again.", agent.said().count("In use"))
    client.connection.close()
    client.connect()
    assert "does not hold the session" in client.lost


def test_it_outlives_the_hub_with_its_session(need: Need, tmp_path: Path, connect: Connect) -> None:
    need("cpu")
    with running_hub(tmp_path) as hub, running_agent(hub.url, "bench", "--target", "cpu") as agent:
        agent.wait_ready("cpu")
        client = connect(hub.address, "bench")
        client.open()
        client.send(["allocate", 1, 16], ["write", 1, 0, b"0123456789abcdef"])
        client.ask("synchronize")
        client.load(5, nap(1.5))
        client.send(["allocate", 2, 16], ["launch", [[5, [2]]]])
        number = client.begin("read", 2, 0, 4)  # under way while the hub is away
        hub.restart()
        client.connection.close()
        client.connect()
        assert client.wait(number)[2] == np.float32(1).tobytes()
        assert client.ask("read", 1, 0, 16) == b"0123456789abcdef"
        client.check()
        assert "connection to the hub is lost" in agent.said() and "Back at" in agent.said()


def test_an_agent_that_does_nothing_says_nothing(need: Need, tmp_path: Path, connect: Connect) -> None:
    need("cpu")
    with running_hub(tmp_path, "--heartbeat", "60") as hub, running_agent(hub.url, "bench", "--target", "cpu") as agent:
        agent.wait_ready("cpu")
        client = connect(hub.address, "bench")
        client.open()
        client.end()
        assert eventually(lambda: (agent.listed() or {})["state"] == "idle")
        time.sleep(1.5)
        before = agent.listed()
        time.sleep(2.5)  # twice the time after which a device that works says more
        assert agent.listed() == before


def test_heartbeats_are_answered_while_a_kernel_runs(need: Need, tmp_path: Path, connect: Connect) -> None:
    need("cpu")
    with running_hub(tmp_path, "--heartbeat", "1") as hub, running_agent(hub.url, "bench", "--target", "cpu") as agent:
        agent.wait_ready("cpu")
        client = connect(hub.address, "bench")
        client.open()
        client.load(1, nap(4.0))
        client.send(["allocate", 1, 16], ["launch", [[1, [1]]]])
        client.ask("synchronize")
        assert "lost" not in agent.said()


def test_it_waits_for_a_hub_that_is_not_there_yet_and_stops_cleanly(need: Need, tmp_path: Path, connect: Connect) -> None:
    need("cpu")
    with running_hub(tmp_path) as hub:
        hub.kill()
        command = [sys.executable, "-m", "tapml", "agent", hub.url, "--name", "early", "--target", "cpu", "--json", "-"]
        early = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert early.stderr is not None
        assert any("cannot be reached" in line for line in iter(early.stderr.readline, ""))
        hub.start()
        assert any("Connected" in line for line in iter(early.stderr.readline, ""))
        client = connect(hub.address, "early")
        client.open()
        client.check()
        client.endless()
        client.begin("synchronize")
        early.send_signal(signal.SIGTERM)
        out, said = early.communicate(timeout=SECONDS)
        assert early.returncode == 0, said
        outcome = json.loads(out)
        assert (outcome["name"], outcome["sessions"], outcome["hub"]) == ("early", 1, hub.address.redacted)
        assert outcome["launches"] >= 1 and outcome["received"] > 0 and outcome["sent"] > 0
        assert hub.address.token not in said + out
        client.connection.close()


def test_it_can_be_stopped_at_any_moment(hub: Hub) -> None:
    """While it imports, looks at its platforms, or has only just been listed."""
    command = [sys.executable, "-m", "tapml", "agent", hub.url, "--name", "brief"]
    agents = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for number, one in enumerate(agents):
        assert one.stderr is not None and any("Connected" in line for line in iter(one.stderr.readline, ""))
        time.sleep(0.04 * number)
        one.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
    assert [one.communicate(timeout=SECONDS) and one.returncode for one in agents] == [0] * len(agents)


def test_a_wrong_token_ends_it(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = hub.url.replace(hub.address.token, "wrong")
    assert main(["agent", wrong, "--target", "cpu"]) == 3
    assert "token is wrong" in capsys.readouterr().err


def test_another_version_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(wire.control("refused", "version", "This hub speaks version 2. Update."))

    with serve(refuse, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        assert main(["agent", f"http://127.0.0.1:{port}/?token=x"]) == 2
    assert "speaks version 2" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "code", "text"), [
    (["nowhere"], 2, "not the address of a hub"),
    (["http://127.0.0.1:1/"], 2, "no token"),
    (["http://127.0.0.1:1/?token=x", "--target", "opencll"], 2, "no target 'opencll'"),
    (["http://127.0.0.1:1/?token=x", "--target", "opencl:f16=1"], 2, "the client chooses the others"),
    (["http://127.0.0.1:1/?token=x", "--target", "cpu", "--target", "cpu"], 2, "one device of each target"),
    (["http://127.0.0.1:1/?token=x", "--target", "cuda"], 3, "cannot run"),
    (["http://127.0.0.1:1/?token=x", "--memory", "much"], 2, "is not a size"),
    (["http://127.0.0.1:1/?token=x", "--name", "a@b"], 2, "an @"),
])
def test_wrong_use_is_told_at_once(words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agent", *words]) == code
    assert text in capsys.readouterr().err


def test_the_machines_name_is_one_that_fits() -> None:
    assert checked_name(None) and checked_name(checked_name(None))


def test_a_session_ends_when_the_hub_stays_away(
    need: Need, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    need("cpu")
    monkeypatch.setattr(agents, "AWAY_SECONDS", 0.5)
    with running_hub(tmp_path) as hub:
        agent = Agent(hub.address, "here", parse_offered(["cpu"]))
        thread = threading.Thread(target=agent.run)
        thread.start()
        try:
            client = connect(hub.address, "here")
            client.open()
            assert agent._serving is not None
            hub.kill()
            assert eventually(lambda: agent._serving is None and agent._status()["state"] == "idle")
            client.connection.close()
            hub.start()
            client.connect()
            assert "does not hold the session" in client.lost
        finally:
            agent.stop()
            thread.join(SECONDS)
        assert not thread.is_alive()


INFO = DeviceInfo("cpu", "x", "y", False)


def test_targets_are_looked_at_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    at, go = threading.Event(), threading.Event()

    def try_target(choice: Any, sandbox: Any) -> Trial:
        looked.append(choice.name)
        at.set()
        assert go.wait(SECONDS)
        if choice.name == "vulkan":
            raise RuntimeError("a surprise")
        ready = choice.name != "webgpu"
        return Trial(choice.name, ready, INFO if ready else None, "" if ready else "no adapter", 0.0)

    monkeypatch.setattr(trials, "try_target", try_target)
    changes: list[int] = []
    names = ["opencl", "vulkan", "webgpu", "cpu"]
    offers = Offers(parse_offered(names), 500, lambda: changes.append(1))
    assert {offer["state"] for offer in offers.listed().values()} == {"looking"}
    thread = threading.Thread(target=lambda: list(offers.look()))
    thread.start()
    assert at.wait(SECONDS)
    assert not offers.settled("cpu", 0.01)
    go.set()
    assert offers.settled("cpu", SECONDS) and offers.settled("no such target", 0.0)
    thread.join(SECONDS)
    assert looked == names and len(changes) == 4
    listed = offers.listed()
    assert [offer["state"] for offer in listed.values()] == ["ready", "absent", "absent", "ready"]
    assert listed["cpu"]["info"]["limits"]["max_buffer_bytes"] == 500
    assert "a surprise" in listed["vulkan"]["reason"]
    with pytest.raises(UnavailableError, match="no adapter"):
        offers.choice("webgpu", None)
    assert str(offers.choice("cpu", "0")) == "cpu:device=0"


def test_an_agent_of_one_device_opens_no_other() -> None:
    offers = Offers(parse_offered(["opencl:device=1"]), None, lambda: None)
    assert str(offers.choice("opencl", None)) == str(offers.choice("opencl", "1")) == "opencl:device=1"
    with pytest.raises(TargetError, match="device 1 of opencl only"):
        offers.choice("opencl", "0")
    with pytest.raises(UsageError):
        parse_offered(["opencl:schedule=simple"])


def test_opening_can_be_given_up_at_any_moment() -> None:
    opening = Opening(Offers(parse_offered(["cpu"]), None, lambda: None))
    threading.Timer(0.1, opening.kill).start()
    with pytest.raises(UnavailableError, match="ended before"):
        opening.open("cpu", None, None)  # it is never looked at


def test_it_loads_neither_torch_nor_the_compiler() -> None:
    """And no numpy either until the hub knows it."""
    code = "import sys, tapml.cli.main, tapml.remote.agent.agent; print(*{m.split('.')[0] for m in sys.modules}, 'and')"
    code += "; import tapml.remote.agent.opening, tapml.remote.agent.serving; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    at_first, later = (set(part.split()) for part in done.stdout.split(" and\n"))
    assert "websockets" in at_first and "numpy" not in at_first and "numpy" in later
    assert not {"torch", "tvm", "transformers", "rich", "pyopencl", "wgpu"} & later


def test_an_empty_environment_is_enough(need: Need, hub: Hub, tmp_path: Path, connect: Connect) -> None:
    """What `pip install 'tapml[agent]'` puts into an empty virtual environment serves kernels, without PyTorch and compiler."""
    need("cpu")
    source, place = tmp_path / "source", tmp_path / "environment"
    shutil.copytree(ROOT / "tapml", source / "tapml", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(place, with_pip=False, symlinks=True)
    python = str(place / "bin" / "python")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    done = subprocess.run(
        [*pip, "install", "--no-compile", f"{source}[agent]"], capture_output=True, text=True, env=env, timeout=300, check=False
    )
    if done.returncode and any(sign in done.stderr for sign in ("No matching distribution", "Connection", "Could not fetch")):
        pytest.skip(f"not run: the package index cannot be reached ({done.stderr.strip().splitlines()[-1]})")
    assert done.returncode == 0, done.stderr
    packages = {path.name for path in place.glob("lib/python3*/site-packages/*")}
    assert "tapml" in packages and not {"torch", "tvm", "tvm_ffi", "transformers"} & packages
    tapml = str(place / "bin" / "tapml")
    said = subprocess.run([tapml, "agent", "--help"], capture_output=True, text=True, env=env, timeout=60, check=True)
    assert "offer this machine's devices" in said.stdout
    agent = subprocess.Popen([tapml, "agent", hub.url, "--name", "bare", "--target", "cpu"], cwd=tmp_path, env=env)
    try:
        client = connect(hub.address, "bare")
        client.open()
        client.check()
        client.end()
    finally:
        agent.terminate()
        assert agent.wait(SECONDS) == 0
