"""A real hub and real agents as second processes, which tests kill, stop, freeze and start again.

    with running_hub(tmp_path) as hub, running_agent(hub.url, "bench") as agent:
        agent.wait_ready("opencl")          listed by the hub, and offering opencl
        agent.kill()                        SIGKILL; agent.restart() starts the same command again, as a new process
        hub.restart()                       SIGKILL and the same hub again: same port, token and certificate

What they wrote on stderr is in `said()`, for assertions and for their messages. `freeze()` and `thaw()` are SIGSTOP and SIGCONT:
a machine that hangs without its connection being broken. Whatever a test leaves running is ended with the `with` block.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tapml.remote.address import HubAddress
from tapml.remote.client.watching import listing

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 20.0


class Process:
    """`python -m tapml …` in a process of its own. A subclass may have another `launcher`."""

    launcher: tuple[str, ...] = (sys.executable, "-m", "tapml")

    def __init__(self, *words: str, env: Mapping[str, str] | None = None) -> None:
        self._words = words
        self._env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (read until the `with` block ends)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        command = [*self.launcher, *self._words]
        self._process = subprocess.Popen(command, cwd=ROOT, env=self._env, stdout=subprocess.PIPE, stderr=self._errors)

    def said(self) -> str:
        """All that it wrote on stderr, over all of its lives."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def wait_said(self, text: str, count: int = 1) -> None:
        """Until it wrote `text` on stderr, `count` times in all."""
        until = time.monotonic() + START_SECONDS
        while self.said().count(text) < count:
            assert time.monotonic() < until, f"it never said {text!r}, but:\n{self.said()}"
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait. Nothing if it has ended already."""
        self.process.kill()
        self._wait()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        return self._wait()

    def restart(self) -> None:
        """Killed, if it still runs, and started again with the same words."""
        self.kill()
        self.start()

    def end(self) -> None:
        """For the end of a test: stopped, by force if need be, and all files closed."""
        self.thaw()
        self.process.terminate()
        try:
            self._wait()
        except subprocess.TimeoutExpired:
            self.kill()
        self._errors.close()

    def _wait(self) -> int:
        code = self.process.wait(STOP_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


class Hub(Process):
    """A hub that listens. `url` holds its token; it stays the same over restarts."""

    def __init__(self, state: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        self._flags = ("hub", "--json", "-", "--state", str(state), *flags)
        self.told: dict[str, Any] = {}
        super().__init__(*self._flags, *(() if "--port" in flags else ("--port", "0")), env=env)

    @property
    def url(self) -> str:
        return str(self.told["url"])

    @property
    def address(self) -> HubAddress:
        return HubAddress.parse(self.url)

    @property
    def port(self) -> int:
        return self.address.port

    def start(self) -> None:
        """Returns when it listens."""
        super().start()
        self.told = self._first_line()
        if "--port" not in self._flags:
            self._words = (*self._flags, "--port", str(self.port))

    def _first_line(self) -> dict[str, Any]:
        """The JSON object that `tapml hub --json -` prints as soon as it listens."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        line = self.process.stdout.readline() if ready else b""
        assert line.startswith(b"{"), f"the hub did not listen; exit code {self.process.poll()}:\n{self.said()}"
        told = json.loads(line)
        assert "url" in told, told
        return dict(told)

    def devices(self) -> list[dict[str, Any]]:
        """What is listed now."""
        return listing(self.address)


class Agent(Process):
    """An agent. It may not have reached the hub yet: see `wait_ready`."""

    def __init__(self, url: str, name: str, *flags: str, env: Mapping[str, str] | None = None) -> None:
        self.url, self.name = url, name
        super().__init__("agent", url, "--name", name, *flags, env=env)

    def listed(self) -> dict[str, Any] | None:
        """How the hub lists it, None while it does not, or lists it as away."""
        for device in listing(HubAddress.parse(self.url)):
            if device["name"] == self.name and device["state"] != "away":
                return device
        return None

    def wait_ready(self, target: str | None = None) -> dict[str, Any]:
        """How it is listed, once it is, and offers `target` if one is named."""
        until = time.monotonic() + START_SECONDS
        while True:
            device = self.listed()
            if device is not None and (target is None or device["offers"].get(target, {}).get("state") == "ready"):
                return device
            assert self.process.poll() is None, f"the agent ended with exit code {self.process.poll()}:\n{self.said()}"
            assert time.monotonic() < until, f"not ready for {target}: {device}\n{self.said()}"
            time.sleep(0.05)


@contextmanager
def running_hub(folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Hub]:
    """A hub that keeps its state in `folder`, on a port of its own choice unless `--port` is among the flags."""
    hub = Hub(folder / "hub", *flags, env=env)
    try:
        yield hub
    finally:
        hub.end()


@contextmanager
def running_agent(url: str, name: str, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Agent]:
    """An agent that was started; `wait_ready` waits until the hub lists it."""
    agent = Agent(url, name, *flags, env=env)
    try:
        yield agent
    finally:
        agent.end()
