"""Launch sizes: whether they are within a device's limits, and whether the same text is right with more workgroups.

    for words, program in larger_grids(program): ...        "1 more workgroup along each axis", and the program

A kernel whose launch is too small leaves elements unwritten, and the same text with more workgroups writes them. A launch that
was large enough gains nothing by more: threads beyond the end are stopped by the kernel's own condition, or write behind the end
of their buffers, so these programs must be run in buffers with room behind them (`tapml.diagnose.probes.guard_bytes`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from tapml.backends.on_device import with_kernels
from tapml.devices.interface import DeviceInfo
from tapml.diagnose.probes.evidence import Evidence, Finding
from tapml.diagnose.probes.guard_bytes import answer
from tapml.diagnose.probes.probe import Probe, Subject
from tapml.diagnose.probes.shots import judge
from tapml.kernels import Extent, Kernel, Program
from tapml.languages import LANGUAGES

_Change = Callable[[Extent], Extent]


class Limits(Probe):
    name = "limits"
    question = "Are the launch sizes and bindings within what the device says it has?"
    right = "Its launches fit the device."
    wrong = "It asks for more than the device has."
    start = "its launches fit the device"
    always = True
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        words = beyond_limits(with_kernels(subject.program), subject.bench.info)
        return self.gave("wrong" if words else "right", words, subject.bench.info.name)


class Grid(Probe):
    name = "grid"
    question = "Is the same text right with more workgroups?"
    right = "The same text is right with more workgroups: too few were launched."
    wrong = "More workgroups do not help: the launch is large enough."
    wrong_is_open = True
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        if subject.first.lost or subject.writes_beyond:
            return self.not_run("more workgroups would do no less harm", subject.here)
        if subject.first.flaky:
            return self.not_run("the fault is intermittent, so that a right answer would prove nothing", subject.here)
        tried: list[str] = []
        for words, larger in larger_grids(with_kernels(subject.program)):
            room = min(max([1 << 16, *(s.nbytes for s in larger.outputs)]), 1 << 26)
            once = partial(answer, subject.bench, larger, subject.trial, guard=room)
            shot = judge(subject.trial, [once] * subject.repeats)
            if shot.outcome == "right":
                subject.findings.append(Finding("launch size", f"right with {words}"))
                return self.of_shot(shot, subject.here)
            tried.append(words)
        if not tried:
            return self.not_run("the platform has no workgroups", subject.here)
        return self.gave("wrong", f"wrong with {'; '.join(tried)}", subject.here)


def larger_grids(program: Program) -> Iterator[tuple[str, Program]]:
    """Programs with more workgroups, the smallest change first, and words for each. None for a language without workgroups."""
    if any(not LANGUAGES[kernel.language].threads for kernel in program.kernels) or not program.kernels:
        return
    yield "1 more workgroup along each axis", _with(program, lambda g: (g[0] + 1, g[1] + 1, g[2] + 1))
    for axis, name in enumerate("xyz"):
        yield f"1 more workgroup along {name}", _with(program, lambda g, a=axis: _plus(g, a, 1))  # type: ignore[misc]
    yield "twice the workgroups along x", _with(program, lambda g: _plus(g, 0, g[0]))


def beyond_limits(program: Program, info: DeviceInfo) -> str:
    """What of a program is more than the device says it has, "" where nothing is."""
    limits = info.limits
    found: list[str] = []
    for kernel in program.kernels:
        for what, need, most in (
            ("invocations in a workgroup", math.prod(kernel.block), limits.max_workgroup_invocations),
            ("workgroups along a dimension", max(kernel.grid), limits.max_workgroups_per_dimension),
            ("buffers", len(kernel.access), limits.max_storage_buffers),
        ):
            if most is not None and need > most:
                found.append(f"kernel {kernel.entry} asks for {need} {what}, and {info.name} has {most}")
    largest = max([s.nbytes for s in (*program.inputs, *program.outputs)] + list(program.scratch), default=0)
    for name in ("max_buffer_bytes", "max_binding_bytes"):
        most = getattr(limits, name)
        if most is not None and largest > most:
            found.append(f"a buffer of {largest} bytes is bound, and {info.name} has {most} ({name})")
    return "; ".join(found)


def _plus(grid: Extent, axis: int, more: int) -> Extent:
    x, y, z = (n + more * (k == axis) for k, n in enumerate(grid))
    return (x, y, z)


def _with(program: Program, change: _Change) -> Program:
    return replace(program, kernels=tuple(_enlarged(kernel, change(kernel.grid)) for kernel in program.kernels))


def _enlarged(kernel: Kernel, grid: Extent) -> Kernel:
    """WGSL kernels are told the number of the last workgroup along x, and stop behind it: that grows along where the grid is
    what it was computed from."""
    if len(kernel.uniform) == 1 and kernel.grid[2] == 1 and kernel.uniform[0] == kernel.grid[0] - 1:
        return replace(kernel, grid=grid, uniform=(grid[0] * grid[2] - 1,))
    return replace(kernel, grid=grid)
