"""Operators that multiply and sum: linear layers, matrix products, attention, softmax. Convolutions are TVM's.

A weight of a linear layer keeps its layout [N, K]: it is read along K, and no transposed copy is made. Half precision
is summed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tapml.compile.convert_arithmetic import as_element
from tapml.compile.node_arguments import output, read
from tapml.compile.tensor_expressions import (
    broadcast,
    compute,
    constant,
    dtype_of,
    is_true,
    project,
    reduce,
    shape_of,
    to,
    wide,
)

Convert = Callable[[Any, Any], Any]


def _linear(importer: Any, node: Any) -> Any:
    """x [..., K] · weight [N, K] + bias [N]."""
    x, weight, bias = (read(importer, node, k, n) for k, n in enumerate(("input", "weight", "bias")))
    spec = output(node)
    dtype = wide(spec.dtype)

    def product(load_x: Any, load_w: Any, at: Any, k: Any) -> Any:
        return to(load_x(*at[:-1], k[0]), dtype) * to(load_w(at[-1], k[0]), dtype)

    y = reduce(importer, spec.shape, dtype, [shape_of(x)[-1]], product, x, weight, name="linear")
    return _finished(importer, spec, dtype, y, bias)


def _finished(importer: Any, spec: Any, dtype: str, y: Any, bias: Any, alpha: float = 1, beta: float = 1) -> Any:
    """alpha · y + beta · bias, in the result's dtype."""
    if bias is None and alpha == 1:
        return y if dtype == spec.dtype else broadcast(importer, spec.shape, spec.dtype, lambda e: e, y)

    def element(e: Any, *rest: Any) -> Any:
        value = e if alpha == 1 else e * constant(alpha, dtype)
        for b in rest:
            value = value + (to(b, dtype) if beta == 1 else to(b, dtype) * constant(beta, dtype))
        return value

    return broadcast(importer, spec.shape, spec.dtype, element, y, *([] if bias is None else [bias]))


def matmul(importer: Any, a: Any, b: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """a [..., M, K] · b [..., K, N] with batch dimensions that broadcast; vectors lose their dimension, as torch.matmul does."""
    sa, sb = shape_of(a), shape_of(b)

    def product(load_a: Any, load_b: Any, at: Any, k: Any) -> Any:
        at = list(at)
        column = [] if len(sb) == 1 else [at.pop()]
        row = [] if len(sa) == 1 else [at.pop()]
        left = [*project(at, sa[:-2]), *row, k[0]]
        right = [*project(at, sb[:-2]), k[0], *column]
        return to(load_a(*left), dtype) * to(load_b(*right), dtype)

    return reduce(importer, shape, dtype, [sa[-1]], product, a, b, name="matmul")


def _matmul(importer: Any, node: Any) -> Any:
    spec = output(node)
    dtype = wide(spec.dtype)
    y = matmul(importer, read(importer, node, 0, "self"), read(importer, node, 1, "other"), spec.shape, dtype)
    return _finished(importer, spec, dtype, y, None)


def _addmm(importer: Any, node: Any) -> Any:
    """beta · bias + alpha · (a · b), with or without a batch dimension."""
    spec = output(node)
    dtype = wide(spec.dtype)
    bias, a, b = (read(importer, node, k, n) for k, n in enumerate(("self", "mat1", "mat2")))
    y = matmul(importer, a, b, spec.shape, dtype)
    return _finished(importer, spec, dtype, y, bias, node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1))


def _attention(importer: Any, node: Any) -> Any:
    """softmax(scale · q kᵀ + mask) v over q [..., H, L, D], k [..., H', S, D], v [..., H', S, E], H a multiple of H'.

    A boolean mask is True where attention is allowed, and -∞ is added elsewhere, so that NaN stays; a causal one allows key j for
    query i when j ≤ i. A query that may attend to nothing gives zeros. With equal leading dimensions; scores are kept in
    float32."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    q, k, v, mask, dropout, causal = (read(importer, node, i, n) for i, n in enumerate(names))
    if dropout:
        raise ValueError(f"dropout of {dropout} in attention: export the model in evaluation mode")
    spec = output(node)
    qs, ks = shape_of(q), shape_of(k)
    scale = node.kwargs.get("scale")
    scale = 1 / math.sqrt(qs[-1]) if scale is None else scale
    dtype = wide(spec.dtype)
    heads = len(qs) - 3
    _check_heads(qs, ks, shape_of(v), heads)
    groups = qs[heads] // ks[heads] if heads >= 0 else 1
    scores_shape = (*qs[:-1], ks[-2])

    def key_batch(at: Any) -> list[Any]:
        batch = list(at[: len(qs) - 2])
        if heads >= 0:
            batch[heads] = tirx.floordiv(batch[heads], tirx.const(groups, "int64")) if groups > 1 else batch[heads]
            return project(batch, ks[:-2])
        return batch

    def score(load_q: Any, load_k: Any, at: Any, d: Any) -> Any:
        return to(load_q(*at[:-1], d[0]), dtype) * to(load_k(*key_batch(at), at[-1], d[0]), dtype)

    scores = reduce(importer, scores_shape, dtype, [qs[-1]], score, q, k, name="scores")
    minus_infinity = tirx.const(-math.inf, dtype)

    def masked(load_s: Any, *rest: Any) -> Any:
        at = rest[-len(scores_shape) :]
        value = load_s(*at) * constant(scale, dtype)
        if mask is not None:
            entry = rest[0](*project(at, shape_of(mask)))
            boolean = dtype_of(mask) == "bool"
            value += tirx.Select(is_true(entry), constant(0, dtype), minus_infinity) if boolean else to(entry, dtype)
        return tirx.Select(at[-1] <= at[-2], value, minus_infinity) if causal else value

    logits = compute(importer, scores_shape, dtype, masked, scores, *([] if mask is None else [mask]), name="masked")
    weights = softmax(importer, logits, len(scores_shape) - 1, dtype, empty_is_zero=True)

    def mix(load_p: Any, load_v: Any, at: Any, s: Any) -> Any:
        return load_p(*at[:-1], s[0]) * to(load_v(*key_batch(at), s[0], at[-1]), dtype)

    y = reduce(importer, spec.shape, dtype, [ks[-2]], mix, weights, v, name="mix")
    return _finished(importer, spec, dtype, y, None)


def _check_heads(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], heads: int) -> None:
    """Keys and values must have the queries' leading dimensions, or 1; of heads the queries may have several to one."""
    alike = len(q) == len(k) == len(v) and k[:-1] == v[:-1]
    pairs = zip(q[:-2], k[:-2], strict=False)
    if not alike or any(n != m and m != 1 and (j != heads or n % m) for j, (n, m) in enumerate(pairs)):
        raise ValueError(f"attention of queries {list(q)} to keys {list(k)}, values {list(v)}: their leading dimensions differ")


def softmax(importer: Any, x: Any, dim: int, dtype: str, empty_is_zero: bool = False) -> Any:
    """exp(x - max) / Σ exp(x - max) along `dim`, in `dtype`. A row of -∞ gives NaN as in PyTorch, zeros with `empty_is_zero`."""
    shape = shape_of(x)
    if not shape:  # 1, or NaN
        return broadcast(importer, shape, dtype, lambda e: tirx.exp(to(e, dtype) - to(e, dtype)), x)
    kept = tuple(n for j, n in enumerate(shape) if j != dim)

    def inside(at: Any, k: Any) -> list[Any]:
        return [*at[:dim], k, *at[dim:]]

    def outside(at: Any) -> list[Any]:
        return [i for j, i in enumerate(at) if j != dim]

    top = reduce(
        importer, kept, dtype, [shape[dim]], lambda load, at, k: to(load(*inside(at, k[0])), dtype), x, combine=te.max, name="top"
    )
    if empty_is_zero:  # exp(-∞ - 0) is 0
        top = compute(importer, kept, dtype, lambda load, *at: _unless_empty(load(*at)), top, name="subtracted", apart=True)
    powers = compute(
        importer, shape, dtype, lambda load, m, *at: tirx.exp(to(load(*at), dtype) - m(*outside(at))), x, top, name="powers"
    )
    total = reduce(importer, kept, dtype, [shape[dim]], lambda load, at, k: load(*inside(at, k[0])), powers, name="total")

    def share(load: Any, sums: Any, *at: Any) -> Any:
        below = sums(*outside(at))
        if empty_is_zero:
            below = tirx.Select(below == constant(0, dtype), constant(1, dtype), below)
        return load(*at) / below

    return compute(importer, shape, dtype, share, powers, total, name="share")


def _unless_empty(top: Any) -> Any:
    dtype = str(top.ty)
    return tirx.Select(tirx.EQ(top, constant(-math.inf, dtype)), constant(0, dtype), top)


def _softmax(importer: Any, node: Any) -> Any:
    spec = output(node)
    dtype = wide(spec.dtype)
    x, dim = read(importer, node, 0, "self"), read(importer, node, 1, "dim")
    y = softmax(importer, x, dim % max(len(spec.shape), 1), dtype)
    return _finished(importer, spec, dtype, y, None)


def _log_softmax(importer: Any, node: Any) -> Any:
    """x - max - log Σ exp(x - max)."""
    spec = output(node)
    dtype = wide(spec.dtype)
    x, dim = read(importer, node, 0, "self"), read(importer, node, 1, "dim") % len(spec.shape)
    kept = tuple(n for j, n in enumerate(spec.shape) if j != dim)
    extent = [spec.shape[dim]]

    def value(load: Any, at: Any, k: Any) -> Any:
        return to(load(*at[:dim], k, *at[dim:]), dtype)

    top = reduce(importer, kept, dtype, extent, lambda load, at, k: value(load, at, k[0]), x, combine=te.max, name="top")
    total = reduce(
        importer, kept, dtype, extent, lambda load, m, at, k: tirx.exp(value(load, at, k[0]) - m(*at)), x, top, name="total"
    )

    def element(load: Any, m: Any, t: Any, *at: Any) -> Any:
        rest = [i for j, i in enumerate(at) if j != dim]
        return as_element(load(*at), dtype) - m(*rest) - tirx.log(t(*rest))

    return compute(importer, spec.shape, spec.dtype, element, x, top, total)


CONTRACTION: dict[str, Convert] = {
    "linear.default": _linear,
    "matmul.default": _matmul,
    "mm.default": _matmul,
    "bmm.default": _matmul,
    "mv.default": _matmul,
    "dot.default": _matmul,
    "addmm.default": _addmm,
    "baddbmm.default": _addmm,
    "scaled_dot_product_attention.default": _attention,
    "softmax.int": _softmax,
    "_softmax.default": _softmax,
    "log_softmax.int": _log_softmax,
    "_log_softmax.default": _log_softmax,
}
