"""A real headless Chromium, as a device at a hub: started, its tabs opened, reloaded and closed, and asked what it shows.

    with Chromium(webgpu=True) as browser:
        tab = browser.open("http://127.0.0.1:8765/?token=…")
        browser.wait_ready(tab)
        browser.reload(tab)
        browser.close_tabs()

It is driven over the DevTools protocol, and a connection to it is held only while something is asked: an attached debugger slows
the page's WebSocket down several times. WebGPU is Chromium's own SwiftShader. With `profile` the folder is kept and used again,
so what the page stored is there at the next start.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from websockets.sync.client import ClientConnection, connect

START_SECONDS = 60.0
QUIET = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)
WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")


def find() -> str:
    """The Chromium that is here, or the test is skipped."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("not run: no Chromium is here; install it, or name it in CHROMIUM")
    return found


class Chromium:
    """`webgpu=False` starts one whose pages get no adapter. `flags` are added."""

    def __init__(self, profile: Path | None = None, *, webgpu: bool = True, flags: tuple[str, ...] = ()) -> None:
        self._temporary = None if profile else tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self._profile = profile or Path(self._temporary.name if self._temporary else "")
        self._tabs: list[str] = []
        self._profile.mkdir(parents=True, exist_ok=True)
        active = self._profile / "DevToolsActivePort"
        active.unlink(missing_ok=True)
        command = [find(), *QUIET, *(WEBGPU if webgpu else ()), *flags, f"--user-data-dir={self._profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True
        )
        until = time.monotonic() + START_SECONDS
        while not (active.exists() and "\n" in active.read_text()):
            if self.process.poll() is not None or time.monotonic() > until:
                self.end()
                raise RuntimeError(f"Chromium did not start (exit code {self.process.poll()})")
            time.sleep(0.05)
        self._port = int(active.read_text().split()[0])

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def quit(self) -> None:
        """As its user would: what it was writing is written."""
        address = self._http("version", "GET")["webSocketDebuggerUrl"]
        with connect(address, compression=None) as socket:
            _call(socket, "Browser.close", {}, 20.0)
        self.process.wait(20.0)

    def end(self) -> None:
        """Ends the whole browser at once, as a crash or a battery would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._temporary is not None:
            self._temporary.cleanup()

    def open(self, url: str) -> str:
        """A new tab; its id."""
        tab = str(self._http("new?" + quote(url, safe=""))["id"])
        self._tabs.append(tab)
        return tab

    def close_tabs(self) -> None:
        """All that were opened."""
        while self._tabs:
            self._http(f"close/{self._tabs.pop()}")

    def shown(self) -> Iterator[str]:
        """What there is to read in each tab, or why that cannot be told."""
        for tab in self._tabs:
            try:
                yield str(self.evaluate(tab, "document.body?.innerText", 5.0))
            except (RuntimeError, OSError) as error:
                yield f"{type(error).__name__}: {error}"

    def reload(self, tab: str) -> None:
        """As its user would; returns when the old page is gone."""
        self.evaluate(tab, "window.old = true")
        with self._attached(tab) as send:
            send("Page.reload")
        self.wait(tab, "!window.old && document.readyState === 'complete'")

    def history(self, tab: str) -> list[dict[str, Any]]:
        """What "back" and "forward" know of this tab."""
        with self._attached(tab) as send:
            return list(send("Page.getNavigationHistory")["entries"])

    def loading(self, tab: str, url: str) -> list[dict[str, Any]]:
        """Opens this address in the tab; the requests of its pages, up to that for the worker: address and headers each."""
        asked: list[dict[str, Any]] = []
        with self._connected(tab) as socket:
            for method, parameters in (("Network.enable", {}), ("Page.navigate", {"url": url})):
                socket.send(json.dumps({"id": 1, "method": method, "params": parameters}))
            while not (asked and asked[-1]["url"].endswith("/worker.js")):
                event = json.loads(socket.recv(timeout=START_SECONDS))
                if event.get("method") == "Network.requestWillBeSent":
                    asked.append(event["params"]["request"])
        return asked

    def reload_watched(self, tab: str, sockets: int) -> tuple[list[str], list[str]]:
        """Loads the page again; the addresses that it asked for, and those that its worker did, until there are so many
        WebSockets."""
        asked: tuple[list[str], list[str]] = ([], [])
        with self._connected(tab) as socket:
            wish = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
            for method, parameters in (("Network.enable", {}), ("Target.setAutoAttach", wish), ("Page.reload", {})):
                socket.send(json.dumps({"id": 1, "method": method, "params": parameters}))
            while sockets:
                event = json.loads(socket.recv(timeout=START_SECONDS))
                method, parameters = event.get("method"), event.get("params", {})
                if method == "Target.attachedToTarget":
                    for command in ("Network.enable", "Runtime.runIfWaitingForDebugger"):
                        socket.send(json.dumps({"id": 1, "method": command, "sessionId": parameters["sessionId"]}))
                elif method == "Network.requestWillBeSent":
                    asked["sessionId" in event].append(str(parameters["request"]["url"]))
                elif method == "Network.webSocketCreated":
                    asked["sessionId" in event].append(str(parameters["url"]))
                    sockets -= 1
        return asked

    def evaluate(self, tab: str, expression: str, timeout: float = 60.0) -> Any:
        """The value of an expression in the page; a promise is waited for. What it throws is raised."""
        with self._attached(tab) as send:
            parameters = {"expression": expression, "awaitPromise": True, "returnByValue": True}
            return _value(send("Runtime.evaluate", parameters, timeout))

    def evaluate_in_worker(self, tab: str, expression: str) -> Any:
        """The same in the page's worker."""
        with self._connected(tab) as socket:
            wish = {"autoAttach": True, "waitForDebuggerOnStart": False, "flatten": True}
            socket.send(json.dumps({"id": 1, "method": "Target.setAutoAttach", "params": wish}))
            while (message := json.loads(socket.recv(timeout=START_SECONDS))).get("method") != "Target.attachedToTarget":
                continue
            session = message["params"]["sessionId"]
            parameters = {"expression": expression, "awaitPromise": True, "returnByValue": True}
            return _value(_call(socket, "Runtime.evaluate", parameters, START_SECONDS, session))

    def wait(self, tab: str, expression: str, timeout: float = 60.0) -> Any:
        """Asks until the expression is true; its value then."""
        until = time.monotonic() + timeout
        while True:
            try:
                value = self.evaluate(tab, expression)
            except (RuntimeError, OSError) as error:  # the page is just being loaded
                value, why = None, str(error)
            else:
                why = repr(value)
            if value:
                return value
            if time.monotonic() > until:
                shown = self.evaluate(tab, "document.body?.innerText")
                raise TimeoutError(f"{expression} is still {why} after {timeout:g} s. The page shows: {shown}")
            time.sleep(0.1)

    def gpu_process(self) -> psutil.Process:
        """The process that the drivers run in."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # some live for a moment only
                if "--type=gpu-process" in child.cmdline():
                    return child
        raise RuntimeError("Chromium has no process for the GPU")

    def wait_ready(self, tab: str) -> None:
        """Until the hub's page in this tab is a device that waits for work."""
        self.wait(tab, "document.querySelector('#word')?.textContent === 'Ready'")

    def _http(self, path: str, method: str = "PUT") -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/json/{path}", method=method)
        with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
            text = answer.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    def _connected(self, tab: str) -> ClientConnection:
        address = f"ws://127.0.0.1:{self._port}/devtools/page/{tab}"
        return connect(address, max_size=None, compression=None, open_timeout=START_SECONDS)

    @contextlib.contextmanager
    def _attached(self, tab: str) -> Iterator[Any]:
        with self._connected(tab) as socket:
            yield lambda method, parameters=None, timeout=60.0: _call(socket, method, parameters or {}, timeout)


def _value(result: dict[str, Any]) -> Any:
    if "exceptionDetails" in result:
        thrown = result["exceptionDetails"]
        raise RuntimeError(thrown.get("exception", {}).get("description") or thrown["text"])
    return result["result"].get("value")


def _call(
    socket: ClientConnection, method: str, parameters: dict[str, Any], timeout: float, session: str | None = None
) -> dict[str, Any]:
    socket.send(json.dumps({"id": 2, "method": method, "params": parameters} | ({"sessionId": session} if session else {})))
    until = time.monotonic() + timeout
    while True:
        answer = json.loads(socket.recv(timeout=max(0.01, until - time.monotonic())))
        if answer.get("id") == 2:
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']['message']}")
            result: dict[str, Any] = answer["result"]
            return result
