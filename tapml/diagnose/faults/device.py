"""Faults of the platform: it claims more than it can do.

The kernels were compiled within the limits that the device claimed. The device as it really is refuses to launch one
operator, in the way that WebGPU's validation does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from tapml.backends.rewrite import Rewrite
from tapml.devices.interface import Device, DeviceInfo, Launch, Part
from tapml.diagnose.faults.fault import FaultClass, Site, cannot
from tapml.errors import DeviceError
from tapml.kernels import Kernel, Program
from tapml.operators.graph import Body, Operator

_POINTERS = "kernels get plain pointers: there are no bindings, and no limit on one"

# A comment in the kernel tells one operator's launches from those of others with the same text.
_MARK = "// bound as "


class SmallBindings:
    """A `Device` that refuses to launch marked kernels with a binding of more than `limit` bytes; all else passes through."""

    def __init__(self, device: Device, mark: str, limit: int) -> None:
        self._device = device
        self._mark = mark
        self._limit = limit
        self._sizes: dict[int, int] = {}
        self._entries: dict[int, str] = {}

    @property
    def info(self) -> DeviceInfo:
        return self._device.info

    def allocate(self, nbytes: int) -> int:
        buffer = self._device.allocate(nbytes)
        self._sizes[buffer] = nbytes
        return buffer

    def free(self, buffer: int) -> None:
        self._sizes.pop(buffer, None)
        self._device.free(buffer)

    def write(self, buffer: int, data: bytes | memoryview, offset: int = 0, keep: bool = False) -> None:
        self._device.write(buffer, data, offset, keep)

    def read(self, buffer: int, nbytes: int, offset: int = 0) -> bytes:
        return self._device.read(buffer, nbytes, offset)

    def read_many(self, parts: Sequence[Part]) -> list[bytes]:
        return self._device.read_many(parts)

    def load(self, kernel: Kernel) -> int:
        handle = self._device.load(kernel)
        if kernel.source.endswith(self._mark):
            self._entries[handle] = kernel.entry
        return handle

    def unload(self, kernel: int) -> None:
        self._entries.pop(kernel, None)
        self._device.unload(kernel)

    def run(self, batch: Sequence[Launch]) -> None:
        for launch in batch:
            for index, buffer in enumerate(launch.buffers if launch.kernel in self._entries else ()):
                size = self._sizes.get(buffer, 0)
                if size > self._limit:
                    raise DeviceError(
                        "launch",
                        f"kernel {self._entries[launch.kernel]}: binding {index} has {size} bytes, and the most that this device "
                        f"binds is {self._limit}",
                    )
        self._device.run(batch)

    def synchronize(self) -> None:
        self._device.synchronize()

    def close(self) -> None:
        self._device.close()


class LowLimit(Rewrite):
    """The limit of a binding lies just below the largest one of one operator."""

    def __init__(self, operator: str, limit: int) -> None:
        digest = hashlib.blake2b(f"binding limit\0{operator}\0{limit}".encode(), digest_size=16).hexdigest()
        super().__init__(f"fault 11 (bindings of at most {limit} bytes) at {operator}", digest)
        self._operator = operator
        self._limit = limit
        self._mark = f"\n{_MARK}{operator}\n"

    def program(self, operator: str, target: str, program: Program) -> Program:
        if operator != self._operator:
            return program
        return replace(program, kernels=tuple(replace(k, source=k.source + self._mark) for k in program.kernels))

    def device(self, device: Device) -> Device:
        return SmallBindings(device, self._mark, self._limit)


def _low_limit(operator: Operator, body: Body, site: Site) -> LowLimit | None:
    if site.program is None:
        return None
    sizes = {"input": site.program.inputs, "output": site.program.outputs}
    bound = [
        site.program.scratch[a.index] if a.role == "scratch" else sizes[a.role][a.index].nbytes
        for step in site.program.steps for a in step.arguments
    ]
    return LowLimit(operator.name, max(bound) - 1) if bound and max(bound) > 1 else None


_CANNOT = cannot(lambda language: _POINTERS if language.plain_pointers else "")

CLASSES = (
    FaultClass(
        number=11, name="binding-limit", title="a buffer is larger than the device can bind",
        level="launch", stage="launch",
        imitates="A device that claims more than the 128 MiB (or less) that it binds, met by the embedding or the head. Here any "
        "operator can meet it: the limit is put one byte below its largest binding, and holds for this operator's launches only.",
        seen_in=("mlc-ai/web-llm#119", "apache/tvm#16108", "apache/tvm#17150"), cannot=dict(_CANNOT), place=_low_limit,
    ),
)
