"""An engine that shows of each value some elements and the sum: the model's values are compared with that, operator by operator.

    for found in follow_partly(model, graph, inputs, states, glimpses, {64: 12}): ...

What an engine shows so cannot be gone on from. Every operator is computed from the source's own values, and its bound is how
far the source is from float64 after all operators before it. So the values after a wrong one are wrong as well, and the first is
the one that tells.

A value belongs to an operator if all elements that are shown agree, and the sum. An operator without one is not shown if
something that is computed from it agrees. If nothing does, it or one before it is wrong: then the value with its name is wrong,
else the one most like it; else one in its place in the engine's order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from tapml.carving.distance import scale_of, undecided
from tapml.carving.tolerance import Accuracy, Comparison, Reference, compare, measure
from tapml.diagnose.check.fits import fits, regions
from tapml.diagnose.check.follow import ALIKE, Found, How
from tapml.diagnose.check.ggml_text import Glimpse
from tapml.diagnose.check.held import floating
from tapml.migrate.model import Model
from tapml.operators.graph import Graph, Operator
from tapml.runtime.walk import Walk
from tapml.tensors import HostArray

# Fewer different elements than these, or elements this small against what printing rounds away, tell nothing.
_TELLING = 3
_ABOVE_ROUNDING = 50.0

# By how many standard deviations of its rounding a sum in float32 may be off.
_SIGMAS = 4.0


# The place of a value among those that are shown, and how it compares.
_Match = tuple[int, Comparison]


class _Part:
    """A part of an output that a value of the engine may be."""

    def __init__(self, own: HostArray, exact: HostArray) -> None:
        self._own = np.ascontiguousarray(own)
        self._exact = np.ascontiguousarray(exact)
        self._orders: dict[tuple[int, ...], list[HostArray]] = {}

    @cached_property
    def accuracy(self) -> Accuracy:
        return Accuracy(error=measure(self._own, self._exact, undecided(self._own, self._exact)).error)

    @cached_property
    def scale(self) -> float:
        return scale_of(self._exact, self._own)

    def orders(self, shape: tuple[int, ...]) -> list[HostArray]:
        """Flat, in each order of elements that it may have in an array of that shape."""
        if shape not in self._orders:
            made = []
            for fit in fits(shape, self._own.shape, {}):
                turned = np.empty(self._own.size, self._own.dtype)
                turned[fit.taken(np.arange(self._own.size).reshape(shape)).reshape(-1)] = self._own.reshape(-1)
                made.append(turned)
            self._orders[shape] = made
        return self._orders[shape]


class _Made:
    """An output of an operator: the source's, and float64's. Its parts: without padding, and of the last position alone, which is
    all that an engine may compute of a last layer."""

    def __init__(self, operator: Operator, output: int, own: HostArray, exact: HostArray, real: Mapping[int, int]) -> None:
        self.operator = operator
        self.output = output
        parts = [tuple(slice(0, n) for n in region) for region in regions(own.shape, real)]
        for axis, n in enumerate(own.shape):
            if n > 1 and n in real:
                parts += [(*[slice(None)] * axis, slice(real[n] - 1, real[n]))]
        self._parts = [_Part(own[part], exact[part]) for part in parts]

    def ways(self, glimpse: Glimpse) -> Iterator[tuple[_Part, HostArray]]:
        """The parts that a value of the engine may be, with their elements in its order."""
        for part in self._parts:
            for turned in part.orders(glimpse.shape):
                yield part, turned


def follow_partly(
    model: Model, graph: Graph, inputs: Mapping[str, HostArray], states: Mapping[str, HostArray],
    shown: Sequence[Glimpse], names: Mapping[str, str], real: Mapping[int, int],
) -> Iterator[Found]:
    """Every output of every operator that gives floats, in execution order. `names`: of values that somebody gave the name of an
    operator, or of its module."""
    made = list(_computed(model, graph, inputs, states, real))
    matches = [_matching(value, shown, names) for value in made]
    wrong = _wrong(made, matches, shown, names)
    among: list[str] = []
    for k, (value, match, fine) in enumerate(zip(made, matches, _good(made, matches), strict=True)):
        found = Found(value.operator, value.output)
        if match is not None:
            found = _found(value, shown[match[0]], match[1])
        elif k in wrong:
            place, how, comparison = wrong[k]
            found = replace(_found(value, shown[place], comparison), how=how, among=tuple(among))
            among.clear()
        elif not fine:
            among.append(value.operator.name)
        yield found


def _found(value: _Made, glimpse: Glimpse, comparison: Comparison) -> Found:
    parts = (len(glimpse.seen), glimpse.size)
    return Found(
        value.operator, value.output, glimpse.name, "value", comparison, parts=parts, summed=glimpse.total is not None
    )


def _computed(
    model: Model, graph: Graph, inputs: Mapping[str, HostArray], states: Mapping[str, HostArray], real: Mapping[int, int]
) -> Iterator[_Made]:
    walk = Walk(graph, model.operators_of[graph.name])
    own, exact = walk.begin(inputs, states), walk.begin(inputs, states)
    for step in walk.steps:
        signature = step.operator.signature
        mine = model.source(signature)(step.read(own, model.weight))
        wide = model.exact(signature)(step.read(exact, model.weight))
        own.update(zip(step.operator.outputs, mine, strict=True))
        exact.update(zip(step.operator.outputs, wide, strict=True))
        for output, (a, b) in enumerate(zip(mine, wide, strict=True)):
            if floating(a):
                yield _Made(step.operator, output, a, b, real)


def _good(made: Sequence[_Made], matches: Sequence[object]) -> list[bool]:
    """Of each: whether it agrees, or something that is computed from it does."""
    agree: set[str] = set()
    found: list[bool] = []
    for value, match in reversed(list(zip(made, matches, strict=True))):
        name = value.operator.outputs[value.output]
        found.append(match is not None or name in agree)
        if found[-1]:
            agree.update(value.operator.inputs)
    return found[::-1]


def _matching(value: _Made, shown: Sequence[Glimpse], names: Mapping[str, str]) -> _Match | None:
    """The first value of the engine that agrees, or that with the operator's very name if it does."""
    called = [(place, glimpse) for place, glimpse in enumerate(shown) if names.get(glimpse.name) == value.operator.name]
    for place, glimpse in called or enumerate(shown):
        for part, own in value.ways(glimpse):
            near = np.abs(own[glimpse.places] - glimpse.seen) <= 0.05 * (np.abs(glimpse.seen) + part.scale) + glimpse.half
            if near.all() and _telling(glimpse, part):
                comparison = _judged(part, own, glimpse)
                if comparison.passed:
                    return place, comparison
    return None


def _telling(glimpse: Glimpse, part: _Part) -> bool:
    return len(np.unique(glimpse.seen)) >= _TELLING and part.scale >= _ABOVE_ROUNDING * glimpse.half


def _wrong(
    made: Sequence[_Made], matches: Sequence[_Match | None], shown: Sequence[Glimpse], names: Mapping[str, str]
) -> dict[int, tuple[int, How, Comparison]]:
    """The wrong values that outputs have of which nothing agrees: those with their names; then those most like them; then, before
    the first of these and after all that agrees, the others in the engine's order, from the last on."""
    taken = {match[0] for match in matches if match is not None}
    last = max(taken, default=-1)
    pairs: list[tuple[float, int, int, Comparison]] = []
    for k, fine in enumerate(_good(made, matches)):
        for place, glimpse in enumerate(shown):
            asked = not fine or names.get(glimpse.name) == made[k].operator.name
            ways = list(made[k].ways(glimpse)) if asked and matches[k] is None and place not in taken else []
            if ways:
                part, own = min(ways, key=lambda way: _off(way[1], glimpse))
                named = names.get(glimpse.name) in (made[k].operator.name, made[k].operator.module)
                comparison = _judged(part, own, glimpse)
                if not comparison.passed:  # one that is too small to tell anything passes
                    pairs.append((-1.0 if named else _off(own, glimpse), k, place, comparison))
    found: dict[int, tuple[int, How, Comparison]] = {}
    for off, k, place, comparison in sorted(pairs, key=lambda pair: pair[:3]):
        if off < ALIKE and k not in found and place not in taken:
            found[k] = place, "name" if off < 0 else "likeness", comparison
            taken.add(place)
    first = min(found, default=len(made))
    end = found[first][0] if found else len(shown)
    for _, k, place, comparison in sorted(pairs, key=lambda pair: pair[1:3], reverse=True):
        if k < first and k not in found and last < place < end:
            found[k] = place, "order", comparison
            end = place
    return found


def _off(own: HostArray, glimpse: Glimpse) -> float:
    off = float(np.linalg.norm(own[glimpse.places] - glimpse.seen)) / max(float(np.linalg.norm(glimpse.seen)), 1e-300)
    return off if math.isfinite(off) else math.inf


def _judged(part: _Part, own: HostArray, glimpse: Glimpse) -> Comparison:
    """Of the elements that were printed, each as near to the source's as its rounding allows; then of the sum."""
    actual = own.copy()
    actual[glimpse.places] = np.clip(own[glimpse.places], glimpse.seen - glimpse.half, glimpse.seen + glimpse.half)
    found = compare(actual.reshape(glimpse.shape), Reference(own.reshape(glimpse.shape), part.accuracy))
    found = replace(found, elements=len(glimpse.places))
    if glimpse.total is None or not found.passed:
        return found
    wide = own.astype(np.float64)
    sums = np.cumsum(wide, dtype=np.float32)
    allowed = found.bound * float(np.sum(np.abs(wide) + part.scale)) + 1e-6
    allowed += _SIGMAS * math.sqrt(own.size) * 2.0**-24 * float(np.abs(sums).max())
    off = abs(glimpse.total - float(sums[-1]))
    if off <= allowed:
        return found
    error = found.bound * off / allowed if math.isfinite(off) else math.inf
    return replace(found, error=error, index=None, actual=None, expected=None, measure="sum")
