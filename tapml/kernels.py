"""Compiled operators: kernel source text and everything needed to launch it without the compiler.

A `Program` is one operator for one target. It holds kernels (source text of one entry point each), and steps that
launch them in order over the operator's inputs, outputs and scratch buffers. Shapes are static, so launch sizes are
plain numbers. Programs are JSON, are cached and shipped by `digest`, and are what a device loads.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from tapml.tensors import TensorSpec

Language = Literal["opencl-c", "wgsl", "c", "cuda", "hip", "msl", "null"]
Extent = tuple[int, int, int]


@dataclass(frozen=True)
class Kernel:
    """One entry point. `access` has one item a buffer argument, in order: "read" or "read_write" ("write" counts as
    the latter). `uniform` holds 32-bit words that WGSL kernels read from the uniform binding that follows the
    buffers (empty: no such binding). `grid` counts workgroups, `block` the invocations in one."""

    language: Language
    entry: str
    source: str
    access: tuple[str, ...]
    grid: Extent
    block: Extent
    uniform: tuple[int, ...] = ()

    @cached_property
    def digest(self) -> str:
        return _digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {
            "language": self.language,
            "entry": self.entry,
            "source": self.source,
            "access": list(self.access),
            "grid": list(self.grid),
            "block": list(self.block),
            "uniform": list(self.uniform),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Kernel:
        gx, gy, gz = data["grid"]
        bx, by, bz = data["block"]
        return Kernel(
            data["language"], data["entry"], data["source"], tuple(data["access"]),
            (gx, gy, gz), (bx, by, bz), tuple(data["uniform"]),
        )


@dataclass(frozen=True)
class Argument:
    """A buffer of a step: the operator's input, output or scratch buffer number `index`."""

    role: Literal["input", "output", "scratch"]
    index: int


@dataclass(frozen=True)
class Step:
    """Launch kernel number `kernel` over these buffers, in the order of its entry point's arguments."""

    kernel: int
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Program:
    """One operator, compiled. `inputs` and `outputs` are specs as the device stores them (an int64 input of the
    operator may be int32 here): convert with `tapml.tensors.convert` on the way in and out. An output that is an
    input unchanged has no kernel: `forwards` maps output index to input index."""

    kernels: tuple[Kernel, ...]
    steps: tuple[Step, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scratch: tuple[int, ...]
    schedule: str
    forwards: tuple[tuple[int, int], ...] = ()

    @cached_property
    def digest(self) -> str:
        return _digest(self.to_json())

    def with_sources(self, sources: tuple[str, ...]) -> Program:
        """The same launches over other kernel text: how faults are injected."""
        kernels = tuple(replace(k, source=s) for k, s in zip(self.kernels, sources, strict=True))
        return replace(self, kernels=kernels)

    def to_json(self) -> dict[str, Any]:
        return {
            "kernels": [k.to_json() for k in self.kernels],
            "steps": [[s.kernel, [[a.role, a.index] for a in s.arguments]] for s in self.steps],
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "scratch": list(self.scratch),
            "schedule": self.schedule,
            "forwards": [list(pair) for pair in self.forwards],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Program:
        return Program(
            kernels=tuple(Kernel.from_json(k) for k in data["kernels"]),
            steps=tuple(Step(k, tuple(Argument(r, i) for r, i in args)) for k, args in data["steps"]),
            inputs=tuple(TensorSpec.from_json(t) for t in data["inputs"]),
            outputs=tuple(TensorSpec.from_json(t) for t in data["outputs"]),
            scratch=tuple(data["scratch"]),
            schedule=data["schedule"],
            forwards=tuple((o, i) for o, i in data["forwards"]),
        )


def _digest(data: dict[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
