"""Starts a module of ours with as few rights as this system takes from a process without being root.

    python -P -m tapml.devices.confined SCRATCH DESCRIPTOR MEMORY tapml.devices.server PLATFORM …

It runs before anything that starts threads is imported, since Landlock holds for the thread that asks for it and for those that
it starts later. What is taken: capabilities, new privileges, files (`landlock.py`), the network and other processes
(`seccomp.py`), and resources. What this system does not have is left out here, and told by `sandbox.measures`; what it has and
refuses ends this process.

A watcher is forked first, which is not confined: when the pipe of `DESCRIPTOR` is closed without a word, whoever started this
is gone, and the watcher ends the process group and removes SCRATCH. It also ends the group when SCRATCH grows over
`MOST_SCRATCH` bytes or `MOST_FILES` files.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import select
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import tapml
from tapml.devices import landlock, sandbox, seccomp

MOST_SCRATCH = 2 * 2**30
MOST_FILES = 100_000
MOST_FILE = 2**30
MOST_OPEN = 1024
MOST_TASKS = 1024
LOOK_SECONDS = 1.0

# Where programs, libraries and drivers are. Of /etc only what a loader or a driver asks for.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/run/opengl-driver", "/run/current-system",
    "/system", "/vendor", "/apex", "/sys",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime", "/etc/OpenCL",
    "/etc/vulkan", "/etc/glvnd", "/etc/egl", "/etc/drirc", "/etc/nvidia", "/etc/pocl", "/etc/mali*", "/etc/clang",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/devices", "/proc/modules", "/proc/filesystems",
    "/proc/driver", "/proc/sys/vm", "/proc/sys/kernel/osrelease", "/proc/sys/kernel/pid_max",
)  # fmt: skip
VENDORS = ("rocm*", "amdgpu*", "intel", "nvidia", "vc")  # of their folders in /opt
DEVICES = (
    "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/dri", "/dev/nvidia*", "/dev/kfd", "/dev/mali*",
    "/dev/kgsl*", "/dev/udmabuf", "/dev/dma_heap", "/dev/accel", "/dev/dxg", "/dev/pvr*", "/dev/galcore",
)  # fmt: skip
# Variables in which whoever starts the agent names files of drivers.
NAMING = ("LD_LIBRARY_PATH", "OCL_ICD_VENDORS", "OCL_ICD_FILENAMES", "VK_ICD_FILENAMES", "VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES")

_CAPBSET_DROP = 24
_CAPSET = {"x86_64": 126, "aarch64": 91, "riscv64": 91}
_CAPABILITIES_3 = 0x20080522


def main() -> int:
    scratch, descriptor, memory, module, *words = sys.argv[1:]
    if hasattr(os, "fork"):
        _fork_watcher(int(descriptor), Path(scratch))
        os.close(int(descriptor))
    try:
        confine(Path(scratch), int(memory))
    except OSError as error:
        print(f"This process could not be confined: {error}", file=sys.stderr)
        return 1
    sys.argv = [module, *words]
    return int(importlib.import_module(module).main())


def confine(scratch: Path, memory: int) -> None:
    """For good. Raises OSError when the system has a means and refuses it."""
    if os.name == "posix":
        _limit(memory)
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError):  # when memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("500")
    _drop_capabilities()
    landlock.no_new_privileges()
    if landlock.version():
        landlock.restrict(read=readable(), write=[scratch], devices=_existing(DEVICES))
    if not seccomp.why_not():
        seccomp.restrict()


def readable() -> list[Path]:
    """The system's programs and drivers, this Python and what is installed in it, TapML itself, and this process."""
    python = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    python |= {f"{prefix}/{part}" for prefix in (sys.prefix, sys.base_prefix) for part in ("lib", "bin", "pyvenv.cfg")}
    python |= {entry for entry in sys.path if _installed_into(Path(entry))}
    named = [entry for name in NAMING for entry in os.environ.get(name, "").split(os.pathsep) if Path(entry).is_absolute()]
    own = [*(Path(folder).resolve() for folder in tapml.__path__), Path(f"/proc/{os.getpid()}")]
    return [*_existing(SYSTEM), *_vendors(), *map(Path, python), *map(Path, named), *own]


def _installed_into(folder: Path) -> bool:
    """Whether it is a folder of installed packages, as `pip install --target` makes one too; a folder of sources is none."""
    return folder.name in ("site-packages", "dist-packages") or any(folder.glob("*.dist-info"))


def _existing(patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from Path("/").glob(pattern.lstrip("/"))


def _vendors() -> Iterator[Path]:
    for pattern in VENDORS:
        yield from Path("/opt").glob(pattern)


def _limit(memory: int) -> None:
    import resource

    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, MOST_OPEN), (resource.RLIMIT_FSIZE, MOST_FILE)]
    if sys.platform.startswith("linux"):
        limits.append((resource.RLIMIT_NPROC, _tasks_of_this_user() + MOST_TASKS))
    if memory:
        limits.append((resource.RLIMIT_AS, memory))
    for kind, most in limits:
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _tasks_of_this_user() -> int:
    """RLIMIT_NPROC counts all threads of the user, not those of this process."""
    count = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == os.getuid():
                count += len(list((entry / "task").iterdir()))
    return count


def _drop_capabilities() -> None:
    """Root's, where an agent runs as root."""
    import platform

    number = _CAPSET.get(platform.machine())
    if number is None:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        if libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0):
            break  # beyond the last one, or none to drop
    if libc.syscall(number, struct.pack("=Ii", _CAPABILITIES_3, 0), bytes(24)):
        error = ctypes.get_errno()
        raise OSError(error, f"capset: {os.strerror(error)}")


def _fork_watcher(descriptor: int, scratch: Path) -> None:
    group = os.getpid()
    if os.fork():
        return
    try:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        watch(group, descriptor, scratch)
    finally:
        os._exit(0)


def watch(group: int, descriptor: int, scratch: Path) -> None:
    """Until whoever started the group has ended it, or is gone."""
    while True:
        if select.select([descriptor], [], [], LOOK_SECONDS)[0]:
            if not os.read(descriptor, 64):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)
                sandbox.remove(scratch)
            return
        if _too_much(scratch):
            os.write(2, f"Its scratch folder has more than {MOST_SCRATCH} bytes or {MOST_FILES} files.\n".encode())
            os.killpg(group, signal.SIGKILL)


def _too_much(scratch: Path) -> bool:
    nbytes = files = 0
    for folder, folders, names in os.walk(scratch):
        files += len(folders) + len(names)
        for name in names:
            with contextlib.suppress(OSError):
                nbytes += os.lstat(f"{folder}/{name}").st_blocks * 512
        if nbytes > MOST_SCRATCH or files > MOST_FILES:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
