"""Faults in the text of one operator's kernels on one target: what a wrong code generator, or a wrong hand, leaves behind.

    rewrite = UNCLAMPED_TANH.place(operator, body, site)        None where the text has no tanh

The edits are in `text_edits.py`. They apply to whatever schedule the operator is compiled with, so that a fault of the text stays
one when triage tries another schedule; on other targets the operator is as it was. So is every other operator on this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tapml.backends.rewrite import Rewrite
from tapml.diagnose.faults import text_edits
from tapml.diagnose.faults.fault import FaultClass, Site, without_threads
from tapml.diagnose.faults.placed import OtherProgram
from tapml.diagnose.faults.source_text import KernelText, names
from tapml.kernels import Program
from tapml.operators.graph import Body, Operator

Edit = Callable[[KernelText], str]
_ROUNDS = ("aten.round.default", "aten.round.decimals")
_SOFTMAX = ("aten.scaled_dot_product_attention.default", "aten.softmax.int", "aten._softmax.default")
_NO_VECTORS = without_threads("kernels for the processor are scheduled for one thread and have no vectors")


def edited(program: Program, edit: Edit, every: bool) -> Program:
    """The program with its kernels' text edited: every kernel, or only the first in which the edit finds something. The very same
    program where it finds nothing."""
    sources = [kernel.source for kernel in program.kernels]
    for number, kernel in enumerate(program.kernels):
        sources[number] = edit(KernelText(kernel.source, kernel.language, elements(program, number)))
        if sources[number] != kernel.source and not every:
            break
    if all(kernel.source == source for kernel, source in zip(program.kernels, sources, strict=True)):
        return program
    return program.with_sources(tuple(sources))


def elements(program: Program, number: int) -> dict[str, int]:
    """How many elements each buffer of a kernel has, by the name that it has in the text. Scratch counts in words of 4 bytes."""
    found: dict[str, int] = {}
    for step in program.steps:
        if step.kernel == number:
            for name, argument in zip(names(program.kernels[number].source), step.arguments, strict=True):
                if argument.role == "scratch":
                    size = program.scratch[argument.index] // 4
                else:
                    specs = program.inputs if argument.role == "input" else program.outputs
                    size = math.prod(specs[argument.index].shape)
                found[name] = max(size, found.get(name, 0))
    return found


def _placed(
    number: int, edit: Edit, targets: Sequence[str] = (), every: bool = False
) -> Callable[[Operator, Body, Site], Rewrite | None]:
    """`place` for an edit: in operators that call one of `targets` (any operator without), whose program it changes."""

    def other(program: Program) -> Program:
        return edited(program, edit, every)

    def place(operator: Operator, body: Body, site: Site) -> Rewrite | None:
        if site.program is None or (targets and not any(node.target in targets for node in body.nodes)):
            return None
        if other(site.program) is site.program:
            return None
        return OtherProgram(number, operator.name, site.target.name, other)

    return place


UNCLAMPED_TANH = FaultClass(
    1, "unclamped-tanh", "tanh as (exp(2x) - 1) / (exp(2x) + 1), which overflows", "kernel text", "codegen",
    "A built-in tanh, as in GELU, that takes exp of an argument without limit and gives NaN where it overflows. In float32 that "
    "takes an argument beyond 44, a GELU of more than 10 or so; inputs around 1 give the right answer.",
    ("apache/tvm#16438", "pytorch/executorch#22323", "ggml-org/llama.cpp#10723"), {},
    _placed(1, text_edits.unclamped_tanh, every=True),
)
OUT_OF_BOUNDS_READ = FaultClass(
    7, "out-of-bounds-read", "a loop over an input makes one step too many", "kernel text", "codegen",
    "A bound that is out of date: each sum takes in one element, or one vector, of the next row, and the last row's lies beyond "
    "the buffer, where one platform gives zero, one the nearest element, and one what is there. Placed where inputs have several "
    "rows, since a read of the latter kind alone may give the right answer.",
    ("tracel-ai/cubecl#296", "pytorch/executorch#18558", "apache/tvm#16703"), {},
    _placed(7, text_edits.longer_loop),
)
INDEX_OVERFLOW = FaultClass(
    10, "index-overflow", "the index into a large tensor overflows", "kernel text", "codegen",
    "Index arithmetic in 32 bits over more than 2^31 elements. Imitated in 16 bits, so that inputs of more than 65,536 elements "
    "show it, and wrapping to a valid place, where the real one may become negative.",
    ("pytorch/pytorch#188756", "pytorch/pytorch#189960"), {},
    _placed(10, text_edits.narrow_index),
)
MISALIGNED_READ = FaultClass(
    13, "misaligned-read", "an input is read at addresses rounded down to 16 bytes", "kernel text", "codegen",
    "An argument, or an offset in one, that hardware or a binding aligns silently. Imitated in the text: each element of one "
    "input is read at its address rounded down to four elements (16 bytes of float32).",
    ("apache/tvm#16550", "microsoft/onnxruntime#27853"), {},
    _placed(13, text_edits.aligned_down),
)
ROUNDING_MODE = FaultClass(
    25, "rounding-mode", "rounding to the nearest integer truncates", "kernel text", "codegen",
    "A conversion to integers that cuts off where the graph rounds half to even. The sibling that rounds half away from zero "
    "differs in ties only, which computed activations seldom are, and is not injected.",
    ("apache/tvm#19368",), {},
    _placed(25, text_edits.truncated, _ROUNDS, every=True),
)
WRONG_LANE = FaultClass(
    26, "wrong-lane", "the last lane of a vector is read from the lane before", "kernel text", "codegen",
    "A vector's constructor that gives one lane another's element. Imitated where kernels have vectors: in those scheduled for "
    "drivers that run on a processor.",
    ("apache/tvm#14332",), _NO_VECTORS,
    _placed(26, text_edits.wrong_lane),
)
EXPONENT_BASE = FaultClass(
    28, "exponent-base", "softmax takes powers of two instead of e", "kernel text", "codegen",
    "exp written as exp2 without the factor log2(e): a softmax at the wrong temperature, whose rows still add up to one.",
    ("mlc-ai/mlc-llm#2269",), {},
    _placed(28, text_edits.exponent_of_two, _SOFTMAX, every=True),
)

CLASSES = (UNCLAMPED_TANH, OUT_OF_BOUNDS_READ, INDEX_OVERFLOW, MISALIGNED_READ, ROUNDING_MODE, WRONG_LANE, EXPONENT_BASE)
