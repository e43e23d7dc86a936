"""Whether each thread of a scheduled piece reads only those elements of thread-local buffers that it wrote itself.

A local buffer is declared once and exists once a thread: what another thread wrote to "the same" element is in another register.
A schedule that spreads the reader's loops over the threads in another way than the writer's compiles and runs, and reads rubbish.
TVM does not look for it: for its analyses the buffer is one.

    foreign = foreign_read(function)             None, or a sentence that names the block, the buffer and a thread
    function = moved_to_writers(function)        each reader's loops replaced by those of the writer

`foreign_read` does not reason about indices, it runs through them: for a few workgroups and their threads it lists the elements
that each thread writes and reads. Invariants: the order of accesses is not looked at (TVM keeps it); a block that is not bound
to a thread axis of its kernel runs in every thread along it; a reduction over a thread axis leaves its result in each of the
threads that took part, as TVM does for local buffers. What is read through a pointer is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray
from tvm import ir, tirx
from tvm.s_tir import SBlockRealize

Values = NDArray[np.int64]

# More points than this are too many to run through: threads are left out then, first and last ones kept.
_POINTS = 2**21
_BINARY: dict[Any, Callable[[Any, Any], Any]] = {
    tirx.Add: np.add, tirx.Sub: np.subtract, tirx.Mul: np.multiply, tirx.FloorDiv: np.floor_divide, tirx.FloorMod: np.mod,
    tirx.Min: np.minimum, tirx.Max: np.maximum, tirx.EQ: np.equal, tirx.NE: np.not_equal, tirx.LT: np.less,
    tirx.LE: np.less_equal, tirx.GT: np.greater, tirx.GE: np.greater_equal, tirx.And: np.logical_and, tirx.Or: np.logical_or,
}


@dataclass(frozen=True)
class _Loop:
    var: Any
    first: int
    extent: int
    tag: str | None


@dataclass(frozen=True)
class _Access:
    """One load or store: in which block, at which indices, below which loops and conditions. `bindings` are the block's axes
    with their values, innermost last."""

    block: str
    buffer: Any
    indices: tuple[Any, ...]
    writes: bool
    loops: tuple[_Loop, ...]
    bindings: tuple[tuple[Any, Any], ...]
    conditions: tuple[Any, ...]


def foreign_read(function: Any) -> str | None:
    """The first read of a local element that its thread did not write, as a sentence; None if there is none. Raises TypeError
    for an index or a statement that it does not know."""
    for nest in _statements(function.body.block.body):
        found = _foreign_in(list(_accesses(nest, (), (), ())))
        if found is not None:
            return found
    return None


def _foreign_in(accesses: list[_Access]) -> str | None:
    threads: dict[str, int] = {}
    for loop in (x for a in accesses for x in a.loops if x.tag is not None):
        threads[str(loop.tag)] = max(threads.get(str(loop.tag), 1), loop.extent)
    for buffer in _local_buffers(accesses):
        own = [a for a in accesses if a.buffer.same_as(buffer)]
        stores = [a for a in own if a.writes]
        for at in _workgroups(threads):
            written = np.unique(np.concatenate([_elements(a, threads, at) for a in stores] or [np.empty(0, np.int64)]))
            for load in own:
                if load.writes or any(_same_place(load, s) for s in stores):
                    continue
                read = _elements(load, threads, at)
                missing = read[~np.isin(read, written)]
                if missing.size:
                    thread = int(missing[0]) // _size(buffer)
                    return f"block {load.block} reads elements of {buffer.name} that thread {thread} did not write"
    return None


def _same_place(load: _Access, store: _Access) -> bool:
    """Whether they are in one block at equal indices, as in `out[i] = out[i] + …`: the block's first value is there before."""
    alike = load.block == store.block and len(load.loops) == len(store.loops)
    return alike and all(tvm_ffi.structural_equal(a, b) for a, b in zip(load.indices, store.indices, strict=True))


def _local_buffers(accesses: list[_Access]) -> list[Any]:
    found: list[Any] = []
    for a in accesses:
        if str(a.buffer.scope()) == "local" and not a.writes and not any(a.buffer.same_as(b) for b in found):
            found.append(a.buffer)
    return found


def _workgroups(threads: Mapping[str, int]) -> list[dict[str, int]]:
    """The first workgroup, the last, and one in between."""
    blocks = {tag: n for tag, n in threads.items() if tag.startswith("blockIdx")}
    places = [{tag: n * part // 3 for tag, n in blocks.items()} for part in (0, 1, 2)] + [{t: n - 1 for t, n in blocks.items()}]
    return [p for k, p in enumerate(places) if p not in places[:k]]


def _elements(access: _Access, threads: Mapping[str, int], at: Mapping[str, int]) -> Values:
    """What the access touches in the workgroup `at`: thread number · size of the buffer + element, sorted, each once."""
    extents = [int(n) for n in access.buffer.shape]
    inside = {tag: n for tag, n in threads.items() if tag not in at}
    bound = {str(x.tag): x for x in access.loops if x.tag is not None}
    used = _used(access)
    # One dimension of the grid of points for each thread axis, and for each serial loop that the indices depend on.
    serial = [x for x in access.loops if x.tag is None and any(x.var.same_as(u) for u in used)]
    ranges = _thinned([np.arange(n) for n in inside.values()], math.prod(x.extent for x in serial))
    ranges += [np.arange(x.first, x.first + x.extent) for x in serial]
    grid = np.meshgrid(*ranges, indexing="ij", sparse=True) if ranges else []
    values: list[tuple[Any, Any]] = [(x.var, grid[len(inside) + k]) for k, x in enumerate(serial)]
    whole = np.ones([len(r) for r in ranges], dtype=bool)
    for k, tag in enumerate(inside):
        if tag in bound:
            values.append((bound[tag].var, grid[k]))
            whole = whole & (grid[k] < bound[tag].extent)
    values += [(bound[tag].var, np.int64(place)) for tag, place in at.items() if tag in bound]
    for var, value in access.bindings:
        if any(var.same_as(u) for u in used):
            values.append((var, _evaluated(value, values)))
    for condition in access.conditions:
        whole = whole & np.asarray(_evaluated(condition, values), dtype=bool)
    element: Any = np.int64(0)
    for index, extent in zip(access.indices, extents, strict=True):
        element = element * extent + _evaluated(index, values)
    thread: Any = np.int64(0)
    for k, n in enumerate(inside.values()):
        thread = thread * n + grid[k]
    keys = np.broadcast_to(thread * _size(access.buffer) + element, whole.shape)
    return np.unique(keys[whole])


def _thinned(ranges: list[Values], each: int) -> list[Values]:
    """Ends of the longest ranges, so that the points are few enough."""
    ranges = list(ranges)
    while math.prod(len(r) for r in ranges) * each > _POINTS and any(len(r) > 2 for r in ranges):
        k = max(range(len(ranges)), key=lambda j: len(ranges[j]))
        half = max(len(ranges[k]) // 4, 1)
        ranges[k] = np.concatenate([ranges[k][:half], ranges[k][-half:]])
    return ranges


def _size(buffer: Any) -> int:
    return math.prod(int(n) for n in buffer.shape)


def _used(access: _Access) -> list[Any]:
    """The variables that the access's indices and conditions depend on, through the axes of blocks too."""
    found: list[Any] = []
    for e in (*access.indices, *access.conditions):
        tvm_ffi.structural_walk(e, [(ir.Var, found.append)])
    for var, value in reversed(access.bindings):
        if any(var.same_as(u) for u in found):
            tvm_ffi.structural_walk(value, [(ir.Var, found.append)])
    return found


def _evaluated(e: Any, values: list[tuple[Any, Any]]) -> Any:
    if isinstance(e, tirx.IntImm):
        return np.int64(e.value)
    if isinstance(e, ir.Var):
        return next(value for var, value in reversed(values) if var.same_as(e))
    if type(e) in _BINARY:
        return _BINARY[type(e)](_evaluated(e.a, values), _evaluated(e.b, values))
    if isinstance(e, tirx.Not):
        return np.logical_not(_evaluated(e.a, values))
    if isinstance(e, tirx.Cast):
        return _evaluated(e.value, values)
    if isinstance(e, tirx.Select):
        return np.where(_evaluated(e.condition, values), _evaluated(e.true_value, values), _evaluated(e.false_value, values))
    if isinstance(e, ir.Call) and getattr(e.op, "name", "") == "tirx.likely":
        return _evaluated(e.args[0], values)
    raise TypeError(f"an index of a local buffer with a {type(e).__name__}")


def _accesses(
    statement: Any, loops: tuple[_Loop, ...], bindings: tuple[tuple[Any, Any], ...], conditions: tuple[Any, ...], block: str = ""
) -> Iterator[_Access]:
    """Loads and stores below a statement. Of one whose index a load is part of, that load is given too."""
    if statement is None:
        return
    if isinstance(statement, tirx.SeqStmt):
        for each in statement.seq:
            yield from _accesses(each, loops, bindings, conditions, block)
    elif isinstance(statement, tirx.For):
        bound = statement.thread_binding
        tag = str(bound.thread_tag) if statement.kind == tirx.ForKind.THREAD_BINDING and bound is not None else None
        loop = _Loop(statement.loop_var, int(statement.min), int(statement.extent), tag)
        yield from _accesses(statement.body, (*loops, loop), bindings, conditions, block)
    elif isinstance(statement, SBlockRealize):
        inner = statement.block
        axes = tuple((v.var, value) for v, value in zip(inner.iter_vars, statement.iter_values, strict=True))
        held = conditions if _always(statement.predicate) else (*conditions, statement.predicate)
        yield from _accesses(inner.init, loops, (*bindings, *axes), held, str(inner.name_hint))
        yield from _accesses(inner.body, loops, (*bindings, *axes), held, str(inner.name_hint))
    elif isinstance(statement, tirx.IfThenElse):
        for part, held in ((statement.then_case, statement.condition), (statement.else_case, tirx.Not(statement.condition))):
            yield from _accesses(part, loops, bindings, (*conditions, held), block)
    elif isinstance(statement, tirx.BufferStore):
        yield _Access(block, statement.buffer, tuple(statement.indices), True, loops, bindings, conditions)
        for e in (statement.value, *statement.indices):
            for load in _loads(e):
                yield _Access(block, load.source, tuple(load.indices), False, loops, bindings, conditions)
    elif isinstance(statement, tirx.Evaluate):
        for load in _loads(statement.value):
            yield _Access(block, load.source, tuple(load.indices), False, loops, bindings, conditions)
    else:
        raise TypeError(f"a scheduled piece with a statement {type(statement).__name__}")


def _loads(e: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(e, [(ir.TensorLoad, found.append)])
    return found


def _always(predicate: Any) -> bool:
    return isinstance(predicate, tirx.IntImm) and bool(predicate.value)


def _statements(body: Any) -> list[Any]:
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
