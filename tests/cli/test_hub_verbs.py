"""`tapml hub` and `tapml devices`: what they print, their JSON, and what they say when something is wrong."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import segno

from tapml.remote.hub.qr import BORDER, qr_svg, qr_text
from tapml.report.devices import draw
from tests.cli.conftest import ROOT, Typed
from tests.remote.ends import GPU, INFO, client, device
from tests.remote.processes import running_hub

TypeIn = Callable[..., Typed]


def shown(devices: list[dict[str, Any]]) -> str:
    return "\n".join(str(part) for part in draw(devices, "http://h:1"))


def test_devices_lists_what_is_connected(type_in: TypeIn, tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        typed = type_in("devices", hub.url)
        assert typed.code == 0 and "No device is connected" in typed.out and "tapml agent URL" in typed.out
        offers = GPU | {"opencl": {"state": "absent", "info": None, "reason": "there is no driver. Try something."}}
        with device(hub.url, "phone", offers=offers), client(hub.url, label="test llama") as one:
            one.wait("granted")
            one.tell("doing", "layers.3.mlp")
            typed = type_in("devices", hub.url)
            words = " ".join(typed.out.split())
            assert words.startswith(f"1 device at {hub.address.redacted} phone busy with test llama on gpu") and typed.code == 0
            for part in ("layers.3.mlp", "✓ gpu", "a GPU (a software", "buffers of 4.0 KiB", "– opencl there is no driver"):
                assert part in words, part
            assert hub.address.token not in typed.out
            listed = json.loads(type_in("devices", hub.url, "--json", "-").out)
            assert [(d["name"], d["state"], d["offers"]["gpu"]["info"]) for d in listed["devices"]] == [("phone", "busy", INFO)]
        hub.kill()
        typed = type_in("devices", hub.url)
        assert typed.code == 3 and "cannot be reached" in typed.said and hub.address.token not in typed.said


def test_devices_refuses_what_is_no_address(type_in: TypeIn) -> None:
    for url, says in (
        ("127.0.0.1:8765", "not the address of a hub"),
        ("http://127.0.0.1:8765/", "has no token"),
        ("http://127.0.0.1:8765/?pair=ABCDE-FGHJK", "lists nothing"),
    ):
        typed = type_in("devices", url)
        assert typed.code == 2 and says in typed.said and "?token=" in typed.said


def test_a_table_of_every_state() -> None:
    base = {
        "name": "d", "kind": "browser", "system": "Android", "offers": {}, "state": "idle", "target": "", "label": "",
        "doing": "", "seconds": 0.0, "waiting": 0, "launches_per_s": 0.0, "bytes_per_s": 0.0, "launches": 0, "received": 0,
        "sent": 0, "stored": 0, "note": "",
    }  # fmt: skip
    assert shown([base]) == "1 device at http://h:1\n\nd  free  (browser, Android)"
    rates = base | {"state": "busy", "target": "webgpu", "seconds": 65.0, "launches_per_s": 1234.5, "bytes_per_s": 2.0**21}
    assert "d  busy with a client on webgpu, 65 s, 1,234 launches/s, 2.0 MiB/s" in shown([rates])
    assert "away, 2 clients waiting" in shown([base | {"state": "away", "waiting": 2}])
    hidden = base | {"state": "retired", "note": "the tab is hidden"}
    assert "takes no more work  (browser, Android)\n  the tab is hidden" in shown([hidden])
    assert "– gpu  still looking" in shown([base | {"offers": {"gpu": {"state": "looking", "info": None, "reason": ""}}}])


def test_the_hub_says_what_is_wrong_in_one_line(type_in: TypeIn, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        typed = type_in("hub", "--port", number, "--state", tmp_path)
        assert typed.code == 2 and f"Port {number} of 127.0.0.1 is taken" in typed.said and "--port" in typed.said
    missing = tmp_path / "none.pem"
    for words, code, says in (
        (["--host", "192.0.2.200"], 2, "not an address of this machine"),
        (["--host", "no.such.host.invalid"], 2, "neither an address nor a name"),
        (["--host", ""], 2, "--host is empty"),
        (["--cert", missing], 2, "--cert and --key belong together"),
        (["--cert", missing, "--key", missing], 2, "cannot be used: No such file"),
        (["--port", "70000"], 2, "'70000' is not a port"),
        (["--heartbeat", "0"], 2, "'0' is not a number of seconds"),
    ):
        typed = type_in("hub", "--port", "0", "--state", tmp_path, *words)
        assert typed.code == code and says in typed.said, typed.said
    typed = type_in("hub", "--port", "0", "--state", "/proc/none")
    assert typed.code == 2 and "--state" in typed.said
    code = "import sys; sys.modules['websockets'] = None; from tapml.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "hub", "--port", "0", "--state", str(tmp_path)]
    lacking = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert lacking.returncode == 3 and "pip install 'tapml[hub]'" in lacking.stderr


def test_its_json_is_there_as_soon_as_it_listens(tmp_path: Path) -> None:
    """On stdout that is `running_hub` throughout the tests; here a file, and the addresses on stdout for people."""
    file = tmp_path / "hub.json"
    command = [sys.executable, "-m", "tapml", "hub", "--port", "0", "--state", str(tmp_path / "state"), "--json", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as hub:
        try:
            until = time.monotonic() + 60
            while not file.exists():
                assert hub.poll() is None and time.monotonic() < until
                time.sleep(0.02)
            told = json.loads(file.read_text())
            assert told["url"] == told["page"] and told["pairing"] is None
            hub.send_signal(signal.SIGINT)
            out, _ = hub.communicate(timeout=20)
        finally:
            hub.kill()
    assert hub.returncode == 0
    assert "for this machine only" in out and "tapml hub --host 0.0.0.0" in out
    assert [line for line in out.splitlines() if told["url"] in line], "no address is broken into lines"
    assert f"export TAPML_HUB_TOKEN={told['url'].partition('token=')[2]}\n" in out, "the token apart, no command holds it"
    assert f"tapml agent {told['url'].partition('/?')[0]}\n" in out


def test_at_a_terminal_it_shows_a_code_to_scan_and_another_after_enter(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "tapml", "hub", "--port", "0", "--host", "0.0.0.0", "--state", str(tmp_path)]
    env = os.environ | {"TERM": "xterm-256color", "NO_COLOR": "1"}
    with subprocess.Popen(command, cwd=ROOT, stdin=follower, stdout=follower, stderr=subprocess.DEVNULL, env=env) as hub:
        os.close(follower)
        try:
            first = read_until(leader, "Press Enter for another")
            os.write(leader, b"\n")
            second = read_until(leader, "Press Enter for another")
            hub.send_signal(signal.SIGINT)
            assert hub.wait(20) == 0
        finally:
            hub.kill()
            os.close(leader)
    codes = [text.partition("?pair=")[2][:11] for text in (first, second)]
    assert codes[0] != codes[1] and all(len(code.strip()) == 11 for code in codes)
    assert "not private" in first and "fingerprint" in first
    assert qr_text(first[first.index("type ") + 5 :].split()[0], colour=False).splitlines()[3] in first


def read_until(terminal: int, text: str) -> str:
    said = ""
    while text not in said:
        said += os.read(terminal, 65536).decode(errors="replace")
    return said


@pytest.mark.parametrize("colour", [True, False])
def test_a_code_in_half_blocks_is_the_code(colour: bool) -> None:
    url = "https://192.168.178.42:8765/?pair=K7QF2-M9XTD"
    dark = " ▄▀█" if colour else "█▀▄ "
    lines = [line.replace("\x1b[38;5;16;48;5;231m", "").replace("\x1b[0m", "") for line in qr_text(url, colour).splitlines()]
    rows = [[dark.index(c) >> bit & 1 for c in line] for line in lines for bit in (1, 0)]
    expected = [list(row) for row in segno.make(url, error="l", micro=False).matrix_iter(border=BORDER)]
    assert rows[: len(expected)] == expected
    assert 'viewBox="0 0' in qr_svg(url)
