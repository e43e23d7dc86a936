"""Running sums and products along a dimension.

A scan goes by blocks: each element combines those of its block up to itself, the last elements of the blocks are scanned in
the same way, and what is before a block is combined with its elements. So it costs a few kernels and some tens of steps an
element, whatever the dimension's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from tapml.compile.convert_reduction import product
from tapml.compile.function_texts import own
from tapml.compile.node_arguments import axis, output, read
from tapml.compile.tensor_expressions import broadcast, compute, constant, long, reduce, shape_of, to, wide

Convert = Callable[[Any, Any], Any]
_BLOCK = 64


def scan(importer: Any, x: Any, dim: int, dtype: str, combine: Any, join: Callable[[Any, Any], Any], neutral: float) -> Any:
    """Each element of x with all those before it along `dim`, in `dtype`. `combine` is the reducer, `join` the same for two."""
    shape = shape_of(x)
    extent = shape[dim]

    def within(load: Any, at: Any, k: Any) -> Any:
        at = list(at)
        here = at[dim]
        if extent > _BLOCK:
            begin = tirx.floordiv(here, long(_BLOCK)) * long(_BLOCK)
            at[dim] = tirx.min(begin + k[0], long(extent - 1))
            inside = begin + k[0] <= here
        else:
            at[dim] = k[0]
            inside = k[0] <= here
        return tirx.Select(inside, to(load(*at), dtype), constant(neutral, dtype))

    parts = reduce(importer, shape, dtype, [min(extent, _BLOCK)], within, x, combine=combine, name="scan")
    if extent <= _BLOCK:
        return parts
    blocks = (extent + _BLOCK - 1) // _BLOCK
    short = (*shape[:dim], blocks, *shape[dim + 1 :])

    def last(load: Any, *at: Any) -> Any:
        end = tirx.min(at[dim] * long(_BLOCK) + long(_BLOCK - 1), long(extent - 1))
        return load(*[end if j == dim else i for j, i in enumerate(at)])

    totals = scan(importer, compute(importer, short, dtype, last, parts, name="totals"), dim, dtype, combine, join, neutral)

    def joined(load: Any, load_t: Any, *at: Any) -> Any:
        block = tirx.floordiv(at[dim], long(_BLOCK))
        before = [tirx.max(block - long(1), long(0)) if j == dim else i for j, i in enumerate(at)]
        return tirx.Select(block > long(0), join(load_t(*before), load(*at)), load(*at))

    return compute(importer, shape, dtype, joined, parts, totals, name="scan")


def _running(combine: Any, join: Callable[[Any, Any], Any], neutral: float) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x, spec = read(importer, node, 0, "self"), output(node)
        if not spec.shape:
            return broadcast(importer, (), spec.dtype, lambda e: e, x)
        dim = axis(read(importer, node, 1, "dim"), len(spec.shape))
        return scan(importer, x, dim, wide(spec.dtype), combine, join, neutral)

    return convert


_add_exp = te.comm_reducer(
    lambda a, b: own("logaddexp", a, b), lambda dtype: tirx.const(-math.inf, dtype), name="logaddexp"
)


def _logcumsumexp(importer: Any, node: Any) -> Any:
    if wide(output(node).dtype) != "float32":
        raise ValueError(f"logcumsumexp of {output(node).dtype}")
    return _running(_add_exp, lambda a, b: own("logaddexp", a, b), -math.inf)(importer, node)


SCAN: dict[str, Convert] = {
    "logcumsumexp.default": _logcumsumexp,
    "cumsum.default": _running(te.sum, lambda a, b: a + b, 0),
    "cumprod.default": _running(product, lambda a, b: a * b, 1),
}
