"""Faults in the lowered function of one operator: the compiler puts them in, so they are the same on every target.

    rewrite = HALF_ACCUMULATION.place(operator, body, site)

What each does to the function is `tapml.compile.mutations`; here stands which operators have what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tapml.backends.rewrite import Rewrite
from tapml.diagnose.faults.fault import FaultClass, Site
from tapml.diagnose.faults.placed import Mutated
from tapml.operators.graph import Body, Operator

_ATTENTION = ("aten.scaled_dot_product_attention.default",)
_SOFTMAX = (*_ATTENTION, "aten.softmax.int", "aten._softmax.default")
_PRODUCTS = (
    *_ATTENTION, "aten.linear.default", "aten.addmm.default", "aten.mm.default", "aten.bmm.default", "aten.matmul.default",
    "aten.rms_norm.default", "aten._fused_rms_norm.default", "aten.layer_norm.default", "aten.native_layer_norm.default",
)
_SQUARES = ("aten.pow.Tensor_Scalar", "aten.mul.Tensor", "aten.square.default")
_ANGLES = ("aten.sin.default", "aten.cos.default")
# Sums of this many products are cut in two by a schedule, which a sum that rounds does not allow.
_LONGEST_SUM = 4096


def _sums_products(body: Body) -> bool:
    """A product of matrices, attention, or a norm, which is a mean of squares where it is written out."""
    targets = [node.target for node in body.nodes]
    written_out = "aten.mean.dim" in targets and any(t in _SQUARES for t in targets[: targets.index("aten.mean.dim")])
    longest = max((n for spec in body.inputs for n in spec.shape[-1:]), default=0)
    return (written_out or any(t in _PRODUCTS for t in targets)) and longest < _LONGEST_SUM


def _calls(targets: Sequence[str]) -> Callable[[Body], bool]:
    return lambda body: any(node.target in targets for node in body.nodes)


def _placed(
    number: int, mutation: str, has: Callable[[Body], bool]
) -> Callable[[Operator, Body, Site], Rewrite | None]:
    def place(operator: Operator, body: Body, site: Site) -> Rewrite | None:
        return Mutated(number, operator.name, mutation) if has(body) else None

    return place


HALF_ACCUMULATION = FaultClass(
    2, "half-accumulation", "products are summed in float16", "lowering", "lower",
    "Q·K, a linear layer or the squares of RMSNorm summed in float16: 11 bits, and infinite beyond 65504. Imitated by rounding a "
    "float32 sum after each step, so that every target shows the same; numbers below 2^-14 keep more bits than float16 would.",
    ("mlc-ai/mlc-llm#1870", "pytorch/executorch#18772"), {},
    _placed(2, "half-accumulators", _sums_products),
)
MAX_FROM_ZERO = FaultClass(
    4, "max-from-zero", "softmax seeks the largest score from 0 upwards", "lowering", "lower",
    "A running maximum that starts at 0, or an idle lane that adds a 0 to it, where the lowest number is meant. Softmax does not "
    "mind unless all scores of a row are below about -88, where every exp becomes 0: it takes real values to see it.",
    ("pytorch/executorch#17848", "pytorch/executorch#18076", "ggml-org/llama.cpp#12776"), {},
    _placed(4, "max-from-zero", _calls(_SOFTMAX)),
)
HALF_ANGLES = FaultClass(
    17, "half-angles", "rotary angles are rounded to float16 before sine and cosine", "lowering", "lower",
    "Rotary tables computed in half precision. The error grows with the position: none at position 0.",
    ("mlc-ai/mlc-llm#2449",), {},
    _placed(17, "half-angles", _calls(_ANGLES)),
)

CLASSES = (HALF_ACCUMULATION, MAX_FROM_ZERO, HALF_ANGLES)
