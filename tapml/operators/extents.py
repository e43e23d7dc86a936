"""Smaller versions of an operator: its extents (batch, sequence, features, heads), found and changed without knowing any
operator.

    extents = find_extents(body)                       e.g. for x[1, 32, 576] · w[576, 576]: 32, 576 (in), 576 (out)
    smaller = resized(body, extents, [1, 2, 4])        the same operator with these sizes; None where PyTorch refuses it

What an extent is. The numbers that may have to do with a shape are the axes of the inputs and the integers among the nodes'
arguments (sizes of a view, ends of a slice). A set of such places is an extent if all of them can be multiplied by one factor
and the body still runs, and no fewer axes of inputs do: then they measure the same thing. The size of an extent is the greatest
common divisor of its places. A view that splits 576 into 9 heads of 64 gives the axis two extents: {axis, 9} and {axis, 64}.

How it is found. From each place in turn (the seed), sets of axes that hold it are tried, smallest first, with the factor
GROWTH; the body is run node by node on tensors without content (`tapml.operators.infer`), and where a node has integers of its
own, those choices are tried that lead to different shapes. Multiplying, and not
dividing, keeps axes larger than 1, so that broadcasting hides no disagreement. Invariants: every extent that is returned was run
multiplied as a whole; an integer is part of one only if it changes a shape. The search is cut off after MOST_RUNS runs of a
node, which loses extents, never makes wrong ones.

Whether an operator of a smaller size is still the same for its kernels, and which values its inputs get, is not decided here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from tapml.operators.graph import Body, Node
from tapml.operators.infer import inferred, placeholder, run_node, specs
from tapml.tensors import TensorSpec

# The factor of a trial. A prime that real extents rarely have, so that products do not agree by accident.
GROWTH = 7

# Nodes run in one search for extents (some 50 µs each).
MOST_RUNS = 10_000

# Axes beside the seed that may have to change with it, and integers of one node that are tried in all combinations.
_MOST_AXES = 6
_MOST_INTEGERS = 5

# Sets of axes that are tried for one seed.
_MOST_SETS = 60

# An integer that makes the common divisor smaller than this is tried last: the stride 2 of a convolution says nothing of 16 rows.
_LOSS = 8


@dataclass(frozen=True, order=True)
class Place:
    """Where a number stands. In an input ("i0") `path` is the axis; in a node ("n3") it leads into its arguments: ("args", 1,
    2)."""

    owner: str
    path: tuple[int | str, ...]


@dataclass(frozen=True)
class Extent:
    """Numbers that measure the same thing; `size` is their greatest common divisor."""

    size: int
    places: frozenset[Place]

    def axes(self) -> Iterator[tuple[int, int]]:
        """The (input, axis) pairs among the places."""
        for place in sorted(self.places):
            if place.owner.startswith("i"):
                yield int(place.owner[1:]), int(place.path[0])


def numbers(body: Body) -> dict[Place, int]:
    """Every place of the body that may belong to an extent, with its number: axes first. Numbers below 2 are left out, since
    there is nothing to shrink."""
    found: dict[Place, int] = {}
    for k, spec in enumerate(body.inputs):
        found |= {Place(f"i{k}", (axis,)): n for axis, n in enumerate(spec.shape) if n > 1}
    for node in body.nodes:
        found |= {Place(node.name, path): n for path, n in _integers(node)}
    return found


def find_extents(body: Body) -> tuple[Extent, ...]:
    """The extents of a body, largest first (see the module's docstring)."""
    known = numbers(body)
    search = _Search(body, known)
    found: dict[frozenset[Place], Extent] = {}
    covered: set[Place] = set()
    for seed in known:
        if seed not in covered:
            places = search.smallest(seed)
            if places:
                covered |= places
                found.setdefault(places, Extent(math.gcd(*(known[p] for p in places)), places))
    return tuple(sorted((e for e in found.values() if e.size > 1), key=lambda e: -e.size))


def resized(body: Body, extents: Sequence[Extent], sizes: Sequence[int]) -> Body | None:
    """The body with each extent at a new size, and with the specs that its nodes then have. None when PyTorch refuses it, when a
    place would not be whole, or when a value that had elements has none."""
    factors: dict[Place, Fraction] = {}
    for extent, size in zip(extents, sizes, strict=True):
        if size != extent.size:
            for place in extent.places:
                factors[place] = factors.get(place, Fraction(1)) * Fraction(size, extent.size)
    known = numbers(body)
    changed = {place: known[place] * factor for place, factor in factors.items()}
    if any(n.denominator != 1 or n < 1 for n in changed.values()):
        return None
    smaller = inferred(_with_numbers(body, {place: int(n) for place, n in changed.items()}))
    if smaller is None or any(_emptied(a, b) for a, b in zip(body.nodes, smaller.nodes, strict=True)):
        return None
    return smaller


def _emptied(before: Node, after: Node) -> bool:
    return any(a.elements and not b.elements for a, b in zip(before.outputs, after.outputs, strict=False))


def _with_numbers(body: Body, changed: Mapping[Place, int]) -> Body:
    inputs = tuple(
        TensorSpec(tuple(changed.get(Place(f"i{k}", (axis,)), n) for axis, n in enumerate(spec.shape)), spec.dtype)
        for k, spec in enumerate(body.inputs)
    )
    by_node: dict[str, dict[tuple[int | str, ...], int]] = {}
    for place, n in changed.items():
        by_node.setdefault(place.owner, {})[place.path] = n
    nodes = tuple(_rewritten(node, by_node[node.name]) if node.name in by_node else node for node in body.nodes)
    return replace(body, inputs=inputs, nodes=nodes)


def _integers(node: Node) -> Iterator[tuple[tuple[int | str, ...], int]]:
    """Integers of 2 and more among a node's arguments, with the path to each."""

    def walk(item: Any, path: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], int]]:
        if isinstance(item, bool):
            return
        if isinstance(item, int) and 1 < item < 2**31:  # larger ones mean "until the end"
            yield path, item
        elif isinstance(item, list | tuple):
            for k, each in enumerate(item):
                yield from walk(each, (*path, k))

    if node.target == "getitem":
        return
    yield from walk(node.args, ("args",))
    for key, value in node.kwargs.items():
        yield from walk(value, ("kwargs", key))


def _rewritten(node: Node, changed: Mapping[tuple[int | str, ...], int]) -> Node:
    def walk(item: Any, path: tuple[int | str, ...]) -> Any:
        if path in changed:
            return changed[path]
        if isinstance(item, list | tuple):
            return [walk(each, (*path, k)) for k, each in enumerate(item)]
        return item

    kwargs = {key: walk(value, ("kwargs", key)) for key, value in node.kwargs.items()}
    return replace(node, args=tuple(walk(node.args, ("args",))), kwargs=kwargs)


class _Search:
    """One search for extents; `left` counts the runs of nodes that remain."""

    def __init__(self, body: Body, known: Mapping[Place, int]) -> None:
        self.body = body
        self.known = known
        self.axes = [place for place in known if place.owner.startswith("i")]
        self.made: dict[tuple[str, frozenset[Place], tuple[Any, ...]], Any | None] = {}
        self.left = MOST_RUNS
        self.base = {f"i{k}": placeholder(spec) for k, spec in enumerate(body.inputs)}
        for node in body.nodes:
            self.base[node.name] = run_node(node, self.base)

    def smallest(self, seed: Place) -> frozenset[Place] | None:
        """The smallest extent that holds this place; None when there is none."""
        if any(value is None for value in self.base.values()):
            return None
        related = [a for a in self.axes if a != seed and math.gcd(self.known[a], self.known[seed]) > 1]
        # Axes of the very same length are likely to go together, so sets of those come first among sets of one size.
        related.sort(key=lambda a: self.known[a] != self.known[seed])
        for others in itertools.islice(self._sets(related, seed), _MOST_SETS):
            axes = {*others, seed} & set(self.axes)
            places = self._follow(axes, None if seed in axes else seed)
            if places is not None or self.left <= 0:
                return places
        return None

    def _sets(self, related: Sequence[Place], seed: Place) -> Iterator[tuple[Place, ...]]:
        """Sets of axes to change with the seed, small ones first. All of one length come early: a batch norm has five."""
        for count in range(min(len(related), _MOST_AXES) + 1):
            if count == 3:
                yield tuple(a for a in related if self.known[a] == self.known[seed])
            yield from itertools.combinations(related, count)

    def _follow(self, axes: set[Place], forced: Place | None) -> frozenset[Place] | None:
        """Runs the body with these axes multiplied; the places that had to be multiplied with them, or None. `forced` is an
        integer that must be among them."""
        values = dict(self.base)
        touched: set[str] = set()
        for k, spec in enumerate(self.body.inputs):
            shape = tuple(n * GROWTH if Place(f"i{k}", (axis,)) in axes else n for axis, n in enumerate(spec.shape))
            if shape != spec.shape:
                values[f"i{k}"] = placeholder(TensorSpec(shape, spec.dtype))
                touched.add(f"i{k}")
        common = math.gcd(*(self.known[a] for a in axes), *([self.known[forced]] if forced else []))
        return self._continue(0, values, touched, frozenset(axes), forced, common)

    def _continue(
        self, index: int, values: dict[str, Any], touched: set[str], places: frozenset[Place], forced: Place | None, common: int
    ) -> frozenset[Place] | None:
        """From node `index` on, trying the choices of each node in turn (depth first)."""
        for node in self.body.nodes[index:]:
            index += 1
            moved = not touched.isdisjoint(node.reads)
            options = self._options(node, values, moved, forced, common)
            if not options or self.left <= 0:
                return None
            for scaled, value in options[:-1]:
                further = touched | {node.name} if moved or scaled else touched
                found = self._continue(index, {**values, node.name: value}, further, places | scaled, forced, common)
                if found is not None:
                    return found
            scaled, value = options[-1]
            values, places = {**values, node.name: value}, places | scaled
            if moved or scaled:
                touched = touched | {node.name}
        return places if forced is None or forced in places else None

    def _options(
        self, node: Node, values: Mapping[str, Any], moved: bool, forced: Place | None, common: int
    ) -> list[tuple[frozenset[Place], Any]]:
        """What the node may do, in the order of trying: the integers that are multiplied, and its result. One option a distinct
        result shape, the one with the fewest integers. Shapes whose axes are multiplied or left as they are come first, and of
        those the ones that multiply most integers."""
        here = [Place(node.name, path) for path, n in _integers(node) if math.gcd(n, common) > 1]
        must = forced is not None and forced.owner == node.name
        if not moved and not must:
            # A node that nothing reached yet may have to join in with a number of the very same size (keys and values are
            # repeated alike; an arange is as long as what it is added to).
            twins = [p for p in here if self.known[p] == common]
            found = [(frozenset[Place](), values[node.name])]
            for chosen in _subsets(twins):
                value = self._run(node, chosen, values) if chosen else None
                if value is not None and specs(value) != specs(values[node.name]):
                    found.append((frozenset(chosen), value))
            return found
        plain = self._run(node, (), values) if must else None
        by_shape: dict[tuple[TensorSpec, ...], tuple[frozenset[Place], Any]] = {}
        for chosen in _subsets(here):
            if must and forced not in chosen:
                continue
            value = self._run(node, chosen, values)
            shape = None if value is None else specs(value)
            if shape is None or shape in by_shape or (plain is not None and shape == specs(plain)):
                continue
            if any(a.elements and not b.elements for a, b in zip(node.outputs, shape, strict=False)):
                continue
            if self._aligned(node, values, shape):
                by_shape[shape] = (frozenset(chosen), value)

        def rank(shape: tuple[TensorSpec, ...]) -> tuple[bool, bool, int]:
            chosen = by_shape[shape][0]
            size = math.gcd(common, *(self.known[p] for p in chosen))
            return (not _natural(node.outputs, shape), size * _LOSS < common, -len(chosen))

        return [by_shape[shape] for shape in sorted(by_shape, key=rank)]

    def _run(self, node: Node, chosen: Sequence[Place], values: Mapping[str, Any]) -> Any | None:
        """The result of a node with these integers multiplied; kept, since searches come by the same shapes again and again."""
        key = (node.name, frozenset(chosen), tuple(specs(values[name]) for name in node.reads))
        if key not in self.made:
            self.left -= 1
            rewritten = _rewritten(node, {p.path: self.known[p] * GROWTH for p in chosen}) if chosen else node
            self.made[key] = run_node(rewritten, values)
        return self.made[key]

    def _aligned(self, node: Node, values: Mapping[str, Any], after: tuple[TensorSpec, ...]) -> bool:
        """Whether a node that only regroups its elements (a view) multiplies an axis that its input has multiplied. Without
        that, [32, 576] seen as [32, 9, 64] might put what 32 grew by into 64. An axis is where its strides lie: those of
        n elements with t elements behind them are t to t * n."""
        if len(node.reads) != 1 or len(after) != 1:
            return True
        was, now = specs(self.base[node.reads[0]]), specs(values[node.reads[0]])
        out = node.outputs[0]
        if was is None or now is None or len(was) != 1 or len(now) != 1:
            return True
        if was[0].elements != out.elements or len(out.shape) != len(after[0].shape):
            return True
        if not any(isinstance(a, list | tuple) for a in node.args):
            return True
        given, made = _grown(was[0].shape, now[0].shape), _grown(out.shape, after[0].shape)
        return all(any(a < d and c < b for c, d in made) for a, b in given) and all(
            any(a < d and c < b for c, d in given) for a, b in made
        )


def _natural(before: Sequence[TensorSpec], after: Sequence[TensorSpec]) -> bool:
    """Whether axes are as they were or multiplied, and nothing between."""
    return all(
        m in (n, n * GROWTH) for a, b in zip(before, after, strict=False) for n, m in zip(a.shape, b.shape, strict=False)
    )


def _grown(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, int]]:
    """The strides of the axes that differ, as half-open ranges of the shape before."""
    return [
        (math.prod(before[axis + 1 :]), math.prod(before[axis:]))
        for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b
    ]


def _subsets(places: Sequence[Place]) -> Iterator[tuple[Place, ...]]:
    """Subsets, smallest first; of many places only none, single ones and all."""
    if len(places) > _MOST_INTEGERS:
        yield ()
        for place in places:
            yield (place,)
        yield tuple(places)
        return
    for count in range(len(places) + 1):
        yield from itertools.combinations(places, count)
