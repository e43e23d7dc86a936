"""Cutting an operator's TIR function into pieces that become one kernel each.

`prepare` decides what is computed where: element-wise blocks are inlined into what reads them, except where that would repeat
costly work often. `cut` then makes a function of its own of each remaining loop nest, in execution order; an element-wise
block that reads a reduction element by element stays with it as its epilogue. Scheduling works on pieces, so one part that a
schedule cannot handle does not spoil the others.

Invariant: running the pieces in order over the same buffers computes what the whole function computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.s_tir import SBlock, SBlockRealize
from tvm.s_tir.dlight.analysis import normalize_prim_func

from tapml.compile.tensor_expressions import APART, is_hidden

# Repeating work is worth a launch of its own only beyond this many extra operations.
_REPEAT_LIMIT = 200_000
# Expressions larger than this are not inlined further: inlining doubles what is read twice.
_SIZE_LIMIT = 400
_CHEAP_CALLS = ("tirx.if_then_else", "tirx.likely", "tirx.bitwise_and", "tirx.shift_left", "tirx.shift_right")


@dataclass(frozen=True)
class Piece:
    """`function` computes one part; its parameters stand for `buffers` of the whole function, in this order, of which it
    writes those whose position is in `writes`."""

    function: Any
    buffers: tuple[Any, ...]
    writes: frozenset[int]


def prepare(function: Any, inline: bool = True) -> Any:
    """The function with its element-wise blocks inlined where that saves more than it repeats."""
    schedule = s_tir.Schedule(function)
    normalize_prim_func(schedule)
    if inline:
        for name in _block_names(schedule):
            if _worth_inlining(schedule, name):
                try:
                    schedule.compute_inline(schedule.get_sblock(name))
                except s_tir.schedule.ScheduleError:
                    continue
    return schedule.mod["main"]


def _block_names(schedule: Any) -> list[str]:
    return [schedule.get(b).name_hint for b in schedule.get_child_blocks(schedule.get_sblock("root"))]


def _worth_inlining(schedule: Any, name: str) -> bool:
    handle = schedule.get_sblock(name)
    block = schedule.get(handle)
    if is_reduction(block) or APART in block.annotations or not isinstance(block.body, tirx.BufferStore):
        return False
    consumers = schedule.get_consumers(handle)
    if not consumers:
        return False
    size, calls = _cost(block.body.value)
    if size > _SIZE_LIMIT:
        return False
    own = _iterations(block)
    for consumer in consumers:
        repeated = _iterations(schedule.get(consumer)) - own
        if calls and repeated > 3 * own and repeated * (size + 8 * calls) > _REPEAT_LIMIT:
            return False
    return True


def _cost(value: Any) -> tuple[int, int]:
    """How many nodes an expression has, and how many of them are divisions or mathematical functions."""
    size, calls = 0, 0

    def visit(node: Any) -> None:
        nonlocal size, calls
        if is_hidden(node):
            return
        size += 1
        if isinstance(node, ir.Call):
            calls += getattr(node.op, "name", "") not in _CHEAP_CALLS
        elif isinstance(node, tirx.Div):
            calls += 1

    tvm_ffi.structural_walk(value, [(ir.Expr, visit)])
    return size, calls


def _iterations(block: Any) -> int:
    total = 1
    for v in block.iter_vars:
        total *= int(v.dom.extent)
    return total


def is_reduction(block: Any) -> bool:
    return block.init is not None or any(int(v.iter_type) == tirx.IterVar.CommReduce for v in block.iter_vars)


def cut(function: Any) -> list[Piece]:
    """The pieces of a prepared function, in an order in which they can run."""
    nests = _with_epilogues(_nests(function), set(function.params))
    return [_piece(nest) for nest in nests]


def _nests(function: Any) -> list[list[Any]]:
    """The loop nests at the root, without those that write nothing: a tensor of no element needs no kernel."""
    body = function.body.block.body
    nests = [[s] for s in (body.seq if isinstance(body, tirx.SeqStmt) else [body])]
    return [nest for nest in nests if any(0 not in [int(n) for n in b.shape] for b in _accesses(nest[0])[1])]


def _with_epilogues(nests: list[list[Any]], outputs: set[Any]) -> list[list[Any]]:
    """Moves each reduction to the element-wise nest that alone reads its result."""
    result = list(nests)
    for nest in nests:
        block = only_block(nest[0])
        if block is None or not is_reduction(block) or len(block.writes) != 1 or block.writes[0].source in outputs:
            continue
        buffer = block.writes[0].source
        readers = [n for n in result if n is not nest and any(b.same_as(buffer) for s in n for b in _accesses(s)[0])]
        if len(readers) != 1 or len(readers[0]) != 1 or not _elementwise_reader(readers[0][0], buffer):
            continue
        at = next(k for k, n in enumerate(result) if n is readers[0])
        result[at] = [*nest, *readers[0]]
        result = [n for n in result if n is not nest]
    return result


def _elementwise_reader(statement: Any, buffer: Any) -> bool:
    """Whether the nest is one element-wise block that reads `buffer` at exactly the indices that it writes."""
    block = only_block(statement)
    if block is None or is_reduction(block) or not isinstance(block.body, tirx.BufferStore):
        return False
    store = block.body
    if [int(n) for n in store.buffer.shape] != [int(n) for n in buffer.shape]:
        return False
    matches: list[bool] = []

    def visit(load: Any) -> None:
        if load.source.same_as(buffer):
            matches.append(all(tvm_ffi.structural_equal(a, b) for a, b in zip(load.indices, store.indices, strict=True)))

    tvm_ffi.structural_walk(store.value, [(ir.TensorLoad, visit)])
    return bool(matches) and all(matches)


def only_block(statement: Any) -> Any:
    """The block inside a perfect loop nest, None if there is not exactly one."""
    while isinstance(statement, tirx.For):
        statement = statement.body
    return statement.block if isinstance(statement, SBlockRealize) else None


def _accesses(statement: Any) -> tuple[list[Any], list[Any]]:
    """Buffers read and written, each once, in order of appearance."""
    reads: list[Any] = []
    writes: list[Any] = []

    def note(found: list[Any], buffer: Any) -> None:
        if not any(b.same_as(buffer) for b in found):
            found.append(buffer)

    tvm_ffi.structural_walk(
        statement,
        [
            (tirx.BufferStore, lambda s: note(writes, s.buffer)),
            (ir.TensorLoad, lambda e: note(reads, e.source)),
        ],
    )
    return reads, writes


def split_kernels(piece: Piece) -> list[Piece]:
    """A scheduled piece as functions of one kernel each: one for each nest at its root."""
    root = piece.function.body.block
    if not isinstance(root.body, tirx.SeqStmt):
        return [piece]
    outer = dict(zip(piece.function.params, piece.buffers, strict=True))
    # What is global and allocated here passes from one kernel to the next; the rest belongs to one of them.
    local = [b for b in root.alloc_buffers if str(b.scope()) not in ("", "global")]
    made = [_piece([statement], local) for statement in root.body.seq]
    return [Piece(m.function, tuple(outer.get(b, b) for b in m.buffers), m.writes) for m in made]


def _piece(statements: list[Any], local: Sequence[Any] = ()) -> Piece:
    """The statements as a function of the buffers that they share with others. What a reduction hands to its epilogue, and
    what is in `local`, is its own."""
    reads: list[Any] = []
    writes: list[Any] = []
    for statement in statements:
        r, w = _accesses(statement)
        reads += [b for b in r if not _among(b, reads)]
        writes += [b for b in w if not _among(b, writes)]
    allocated = [b for b in local if _among(b, [*reads, *writes])] + writes[: len(statements) - 1]
    inner = [*allocated, *_allocated_inside(statements)]
    outer_writes = [b for b in writes if not _among(b, inner)]
    buffers = [b for b in reads if not _among(b, inner) and not _among(b, outer_writes)] + outer_writes
    body = statements[0] if len(statements) == 1 else tirx.SeqStmt(statements)
    root = SBlock([], [], [], "root", body, alloc_buffers=allocated)
    function = tirx.PrimFunc(buffers, SBlockRealize([], True, root))
    function = function.with_attr({"global_symbol": "main", "tirx.noalias": True, "s_tir": True})
    return Piece(function, tuple(buffers), frozenset(range(len(buffers) - len(outer_writes), len(buffers))))


def _among(buffer: Any, others: Sequence[Any]) -> bool:
    return any(buffer.same_as(o) for o in others)


def _allocated_inside(statements: list[Any]) -> list[Any]:
    found: list[Any] = []
    for statement in statements:
        tvm_ffi.structural_walk(statement, [(SBlock, lambda b: found.extend(b.alloc_buffers))])
    return found
