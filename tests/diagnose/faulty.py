"""Faults for the tests of bisection: kernels that scale their result, and devices that are wrong, or die, at a marked kernel."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tapml.backends.rewrite import Rewrite
from tapml.devices.interface import Device, Launch
from tapml.kernels import Kernel, Program
from tapml.tensors import HostArray

# The store of a result, in OpenCL C and in WGSL.
STORE = re.compile(r"(out\d+_ptr\[.*\]) = (.+);")

MARK = "// marked"


class Scaled(Rewrite):
    """The kernels of some operators multiply what they store by a factor."""

    def __init__(self, factors: Mapping[str, float]) -> None:
        super().__init__(f"scaled {dict(factors)}", f"scaled {sorted(factors.items())}")
        self.factors = dict(factors)

    def program(self, operator: str, target: str, program: Program) -> Program:
        factor = self.factors.get(operator)
        if factor is None:
            return program
        source, count = STORE.subn(rf"\1 = (\2) * {factor!r}f;", program.kernels[-1].source)
        assert count, f"no store was found in the kernel of {operator}"
        return program.with_sources((*(k.source for k in program.kernels[:-1]), source))


class Handed(Rewrite):
    """Positions are off by one on their way to the device, in one graph."""

    def __init__(self, graph: str) -> None:
        super().__init__(f"handed over wrongly in {graph}", f"handed {graph}")
        self.graph = graph

    def value(self, graph: str, name: str, array: HostArray) -> HostArray:
        return array + 1 if (graph, name) == (self.graph, "position_ids") else array


class OnDevice(Rewrite):
    """A device that does something whenever it launched the last kernel of an operator."""

    def __init__(self, name: str, strike: Callable[[Device, Kernel, Launch], None]) -> None:
        super().__init__(f"device at {name}", f"device at {name}")
        self.name = name
        self.strike = strike

    def program(self, operator: str, target: str, program: Program) -> Program:
        if operator != self.name:
            return program
        last = program.kernels[-1]
        return replace(program, kernels=(*program.kernels[:-1], replace(last, source=f"{last.source}\n{MARK}\n")))

    def device(self, device: Device) -> Device:
        found: Any = _Struck(device, self.strike)
        return found  # type: ignore[no-any-return]


class _Struck:
    def __init__(self, device: Device, strike: Callable[[Device, Kernel, Launch], None]) -> None:
        self._device = device
        self._strike = strike
        self._marked: dict[int, Kernel] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def load(self, kernel: Kernel) -> int:
        handle = self._device.load(kernel)
        if MARK in kernel.source:
            self._marked[handle] = kernel
        return handle

    def run(self, batch: Sequence[Launch]) -> None:
        done = 0
        for index, launch in enumerate(batch, 1):
            if launch.kernel in self._marked:
                self._device.run(batch[done:index])
                done = index
                self._strike(self._device, self._marked[launch.kernel], launch)
        if done < len(batch):
            self._device.run(batch[done:])


def doubled_at_times(share: float, seed: int) -> Callable[[Device, Kernel, Launch], None]:
    """Doubles the first float of what the kernel wrote, in a share of the launches."""
    coin = random.Random(seed)

    def strike(device: Device, kernel: Kernel, launch: Launch) -> None:
        if coin.random() < share:
            written = launch.buffers[[a != "read" for a in kernel.access].index(True)]
            first = np.frombuffer(device.read(written, 4), np.float32)
            device.write(written, (first * 2 + 1).tobytes())

    return strike
