"""Schedules: how the loops of a piece are spread over a device's threads.

The names that `Target.schedules` may hold:

- "dlight"   TVM's dlight rules for GPUs: shared memory, reductions across threads; "simple" for a piece that they cannot do
- "blocked"  for drivers that run on a processor: products of matrices by register blocks with vector loads along the contracted
             dimension, no barriers; "simple" for the other pieces
- "simple"   one thread for each element of the result, reductions serial: works for everything, on every GPU language
- "serial"   one thread for all: for processors, and to find out whether a fault is one of scheduling

Whatever made a schedule, one in which a thread reads local memory that another thread wrote is refused
(`tapml.compile.ownership`). dlight's own epilogues are of that kind in places; `tapml.compile.epilogue` puts them right.

    function = apply("blocked", piece_function, target, tvm_target)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import SBlockRealize, dlight

from tapml.compile.blocked import find_contraction, schedule_contraction, tiling
from tapml.compile.epilogue import in_the_writers_threads
from tapml.compile.ownership import foreign_read
from tapml.compile.pieces import is_reduction
from tapml.targets.schedules import ON_PROCESSOR, ONE_EACH, ONE_FOR_ALL, SCHEDULES, WAITING
from tapml.targets.target import Target

logger = logging.getLogger(__name__)

# Reductions of this many steps are cut in two when they have no more than _FEW results, those of _TOO_LONG always.
_LONG, _FEW, _TOO_LONG = 4096, 512, 60_000


class ScheduleFailure(Exception):
    """A schedule that cannot be applied; the message says to what, and why."""


def apply(name: str, function: Any, target: Target, tvm_target: Any) -> Any:
    """The function with its loops bound to threads. Raises ScheduleFailure for an unknown name and where a thread would read what
    another one keeps to itself, and TVM's errors."""
    rules: dict[str, Callable[[Any, Target, Any], Any]] = {
        WAITING: _dlight, ON_PROCESSOR: _blocked, ONE_EACH: _simple, ONE_FOR_ALL: _serial,
    }
    if name not in rules:
        raise ScheduleFailure(f"no schedule {name!r}; known: {', '.join(SCHEDULES)}")
    scheduled = rules[name](function, target, tvm_target)
    # What dlight's rules gave was looked at one by one.
    foreign = None if name == WAITING else foreign_read(scheduled)
    if foreign is not None:
        raise ScheduleFailure(foreign)
    return scheduled


def _dlight(function: Any, target: Target, tvm_target: Any) -> Any:
    """The first dlight rule that fits; a rule that breaks on a piece, or gives a wrong kernel, is as one that does not fit."""
    rules = [dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction()]
    for rule in rules:
        try:
            with tvm_target:
                scheduled = dlight.ApplyDefaultSchedule(rule)(tvm.IRModule({"main": function}))["main"]
            if not bound(scheduled):
                continue
            if foreign_read(scheduled) is not None:
                scheduled = in_the_writers_threads(scheduled)
            foreign = foreign_read(scheduled)
        except Exception as error:
            logger.info("dlight's %s: %s: %s", type(rule).__name__, type(error).__name__, error)
            continue
        if foreign is None:
            return scheduled
        logger.info("dlight's %s: %s", type(rule).__name__, foreign)
    return _simple(function, target, tvm_target)


def bound(function: Any) -> bool:
    """Whether every nest at the function's root is bound to threads."""
    body = function.body.block.body
    return all(_binds(s) for s in (body.seq if isinstance(body, tirx.SeqStmt) else [body]))


def _binds(statement: Any) -> bool:
    while isinstance(statement, tirx.For):
        if statement.kind == tirx.ForKind.THREAD_BINDING:
            return True
        statement = statement.body
    return False


def _blocked(function: Any, target: Target, tvm_target: Any) -> Any:
    schedule = s_tir.Schedule(function)
    found = find_contraction(schedule)
    if found is None:
        return _simple(function, target, tvm_target)
    axes = [int(v.dom.extent) for v in schedule.get(schedule.get_sblock(found.name)).iter_vars]
    rows = 1 if found.rows is None else axes[found.rows]
    tiles = tiling(rows, axes[found.columns], axes[found.summed], found.along, target)
    if tiles is None:
        return _simple(function, target, tvm_target)
    block = schedule.get_sblock(found.name)
    names = [schedule.get(b).name_hint for b in schedule.get_child_blocks(schedule.get_sblock("root"))]
    epilogue = _epilogue(schedule, block, names)
    if epilogue is None:
        epilogue = schedule.get(schedule.cache_write(block, 0, "local")).name_hint
    else:
        schedule.set_scope(block, 0, "local")
    thread = schedule_contraction(schedule, found, tiles)
    schedule.reverse_compute_at(schedule.get_sblock(epilogue), thread)
    return schedule.mod["main"]


def _simple(function: Any, target: Target, tvm_target: Any) -> Any:
    return _one_thread_each(function, min(64, target.limits.max_workgroup_invocations or 64))


def _serial(function: Any, target: Target, tvm_target: Any) -> Any:
    return _one_thread_each(function, None)


def _one_thread_each(function: Any, threads: int | None) -> Any:
    """One thread an element, `threads` of them in a workgroup, or one thread for all elements if None. A reduction sums in a
    register, and its epilogue runs in the same thread."""
    schedule = s_tir.Schedule(function)
    if threads is not None:
        for block in schedule.get_child_blocks(schedule.get_sblock("root")):
            _in_two_steps(schedule, block)
    names = [schedule.get(b).name_hint for b in schedule.get_child_blocks(schedule.get_sblock("root"))]
    done: set[str] = set()
    for name in names:
        if name in done:
            continue
        block = schedule.get_sblock(name)
        spatial, reduced = loops_by_kind(schedule, block)
        if not spatial:
            spatial = [schedule.add_unit_loop(block)]
        schedule.reorder(*spatial, *reduced)
        if threads is None:
            schedule.bind(schedule.add_unit_loop(spatial[0]), "blockIdx.x")
            inner = spatial[-1]
        else:
            fused = schedule.fuse(*spatial)
            outer, inner = schedule.split(fused, factors=[None, _threads(int(schedule.get(fused).extent), threads)])
            schedule.bind(outer, "blockIdx.x")
            schedule.bind(inner, "threadIdx.x")
        if not is_reduction(schedule.get(block)):
            continue
        finish_in_registers(schedule, block, inner, done, names)
        if reduced:
            schedule.decompose_reduction(block, reduced[0])
    return schedule.mod["main"]


def _in_two_steps(schedule: Any, block: Any) -> None:
    """A long reduction with few results is cut into parts with a result each, which a second kernel puts together: one
    thread would be slow at it, and llvmpipe silently ends a thread's loops after 65535 iterations in all."""
    axes = schedule.get(block).iter_vars
    kinds = [int(v.iter_type) == tirx.IterVar.CommReduce for v in axes]
    length = math.prod(int(v.dom.extent) for v, r in zip(axes, kinds, strict=True) if r)
    results = math.prod(int(v.dom.extent) for v, r in zip(axes, kinds, strict=True) if not r)
    parts = next((n for n in range(256, 15, -1) if length % n == 0), 0)
    if length < _LONG or not parts or (results > _FEW and length < _TOO_LONG) or len(schedule.get(block).writes) != 1:
        return
    spatial, reduced = loops_by_kind(schedule, block)
    schedule.reorder(*spatial, *reduced)
    outer, _ = schedule.split(schedule.fuse(*reduced), factors=[parts, None])
    schedule.rfactor(outer, factor_axis=0)


def _threads(elements: int, most: int) -> int:
    """Threads in a workgroup: a number that divides the elements where one of at least 16 does, which spares a condition."""
    if elements <= most:
        return elements
    return next((n for n in range(most, 15, -1) if elements % n == 0), most)


def finish_in_registers(schedule: Any, block: Any, loop: Any, done: set[str], names: list[str]) -> None:
    """Keeps a reduction's result in registers at `loop`, where its epilogue, or the write to its buffer, then takes place."""
    epilogue = _epilogue(schedule, block, names)
    if epilogue is not None:
        done.add(epilogue)
        schedule.set_scope(block, 0, "local")
        schedule.reverse_compute_at(schedule.get_sblock(epilogue), loop)
    else:
        for k in range(len(schedule.get(block).writes)):
            schedule.reverse_compute_at(schedule.cache_write(block, k, "local"), loop)


def _epilogue(schedule: Any, block: Any, names: list[str]) -> str | None:
    """The name of the block that finishes this reduction in the same piece: its one consumer, if it is no output itself."""
    consumers = schedule.get_consumers(block)
    if len(consumers) != 1 or len(schedule.get(block).writes) != 1 or is_reduction(schedule.get(consumers[0])):
        return None
    name = str(schedule.get(consumers[0]).name_hint)
    return name if name in names else None


def loops_by_kind(schedule: Any, block: Any) -> tuple[list[Any], list[Any]]:
    """The loops over a block's spatial axes, and those over its reduced ones, from the outside in. Each axis must be one loop."""
    name = schedule.get(block).name_hint
    reduced: list[Any] = []

    def visit(realize: Any) -> None:
        if realize.block.name_hint == name:
            for v, value in zip(realize.block.iter_vars, realize.iter_values, strict=True):
                if int(v.iter_type) == tirx.IterVar.CommReduce:
                    reduced.append(value)

    tvm_ffi.structural_walk(schedule.mod["main"].body, [(SBlockRealize, visit)])
    loops = schedule.get_loops(block)
    kinds = [any(schedule.get(x).loop_var.same_as(r) for r in reduced) for x in loops]
    if sum(kinds) != len(reduced):
        raise ScheduleFailure(f"block {name} reduces along something else than its loops")
    return [x for x, r in zip(loops, kinds, strict=True) if not r], [x for x, r in zip(loops, kinds, strict=True) if r]
