"""Products of matrices by register blocks: the "blocked" schedule's rule for contractions.

A contraction sums products of two tensors: `out[b…, m…, n] = Σ_k a[b…, m…, k] · w[…]`. Each thread computes a block of
rows × columns of the result in registers, with vector loads where memory is contiguous, so that each number loaded
is used several times. There is no workgroup memory and no barrier: drivers that run on a processor emulate both at a cost
above their use, and the processor's own cache does what workgroup memory would do.

- along k ("dot"): both operands lie along k, as a linear layer's weight [N, K] does. Accumulators are vectors of partial sums
  over k, added up at the end.
- along n ("axpy"): the second operand lies along n, as a weight [K, N] does. Accumulators are vectors of results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from tapml.languages import LANGUAGES
from tapml.targets.target import Target

# Below this many products a contraction is not worth the trouble.
_SMALLEST = 8192


@dataclass(frozen=True)
class Contraction:
    """The block, and what its axes are: positions in its loops of the rows (may be none), the columns and the summed axis."""

    name: str
    rows: int | None
    columns: int
    summed: int
    along: str


@dataclass(frozen=True)
class Tiling:
    """`threads` in a workgroup, along the columns; each has `rows` × `columns` results; vectors of `lanes`."""

    threads: int
    rows: int
    columns: int
    lanes: int


def find_contraction(schedule: Any) -> Contraction | None:
    """The first block at the root if it is a contraction that tiling suits, else None."""
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    block = schedule.get(blocks[0])
    axes = list(block.iter_vars)
    summed = [k for k, v in enumerate(axes) if int(v.iter_type) == tirx.IterVar.CommReduce]
    if len(summed) != 1 or len(schedule.get_loops(blocks[0])) != len(axes) or not isinstance(block.body, tirx.BufferStore):
        return None
    operands = _operands(block.body)
    products = 1
    for v in axes:
        products *= int(v.dom.extent)
    if operands is None or products < _SMALLEST or not str(block.body.buffer.dtype).startswith("float"):
        return None
    for a, w in (operands, operands[::-1]):
        columns = [k for k, v in enumerate(axes) if k not in summed and _uses(w, v.var) and not _uses(a, v.var)]
        rows = [k for k, v in enumerate(axes) if k not in summed and _uses(a, v.var) and not _uses(w, v.var)]
        if not columns:
            continue
        k, n = axes[summed[0]].var, axes[columns[-1]].var
        row = rows[-1] if rows else None
        if _is_last(a, k) and _is_last(w, k):
            # With no rows there is nothing to gain from which operand is which; the larger one gives the columns.
            return Contraction(str(block.name_hint), row, columns[-1], summed[0], "k")
        if _is_last(w, n):
            return Contraction(str(block.name_hint), row, columns[-1], summed[0], "n")
    return None


def _operands(store: Any) -> tuple[Any, Any] | None:
    """The two loads of `out = out + a · w`, casts looked through; None for another form."""
    value = store.value
    if not isinstance(value, tirx.Add):
        return None
    for own, product in ((value.a, value.b), (value.b, value.a)):
        if isinstance(own, ir.TensorLoad) and own.source.same_as(store.buffer) and isinstance(product, tirx.Mul):
            a, w = _bare(product.a), _bare(product.b)
            if isinstance(a, ir.TensorLoad) and isinstance(w, ir.TensorLoad):
                return a, w
    return None


def _bare(value: Any) -> Any:
    while isinstance(value, tirx.Cast):
        value = value.value
    return value


def _uses(load: Any, variable: Any) -> bool:
    return any(_uses_index(i, variable) for i in load.indices)


def _is_last(load: Any, variable: Any) -> bool:
    """Whether the load moves along memory one element a step of the variable: it is the last index, and no other."""
    last = load.indices[-1]
    return bool(last.same_as(variable)) and not any(_uses_index(i, variable) for i in load.indices[:-1])


def _uses_index(index: Any, variable: Any) -> bool:
    found: list[bool] = []
    tvm_ffi.structural_walk(index, [(ir.Var, lambda v: found.append(bool(v.same_as(variable))))])
    return any(found)


def tiling(rows: int, columns: int, summed: int, along: str, target: Target) -> Tiling | None:
    """The block sizes for a target, None where the extents do not divide. Measured on PoCL (vectors of 8, sixteen of them in
    registers) and llvmpipe (whose loads are dear, so that more results share one)."""
    language = LANGUAGES[target.language]
    together = language.threads_as_vector > 1
    vector = summed if along == "k" else columns
    lanes = next((n for n in language.lanes if vector % n == 0), 0)
    if not lanes:
        return None
    high = _divisor(rows, 8 if together else 4)
    left = columns if along == "k" else columns // lanes
    wide = _divisor(left, (8 if together and rows == 1 else 4) if along == "k" else (4 if rows == 1 else 2))
    groups = left // wide
    if not together:
        return Tiling(_divisor(groups, 4), high, wide, lanes)
    # llvmpipe runs 8 threads as one vector: a workgroup of another number wastes part of it.
    threads = next((n for n in ((16, 8) if rows == 1 else (8,)) if groups % n == 0), _divisor(groups, 8))
    return Tiling(threads, high, wide, lanes)


def _divisor(n: int, most: int) -> int:
    return next(d for d in range(min(n, most), 0, -1) if n % d == 0)


def schedule_contraction(schedule: Any, found: Contraction, tiles: Tiling) -> Any:
    """Binds the block's loops. Returns the loop at which its epilogue, or the write to memory, is to take place."""
    block = schedule.get_sblock(found.name)
    loops = schedule.get_loops(block)
    if found.along == "k":
        return _dot(schedule, block, loops, found, tiles)
    return _axpy(schedule, block, loops, found, tiles)


def _dot(schedule: Any, block: Any, loops: list[Any], found: Contraction, tiles: Tiling) -> Any:
    _, inner_k = schedule.split(loops[found.summed], factors=[None, tiles.lanes])
    partial = schedule.rfactor(inner_k, factor_axis=len(schedule.get(block).writes[0].region))
    loops = schedule.get_loops(block)
    others = [x for k, x in enumerate(loops) if k not in (found.rows, found.columns, found.summed)]
    rows, columns, lane = None if found.rows is None else loops[found.rows], loops[found.columns], loops[found.summed]
    outer, thread, inner = _bound(schedule, others, rows, columns, tiles)
    schedule.reorder(*outer, thread, *inner, lane)
    schedule.bind(schedule.fuse(*outer), "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    schedule.compute_at(partial, thread)
    schedule.set_scope(partial, 0, "local")
    # The factored block's first axis is the new one, its last the summed one; loops of one step are left out.
    lanes_loop, *spatial, over_k = _below(schedule, partial, thread)
    schedule.reorder(over_k, *spatial, lanes_loop)
    schedule.vectorize(lanes_loop)
    for loop in spatial:
        schedule.unroll(loop)
    first = schedule.decompose_reduction(partial, over_k)
    _vectorised(schedule, first, thread)
    for loop in [*inner, lane]:
        schedule.unroll(loop)
    return thread


def _bound(schedule: Any, others: list[Any], rows: Any, columns: Any, tiles: Tiling) -> tuple[list[Any], Any, list[Any]]:
    """Splits rows and columns: (loops over workgroups, the loop over threads, the loops in a thread)."""
    outer, inner = list(others), []
    if rows is not None:
        above, below = schedule.split(rows, factors=[None, tiles.rows])
        outer.append(above)
        inner.append(below)
    above, thread, below = schedule.split(columns, factors=[None, tiles.threads, tiles.columns])
    return [*outer, above], thread, [*inner, below]


def _below(schedule: Any, block: Any, loop: Any) -> list[Any]:
    """The loops of a block that are inside `loop`."""
    loops = schedule.get_loops(block)
    at = next(k for k, x in enumerate(loops) if schedule.get(x).loop_var.same_as(schedule.get(loop).loop_var))
    return list(loops[at + 1 :])


def _vectorised(schedule: Any, block: Any, thread: Any) -> None:
    """The block that sets the accumulators to zero, as vectors too."""
    *spatial, last = _below(schedule, block, thread)
    schedule.vectorize(last)
    for loop in spatial:
        schedule.unroll(loop)


def _axpy(schedule: Any, block: Any, loops: list[Any], found: Contraction, tiles: Tiling) -> Any:
    others = [x for k, x in enumerate(loops) if k not in (found.rows, found.columns, found.summed)]
    rows = None if found.rows is None else loops[found.rows]
    columns, lane = schedule.split(loops[found.columns], factors=[None, tiles.lanes])
    outer, thread, inner = _bound(schedule, others, rows, columns, tiles)
    over_k = loops[found.summed]
    schedule.reorder(*outer, thread, over_k, *inner, lane)
    schedule.bind(schedule.fuse(*outer), "blockIdx.x")
    schedule.bind(thread, "threadIdx.x")
    schedule.vectorize(lane)
    for loop in inner:
        schedule.unroll(loop)
    first = schedule.decompose_reduction(block, over_k)
    _vectorised(schedule, first, thread)
    return thread
