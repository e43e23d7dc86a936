"""Faults of the graph: one operator is compiled from another body than the model's.

They stand for a frontend or a rewriting pass that got the model wrong. Everything after that is right: the kernels compute
exactly what the wrong body says. The edits themselves are in `attention_edits.py` and `arithmetic_edits.py`.

    rewrite = with_edit("interleaved", operator, body, other_pairing)      None where the edit finds nothing
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from tapml.backends.rewrite import Rewrite
from tapml.diagnose.faults.arithmetic_edits import ignored_strides, one_pass_variance, other_gelu, overwritten_value
from tapml.diagnose.faults.attention_edits import (
    EVERYTHING,
    no_scale,
    no_soft_cap,
    other_pairing,
    tiled_heads,
    wider_window,
)
from tapml.diagnose.faults.fault import FaultClass, Site
from tapml.operators.graph import Body, Operator

Edit = Callable[[Body], Body | None]


class OtherBody(Rewrite):
    """One operator is compiled from `other`, which `edit` made of its body. A smaller body of the same operator (as when a
    failing case is minimised) is edited in the same way, and left as it is where the edit finds nothing."""

    def __init__(self, what: str, operator: str, other: Body, edit: Edit) -> None:
        digest = hashlib.blake2b(f"{what}\0{operator}\0{other.signature}".encode(), digest_size=16).hexdigest()
        super().__init__(f"{what} in {operator}", digest)
        self._operator = operator
        self._edit = edit

    def body(self, operator: str, body: Body) -> Body:
        return self._edit(body) or body if operator == self._operator else body


def with_edit(what: str, operator: Operator, body: Body, edit: Edit) -> OtherBody | None:
    """The rewrite, or None where the edit finds nothing in this body or leaves it the same."""
    other = edit(body)
    if other is None or other.signature == body.signature:
        return None
    return OtherBody(what, operator.name, other, edit)


def _placing(what: str, edit: Edit) -> Callable[[Operator, Body, Site], OtherBody | None]:
    def place(operator: Operator, body: Body, site: Site) -> OtherBody | None:
        return with_edit(what, operator, body, edit)

    return place


def _window(operator: Operator, body: Body, site: Site) -> OtherBody | None:
    """Off by one while the prompt is read, ignored while decoding: both were seen."""
    if operator.graph == site.run.protocol.appends:
        return with_edit("fault 19 (window ignored)", operator, body, lambda b: wider_window(b, EVERYTHING))
    return with_edit("fault 19 (window off by one)", operator, body, lambda b: wider_window(b, 1))


CLASSES = (
    FaultClass(
        number=3, name="one-pass-variance", title="LayerNorm's variance as E[x²] - E[x]² in float32",
        level="graph", stage="convert",
        imitates="A norm kernel or decomposition that sums x and x² in one pass. Here it is the operator's graph that does so, "
        "in float32; a kernel that keeps both sums in float16 loses more. Harmless where inputs have little mean: it takes "
        "activations whose mean is many times their spread.",
        seen_in=("microsoft/onnxruntime#31626", "apache/tvm#19643"), cannot={},
        place=_placing("fault 3 (one-pass variance)", one_pass_variance),
    ),
    FaultClass(
        number=14, name="ignored-strides", title="a transposed input is read as if it were contiguous",
        level="graph", stage="convert",
        imitates="A kernel that walks a view's memory in order instead of by its strides. Graphs here hold no strides, so the "
        "transpose itself becomes a reshape: the same elements in the same wrong order.",
        seen_in=("pytorch/pytorch#161641", "pytorch/pytorch#183419"), cannot={},
        place=_placing("fault 14 (strides ignored)", ignored_strides),
    ),
    FaultClass(
        number=16, name="rotary-pairing", title="rotary embedding pairs neighbours instead of halves, or the other way round",
        level="graph", stage="convert",
        imitates="The wrong one of two layouts of rotary dimensions: pairs (2i, 2i+1) or (i, i + d/2), with the right angles. "
        "Position 0 is not turned, so a test of the first token passes.",
        seen_in=("vllm-metal#44",), cannot={},
        place=_placing("fault 16 (rotary pairing)", other_pairing),
    ),
    FaultClass(
        number=18, name="tiled-heads", title="key-value heads are tiled over the query heads instead of repeated",
        level="graph", stage="convert",
        imitates="Grouped-query attention in which query head h reads head h mod n instead of h div g. The same error with group "
        "sizes that do not divide the heads is not expressible: PyTorch refuses such a model.",
        seen_in=("onnx/onnx#7274", "mlc-ai/mlc-llm#2543"), cannot={},
        place=_placing("fault 18 (heads tiled)", tiled_heads),
    ),
    FaultClass(
        number=19, name="sliding-window", title="the sliding window is one position too wide, or ignored",
        level="graph", stage="convert",
        imitates="A mask made without the model's window, or with >= where > was meant: one too wide in prefill, ignored in "
        "decode. Prompts no longer than the window do not show it.",
        seen_in=("ml-explore/mlx-lm#390", "huggingface/transformers#29623"), cannot={},
        place=_window,
    ),
    FaultClass(
        number=21, name="no-soft-cap", title="the soft cap on scores or logits is dropped",
        level="graph", stage="convert",
        imitates="A port of an architecture that knows no c · tanh(x / c): nearly nothing changes while scores are small.",
        seen_in=("ggml-org/llama.cpp#8197",), cannot={},
        place=_placing("fault 21 (soft cap dropped)", no_soft_cap),
    ),
    FaultClass(
        number=22, name="no-attention-scale", title="attention scores are not divided by the root of the head size",
        level="graph", stage="convert",
        imitates="A rewriting pass that matches attention and loses its scale, so that softmax picks one key where it should mix "
        "several.",
        seen_in=("mlc-ai/mlc-llm#3426",), cannot={},
        place=_placing("fault 22 (attention scale missing)", no_scale),
    ),
    FaultClass(
        number=23, name="gelu-variant", title="GELU by tanh where the model has erf, or the other way round",
        level="graph", stage="convert",
        imitates="A converter that knows one GELU only. The two differ by less than 0.0005, which loose tolerances let through.",
        seen_in=("mlc-ai/mlc-llm#2106",), cannot={},
        place=_placing("fault 23 (other GELU)", other_gelu),
    ),
    FaultClass(
        number=27, name="second-consumer", title="fusion writes a step over a value that another step still reads",
        level="graph", stage="convert",
        imitates="A fusion or a memory plan that counts one reader where there are two, so that the second reads what the first "
        "made of the value. Here within one operator; between operators the runtime has no fusion that could do it.",
        seen_in=("pytorch/executorch#17430",), cannot={},
        place=_placing("fault 27 (second consumer)", overwritten_value),
    ),
)
