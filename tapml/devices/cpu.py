"""The processor: kernels in C, compiled by the system's C compiler and called by ctypes.

A kernel's entry takes one pointer a buffer and does all of its work in one call (grid and block are 1). Compiled objects are
kept in the cache folder under a digest of the source, the flags and the compiler's version, so that a kernel is compiled once;
what is found there is loaded only with this installation's seal (`tapml.cache.seals`). A kernel that reads outside of its
buffers can take the process down: use it through `child` for code that is not trusted to be right.

What the machine lacks while a kernel is compiled (disk, memory, processes) is an UnavailableError, since it says nothing about
the kernel; what the compiler says about the kernel is a DeviceError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapml.cache.bounded import bounded, limit_of_environment
from tapml.cache.folder import cache_folder
from tapml.cache.seals import BYTES, seal, sound
from tapml.devices.handles import Handles, check_binding, check_language, check_range
from tapml.devices.interface import DeviceInfo, Launch, ReadsInTurn
from tapml.devices.pick import pick
from tapml.errors import DeviceError, OutOfMemory, UnavailableError, UsageError
from tapml.kernels import Kernel
from tapml.languages.plain_c import LANGUAGE
from tapml.limits import Limits
from tapml.private import private_folder
from tapml.runtime.buffers import padded

COMPILERS = ("cc", "gcc", "clang")
# No value-changing liberties (-ffast-math, contraction to fused multiply-add): this device is for diagnosis.
FLAGS = ("-O2", "-fPIC", "-shared", "-std=gnu11", "-ffp-contract=off", "-w")
COMPILE_SECONDS = 120.0


@dataclass(frozen=True)
class _Memory:
    bytes: NDArray[np.uint8]
    address: int


@dataclass(frozen=True)
class _Loaded:
    entry: str
    access: tuple[str, ...]
    function: Any


class CpuDevice(ReadsInTurn):
    """Implements `tapml.devices.interface.Device`. Raises UnavailableError when there is no C compiler, TargetError when
    `device` is not the one processor."""

    def __init__(self, platform: str = "cpu", language: str = LANGUAGE.name, device: str | None = None) -> None:
        compiler = find_compiler()
        if compiler is None:
            raise UnavailableError(
                f"{platform} is not available: no C compiler found ({', '.join(COMPILERS)}). "
                "Install one (Debian, Ubuntu: apt install gcc; macOS: xcode-select --install)."
            )
        self._compiler, self._version = compiler
        pick(platform, [processor_name()], device)
        self._language = language
        memory = self._room = memory_bytes()
        self._info = DeviceInfo(
            platform=platform,
            name=processor_name(),
            driver=f"{self._compiler} ({self._version})",
            software=False,
            limits=Limits(max_buffer_bytes=memory, max_binding_bytes=memory),
            features=("float64",),
        )
        self._buffers: Handles[_Memory] = Handles("buffer")
        self._kernels: Handles[_Loaded] = Handles("kernel")
        self._bytes = 0
        self._closed = False

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def allocate(self, nbytes: int) -> int:
        self._check_open()
        size, room = padded(nbytes), self._room
        if self._bytes + size > room:
            raise OutOfMemory(f"no room for {size} bytes: {self._bytes} of {room} are in use")
        try:
            memory = np.empty(size, np.uint8)
        except MemoryError as error:
            raise OutOfMemory(f"could not allocate {size} bytes") from error
        self._bytes += size
        return self._buffers.add(_Memory(memory, memory.ctypes.data))

    def free(self, buffer: int) -> None:
        self._bytes -= self._buffers.pop(buffer).bytes.size

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        memory = self._buffers[buffer].bytes
        view = memoryview(data).cast("B")
        check_range(memory.size, offset, view.nbytes)
        memory.data[offset : offset + view.nbytes] = view

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        memory = self._buffers[buffer].bytes
        check_range(memory.size, offset, nbytes)
        return memory[offset : offset + nbytes].tobytes()

    def load(self, kernel: Kernel) -> int:
        self._check_open()
        name = self._info.platform
        check_language(name, self._language, kernel)
        if kernel.grid != (1, 1, 1) or kernel.block != (1, 1, 1):
            raise DeviceError(
                "driver", f"kernel {kernel.entry} has grid {kernel.grid}, block {kernel.block}; {name} makes one call"
            )
        try:
            function = getattr(self._library(kernel), kernel.entry)
        except AttributeError as error:
            raise DeviceError("driver", f"the compiled kernel {kernel.entry} cannot be loaded: {error}") from error
        except OSError as error:
            raise _unable(kernel, error.strerror or str(error)) from error
        except UsageError as error:  # the cache folder
            raise UnavailableError(str(error)) from error
        function.argtypes = [ctypes.c_void_p] * len(kernel.access)
        function.restype = None
        return self._kernels.add(_Loaded(kernel.entry, kernel.access, function))

    def _library(self, kernel: Kernel) -> ctypes.CDLL:
        """The shared object of a kernel, from the cache or made now. Raises OSError for what this machine lacks."""
        text = "\0".join((kernel.source, *FLAGS, self._compiler, self._version, platform.machine()))
        name = f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.so"
        folder = private_folder(cache_folder() / "cpu", "the cache folder")
        bound = bounded(folder, limit_of_environment())
        library = folder / name
        with contextlib.suppress(FileNotFoundError):
            made = library.read_bytes()
            if sound(name, made[:-BYTES], made[-BYTES:]):  # what follows the object in its file is not looked at by a loader
                bound.used(library)
                return _loaded(kernel, library)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            compiled = self._compile(kernel, Path(work))
            made = compiled.read_bytes()
            with compiled.open("ab") as file:
                file.write(seal(name, made))
            if not bound.fits(len(made)):
                return _loaded(kernel, compiled)
            compiled.replace(library)
        bound.added(len(made))
        return _loaded(kernel, library)

    def _compile(self, kernel: Kernel, work: Path) -> Path:
        source, made = work / "kernel.c", work / "kernel.so"
        source.write_text(kernel.source)
        try:
            done = subprocess.run(
                [self._compiler, *FLAGS, str(source), "-o", str(made), "-lm"], env=os.environ | {"LC_ALL": "C"},
                capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS, check=False,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(
                "driver", f"{self._compiler} did not compile kernel {kernel.entry} within {COMPILE_SECONDS:g} s"
            ) from None
        if done.returncode != 0:
            log = done.stderr.replace(str(source), "kernel.c").strip()
            lacking = _lacking(log)
            if lacking:
                raise _unable(kernel, lacking)
            raise DeviceError("driver", f"{self._compiler} refused kernel {kernel.entry}: {log}")
        return made

    def unload(self, kernel: int) -> None:
        self._kernels.pop(kernel)

    def run(self, batch: Sequence[Launch]) -> None:
        self._check_open()
        for launch in batch:
            loaded = self._kernels[launch.kernel]
            check_binding(loaded.entry, loaded.access, launch.buffers)
            loaded.function(*[self._buffers[b].address for b in launch.buffers])

    def synchronize(self) -> None:
        self._check_open()

    def close(self) -> None:
        self._closed = True
        self._buffers.clear()
        self._kernels.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the device is closed")


def _loaded(kernel: Kernel, library: Path) -> ctypes.CDLL:
    """DeviceError for what the loader refuses, OSError for what this machine lacks."""
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        if _lacking(str(error)):
            raise
        raise DeviceError("driver", f"the compiled kernel {kernel.entry} cannot be loaded: {error}") from error


# What a compiler, assembler, linker or loader says at the end of a line when the machine is at fault, in the locale C.
_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS)
LACKING = tuple(os.strerror(number) for number in _NUMBERS)
# The same of a process that a limit or the system ended: no kernel's text makes a compiler die of these.
ENDED = ("File size limit exceeded", "out of memory", "Resource temporarily unavailable", "virtual memory exhausted")


def _lacking(log: str) -> str:
    """The line of a tool's output that says that the machine, not the kernel, is at fault; "" where there is none. Lines that
    quote the kernel (`#error`) do not count."""
    for line in log.splitlines():
        text = line.strip().rstrip(".")
        if "#" not in text and (text.endswith(LACKING) or any(sign in text for sign in ENDED)):
            return line.strip()
    return ""


def _unable(kernel: Kernel, why: str) -> UnavailableError:
    return UnavailableError(
        f"The machine of the device cpu could not compile kernel {kernel.entry}: {why}. That says nothing about the kernel. Make "
        "room there (tapml doctor says where the cache is)."
    )


@functools.cache
def find_compiler() -> tuple[str, str] | None:
    """Path and version line of the system's C compiler; None without one."""
    for name in COMPILERS:
        path = shutil.which(name)
        if path is None:
            continue
        done = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", check=False, timeout=30)
        if done.returncode == 0 and done.stdout:
            return path, done.stdout.splitlines()[0]
    return None


def processor_name() -> str:
    """The processor as the system calls it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Physical memory; buffers are refused above it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
