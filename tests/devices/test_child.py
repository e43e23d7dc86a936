"""What a child process is for: whatever its driver does, the parent goes on and says what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tapml.devices.child import ChildDevice
from tapml.devices.cpu import find_compiler
from tapml.devices.frames import FrameReader, FrameWriter, PeerGone, TooLate
from tapml.devices.interface import Launch
from tapml.devices.open import probe
from tapml.errors import DeviceError, DeviceLost, TargetError, UnavailableError
from tapml.kernels import Kernel
from tests.devices import kernels
from tests.devices.ctrl_c import ctrl_c
from tests.devices.kernels import NBYTES

ONE = (1, 1, 1)


def child(platform: str, deadline: float | None = 60.0) -> ChildDevice:
    try:
        return ChildDevice(platform, deadline=deadline)
    except UnavailableError as error:
        pytest.skip(f"not run: {error}")


@pytest.fixture
def cpu() -> Iterator[ChildDevice]:
    device = child("cpu")
    yield device
    device.close()


def c_kernel(source: str) -> Kernel:
    return Kernel("c", "entry", source, ("read_write",), ONE, ONE)


def gone(pid: int, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_killed_child_is_a_lost_device(cpu: ChildDevice) -> None:
    buffer = cpu.allocate(4)
    os.kill(cpu.pid, signal.SIGKILL)
    with pytest.raises(DeviceLost, match="cpu device's process was killed by SIGKILL"):
        cpu.read(buffer, 4)
    for call in (lambda: cpu.allocate(4), lambda: cpu.write(buffer, b"1234"), lambda: cpu.run([]), cpu.synchronize):
        with pytest.raises(DeviceLost, match="SIGKILL"):
            call()


def test_a_kernel_that_crashes_costs_the_device_and_no_more(cpu: ChildDevice) -> None:
    crash = cpu.load(c_kernel("void entry(float* x) { *(volatile float*)8 = x[0]; }"))
    buffer = cpu.allocate(16)
    cpu.run([Launch(crash, (buffer,))])
    with pytest.raises(DeviceLost, match="SIGSEGV"):
        cpu.synchronize()


def test_the_last_words_of_the_child_are_quoted(cpu: ChildDevice) -> None:
    source = (
        '#include <stdio.h>\n#include <stdlib.h>\n'
        'void entry(float* x) { fprintf(stderr, "the driver is unwell\\n"); abort(); }'
    )
    cpu.run([Launch(cpu.load(c_kernel(source)), (cpu.allocate(16),))])
    with pytest.raises(DeviceLost, match=r"(?s)SIGABRT.*the driver is unwell"):
        cpu.synchronize()


def test_output_of_the_driver_does_not_disturb_the_connection(cpu: ChildDevice) -> None:
    source = '#include <stdio.h>\nvoid entry(float* x) { puts("chatter on stdout"); fflush(stdout); x[0] = 5.0f; }'
    buffer = cpu.allocate(4)
    cpu.run([Launch(cpu.load(c_kernel(source)), (buffer,))])
    assert cpu.read(buffer, 4) == np.float32(5).tobytes()


@pytest.mark.parametrize("platform", ["opencl", "cpu"])
def test_a_kernel_that_never_ends_meets_the_deadline(platform: str) -> None:
    device = child(platform, deadline=3.0)
    spin = device.load(kernels.endless("c" if platform == "cpu" else "opencl-c"))
    buffer = device.allocate(16)
    device.write(buffer, bytes(16))
    start = time.monotonic()
    device.run([Launch(spin, (buffer,))])
    with pytest.raises(DeviceLost, match="deadline of 3 s"):
        device.synchronize()
    assert time.monotonic() - start < 15
    assert gone(device.pid)
    device.close()


def test_sending_meets_the_deadline_too() -> None:
    """A child that is busy reads nothing; the pipe fills up, and the parent must not wait for ever."""
    device = child("cpu", deadline=2.0)
    buffer = device.allocate(64 * 2**20)
    device.run([Launch(device.load(kernels.endless("c")), (buffer,))])
    with pytest.raises(DeviceLost, match="deadline"):
        device.write(buffer, bytes(64 * 2**20))
    device.close()


def test_closing_a_device_that_hangs_ends_it() -> None:
    device = child("cpu")
    device.run([Launch(device.load(kernels.endless("c")), (device.allocate(16),))])
    device.close()
    assert gone(device.pid)


def test_an_error_that_nobody_waited_for_comes_at_the_next_wait() -> None:
    device = child("opencl")
    bad, good = kernels.unlaunchable("opencl-c"), kernels.elementwise("opencl-c", "x[i] + 1")
    assert bad is not None
    refused, plus = device.load(bad), device.load(good)
    x, y = device.allocate(NBYTES), device.allocate(NBYTES)
    device.write(x, bytes(NBYTES))
    device.write(y, bytes(NBYTES))
    device.run([Launch(refused, (x, y))])
    device.run([Launch(plus, (x, y))])  # not carried out: its input may be wrong
    assert device.allocate(16)  # neither allocating nor loading takes the blame
    device.load(good)
    with pytest.raises(DeviceError) as caught:
        device.read(y, NBYTES)
    assert caught.value.stage == "launch"
    assert device.read(y, NBYTES) == bytes(NBYTES)
    device.run([Launch(plus, (x, y))])
    assert device.read(y, 4) == np.float32(1).tobytes()
    device.close()


def test_ctrl_c_in_a_call_gives_the_device_up() -> None:
    device = child("cpu")
    device.run([Launch(device.load(kernels.endless("c")), (device.allocate(16),))])
    with pytest.raises(KeyboardInterrupt), ctrl_c(0.5):
        device.synchronize()
    assert gone(device.pid)
    with pytest.raises(DeviceLost, match="in the middle of a call"):
        device.synchronize()


def test_the_child_ends_with_its_parent() -> None:
    """Even when the parent is killed while a kernel never ends."""
    child("cpu").close()
    script = (
        "import os, signal\nfrom tapml.devices.child import ChildDevice\nfrom tapml.devices.interface import Launch\n"
        "from tests.devices import kernels\nd = ChildDevice('cpu')\n"
        "d.run([Launch(d.load(kernels.endless('c')), (d.allocate(16),))])\n"
        "print(d.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gone(int(done.stdout), 10.0)


def test_a_device_that_does_not_exist() -> None:
    child("opencl").close()
    with pytest.raises(TargetError, match="no device number 99"):
        ChildDevice("opencl", device="99")


def driver_that(does: str, folder: Path) -> dict[str, str]:
    """Environment in which the OpenCL loader finds one driver, which does this as soon as it is loaded."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("not run: no C compiler to make a driver with")
    source, library = folder / "driver.c", folder / "driver.so"
    start = f"__attribute__((constructor)) static void start(void) {{ {does} }}"
    source.write_text(f"#include <stdlib.h>\n#include <unistd.h>\n{start}\n")
    subprocess.run([compiler[0], "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    (folder / "bad.icd").write_text(f"{library}\n")
    return {"OCL_ICD_VENDORS": str(folder), "OCL_ICD_FILENAMES": str(library)}


def test_a_driver_that_crashes_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child("opencl").close()
    for key, value in driver_that("abort();", tmp_path).items():
        monkeypatch.setenv(key, value)
    found = probe("opencl")
    assert not found.available and found.info is None
    assert "failed while being opened" in found.reason and "SIGABRT" in found.reason


def test_a_driver_that_hangs_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child("opencl").close()
    for key, value in driver_that("for (;;) pause();", tmp_path).items():
        monkeypatch.setenv(key, value)
    found = probe("opencl", seconds=3.0)
    assert not found.available and "time limit" in found.reason


def test_no_driver_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child("vulkan").close()
    for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES"):
        monkeypatch.setenv(name, str(tmp_path / "none.json"))
    found = probe("vulkan")
    assert not found.available and "Install" in found.reason


def pipe() -> tuple[FrameReader, FrameWriter, tuple[int, int]]:
    ends = os.pipe()
    return FrameReader(ends[0]), FrameWriter(ends[1]), ends


def test_frames_come_through_whole() -> None:
    reader, writer, _ = pipe()
    writer.send(["write", 3, 2**40], b"\0\1\2")
    writer.send([None])
    assert reader.receive() == (["write", 3, 2**40], bytearray(b"\0\1\2"))
    assert reader.receive() == ([None], bytearray())


@pytest.mark.parametrize("data", [b"\xff" * 64, b"\1\0\0\0\0\0\0\0\xc1", b"\1\0\0\0\0\0\0\0\7", b"\5\0\0\0\0\0\0\0ab"])
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    reader, _, (_, end) = pipe()
    os.write(end, data)
    os.close(end)
    with pytest.raises(PeerGone):
        reader.receive()


def test_frames_are_waited_for_with_a_limit() -> None:
    reader, writer, _ = pipe()
    with pytest.raises(TooLate):
        reader.receive(time.monotonic() + 0.05)
    with pytest.raises(TooLate):
        writer.send(["x"], bytes(2**22), time.monotonic() + 0.05)


@pytest.mark.parametrize(
    "reply", [(["error"], b""), (["error", "device", "launch", 7], b""), (["yes"], b""), (["ok"], bytes(8)), (["ok"], b"")]
)
def test_a_process_that_answers_what_is_no_answer_is_given_up(
    reply: tuple[list[object], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel can have taken it over."""
    device = child("null")
    buffer = device.allocate(NBYTES)
    monkeypatch.setattr(device._reader, "receive", lambda until: reply)
    for _ in range(2):
        with pytest.raises(DeviceLost, match=r"not an answer|another number of bytes"):
            device.read(buffer, 4)
    assert gone(device.pid)
    device.close()
