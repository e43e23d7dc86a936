"""OpenCL by pyopencl: one context and one in-order queue, so launches see each other's writes without events.

The driver compiles OpenCL C at `load`; PoCL finishes that at the first launch with a given workgroup size, so its first launch is
slow, and a compiler crash can surface there. pyopencl's own program cache stays off, the driver's stays as it is. But PoCL sends
a text that it has compiled before through its preprocessor again, which takes 40 ms, so what it made of a text is kept
(`binaries.py`) and handed back to it: 2 ms. Which device is used: the first GPU, else the first of any kind, or the one that
`device` picks.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tapml.devices.binaries import Binaries
from tapml.devices.handles import Handles, check_binding, check_language, check_range
from tapml.devices.interface import DeviceInfo, Launch, ReadsInTurn
from tapml.devices.pick import pick
from tapml.errors import DeviceError, DeviceLost, OutOfMemory, UnavailableError
from tapml.kernels import Kernel
from tapml.languages.opencl_c import LANGUAGE
from tapml.limits import Limits
from tapml.runtime.buffers import padded

# Batches that are kept ready to be run again.
RECORDED = 32
LOST = ("OUT_OF_RESOURCES", "INVALID_COMMAND_QUEUE", "INVALID_CONTEXT", "DEVICE_NOT_AVAILABLE")
# The platform whose driver gives back sooner what it made than it makes it anew.
POCL = "Portable Computing Language"
INSTALL = (
    "Install a driver (for NVIDIA, AMD or Intel it comes with the GPU's own driver), or `pip install 'pyopencl[pocl]'` for one "
    "that runs on the processor."
)


@dataclass(frozen=True)
class _Loaded:
    kernel: Any
    entry: str
    access: tuple[str, ...]
    size: tuple[int, int, int]
    block: tuple[int, int, int]


@dataclass
class _Recorded:
    """`batch` is kept, so that its identity stays its own; `launches` are None until it comes again."""

    batch: tuple[Launch, ...]
    launches: list[tuple[Any, tuple[int, int, int], tuple[int, int, int]]] | None = None


class OpenClDevice(ReadsInTurn):
    """Implements `tapml.devices.interface.Device`. Raises UnavailableError when pyopencl or a driver is missing, TargetError
    when `device` matches none."""

    def __init__(self, platform: str = "opencl", language: str = LANGUAGE.name, device: str | None = None) -> None:
        try:
            import pyopencl
        except (ImportError, OSError) as error:
            raise UnavailableError(f"OpenCL is not available: pyopencl cannot be imported ({error}). {INSTALL}") from error
        self._cl: Any = pyopencl
        chosen = _choose(self._cl, device)
        try:
            self._context = self._cl.Context([chosen])
            self._queue = self._cl.CommandQueue(self._context, chosen)
        except self._cl.Error as error:
            raise UnavailableError(f"OpenCL device {chosen.name.strip()} cannot be opened: {error}") from error
        self._device = chosen
        self._language = language
        self._info = _describe(platform, self._cl, chosen)
        self._binaries = Binaries("opencl") if chosen.platform.name.strip() == POCL else None
        self._buffers: Handles[Any] = Handles("buffer")
        self._kernels: Handles[_Loaded] = Handles("kernel")
        self._recorded: OrderedDict[int, _Recorded] = OrderedDict()
        self._bytes = 0
        self._room = int(chosen.global_mem_size)
        self._closed = False

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def allocate(self, nbytes: int) -> int:
        self._check_open()
        size = padded(nbytes)
        largest = self._info.limits.max_buffer_bytes
        if largest is not None and size > largest:
            raise DeviceError("launch", f"a buffer of {size} bytes is more than {self._info.name} allows ({largest})")
        if self._bytes + size > self._room:
            raise OutOfMemory(f"no room for {size} bytes on {self._info.name}: {self._bytes} of {self._room} are in use")
        try:
            buffer = self._cl.Buffer(self._context, self._cl.mem_flags.READ_WRITE, size)
        except self._cl.Error as error:
            no_room = OutOfMemory(f"{self._info.name} could not allocate {size} bytes: {error}")
            raise self._failure(f"allocating {size} bytes", error, no_room) from error
        self._bytes += size
        return self._buffers.add(buffer)

    def free(self, buffer: int) -> None:
        memory = self._buffers.pop(buffer)
        self._recorded.clear()
        self._bytes -= memory.size
        memory.release()

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        memory = self._buffers[buffer]
        view = memoryview(data).cast("B")
        check_range(memory.size, offset, view.nbytes)
        if view.nbytes:
            try:
                self._cl.enqueue_copy(self._queue, memory, view, dst_offset=offset, is_blocking=True)
            except self._cl.Error as error:
                raise self._failure("write", error) from error

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        memory = self._buffers[buffer]
        check_range(memory.size, offset, nbytes)
        data = bytearray(nbytes)
        if nbytes:
            try:
                self._cl.enqueue_copy(self._queue, data, memory, src_offset=offset, is_blocking=True)
            except self._cl.Error as error:
                raise self._failure("read", error) from error
        return bytes(data)

    def load(self, kernel: Kernel) -> int:
        self._check_open()
        check_language("OpenCL", self._language, kernel)
        x, y, z = kernel.block
        most = self._info.limits.max_workgroup_invocations
        if most is not None and x * y * z > most:
            raise DeviceError(
                "driver", f"kernel {kernel.entry} has workgroups of {x * y * z} invocations; {self._info.name} allows {most}"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a compiler's remarks on a program that it accepts
                loaded = self._cl.Kernel(self._built(kernel.source), kernel.entry)
        except self._cl.Error as error:
            refused = DeviceError("driver", f"{self._info.driver} refused kernel {kernel.entry}: {error}")
            raise self._failure(f"loading {kernel.entry}", error, refused) from error
        if loaded.num_args != len(kernel.access):
            raise DeviceError(
                "driver", f"kernel {kernel.entry} has {loaded.num_args} arguments; {len(kernel.access)} were declared"
            )
        gx, gy, gz = kernel.grid
        size = (gx * x, gy * y, gz * z)
        return self._kernels.add(_Loaded(loaded, kernel.entry, kernel.access, size, kernel.block))

    def _built(self, source: str) -> Any:
        """The program, from what the driver made of this text before, where that is kept and the driver takes it."""
        if self._binaries is None:
            return self._cl.Program(self._context, source).build(cache_dir=False)
        name = hashlib.blake2b(f"{self._info.name}\0{self._info.driver}\0{source}".encode(), digest_size=16).hexdigest()
        made = self._binaries.get(name)
        if made is not None:
            with contextlib.suppress(self._cl.Error):
                return self._cl.Program(self._context, [self._device], [made]).build(cache_dir=False)
        program = self._cl.Program(self._context, source).build(cache_dir=False)
        self._binaries.put(name, program.get_info(self._cl.program_info.BINARIES)[0])
        return program

    def unload(self, kernel: int) -> None:
        self._kernels.pop(kernel)
        self._recorded.clear()

    def run(self, batch: Sequence[Launch]) -> None:
        self._check_open()
        recorded = self._record(batch) if isinstance(batch, tuple) else None
        if recorded is not None:
            self._replay(recorded)
            return
        for launch in batch:
            loaded, memories = self._bound(launch)
            if 0 in loaded.size:
                continue
            try:
                loaded.kernel.set_args(*memories)
                self._cl.enqueue_nd_range_kernel(self._queue, loaded.kernel, loaded.size, loaded.block)
            except self._cl.Error as error:
                raise self._failure(f"launch of {loaded.entry}", error) from error
        self._queue.flush()

    def _bound(self, launch: Launch) -> tuple[_Loaded, list[Any]]:
        loaded = self._kernels[launch.kernel]
        check_binding(loaded.entry, loaded.access, launch.buffers)
        return loaded, [self._buffers[b] for b in launch.buffers]

    def _record(self, batch: tuple[Launch, ...]) -> _Recorded | None:
        """What a batch comes to, each launch a kernel object of its own that keeps its arguments; made when the very same tuple
        comes a second time, as the steps of a decoder do. None before."""
        found = self._recorded.get(id(batch))
        if found is None or found.batch is not batch:
            self._recorded[id(batch)] = _Recorded(batch)
            while len(self._recorded) > RECORDED:
                self._recorded.popitem(last=False)
            return None
        self._recorded.move_to_end(id(batch))
        if found.launches is None:
            found.launches = []
            for launch in batch:
                loaded, memories = self._bound(launch)
                if 0 not in loaded.size:
                    kernel = self._cl.Kernel(loaded.kernel.program, loaded.entry)
                    kernel.set_args(*memories)
                    found.launches.append((kernel, loaded.size, loaded.block))
        return found

    def _replay(self, recorded: _Recorded) -> None:
        enqueue, queue = self._cl.enqueue_nd_range_kernel, self._queue
        assert recorded.launches is not None
        kernel = None
        try:
            for kernel, size, block in recorded.launches:
                enqueue(queue, kernel, size, block)
        except self._cl.Error as error:
            raise self._failure(f"launch of {kernel.function_name if kernel is not None else 'a batch'}", error) from error
        queue.flush()

    def synchronize(self) -> None:
        self._check_open()
        try:
            self._queue.finish()
        except self._cl.Error as error:
            raise self._failure("wait", error) from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._queue.finish()
        finally:
            self._recorded.clear()
            self._kernels.clear()
            for memory in self._buffers:
                memory.release()
            self._buffers.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the device is closed")

    def _failure(self, what: str, error: Exception, other: DeviceError | None = None) -> UnavailableError:
        """DeviceLost for the codes after which a driver accepts nothing more, OutOfMemory for buffers that a driver makes only
        when they are used, else `other`, a DeviceError of a launch."""
        text = f"{what} failed on {self._info.name}: {error}"
        if "MEM_OBJECT_ALLOCATION_FAILURE" in str(error):
            return OutOfMemory(text)
        if any(code in str(error) for code in LOST):
            return DeviceLost(text)
        return other or DeviceError("launch", text)


def _choose(cl: Any, wanted: str | None) -> Any:
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:  # the loader reports "no platform" as an error
        raise UnavailableError(f"OpenCL is not available: no driver is installed ({error}). {INSTALL}") from error
    devices: list[Any] = []
    for platform in platforms:
        try:
            devices.extend(platform.get_devices())
        except cl.Error as error:
            if "DEVICE_NOT_FOUND" not in str(error):
                raise UnavailableError(f"OpenCL platform {platform.name} cannot list its devices: {error}") from error
    if not devices:
        raise UnavailableError(f"OpenCL is not available: the installed drivers have no device. {INSTALL}")
    gpus = [i for i, d in enumerate(devices) if d.type & cl.device_type.GPU]
    index = pick("OpenCL", [d.name.strip() for d in devices], wanted, gpus[0] if gpus else 0)
    return devices[index]


def _describe(platform: str, cl: Any, device: Any) -> DeviceInfo:
    extensions = device.extensions.split()
    features = [
        feature
        for feature, extension in (("float16", "cl_khr_fp16"), ("float64", "cl_khr_fp64"), ("subgroups", "cl_khr_subgroups"))
        if extension in extensions
    ]
    return DeviceInfo(
        platform=platform,
        name=device.name.strip(),
        driver=f"{device.platform.name.strip()} {device.driver_version.strip()} ({device.version.strip()})",
        software=bool(device.type & cl.device_type.CPU),
        limits=Limits(
            max_buffer_bytes=int(device.max_mem_alloc_size),
            max_binding_bytes=int(device.max_mem_alloc_size),
            max_workgroup_invocations=int(device.max_work_group_size),
            max_workgroup_memory_bytes=int(device.local_mem_size),
            max_workgroups_per_dimension=2**31 - 1,
            max_storage_buffers=int(device.max_parameter_size) // 8,
            memory_bytes=int(device.global_mem_size),
        ),
        features=tuple(features),
    )
