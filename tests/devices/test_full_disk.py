"""What the machine of a device lacks while a kernel is compiled says nothing about the kernel: exit code 3, and no verdict."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tapml.cli.main import main
from tapml.devices.child import ChildDevice
from tapml.devices.cpu import _lacking
from tapml.errors import DeviceError, UnavailableError
from tests.conftest import MakeRun
from tests.devices.kernels import PLUS_ONE
from tests.remote.by_hand import Client
from tests.remote.processes import running_agent, running_hub

Need = Callable[[str], str]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; `fill` leaves nothing of it."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "none", str(place)]
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("not run: only root can make a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    with (place / "filling").open("ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_no_fault_of_the_kernel(need: Need, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("cpu")
    monkeypatch.setenv("TAPML_CACHE", str(small_disk / "cache"))
    monkeypatch.setenv("TMPDIR", str(small_disk))
    device = ChildDevice("cpu", deadline=60.0)
    try:
        fill(small_disk)
        with pytest.raises(UnavailableError, match=r"could not compile kernel apply: .*No space left on device") as caught:
            device.load(PLUS_ONE)
        assert not isinstance(caught.value, DeviceError)
        (small_disk / "filling").unlink()
        device.load(PLUS_ONE)  # the device lives on
    finally:
        device.close()


@pytest.mark.parametrize("limit", ["RLIMIT_FSIZE, (4096, 4096)", "RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 2,) * 2"])
def test_what_a_limit_refuses_is_no_fault_of_the_kernel(need: Need, limit: str, tmp_path: Path) -> None:
    """Of a process that can write no file of more than 4 kB, or open none."""
    need("cpu")
    code = (
        "import os, resource\nfrom tapml.devices.cpu import CpuDevice\nfrom tests.devices.kernels import PLUS_ONE\n"
        f"device = CpuDevice()\nresource.setrlimit(resource.{limit})\n"
        "try:\n    device.load(PLUS_ONE)\nexcept Exception as error:\n    print(type(error).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120,
        env=os.environ | {"TAPML_CACHE": str(tmp_path / "cache")}, cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout == "UnavailableError\n", done.stderr


@pytest.mark.parametrize("line", [
    "kernel.c:1:1: fatal error: error writing to /tmp/a.s: No space left on device",
    "collect2: fatal error: ld: Cannot allocate memory", "/usr/bin/ld: final link failed: Disk quota exceeded",
    "/tmp/a.so: failed to map segment: Cannot allocate memory", "gcc: fatal error: vfork: Resource temporarily unavailable",
    "cc1: out of memory allocating 65536 bytes after a total of 1 bytes",
    "gcc: fatal error: Killed signal terminated program cc1\ncompilation terminated.\nld: Input/output error",
])
def test_the_machines_words(line: str) -> None:
    assert _lacking(f"kernel.c: In function 'f':\n{line}\ncompilation terminated.")


@pytest.mark.parametrize("line", [
    "kernel.c:1:2: error: #error No space left on device", "kernel.c:3:5: error: expected expression", "",
    "kernel.c:4:1: error: unknown type name 'half'",
])
def test_the_kernels_own_faults_stay_its_own(line: str) -> None:
    assert not _lacking(line)


def test_a_full_disk_of_an_agent_is_exit_code_3(
    need: Need, small_disk: Path, tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    need("cpu")
    run = make_run("conv_net")
    disk = {"TMPDIR": str(small_disk)}
    with running_hub(tmp_path) as hub, running_agent(hub.url, "full", "--target", "cpu", env=disk) as agent:
        agent.wait_ready("cpu")
        fill(small_disk)
        client = Client(hub.address, "full")
        client.open()
        client.load(1, PLUS_ONE)
        kind, text = client.fails("synchronize")
        client.end()
        assert kind == "unavailable" and "No space left on device" in text
        assert main(["test", str(run.path), "--target", "cpu", "--device", f"full@{hub.url}"]) == 3
    said = capsys.readouterr()
    assert "No space left on device" in said.err and " fail" not in said.out
