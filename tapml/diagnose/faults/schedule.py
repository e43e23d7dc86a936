"""Faults of how work is spread over threads: barriers, shared memory, subgroups. The same schedule has them on every GPU target.

    rewrite = MISSING_BARRIER.place(operator, body, site)       None where the schedule needs no barrier

They need work items that wait for each other, so the operator is compiled with "dlight", whatever the target's order is. The
compiler's fallbacks, which have no barriers, are never touched (`tapml.compile.mutations`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tapml.backends.rewrite import Rewrite
from tapml.diagnose.faults.fault import FaultClass, Site, cannot, without_threads
from tapml.diagnose.faults.placed import Mutated
from tapml.kernels import Kernel, Program
from tapml.languages import LANGUAGES
from tapml.operators.graph import Body, Operator
from tapml.targets.schedules import WAITING

SCHEDULE = WAITING

_MASKED = ("aten.scaled_dot_product_attention.default", "aten.softmax.int", "aten._softmax.default")
_IN_STEP = "{} run in step there, which is what the fault takes for granted"
_ZEROS = "{} sets private and workgroup memory to zero before use, so that a sum is right without its first value"
_ONE_THREAD = "kernels for the processor are scheduled for one thread: nothing waits for anything"


def _waits(body: Body, program: Program) -> bool:
    return any(LANGUAGES[kernel.language].waits(kernel.source) for kernel in program.kernels)


def _reduces(body: Body, program: Program) -> bool:
    """Whether lanes add up over shared memory, halving their number at each step, and all of them hold something: in a softmax
    over a cache that is not full, most hold zeros, and nothing is lost with them."""
    if any(node.target in _MASKED for node in body.nodes):
        return False
    return any(LANGUAGES[kernel.language].waits(kernel.source) and _halves(kernel) for kernel in program.kernels)


def _halves(kernel: Kernel) -> bool:
    return re.search(rf"if \(.*(?:{LANGUAGES[kernel.language].lane}).* < 8i?\) \{{", kernel.source) is not None


def _placed(
    number: int, mutation: str, has: Callable[[Body, Program], bool]
) -> Callable[[Operator, Body, Site], Rewrite | None]:
    def place(operator: Operator, body: Body, site: Site) -> Rewrite | None:
        program = site.compile(SCHEDULE) if LANGUAGES[site.target.language].threads else None
        if program is None or not has(body, program):
            return None
        return Mutated(number, operator.name, mutation, SCHEDULE)

    return place


MISSING_BARRIER = FaultClass(
    5, "missing-barrier", "threads read shared memory before others wrote it", "schedule", "schedule",
    "A barrier left out. Here all of a kernel's are, so that drivers that run one work item after another show it each time; "
    "with one missing, a GPU would pass most runs.",
    ("pytorch/executorch#17309", "pytorch/executorch#20915", "ggml-org/llama.cpp#20084"), without_threads(_ONE_THREAD),
    _placed(5, "missing-barriers", _waits),
)
EARLY_RETURN = FaultClass(
    6, "early-return", "half of the threads leave before a barrier", "schedule", "schedule",
    "A thread that returns early while others wait for it. What then happens is undefined: PoCL's process dies, llvmpipe goes on "
    "without it, so that sums lack what it had; other drivers may hang, or refuse the kernel.",
    ("pytorch/executorch#22326",), without_threads(_ONE_THREAD),
    _placed(6, "early-return", _reduces),
)
UNINITIALISED = FaultClass(
    8, "uninitialised-accumulator", "sums start from what lay in memory", "schedule", "schedule",
    "Registers or shared memory that are used before they are set.",
    ("mlc-ai/mlc-llm#2694", "gfx-rs/wgpu#4591"),
    without_threads(_ONE_THREAD)
    | cannot(lambda language: _ZEROS.format(language.title) if language.zeroes_memory else ""),
    _placed(8, "uninitialised-accumulators", _waits),
)
ASSUMED_SUBGROUP = FaultClass(
    9, "assumed-subgroup", "32 threads are taken to run in step", "schedule", "schedule",
    "The last steps of a reduction without barriers, as is common where subgroups have 32 lanes, on a platform whose subgroups "
    "are smaller or that has none.",
    ("ggml-org/llama.cpp#10809", "ggml-org/llama.cpp#17356", "apache/tvm#16192"),
    without_threads(_ONE_THREAD)
    | cannot(lambda language: _IN_STEP.format(language.lanes_in_step) if language.lanes_in_step else ""),
    _placed(9, "assumed-subgroup", _reduces),
)

CLASSES = (MISSING_BARRIER, EARLY_RETURN, UNINITIALISED, ASSUMED_SUBGROUP)
