"""A child process that runs kernels of strangers: what they try fails, drivers work all the same, and nothing stays behind."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tapml.devices import landlock, sandbox, seccomp
from tapml.devices.child import ChildDevice
from tapml.devices.cpu import find_compiler
from tapml.devices.sandbox import Sandbox, measures
from tapml.devices.trial import try_device
from tapml.errors import DeviceLost
from tapml.kernels import Kernel
from tapml.targets.known import TARGETS
from tests.devices.strangers import DAEMON, HEAD, ONE, probe, run

Need = Callable[[str], str]
SECONDS = 30.0

confinable = pytest.mark.skipif(
    landlock.version() < 6 or bool(seccomp.why_not()),
    reason="not run: this kernel has no seccomp, or no Landlock that knows signals",
)


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[ChildDevice, ChildDevice]]:
    """A confined child, and the same child not confined: what that can do shows that a probe is able to succeed."""
    if find_compiler() is None:
        pytest.skip("not run: there is no C compiler for the target cpu")
    devices = ChildDevice("cpu", deadline=SECONDS, sandbox=Sandbox()), ChildDevice("cpu", deadline=SECONDS)
    yield devices
    for device in devices:
        device.close()


@pytest.fixture
def confined(both: tuple[ChildDevice, ChildDevice]) -> ChildDevice:
    return both[0]


@pytest.fixture
def free(both: tuple[ChildDevice, ChildDevice]) -> ChildDevice:
    return both[1]


@pytest.fixture
def mortal(need: Need) -> Iterator[ChildDevice]:
    """A confined child for one test, which ends it."""
    need("cpu")
    device = ChildDevice("cpu", deadline=SECONDS, sandbox=Sandbox())
    yield device
    device.close()


def gone(pid: int) -> bool:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@confinable
@pytest.mark.parametrize("call", [
    "socket(AF_INET, SOCK_STREAM, 0)", "socket(AF_INET, SOCK_DGRAM, 0)", "socket(AF_UNIX, SOCK_STREAM, 0)",
    "socket(AF_NETLINK, SOCK_RAW, 0)",
])
def test_no_network(confined: ChildDevice, free: ChildDevice, call: str) -> None:
    assert run(free, probe(call))[0] == 0
    assert run(confined, probe(call))[0] == errno.EPERM


@confinable
def test_files_of_the_user_are_out_of_reach(confined: ChildDevice, free: ChildDevice, tmp_path: Path) -> None:
    at_home = Path.home() / f".tapml-sentinel-{os.getpid()}"
    elsewhere = tmp_path / "sentinel"
    try:
        for sentinel in (at_home, elsewhere):
            sentinel.write_text("a secret")
            for call in (
                f'open("{sentinel}", O_RDONLY)', f'open("{sentinel}", O_WRONLY)', f'truncate("{sentinel}", 0)',
                f'opendir("{sentinel.parent}") ? 0 : -1', f'link("{sentinel}", "stolen")', f'unlink("{sentinel}")',
                f'open("{sentinel}.new", O_CREAT | O_WRONLY, 0600)', f'mkdir("{sentinel}.folder", 0700)',
                f'symlink("/etc/passwd", "{sentinel}.link")', f'chmod("{sentinel}", 0)', f'chown("{sentinel}", 1, 1)',
                f'syscall(SYS_utimensat, AT_FDCWD, "{sentinel}", 0, 0)',
                f'syscall(SYS_setxattr, "{sentinel}", "user.a", "b", 1, 0)',
                f'rename("{sentinel}", "{sentinel}.moved")', f'mkfifo("{sentinel}.pipe", 0600)',
            ):
                assert run(confined, probe(call))[0] in (errno.EACCES, errno.EXDEV, errno.EPERM), call
            assert sentinel.read_text() == "a secret"
            assert run(free, probe(f'open("{sentinel}", O_RDWR)'))[0] == 0
    finally:
        at_home.unlink()


@confinable
def test_it_may_write_in_its_scratch_folder_only(confined: ChildDevice) -> None:
    assert confined._sandbox is not None
    scratch = confined._sandbox.scratch
    assert run(confined, probe(f'open("{scratch}/mine", O_CREAT | O_WRONLY, 0600)'))[0] == 0
    assert (scratch / "mine").exists() and scratch.stat().st_mode & 0o777 == 0o700
    for place in (scratch.parent, "/dev/shm", "/var/tmp", "/usr/local"):
        assert run(confined, probe(f'open("{place}/tapml-left", O_CREAT | O_WRONLY, 0600)'))[0] == errno.EACCES
    through = f'symlink("/etc/shadow", "{scratch}/link") ?: open("{scratch}/link", O_RDONLY)'
    assert run(confined, probe(through))[0] == errno.EACCES


@confinable
@pytest.mark.parametrize("call", [
    'open("/proc/{parent}/cmdline", O_RDONLY)', 'open("/proc/{parent}/environ", O_RDONLY)', 'open("/proc/{parent}/mem", O_RDWR)',
    'kill({parent}, 0)', 'kill({parent}, SIGKILL)', 'ptrace(PTRACE_ATTACH, {parent}, 0, 0)',
    "syscall(SYS_prlimit64, {parent}, RLIMIT_CPU, 0, 0)", "setpriority(PRIO_PROCESS, {parent}, 19)",
])
def test_whoever_started_it_is_out_of_reach(confined: ChildDevice, call: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        for number in (os.getpid(), bystander.pid):
            wanted = call.format(parent=number)
            if number == os.getpid() and "SIGKILL" in wanted:
                continue  # it would end the tests where it works
            assert run(confined, probe(wanted))[0] in (errno.EACCES, errno.EPERM), wanted
        assert bystander.poll() is None
        bystander.communicate(b"\n")


@confinable
@pytest.mark.parametrize("call", [
    "setsid()", "setpgid(0, 0)", "unshare(CLONE_NEWUSER)", 'mount("none", "/mnt", "tmpfs", 0, 0)', 'chroot(".")',
    "shmget(IPC_PRIVATE, 4096, 0600)", "syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)",
    "syscall(425, 8, 0)",  # io_uring_setup
    "setuid(12345)",
])
def test_no_way_out(confined: ChildDevice, call: str) -> None:
    assert run(confined, probe(call))[0] == errno.EPERM


@confinable
def test_calls_of_a_later_system_are_unknown(confined: ChildDevice) -> None:
    assert run(confined, probe(f"syscall({seccomp.NEWEST + 1}, 0, 0, 0)"))[0] == errno.ENOSYS
    assert run(confined, probe("syscall(SYS_clone3, 0, 0)"))[0] == errno.ENOSYS


@confinable
def test_its_resources_are_limited(confined: ChildDevice) -> None:
    kernel = Kernel("c", "limits", HEAD + """
void limits(float* x) {
  struct rlimit limit;
  int kinds[] = {RLIMIT_CORE, RLIMIT_NOFILE, RLIMIT_FSIZE};
  for (int i = 0; i < 3; ++i) { getrlimit(kinds[i], &limit); x[i] = limit.rlim_max; }
  x[3] = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
}""", ("read_write",), ONE, ONE)
    assert run(confined, kernel)[:4] == [0, 1024, 2**30, 1]


def test_its_environment_holds_no_secret(need: Need, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("cpu")
    monkeypatch.setenv("TAPML_HUB_TOKEN", "top-secret")
    monkeypatch.setenv("CLOUD_ACCESS_KEY", "top-secret")
    device = ChildDevice("cpu", deadline=SECONDS, sandbox=Sandbox())
    try:
        for _ in range(2):
            environment = Path(f"/proc/{device.pid}/environ").read_bytes()
            assert b"PATH=" in environment and b"top-secret" not in environment
            assert run(device, probe('(getenv("TAPML_HUB_TOKEN") || getenv("CLOUD_ACCESS_KEY")) ? (errno = 1, -1) : 0'))[0] == 0
    finally:
        device.close()


@confinable
def test_what_it_started_ends_with_it(mortal: ChildDevice) -> None:
    assert mortal._sandbox is not None
    scratch = mortal._sandbox.scratch
    left = run(mortal, DAEMON)[:2]
    assert all(psutil.pid_exists(pid) for pid in left)
    mortal.close()
    assert all(map(gone, left)) and not scratch.exists()


@confinable
def test_what_it_started_ends_with_it_when_it_crashes(mortal: ChildDevice) -> None:
    left = run(mortal, DAEMON)[:2]
    with pytest.raises(DeviceLost, match="SIGSEGV"):
        run(mortal, probe("*(volatile int*)0"))
    assert all(map(gone, left))


OWNER = """
import sys
from tapml.devices.child import ChildDevice
from tapml.devices.sandbox import Sandbox
from tests.devices.strangers import DAEMON, run

device = ChildDevice("cpu", sandbox=Sandbox())
print(device._sandbox.scratch, device.pid, *run(device, DAEMON)[:2], flush=True)
sys.stdin.read()
"""


@confinable
def test_what_it_started_ends_when_its_owner_is_killed(need: Need) -> None:
    need("cpu")
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert owner.stdout is not None and owner.stdin is not None
    scratch, *left = owner.stdout.readline().split()
    assert len(left) == 3 and all(psutil.pid_exists(int(pid)) for pid in left)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    assert all(gone(int(pid)) for pid in left)
    until = time.monotonic() + SECONDS
    while Path(scratch).exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(scratch).exists()


@pytest.mark.parametrize("platform", ["opencl", "vulkan", "webgpu", "cpu"])
def test_drivers_work_when_confined(platform: str, need: Need) -> None:
    """And show the same limits: kernels are compiled for those."""
    need(platform)
    device, other = ChildDevice(platform, deadline=120.0, sandbox=Sandbox()), ChildDevice(platform)
    try:
        assert try_device(device, TARGETS[platform].language) == ""
        assert device.info == other.info
    finally:
        device.close()
        other.close()


@confinable
def test_packages_installed_into_a_folder_of_their_own_are_found(
    need: Need, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after `pip install --target`, with that folder in PYTHONPATH."""
    need("cpu")
    msgpack = Path(str(importlib.util.find_spec("msgpack").origin)).parent  # type: ignore[union-attr]
    shutil.copytree(msgpack, tmp_path / "msgpack")
    (tmp_path / "msgpack-1.dist-info").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    device = ChildDevice("cpu", deadline=SECONDS, sandbox=Sandbox())
    try:
        assert try_device(device, "c") == ""
    finally:
        device.close()


def test_a_folder_that_resists_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    (folder / "closed" / "inner").mkdir(parents=True)
    (folder / "closed" / "file").write_text("x")
    (folder / "link").symlink_to(tmp_path)
    deep, here = folder, Path.cwd()
    deep.mkdir(exist_ok=True)
    os.chdir(deep)
    try:
        for _ in range(1500):
            os.mkdir("d")  # noqa: PTH102 (a path of that length could not be named)
            os.chdir("d")
    finally:
        os.chdir(here)
    (folder / "closed" / "inner").chmod(0)
    (folder / "closed").chmod(0)
    sandbox.remove(folder)
    assert not folder.exists() and tmp_path.exists()


def test_a_reply_that_a_kernel_made_up_costs_its_device_only(need: Need) -> None:
    need("cpu")
    device = ChildDevice("cpu", deadline=SECONDS)
    # Every descriptor of the child gets a frame whose list is ["error", 7], as MessagePack.
    kernel = Kernel("c", "forge", HEAD + r"""
void forge(float* x) {
  const char frame[] = "\x08\0\0\0\0\0\0\0\x92\xa5" "error" "\x07";
  for (int i = 3; i < 32; ++i) if (write(i, frame, sizeof frame - 1) < 0) continue;
}""", ("read_write",), ONE, ONE)
    try:
        with pytest.raises(DeviceLost):
            run(device, kernel)
            device.synchronize()
    finally:
        device.close()


def test_what_a_system_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    monkeypatch.setattr(seccomp, "why_not", lambda: "no seccomp in this kernel")
    missing = {measure.name: measure.missing for measure in measures()}
    assert missing["files"] == missing["signals"] == "no Landlock in this kernel"
    assert missing["network"] == missing["processes"] == "no seccomp in this kernel"
    monkeypatch.setattr(landlock, "version", lambda: 4)
    assert {measure.name: bool(measure.missing) for measure in measures()}["signals"]


def test_what_a_system_has_and_refuses_ends_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\nfrom tapml.devices import confined, landlock\n"
        "def refuse(**_): raise OSError('not today')\n"
        "landlock.version, landlock.restrict = lambda: 7, refuse\n"
        "confined.confine(pathlib.Path(sys.argv[1]), 0)\nprint('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0 and "not today" in done.stderr and "went on" not in done.stdout


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_the_filter_of_each_processor(machine: str) -> None:
    """Run by an interpreter of its own instructions, since only one processor is here."""
    code = seccomp.program(machine)
    assert len(code) % 8 == 0 and len(code) // 8 <= 4096
    column = 0 if machine == "x86_64" else 1
    own = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}[machine]
    for name, numbers in seccomp.REFUSED.items():
        if numbers[column] is not None:
            assert filtered(code, own, numbers[column] or 0) == errno.EPERM, name
    harmless = {"x86_64": (0, 1, 9, 57, 59, 202), "aarch64": (63, 64, 222, 221, 98), "riscv64": (63, 64, 222, 221, 98)}[machine]
    assert [filtered(code, own, number) for number in harmless] == [0] * len(harmless)
    clone, prlimit = ((56, 302), (220, 261))[column]
    assert filtered(code, own, clone, 0x3D0F00) == 0 and filtered(code, own, clone, 0x10000011) == errno.EPERM
    assert filtered(code, own, prlimit, 0) == 0 and filtered(code, own, prlimit, 4711) == errno.EPERM
    assert filtered(code, own, 435) == filtered(code, own, 0x40000001) == filtered(code, own, 600) == errno.ENOSYS
    assert filtered(code, 0x40000003, 1) == -1


def filtered(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """0 for allowed, -1 for killed, else the errno."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("<HBBI", code))
    at = loaded = 0
    while True:
        kind, if_true, if_false, value = steps[at]
        at += 1
        if kind == 0x20:
            loaded = struct.unpack_from("<I", data, value)[0]
        elif kind == 0x06:
            return {0x7FFF0000: 0, 0x80000000: -1}.get(value & 0xFFFF0000, value & 0xFFFF)
        else:
            met = {0x15: loaded == value, 0x25: loaded > value, 0x45: bool(loaded & value)}[kind]
            at += if_true if met else if_false


def test_the_numbers_are_those_of_this_systems_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists() or ctypes.sizeof(ctypes.c_void_p) != 8:
        pytest.skip("not run: there are no headers of the kernel for x86-64 here")
    known = dict(line.split()[1:3] for line in header.read_text().splitlines() if line.startswith("#define __NR_"))
    for name, (number, _) in seccomp.REFUSED.items():
        if f"__NR_{name}" in known:
            assert int(known[f"__NR_{name}"]) == number, name
