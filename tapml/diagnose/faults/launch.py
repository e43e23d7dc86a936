"""Faults of launches: right kernels, wrongly started.

    rewrite = SHORT_GRID.place(operator, body, site)        None where all kernels have one workgroup
"""

from __future__ import annotations

from dataclasses import replace

from tapml.backends.rewrite import Rewrite
from tapml.diagnose.faults.fault import FaultClass, Site, without_threads
from tapml.diagnose.faults.placed import OtherProgram
from tapml.kernels import Extent, Program
from tapml.operators.graph import Body, Operator


def without_last_workgroup(program: Program) -> Program:
    """The kernel with the most workgroups is launched with one fewer along its longest dimension. The very same program where no
    kernel has two."""
    number = max(range(len(program.kernels)), key=lambda k: max(program.kernels[k].grid), default=None)
    if number is None or max(program.kernels[number].grid) < 2:
        return program
    kernel = program.kernels[number]
    kernels = list(program.kernels)
    kernels[number] = replace(kernel, grid=_shorter(kernel.grid))
    return replace(program, kernels=tuple(kernels))


def _shorter(grid: Extent) -> Extent:
    longest = grid.index(max(grid))
    x, y, z = (n - (k == longest) for k, n in enumerate(grid))
    return (x, y, z)


def _place(operator: Operator, body: Body, site: Site) -> Rewrite | None:
    if site.program is None or without_last_workgroup(site.program) is site.program:
        return None
    return OtherProgram(12, operator.name, site.target.name, without_last_workgroup)


SHORT_GRID = FaultClass(
    12, "short-grid", "the last workgroup is not launched", "launch", "launch",
    "The number of workgroups rounded down where it should be rounded up, or cut off at a dimension's limit. The limit itself, "
    "65,535 on many a GPU, is not reached by models of this size; what is lost beyond it is lost here at the end.",
    ("ggml-org/llama.cpp#19965", "pytorch/executorch#20583", "ml-explore/mlx#4250"),
    without_threads("kernels for the processor are one launch of one thread"),
    _place,
)

CLASSES = (SHORT_GRID,)
