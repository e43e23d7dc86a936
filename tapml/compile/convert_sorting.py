"""Sorting without barriers or atomic writes: every element of a result asks where in the input it comes from.

Rows are first cut into blocks, in which an element's rank is the number of those before it. Sorted blocks, called runs here, are
then merged two by two: how many of the first p elements of two merged runs come from the left one is a number below which a
condition holds and from which on it does not (`counted`), so it is found in two or three steps, each with a few dozen questions.
Where only the first few are wanted, runs are cut to that length, and short runs are ranked together again in place of merging.

All is stable: of equal elements the first comes first.

    places = in_order(importer, keys, 5)        # keys [rows, n] → int32 [rows, 5], where the 5 smallest of each row are
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from tapml.compile.tensor_expressions import compute, constant, dtype_of, is_float, long, reduce, shape_of

# Rows up to _WHOLE are ranked in one block, longer ones in blocks of _BLOCK, or of up to _WHOLE where that leaves few.
_WHOLE, _BLOCK = 2048, 512
# The most questions in the only step of a count, and in each of several. A step is a kernel, which costs time to compile.
_ALONE, _QUESTIONS = 64, 128


@dataclass(frozen=True)
class _Stage:
    """`extent` elements a row, in groups of `group` (the last may lack some), of each of which the first `kept` are found. The
    groups are merged of two runs, or ranked."""

    extent: int
    group: int
    kept: int
    merges: bool

    @property
    def filled(self) -> int:
        """The elements with those that the last group lacks."""
        return -(-self.extent // self.group) * self.group

    @property
    def found(self) -> int:
        return self.filled // self.group * self.kept


def _stages(extent: int, count: int) -> list[_Stage]:
    block = extent if extent <= _WHOLE else 4 * count if _BLOCK < 4 * count <= _WHOLE else _BLOCK
    stages = [_Stage(extent, block, min(block, count), merges=False)]
    while (last := stages[-1]).found > last.kept:
        merges = 2 * last.kept > block
        group = 2 * last.kept if merges else min(block, last.found)
        stages.append(_Stage(last.found, group, min(group, count), merges))
    return stages


def in_order(importer: Any, keys: Any, count: int) -> Any:
    """Where the `count` smallest of each row are, in their order: int32 [rows, count] for keys [rows, n]."""
    rows, extent = shape_of(keys)
    if 0 in (rows, extent, count):
        return compute(importer, (rows, count), "int32", lambda load, *at: tirx.const(0, "int32"), keys)
    dtype = dtype_of(keys)
    beyond = constant(math.inf, dtype) if is_float(dtype) else tirx.max_value(dtype)

    def key(load: Any, *at: Any) -> Any:
        return tirx.Select(at[1] < long(extent), load(at[0], tirx.min(at[1], long(extent - 1))), beyond)

    # One key more, after all others: that of the elements that a last group lacks.
    keys = compute(importer, (rows, extent + 1), dtype, key, keys, name="keys", apart=True)
    stages = _stages(extent, count)
    places = None
    for stage, after in zip(stages, [*stages[1:], None], strict=True):
        one = _merged if stage.merges else _ranked
        places = one(importer, keys, places, stage, stage.found if after is None else after.filled)
    return places


def _reader(loads: list[Any], extent: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """From the loads of the keys and of the places (of all elements where there are none yet) the functions of a row and a
    position that give where the element there is, and its key."""

    def place(row: Any, position: Any) -> Any:
        return loads[1](row, position) if len(loads) > 1 else tirx.Cast("int32", tirx.min(position, long(extent - 1)))

    return place, lambda row, position: loads[0](row, tirx.Cast("int64", place(row, position)))


def _ranked(importer: Any, keys: Any, places: Any, stage: _Stage, width: int) -> Any:
    """Where the first of each group are; beyond these, up to `width`, where the key after all others is."""
    rows, extent = shape_of(keys)
    given = [keys] if places is None else [keys, places]

    def before(*rest: Any) -> Any:
        loads, at, k = list(rest[:-2]), rest[-2], rest[-1]
        _, key = _reader(loads, extent)
        other = tirx.floordiv(at[1], long(stage.group)) * long(stage.group) + k[0]
        mine, theirs = key(*at), key(at[0], other)
        ahead = tirx.Or(theirs < mine, tirx.And(tirx.EQ(theirs, mine), other < at[1]))
        return tirx.Select(ahead, tirx.const(1, "int32"), tirx.const(0, "int32"))

    ranks = reduce(importer, (rows, stage.filled), "int32", [stage.group], before, *given, name="ranks")

    def source(*rest: Any) -> Any:
        load_r, loads, at, k = rest[0], list(rest[1:-2]), rest[-2], rest[-1]
        place, _ = _reader(loads, extent)
        other = tirx.floordiv(at[1], long(stage.kept)) * long(stage.group) + k[0]
        safe = other if width == stage.found else tirx.min(other, long(stage.filled - 1))
        mine = tirx.EQ(load_r(at[0], safe), tirx.Cast("int32", tirx.floormod(at[1], long(stage.kept))))
        found = tirx.Select(mine, place(at[0], safe), tirx.const(0, "int32"))
        if width == stage.found:
            return found
        nothing = tirx.Select(tirx.EQ(k[0], long(0)), tirx.const(extent - 1, "int32"), tirx.const(0, "int32"))
        return tirx.Select(at[1] < long(stage.found), found, nothing)

    return reduce(importer, (rows, width), "int32", [stage.group], source, ranks, *given, name="places")


def _merged(importer: Any, keys: Any, places: Any, stage: _Stage, width: int) -> Any:
    """As `_ranked`, where each half of a group is in order."""
    rows, extent = shape_of(keys)
    run = stage.group // 2

    def begin(at: Any) -> Any:
        return tirx.floordiv(at[1], long(stage.kept)) * long(stage.group)

    def left_first(loads: list[Any], at: Any, j: Any, other: Any) -> Any:
        """Whether the left run's element j comes before the right one's element `other`."""
        _, key = _reader(loads, extent)
        mine = key(at[0], begin(at) + tirx.min(j, long(run - 1)))
        theirs = key(at[0], begin(at) + long(run) + tirx.max(tirx.min(other, long(run - 1)), long(0)))
        return tirx.And(j < long(run), tirx.Or(other >= long(run), mine <= theirs))

    def among(load: Any, load_p: Any, at: Any, j: Any) -> Any:
        p = tirx.floormod(at[1], long(stage.kept))
        return tirx.And(j < p, left_first([load, load_p], at, j, p - long(1) - j))

    number = counted(importer, (rows, stage.found), run, among, keys, places)

    def source(load: Any, load_p: Any, load_n: Any, *at: Any) -> Any:
        safe = (at[0], at[1] if width == stage.found else tirx.min(at[1], long(stage.found - 1)))
        p = tirx.floormod(safe[1], long(stage.kept))
        j = tirx.Cast("int64", load_n(*safe))
        left = left_first([load, load_p], safe, j, p - j)
        found = load_p(at[0], begin(safe) + tirx.Select(left, j, long(run) + p - j))
        return found if width == stage.found else tirx.Select(at[1] < long(stage.found), found, tirx.const(extent - 1, "int32"))

    return compute(importer, (rows, width), "int32", source, keys, places, number, name="merged", apart=True)


def counted(importer: Any, shape: tuple[int, ...], most: int, holds: Callable[..., Any], *tensors: Any) -> Any:
    """For each element of a result, how many j from 0 up to `most` fulfil `holds(load_0, …, at, j)`, which must hold up to some j
    and no further. int32. `holds` is asked for j beyond `most` too, where its answer does not count."""
    steps = 1
    while (questions := math.ceil(most ** (1 / steps))) > (_ALONE if steps == 1 else _QUESTIONS):
        steps += 1
    found = None
    for step in reversed([questions**k for k in range(steps)]):
        found = _narrowed(importer, shape, step, min(questions, -(-most // step)), most, holds, tensors, found)
    return found


def _narrowed(
    importer: Any, shape: tuple[int, ...], step: int, questions: int, most: int, holds: Callable[..., Any],
    tensors: tuple[Any, ...], found: Any,
) -> Any:
    """The count in whole steps, given that in larger ones."""

    def question(*rest: Any) -> Any:
        loads, at, k = list(rest[:-2]), rest[-2], rest[-1][0]
        known = loads.pop(0)(*at) if found is not None else tirx.const(0, "int32")
        j = tirx.Cast("int64", known) + (k + long(1)) * long(step) - long(1)
        more = tirx.And(j < long(most), holds(*loads, at, j))
        counts = tirx.Select(more, tirx.const(step, "int32"), tirx.const(0, "int32"))
        return counts if found is None else counts + tirx.Select(tirx.EQ(k, long(0)), known, tirx.const(0, "int32"))

    given = tensors if found is None else (found, *tensors)
    return reduce(importer, shape, "int32", [questions], question, *given, name="counted")
