"""An epilogue moved into the threads that wrote what it reads.

dlight's rules for reductions leave the result in a local buffer and then spread the epilogue's loops over the threads by
themselves: fused in the order of the epilogue's axes, where the reduction's were fused in the order of memory and split where
several heads share a key. Where the two orders differ, the epilogue reads what other threads wrote
(`tapml.compile.ownership` finds that out).

    function = in_the_writers_threads(function)

Here the epilogue gets the loops of the nest that wrote its operand, those of the reduction left out: it runs in the thread
that wrote, for each element that this thread wrote. Nothing else is changed, and no kernel is added.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.s_tir import SBlockRealize

from tapml.compile.pieces import is_reduction, only_block


def in_the_writers_threads(function: Any) -> Any:
    """The scheduled function with each element-wise nest that reads a local buffer in the threads of the nest beside it that
    wrote the buffer. What is not of that form stays as it is."""

    def moved(sequence: Any) -> Any:
        nests = list(sequence.seq)
        for k, reader in enumerate(nests):
            for writer in nests[:k]:
                nests[k] = _joined(writer, nests[k]) or nests[k]
            if nests[k] is not reader:
                return tirx.SeqStmt(nests)
        return sequence

    body = tvm_ffi.structural_map(function.body, [(tirx.SeqStmt, moved)])
    made = tirx.PrimFunc(list(function.params), body, function.ret_type)
    for key, value in (function.attrs or {}).items():
        made = made.with_attr(key, value)
    return made


def _joined(writer: Any, reader: Any) -> Any:
    """The reader's block below the writer's loops; None where it reads nothing local from it, or in another form."""
    source, target = only_block(writer), only_block(reader)
    if source is None or target is None or not is_reduction(source) or is_reduction(target):
        return None
    if not isinstance(target.body, tirx.BufferStore) or not isinstance(source.body, tirx.BufferStore):
        return None
    store = source.body
    loads = [e for e in _loads(target.body.value) if e.source.same_as(store.buffer)]
    if str(store.buffer.scope()) != "local" or not loads:
        return None
    if any(not tvm_ffi.structural_equal(a, b) for e in loads[1:] for a, b in zip(e.indices, loads[0].indices, strict=True)):
        return None
    loops, realize = _nest(writer)
    axes = list(zip(source.iter_vars, realize.iter_values, strict=True))
    reduced = [u for v, value in axes if int(v.iter_type) == tirx.IterVar.CommReduce for u in _variables(value)]
    kept = [x for x in loops if not _among(x.loop_var, reduced)]
    fresh = {x.loop_var: tirx.Var(x.loop_var.name, str(x.loop_var.ty.dtype)) for x in kept}
    spatial = [(v.var, _replaced(value, fresh)) for v, value in axes if int(v.iter_type) != tirx.IterVar.CommReduce]
    places = [_replaced(i, dict(spatial)) for i in store.indices]
    values = _axes_at(target, loads[0].indices, places)
    unknown = [u for e in (*(v for _, v in spatial), realize.predicate) for u in _variables(e) if _among(u, reduced)]
    if values is None or unknown:
        return None
    body = SBlockRealize(values, _replaced(realize.predicate, fresh), target)
    for x in reversed(kept):
        body = tirx.For(fresh[x.loop_var], x.min, x.extent, x.kind, body, _same_thread(x, fresh[x.loop_var]))
    return body


def _same_thread(loop: Any, var: Any) -> Any:
    """The thread axis of a loop, for another loop; None for one that is not bound."""
    bound = loop.thread_binding
    if bound is None:
        return None
    return tirx.IterVar(None, tirx.Var(bound.var.name, str(var.ty.dtype)), bound.iter_type, bound.thread_tag)


def _axes_at(block: Any, indices: Any, places: list[Any]) -> list[Any] | None:
    """The values of the block's axes for which `indices`, each a bare axis or a constant, are `places`."""
    values: list[Any] = []
    for v in block.iter_vars:
        place = next((p for i, p in zip(indices, places, strict=True) if i.same_as(v.var)), None)
        if place is None and int(v.dom.extent) != 1:
            return None
        values.append(tirx.const(0, str(v.var.ty.dtype)) if place is None else place)
    bare = all(isinstance(i, tirx.IntImm) or any(i.same_as(v.var) for v in block.iter_vars) for i in indices)
    return values if bare else None


def _nest(statement: Any) -> tuple[list[Any], Any]:
    loops: list[Any] = []
    while isinstance(statement, tirx.For):
        loops.append(statement)
        statement = statement.body
    return loops, statement


def _replaced(e: Any, table: dict[Any, Any]) -> Any:
    return tvm_ffi.structural_map(e, [(ir.Var, lambda v: table.get(v, v))])


def _variables(e: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(e, [(ir.Var, found.append)])
    return found


def _loads(e: Any) -> list[Any]:
    found: list[Any] = []
    tvm_ffi.structural_walk(e, [(ir.TensorLoad, found.append)])
    return found


def _among(var: Any, others: list[Any]) -> bool:
    return any(var.same_as(o) for o in others)
