"""Vulkan and WebGPU by wgpu (wgpu-native), which takes WGSL.

Platform "vulkan" uses a Vulkan adapter with all the limits that it has. Platform "webgpu" uses any native adapter (Vulkan, Metal,
Direct3D 12) and holds it to the limits that every browser guarantees, buffer sizes excepted, so that what runs here runs in a
page; what browsers refuse and wgpu does not is left to the browser's own device.

A kernel's buffers are bindings 0, 1, … of group 0, its uniform words the binding after them. One batch is one compute pass in
one submission; bind groups are kept by (kernel, buffers). Waiting is done by reading a few bytes back, since wgpu's
own call for it fails.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tapml.devices.handles import Handles, check_binding, check_language, check_range
from tapml.devices.interface import DeviceInfo, Launch, ReadsInTurn
from tapml.devices.pick import pick
from tapml.errors import DeviceError, DeviceLost, OutOfMemory, UnavailableError
from tapml.kernels import Kernel
from tapml.languages.wgsl import LANGUAGE
from tapml.limits import Limits
from tapml.runtime.buffers import padded

INSTALL = (
    "Install the GPU's own driver, or Mesa's software Vulkan for one that runs on the processor "
    "(Debian, Ubuntu: apt install mesa-vulkan-drivers)."
)

# What every WebGPU adapter has (W3C WebGPU, section 3.6.2 "Limits", column Default), as wgpu spells it.
GUARANTEED = {
    "max-storage-buffers-per-shader-stage": 8,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-size-x": 256,
    "max-compute-workgroup-size-y": 256,
    "max-compute-workgroup-size-z": 64,
    "max-compute-workgroup-storage-size": 16384,
    "max-compute-workgroups-per-dimension": 65535,
}

# Uploads and downloads go in pieces of this many bytes, so that staging memory stays small.
PIECE = 32 * 2**20

KIND_ORDER = {"DiscreteGPU": 0, "IntegratedGPU": 1, "VirtualGPU": 2, "CPU": 3}


@dataclass
class _Buffer:
    """`used` are the keys of the bind groups that hold it."""

    memory: Any
    size: int
    nbytes: int
    used: set[tuple[int, tuple[int, ...]]] = field(default_factory=set)


@dataclass(frozen=True)
class _Loaded:
    entry: str
    access: tuple[str, ...]
    grid: tuple[int, int, int]
    pipeline: Any
    layout: Any
    uniform: Any | None


class GpuDevice(ReadsInTurn):
    """Implements `tapml.devices.interface.Device`. Raises UnavailableError when wgpu or an adapter is missing, TargetError when
    `device` matches none."""

    def __init__(self, platform: str, language: str = LANGUAGE.name, device: str | None = None) -> None:
        try:
            import wgpu
        except (ImportError, OSError, RuntimeError) as error:
            raise UnavailableError(
                f"{platform} is not available: wgpu cannot be imported ({error}). Try: pip install 'tapml[wgpu]'"
            ) from error
        self._wgpu: Any = wgpu
        adapter = _adapter(wgpu, platform, device)
        limits = {k: v for k, v in adapter.limits.items() if k.startswith("max-compute") or "storage-buffer" in k}
        limits["max-buffer-size"] = adapter.limits["max-buffer-size"]
        if platform == "webgpu":
            limits |= {k: min(v, adapter.limits[k]) for k, v in GUARANTEED.items()}
        features = [f for f in ("shader-f16", "subgroup") if f in adapter.features]
        try:
            self._device = adapter.request_device_sync(required_features=features, required_limits=limits)
        except Exception as error:  # wgpu raises bare RuntimeError and its own types here
            raise UnavailableError(f"{platform} adapter {adapter.info['device']} provides no device: {error}") from error
        self._queue: Any = self._device.queue
        self._language = language
        self._info = _describe(platform, adapter, self._device)
        self._buffers: Handles[_Buffer] = Handles("buffer")
        self._kernels: Handles[_Loaded] = Handles("kernel")
        self._groups: dict[tuple[int, tuple[int, ...]], Any] = {}
        self._usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        self._fence: Any = self._device.create_buffer(size=4, usage=self._usage)
        self._closed = False

    @property
    def info(self) -> DeviceInfo:
        return self._info

    def allocate(self, nbytes: int) -> int:
        self._check_open()
        size = padded(nbytes)
        largest = self._info.limits.largest_buffer
        if largest is not None and size > largest:
            raise DeviceError("launch", f"a buffer of {size} bytes is more than {self._info.name} can bind ({largest})")
        try:
            memory = self._device.create_buffer(size=size, usage=self._usage)
        except self._wgpu.GPUError as error:
            raise self._failure(f"allocating {size} bytes", error) from error
        return self._buffers.add(_Buffer(memory, size, nbytes))

    def free(self, buffer: int) -> None:
        item = self._buffers.pop(buffer)
        for key in item.used:
            self._groups.pop(key, None)
        item.memory.destroy()

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        item = self._buffers[buffer]
        view = memoryview(data).cast("B")
        end = offset + view.nbytes
        check_range(item.size, offset, view.nbytes)
        if not view.nbytes:
            return
        if offset % 4 or (end % 4 and end != item.nbytes):
            view, offset = self._whole_words(item, view, offset), offset // 4 * 4
        elif end % 4:
            view = memoryview(bytes(view) + bytes(-end % 4))
        try:
            for start in range(0, view.nbytes, PIECE):
                self._queue.write_buffer(item.memory, offset + start, view[start : start + PIECE])
                if view.nbytes > PIECE:
                    self._queue.submit([])  # hands the staging memory on, instead of piling it up
        except self._wgpu.GPUError as error:
            raise self._failure("write", error) from error

    def _whole_words(self, item: _Buffer, view: memoryview, offset: int) -> memoryview:
        """The words that the bytes lie in, with what the buffer holds around them: copies go by 32-bit words only."""
        first, last = offset // 4 * 4, (offset + view.nbytes + 3) // 4 * 4
        words = bytearray(self._download(item, first, last - first))
        words[offset - first : offset - first + view.nbytes] = view
        return memoryview(words)

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        item = self._buffers[buffer]
        check_range(item.size, offset, nbytes)
        if not nbytes:
            return b""
        first, last = offset // 4 * 4, (offset + nbytes + 3) // 4 * 4
        data = self._download(item, first, last - first)
        return bytes(data[offset - first : offset - first + nbytes])

    def _download(self, item: _Buffer, offset: int, nbytes: int) -> bytearray | memoryview:
        """Bytes of a buffer; offset and size are multiples of 4."""
        try:
            if nbytes <= PIECE:
                return memoryview(self._queue.read_buffer(item.memory, offset, nbytes)).cast("B")
            data = bytearray(nbytes)
            for start in range(0, nbytes, PIECE):
                size = min(PIECE, nbytes - start)
                data[start : start + size] = self._queue.read_buffer(item.memory, offset + start, size)
            return data
        except (self._wgpu.GPUError, RuntimeError) as error:
            raise self._failure("read", error) from error

    def load(self, kernel: Kernel) -> int:
        self._check_open()
        check_language(self._info.platform, self._language, kernel)
        types = ["read-only-storage" if mode == "read" else "storage" for mode in kernel.access]
        uniform = None
        try:
            if kernel.uniform:
                types.append("uniform")
                words = struct.pack(f"<{len(kernel.uniform)}I", *(word & 0xFFFFFFFF for word in kernel.uniform))
                uniform = self._device.create_buffer_with_data(
                    data=words + bytes(-len(words) % 16), usage=self._wgpu.BufferUsage.UNIFORM
                )
            module = self._device.create_shader_module(code=kernel.source)
            layout = self._device.create_bind_group_layout(
                entries=[
                    {"binding": i, "visibility": self._wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}}
                    for i, kind in enumerate(types)
                ]
            )
            pipeline = self._device.create_compute_pipeline(
                layout=self._device.create_pipeline_layout(bind_group_layouts=[layout]),
                compute={"module": module, "entry_point": kernel.entry},
            )
        except (self._wgpu.GPUError, self._wgpu.GPUPipelineError) as error:
            refused = DeviceError("driver", f"{self._info.name} refused kernel {kernel.entry}: {error}")
            raise self._failure(f"loading {kernel.entry}", error, refused) from error
        return self._kernels.add(_Loaded(kernel.entry, kernel.access, kernel.grid, pipeline, layout, uniform))

    def unload(self, kernel: int) -> None:
        self._kernels.pop(kernel)
        for key in [key for key in self._groups if key[0] == kernel]:
            del self._groups[key]
            for buffer in key[1]:
                self._buffers[buffer].used.discard(key)

    def run(self, batch: Sequence[Launch]) -> None:
        self._check_open()
        if not batch:
            return
        plan = [(self._kernels[launch.kernel], self._group(launch)) for launch in batch]
        try:
            encoder = self._device.create_command_encoder()
            work = encoder.begin_compute_pass()
            current = None
            for loaded, group in plan:
                if loaded is not current:
                    work.set_pipeline(loaded.pipeline)
                    current = loaded
                work.set_bind_group(0, group)
                work.dispatch_workgroups(*loaded.grid)
            work.end()
            self._queue.submit([encoder.finish()])
        except self._wgpu.GPUError as error:
            names = ", ".join(dict.fromkeys(loaded.entry for loaded, _ in plan))
            raise self._failure(f"launch of {names[:200]}", error) from error

    def _group(self, launch: Launch) -> Any:
        """The bind group of a launch, made at its first use."""
        key = (launch.kernel, launch.buffers)
        group = self._groups.get(key)
        if group is not None:
            return group
        loaded = self._kernels[launch.kernel]
        check_binding(loaded.entry, loaded.access, launch.buffers)
        items = [self._buffers[buffer] for buffer in launch.buffers]
        memories = [item.memory for item in items] + ([loaded.uniform] if loaded.uniform is not None else [])
        try:
            group = self._device.create_bind_group(
                layout=loaded.layout,
                entries=[
                    {"binding": i, "resource": {"buffer": memory, "offset": 0, "size": memory.size}}
                    for i, memory in enumerate(memories)
                ],
            )
        except self._wgpu.GPUError as error:
            raise self._failure(f"binding buffers to {loaded.entry}", error) from error
        for item in items:
            item.used.add(key)
        self._groups[key] = group
        return group

    def synchronize(self) -> None:
        self._check_open()
        try:
            self._queue.read_buffer(self._fence)
        except (self._wgpu.GPUError, RuntimeError) as error:
            raise self._failure("wait", error) from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._groups.clear()
        self._kernels.clear()
        for item in self._buffers:
            item.memory.destroy()
        self._buffers.clear()
        self._device.destroy()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the device is closed")

    def _failure(self, what: str, error: Exception, other: DeviceError | None = None) -> UnavailableError:
        """What an error of the driver means: the device is lost, has no room, or else `other`, a DeviceError of a launch."""
        text = f"{what} failed on {self._info.name}: {error}"
        if "lost" in str(error).lower():
            return DeviceLost(text)
        if isinstance(error, MemoryError):  # wgpu's GPUOutOfMemoryError is one
            return OutOfMemory(text)
        return other or DeviceError("launch", text)


def _adapter(wgpu: Any, platform: str, wanted: str | None) -> Any:
    """The adapter to use: hardware before software, and in the order that the driver lists them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adapters = wgpu.gpu.enumerate_adapters_sync()
        except Exception as error:  # a loader without drivers raises RuntimeError, a broken one anything
            raise UnavailableError(f"{platform} is not available: wgpu cannot list adapters ({error}). {INSTALL}") from error
    native = ("Vulkan",) if platform == "vulkan" else ("Vulkan", "Metal", "D3D12")
    fitting = [a for a in adapters if a.info["backend_type"] in native]
    if not fitting:
        others = ", ".join(f"{a.info['device']} ({a.info['backend_type']})" for a in adapters) or "none"
        raise UnavailableError(f"{platform} is not available: no adapter for it (adapters: {others}). {INSTALL}")
    best = min(range(len(fitting)), key=lambda i: KIND_ORDER.get(fitting[i].info["adapter_type"], 2))
    return fitting[pick(platform, [a.info["device"] for a in fitting], wanted, best)]


def _describe(platform: str, adapter: Any, device: Any) -> DeviceInfo:
    info, limits = adapter.info, device.limits
    names = (("float16", "shader-f16"), ("subgroups", "subgroup"))
    driver = f"{info['backend_type']}, {info['description']}" if info["description"] else info["backend_type"]
    return DeviceInfo(
        platform=platform,
        name=info["device"],
        driver=driver,
        software=info["adapter_type"] == "CPU",
        limits=Limits(
            max_buffer_bytes=limits["max-buffer-size"],
            max_binding_bytes=limits["max-storage-buffer-binding-size"],
            max_workgroup_invocations=limits["max-compute-invocations-per-workgroup"],
            max_workgroup_memory_bytes=limits["max-compute-workgroup-storage-size"],
            max_workgroups_per_dimension=limits["max-compute-workgroups-per-dimension"],
            max_storage_buffers=limits["max-storage-buffers-per-shader-stage"],
        ),
        features=tuple(name for name, feature in names if feature in device.features),
    )
