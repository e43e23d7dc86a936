"""The rows of an operator that it treats apart, found without knowing any operator, and the same rows arranged otherwise.

    for rows in rows_of(body):                            the tokens of a projection, the heads of an attention, a batch
        for arrangement in arrangements(body, rows): ...  the same rows in other places, in other company, in other chunks

An extent of a body (`tapml.operators.extents`) is a set of axes that measure the same thing. One that every output
grows along, outside of its innermost axis (along which the elements of a row lie), and along which no weight lies, may be of rows
that have nothing to do with each other. Whether they have is not guessed: each arrangement is proven in float64, on the very
inputs that the target then gets (`Arrangement.holds`). What attends to its neighbours, sums over the rows, or adds to each row
what its place asks for, does not hold there, and nothing is asked of the target.

A call with one row has nothing to arrange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tapml.migrate.invariance import Relation
from tapml.operators.extents import Extent, find_extents, resized
from tapml.operators.graph import Body
from tapml.tensors import HostArray
from tapml.words import plural

# How far apart two results in float64 may be that are the same but for the order of sums, relative to the mean magnitude.
EXACT = 1e-9

# Of many chunks of a call so many are run, evenly spread.
MOST_CALLS = 8

Function = Callable[[Sequence[HostArray]], Sequence[HostArray]]


@dataclass(frozen=True)
class Rows:
    """`count` rows that lie along these axes: (input, axis) of the inputs that have them, and an axis of each output."""

    count: int
    extent: Extent
    inputs: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]

    def taken(self, inputs: Sequence[HostArray], order: Sequence[int]) -> list[HostArray]:
        """The inputs with these rows, in this order."""
        given = list(inputs)
        for k, axis in self.inputs:
            given[k] = np.ascontiguousarray(np.take(given[k], order, axis))
        return given


@dataclass(frozen=True)
class Call:
    """Rows of the whole call, by place, and the places whose results are looked at."""

    order: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Arrangement:
    """The calls that give rows again. `body` is what they are calls of: the operator itself (None), or the operator with another
    number of rows."""

    relation: Relation
    what: str
    rows: Rows
    calls: tuple[Call, ...]
    body: Body | None = None

    def again(
        self, function: Function, inputs: Sequence[HostArray], whole: Sequence[HostArray]
    ) -> tuple[list[HostArray], int, int]:
        """What the calls give, put into the whole call's outputs in place of its rows; how many rows were given again, and how
        many of them have other bits."""
        found = [array.copy() for array in whole]
        compared, differing = 0, 0
        for call in self.calls:
            made = function(self.rows.taken(inputs, call.order))
            for place in call.places:
                row, differs = call.order[place], False
                for out, part, axis in zip(found, made, self.rows.outputs, strict=True):
                    there, here = _row(out, axis, row), np.take(part, place, axis)
                    differs |= np.ascontiguousarray(out[there]).tobytes() != np.ascontiguousarray(here).tobytes()
                    out[there] = here
                compared, differing = compared + 1, differing + differs
        return found, compared, differing

    def holds(self, exact: Function, resized_exact: Function, inputs: Sequence[HostArray]) -> bool:
        """Whether the rows are the same when they are computed in float64: by `exact` as they are, by `resized_exact` (of `body`)
        as arranged."""
        whole = [np.asarray(a) for a in exact(inputs)]
        if any(np.shape(a)[axis] != self.rows.count for a, axis in zip(whole, self.rows.outputs, strict=True)):
            return False
        again, _, _ = self.again(resized_exact, inputs, whole)
        return all(_close(a, b) for a, b in zip(again, whole, strict=True))


def rows_of(body: Body) -> Iterator[Rows]:
    """Extents that may be rows, the outermost axis of the first output first."""
    found = []
    for extent in find_extents(body):
        axes = tuple(extent.axes())
        if not axes or any(body.roles[k] == "weight" or body.inputs[k].shape[axis] != extent.size for k, axis in axes):
            continue
        outputs = _grown(body, extent)
        if outputs is not None:
            found.append(Rows(extent.size, extent, axes, outputs))
    yield from sorted(found, key=lambda rows: rows.outputs)


def _grown(body: Body, extent: Extent) -> tuple[int, ...] | None:
    """Along which axis each output has the extent; None where one has it in none, in several, or in its innermost."""
    larger = resized(body, [extent], [2 * extent.size])
    if larger is None or not body.outputs:
        return None
    axes: list[int] = []
    for before, after in zip(body.output_specs, larger.output_specs, strict=True):
        grown = [k for k, (n, m) in enumerate(zip(before.shape, after.shape, strict=False)) if n != m]
        if len(before.shape) != len(after.shape) or len(grown) != 1 or before.shape[grown[0]] != extent.size:
            return None
        if grown[0] == len(before.shape) - 1 and len(before.shape) > 1:
            return None
        axes.append(grown[0])
    return tuple(axes)


def arrangements(body: Body, rows: Rows) -> Iterator[Arrangement]:
    """Other company, other places, other chunks. What does not hold in other company has no rows that are treated apart."""
    n = rows.count
    every = tuple(range(n))
    even, odd = every[::2], every[1::2]
    yield Arrangement(
        "company", f"{plural(n, 'row')} among other ones", rows,
        (Call(tuple(k if k % 2 == 0 else 0 for k in every), even), Call(tuple(k if k % 2 else odd[-1] for k in every), odd)),
    )  # fmt: skip
    turned = tuple((k + 1) % n for k in every)
    yield Arrangement(
        "place", f"the same {n} rows in other places", rows, (Call(turned, every), Call(tuple(reversed(every)), every))
    )
    for size in dict.fromkeys((1, n // 2)):
        smaller = resized(body, [rows.extent], [size]) if size < n and n % size == 0 else None
        if smaller is not None:
            starts = list(range(0, n, size))
            if len(starts) > MOST_CALLS:
                starts = [starts[round(k * (len(starts) - 1) / (MOST_CALLS - 1))] for k in range(MOST_CALLS)]
            calls = tuple(Call(tuple(range(s, s + size)), tuple(range(size))) for s in starts)
            what = f"{n} rows one by one" if size == 1 else f"{n} rows in chunks of {size}"
            yield Arrangement("chunk", what, rows, calls, smaller)


def _row(array: HostArray, axis: int, row: int) -> tuple[slice | int, ...]:
    return (*(slice(None),) * axis, row)


def _close(a: HostArray, b: HostArray) -> bool:
    if a.dtype.kind in "iub":
        return bool(np.array_equal(a, b))
    finite = np.abs(b[np.isfinite(b)])
    return bool(np.allclose(a, b, rtol=EXACT, atol=EXACT * float(finite.mean()) if finite.size else 0.0, equal_nan=True))
