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

from tapml import strict
from tapml.languages import LANGUAGES, Extent
from tapml.tensors import TensorSpec

__all__ = ["Argument", "Extent", "Kernel", "Program", "Step"]

_ROLES = ("input", "output", "scratch")
_LONGEST_SOURCE = 64_000_000


@dataclass(frozen=True)
class Kernel:
    """One entry point, in the language of that name in `tapml.languages`. `access` has one item a buffer argument, in order:
    "read" or "read_write" ("write" counts as the latter). `uniform` holds 32-bit words that WGSL kernels read from the uniform
    binding that follows the buffers (empty: no such binding). `grid` counts workgroups, `block` the invocations in one."""

    language: str
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
        """Raises ValueError, KeyError or TypeError for what is no kernel."""
        (gx, gy, gz), (bx, by, bz) = (strict.several(strict.whole, data, key) for key in ("grid", "block"))
        return Kernel(
            strict.one_of(data, "language", tuple(LANGUAGES)), strict.text(data, "entry", strict.LONGEST_NAME),
            strict.text(data, "source", _LONGEST_SOURCE), strict.several(strict.text, data, "access"),
            (gx, gy, gz), (bx, by, bz), strict.several(strict.whole, data, "uniform", -(2**32), 2**32),
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
        """Raises ValueError, KeyError or TypeError for what is no program."""
        whole, items = strict.whole, strict.items
        kernels = tuple(Kernel.from_json(k) for k in items(data, "kernels"))
        steps = [(whole(step, 0, 0, len(kernels) - 1), items(step, 1)) for step in items(data, "steps")]
        return Program(
            kernels=kernels,
            steps=tuple(Step(k, tuple(Argument(strict.one_of(a, 0, _ROLES), whole(a, 1)) for a in args)) for k, args in steps),
            inputs=tuple(TensorSpec.from_json(t) for t in items(data, "inputs")),
            outputs=tuple(TensorSpec.from_json(t) for t in items(data, "outputs")),
            scratch=strict.several(whole, data, "scratch"),
            schedule=strict.text(data, "schedule"),
            forwards=tuple((whole(pair, 0), whole(pair, 1)) for pair in items(data, "forwards")),
        )


def _digest(data: dict[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
