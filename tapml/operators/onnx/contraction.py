"""Products of matrices, and attention, which is made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tapml.operators.onnx.arithmetic import Specs
from tapml.operators.onnx.writer import CannotSay, Value, Writer
from tapml.tensors import FLOATS


def _matmul(w: Writer, out: Specs, a: Value, b: Value) -> Value:
    """Vectors are rows before the product, columns behind it."""
    if a.rank == 1:
        a = w.unsqueeze(a, 0)
    if b.rank == 1:
        b = w.unsqueeze(b, 1)
    return w.reshape(product(w, a, b), out[0].shape)


def product(w: Writer, a: Value, b: Value) -> Value:
    if not a.elements or not b.elements:
        shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return w.full(shape, 0, a.dtype)
    if a.dtype in FLOATS or a.dtype in ("int32", "int64"):
        return w.matmul(a, b)
    return w.cast(w.matmul(w.cast(a, "int32"), w.cast(b, "int32")), a.dtype)


def _linear(w: Writer, out: Specs, x: Value, weight: Value, bias: Value | None = None) -> Value:
    if x.rank == 2 and x.elements and weight.elements and x.dtype == "float32":
        return w.op("Gemm", x, weight, bias, spec=(out[0].shape, x.dtype), transB=1)
    made = _matmul(w, (out[0],), x, w.swapped(weight) if weight.rank > 1 else weight)
    return made if bias is None else w.add(made, bias)


def _addmm(w: Writer, out: Specs, c: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    """beta c + alpha a b; what beta 0 is multiplied with is not read. One operation where the engine's has the dtypes."""
    if a.rank == 2 and b.rank == 2 and beta != 0 and a.elements and b.elements and a.dtype == "float32":
        factors = {key: float(value) for key, value in (("alpha", alpha), ("beta", beta)) if value != 1}
        return w.op("Gemm", a, b, c, spec=(out[0].shape, a.dtype), **factors)
    made = _matmul(w, (out[0],), a, b)
    made = made if alpha == 1 else w.mul(made, alpha)
    if beta == 0:
        return made
    return w.add(made, c if beta == 1 else w.mul(c, beta))


def _attention(
    w: Writer, out: Specs, q: Value, k: Value, v: Value, mask: Value | None = None, dropout: float = 0.0, causal: bool = False,
    scale: float | None = None, grouped: bool = False,
) -> Value:
    if dropout:
        raise CannotSay("it drops values at random")
    if not q.elements or not k.elements:
        return w.full(out[0].shape, 0, q.dtype)
    if grouped and q.shape[-3] != k.shape[-3]:
        k, v = (_repeated(w, x, q.shape[-3] // x.shape[-3]) for x in (k, v))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = w.mul(w.matmul(q, w.swapped(k)), factor)
    lowest = w.constant(-math.inf, q.dtype)
    if causal:
        below = w.op("Trilu", w.full(scores.shape[-2:], 1, "int64"), w.constant(0, "int64"), upper=0)
        scores = w.where(w.cast(below, "bool"), scores, lowest)
    elif mask is not None:
        scores = w.where(mask, scores, lowest) if mask.dtype == "bool" else w.add(scores, w.cast(mask, q.dtype))
    shares = w.op("Softmax", scores, axis=-1)
    if mask is not None:  # a row of which nothing may be seen gives zeros, and not the NaN of 0 / 0
        unseen = w.compare("Equal", w.reduce("ReduceMax", scores, (scores.rank - 1,), True), -math.inf)
        shares = w.where(unseen, w.constant(0, q.dtype), shares)
    return w.matmul(shares, v)


def _repeated(w: Writer, x: Value, times: int) -> Value:
    """Each head so many times, one after the other."""
    *front, heads, rows, columns = x.shape
    wide = w.expand(w.unsqueeze(x, x.rank - 2), (*front, heads, times, rows, columns))
    return w.reshape(wide, (*front, heads * times, rows, columns))


CONTRACTION: dict[str, Callable[..., Any]] = {
    "matmul.default": _matmul, "mm.default": _matmul, "bmm.default": _matmul, "mv.default": _matmul, "dot.default": _matmul,
    "linear.default": _linear, "addmm.default": _addmm, "baddbmm.default": _addmm, "addmv.default": _addmm,
    "scaled_dot_product_attention.default": _attention,
}  # fmt: skip
