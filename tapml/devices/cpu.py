"""The processor: kernels in C, compiled by the system's C compiler and called by ctypes.

A kernel's entry takes one pointer a buffer and does all of its work in one call (grid and block are 1). Compiled
objects are kept in the cache folder under a digest of the source, the flags and the compiler's version, so that a kernel is
compiled once. A kernel that reads outside of its buffers can take the process down: use it through `child` for
code that is not trusted to be right.
"""

from __future__ import annotations

import ctypes
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

from tapml.devices.handles import Handles, check_binding, check_range, padded
from tapml.devices.interface import DeviceInfo, Launch, ReadsInTurn
from tapml.devices.pick import pick
from tapml.errors import DeviceError, OutOfMemory, UnavailableError
from tapml.kernels import Kernel
from tapml.source.cache import cache_folder

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

    def __init__(self, device: str | None = None) -> None:
        compiler = find_compiler()
        if compiler is None:
            raise UnavailableError(
                f"cpu is not available: no C compiler found ({', '.join(COMPILERS)}). "
                "Install one (Debian, Ubuntu: apt install gcc; macOS: xcode-select --install)."
            )
        self._compiler, self._version = compiler
        pick("cpu", [processor_name()], device)
        memory = memory_bytes()
        self._info = DeviceInfo(
            platform="cpu",
            name=processor_name(),
            driver=f"{self._compiler} ({self._version})",
            software=False,
            limits={"max_buffer_bytes": memory, "max_binding_bytes": memory},
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
        size, room = padded(nbytes), self._info.limits["max_buffer_bytes"]
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
        if kernel.language != "c":
            raise DeviceError("driver", f"cpu takes c, and kernel {kernel.entry} is {kernel.language}")
        if kernel.grid != (1, 1, 1) or kernel.block != (1, 1, 1):
            raise DeviceError("driver", f"kernel {kernel.entry} has grid {kernel.grid}, block {kernel.block}; cpu makes one call")
        library = self._compile(kernel)
        try:
            function = getattr(ctypes.CDLL(str(library)), kernel.entry)
        except (OSError, AttributeError) as error:
            raise DeviceError("driver", f"the compiled kernel {kernel.entry} cannot be loaded: {error}") from error
        function.argtypes = [ctypes.c_void_p] * len(kernel.access)
        function.restype = None
        return self._kernels.add(_Loaded(kernel.entry, kernel.access, function))

    def _compile(self, kernel: Kernel) -> Path:
        """The shared object of a kernel, from the cache or made now."""
        text = "\0".join((kernel.source, *FLAGS, self._compiler, self._version, platform.machine()))
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        folder = cache_folder() / "cpu"
        library = folder / f"{name}.so"
        if library.exists():
            return library
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            source, made = Path(work, "kernel.c"), Path(work, "kernel.so")
            source.write_text(kernel.source)
            try:
                done = subprocess.run(
                    [self._compiler, *FLAGS, str(source), "-o", str(made), "-lm"],
                    capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS, check=False,
                )
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    "driver", f"{self._compiler} did not compile kernel {kernel.entry} within {COMPILE_SECONDS:g} s"
                ) from None
            if done.returncode != 0:
                log = done.stderr.replace(str(source), "kernel.c").strip()
                raise DeviceError("driver", f"{self._compiler} refused kernel {kernel.entry}: {log}")
            made.replace(library)
        return library

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
