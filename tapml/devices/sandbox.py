"""The surroundings of a child process that runs kernels of strangers: a folder of its own, few variables, an end that is one.

    sandbox = Sandbox(memory=None)                   makes the scratch folder
    device = ChildDevice("cpu", sandbox=sandbox)     the child, confined by `tapml.devices.confined`
    sandbox.kill(device.pid)                         it and all that it started, at any moment
    sandbox.end()                                    the scratch folder is removed; `ChildDevice.close` does both
    measures()                                       what confines such a child here, and what this system does not give

The child is the leader of a process group that nothing can leave (`seccomp.py`), so that one signal ends all of it. A second
process, the watcher of `confined.py`, does the same when this one is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tapml.devices import landlock, seccomp

PREFIX = "tapml-session-"

# Variables that the child is given: what drivers, Python and the C compiler look at. Everything else may be a secret.
_NAMES = {"PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "DISPLAY", "NUMBER_OF_PROCESSORS", "SYSTEMROOT"}
_BEGINNINGS = (
    "LC_", "OCL_", "POCL_", "OPENCL_", "VK_", "WGPU_", "MESA_", "LIBGL_", "GALLIUM_", "LP_", "EGL_", "__EGL_", "__GLX_", "DRI_",
    "RADV_", "INTEL_", "NVIDIA_", "CUDA_", "HIP_", "HSA_", "ROCR_", "ZE_", "OMP_",
)  # fmt: skip


class Sandbox:
    """One child's. `memory`: bytes of address space that it may have; None for no limit, which GPU drivers need."""

    def __init__(self, memory: int | None = None) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix=PREFIX))
        # The library by which PoCL learns what the machine has lists the root folder, unless it is given another one.
        self._root = self.scratch / "root"
        self._root.mkdir()
        for name in ("proc", "sys"):
            (self._root / name).symlink_to(f"/{name}")
        self._memory = memory
        self._watched, self._watching = os.pipe()

    def command(self, module: str, *words: str) -> list[str]:
        """Starts a module of ours, confined."""
        confined = ["tapml.devices.confined", str(self.scratch), str(self._watched), str(self._memory or 0)]
        return [sys.executable, "-P", "-m", *confined, module, *words]

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the child inherits besides its standard streams."""
        return (self._watched,)

    def environment(self, python_path: str) -> dict[str, str]:
        given = {
            name: value for name, value in os.environ.items() if name in _NAMES or name.startswith(_BEGINNINGS)
        }
        place = str(self.scratch)
        return given | {
            "PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1", "HOME": place, "TMPDIR": place, "XDG_RUNTIME_DIR": place,
            "XDG_CACHE_HOME": place, "TAPML_CACHE": str(self.scratch / "cache"), "POCL_CACHE_DIR": str(self.scratch / "pocl"),
            "HWLOC_FSROOT": str(self._root), "HWLOC_THISSYSTEM": "1",
        }

    def started(self) -> None:
        """The child has its own copy of what it inherits."""
        if self._watched >= 0:
            os.close(self._watched)
            self._watched = -1

    def kill(self, leader: int) -> None:
        """Ends the child and everything that it started. `leader` is its process, not yet waited for."""
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(leader, signal.SIGKILL)

    def end(self) -> None:
        """After `kill`: nothing is left. May be called twice."""
        self.started()
        if self._watching >= 0:
            with contextlib.suppress(OSError):
                os.write(self._watching, b"ended")  # the watcher has nothing left to do
            os.close(self._watching)
            self._watching = -1
        remove(self.scratch)


def remove(folder: Path) -> None:
    """A folder that a stranger's program filled: whatever its names, modes and depth."""

    def open_up(function: object, name: str, error: object) -> None:
        with contextlib.suppress(OSError):
            Path(name).parent.chmod(0o700)
            if not Path(name).is_symlink():
                Path(name).chmod(0o700)

    for handler in (open_up, None):
        if not folder.exists():
            return
        with contextlib.suppress(OSError, RecursionError):
            shutil.rmtree(folder, ignore_errors=handler is None, onerror=handler)
    if folder.exists() and shutil.which("rm"):  # deeper than Python's own way goes
        subprocess.run(["rm", "-rf", "--", str(folder)], stderr=subprocess.DEVNULL, check=False)


@dataclass(frozen=True)
class Measure:
    """One of the ways in which the child is confined. `missing` says why it is not here, "" where it is."""

    name: str
    what: str
    missing: str = ""


def measures() -> list[Measure]:
    """What confines a child with a `Sandbox` on this system."""
    linux = sys.platform.startswith("linux")
    filtered = seccomp.why_not()
    files = landlock.version()
    no_landlock = "" if files else "no Landlock in this kernel" if linux else "only Linux has Landlock"
    signals = "" if files >= 6 else no_landlock or f"Landlock of this kernel is version {files}, signals need 6"
    return [
        Measure("files", "it writes in its scratch folder only, and reads only programs, libraries and drivers", no_landlock),
        Measure("network", "it cannot open a socket", filtered),
        Measure("processes", "it ends with its session, with all that it started, and cannot look into others", filtered),
        Measure("signals", "it cannot end other processes", signals),
        Measure("privileges", "it can gain none (no_new_privs)", "" if linux else "only Linux has no_new_privs"),
        Measure("limits", "on open files, the size of a file, and core dumps", "" if os.name == "posix" else "no limits here"),
    ]
