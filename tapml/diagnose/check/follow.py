"""One run of another engine, followed operator by operator: which of its values are the model's, and which of those are wrong.

    for found in Follower(model, seen, {64: 12}).follow(graph, inputs, states): ...

Each operator is computed on the source from what the engine itself gave for its inputs, wherever the engine shows that; so an
error is found where it arises, and not again in all that follows. What the engine does not show is computed, from the nearest
values before it that are shown.

A value of the engine is the operator's where it agrees with what is computed, in any order of axes. Where none agrees, the reason
is one of two. The engine may not show the value, since it fused the operator with others: then what follows agrees, if it is
computed from the right value. Or the value is wrong: then it is one of those that do not agree, and it is known by what follows
from it, since the operators after it agree with what is computed from the wrong value. Values that bear the operator's name are
tried first, then those that are most alike. Two operators whose weights are exchanged are a case of their own: the right value of
each is there, as the other's, and the first operator that reads one of them is right with the other.

Bounds are those of the run (`tapml.carving.reference`): the source's own distance from float64 on the same inputs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import product
from typing import Literal

import numpy as np

from tapml.carving.distance import undecided
from tapml.carving.tolerance import FEW, Accuracy, Comparison, Reference, compare, enough, measure
from tapml.diagnose.check.fits import Fit, fits
from tapml.diagnose.check.held import Held, floating, norm
from tapml.diagnose.check.quantized import Weights
from tapml.diagnose.check.seen import Seen
from tapml.errors import UsageError, first_line, is_confined
from tapml.migrate.model import Model
from tapml.operators.graph import Graph, Operator
from tapml.runtime.walk import Step, Walk
from tapml.tensors import HostArray, dtype_name

How = Literal["value", "name", "what follows", "output", "likeness", "order"]

# How many operators after one are looked at for what follows from it, and how many values of the engine may be it.
AHEAD = 20
CANDIDATES = 12

# How many steps after a right value a wrong one is looked for that is made of it.
STEPS = 3

# A value this far off, as a share of its norm, is not taken for a wrong one without a name that says so.
ALIKE = 0.7


@dataclass(frozen=True)
class Found:
    """One output of an operator in the engine's run. `name` is what the engine calls it, "" where it does not show it; `how` says
    by what it was recognised. `comparison` is None where nothing was compared. `among`: operators before it whose values are not
    shown, so that an error may be theirs. `weight` says which quantized weight of it is not the model's, "" for none.
    `exchanged`: the operator whose value it has, where each has the other's, "" for none. `parts`: where the engine shows the
    value in part, how many elements of how many; `summed`, whether it also shows the sum of all."""

    operator: Operator
    output: int
    name: str = ""
    how: How = "value"
    comparison: Comparison | None = None
    among: tuple[str, ...] = ()
    weight: str = ""
    exchanged: str = ""
    parts: tuple[int, int] | None = None
    summed: bool = False

    @property
    def status(self) -> Literal["pass", "fail", "unchecked", "unseen"]:
        if self.comparison is None:
            return "unseen"
        if not self.comparison.passed:
            return "fail"
        whole = self.parts is None or self.summed or enough(*self.parts)
        return "pass" if self.comparison.checked and whole else "unchecked"


@dataclass(frozen=True)
class _Value:
    """A value of the model as the engine has it: what the engine shows, or what is computed from that. `exact` is the same in
    float64; `unseen` the operators between it and what is shown, `of` the names of that."""

    own: HostArray
    exact: HostArray
    unseen: tuple[str, ...] = ()
    name: str = ""
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Match:
    name: str
    fit: Fit
    comparison: Comparison


@dataclass
class _Course:
    """How far the walk has come, of which a supposition makes a copy."""

    values: dict[str, _Value]
    taken: set[str] = field(default_factory=set)

    def copy(self) -> _Course:
        return _Course(dict(self.values), set(self.taken))


@dataclass(frozen=True)
class _Done:
    """An operator that was followed: `before` is the course up to it."""

    index: int
    before: _Course
    found: list[Found]


# Gives what an operator's outputs are judged by, measured once where it is asked for.
_Judges = Callable[[], Sequence[Reference]]


class Follower:
    """`real`: of axes of so many positions in the run's graph, how many are no padding. `weights`: which the deployment has
    quantized; an operator is then computed with the deployment's."""

    def __init__(self, model: Model, seen: Seen, real: Mapping[int, int], weights: Weights | None = None) -> None:
        self._weights = weights or Weights()
        self._model = model
        self._seen = seen
        self._real = real
        self._held = Held(seen.values, real)

    def follow(
        self, graph: Graph, inputs: Mapping[str, HostArray], states: Mapping[str, HostArray]
    ) -> Iterator[Found]:
        """Every output of every operator, in execution order; then `self.states` are those after the call. Raises UsageError
        where PyTorch refuses what the engine has for an operator's inputs."""
        walk = self._walk = Walk(graph, self._model.operators_of[graph.name])
        course = _Course(walk.begin(*({key: _Value(a, a) for key, a in given.items()} for given in (inputs, states))))
        recent: list[_Done] = []
        for index in range(len(walk.steps)):
            before = course.copy()
            recent.append(_Done(index, before, list(self._operator(course, index))))
            if any(found.status == "fail" for found in recent[-1].found):
                course = self._without_exchange(recent) or course
            if len(recent) > AHEAD:
                yield from recent.pop(0).found
        for done in recent:
            yield from done.found
        advanced = walk.advanced(course.values, self._weight)
        self.states = {**states, **{key: value.own for key, value in advanced.items()}}

    def _operator(self, course: _Course, index: int) -> Iterator[Found]:
        step = self._walk.steps[index]
        operator = step.operator
        try:
            given, made = self._made(course, step)
        except Exception as error:
            if not is_confined(error):
                raise
            raise UsageError(
                f"{operator.name}: PyTorch refuses what the deployment has for its inputs ({first_line(error)}). Look at the "
                "values that it gives as indices."
            ) from error
        judges = cache(lambda: self._references(operator, given))
        wrong = "; ".join(self._weights.wrong[key] for key in step.weights if key is not None and key in self._weights.wrong)
        for output, value in enumerate(made):
            how: How = "name"
            match = self._called(operator, output, value)
            if match is None:
                match, how = self._agreeing(course, operator, value, output, judges), "value"
            if match is None:
                match, how = self._wrong(course, index, output, made), "what follows"
            elif how == "value" and (other := self._overruled(course, index, output, made, match)) is not None:
                match, how = other, "what follows"
            if how == "what follows" and match is not None and self._named(operator, match.name):
                how = "name"
            if match is None and operator.outputs[output] in self._walk.graph.outputs:
                match, how = self._as_output(course, operator, output, value), "output"
            if match is not None and not match.comparison.passed:
                match = replace(match, comparison=self._judged(judges, output, value, match.name, match.fit))
            if match is None:
                course.values[operator.outputs[output]] = replace(value, unseen=(*value.unseen, operator.name))
                yield Found(operator, output, among=value.unseen, weight=wrong)
            else:
                self._take(course, operator, output, value, match)
                yield Found(operator, output, match.name, how, match.comparison, value.unseen, wrong)

    def _without_exchange(self, recent: list[_Done]) -> _Course | None:
        """Where the last operator is wrong, and right if two before it have each other's values (their weights are exchanged):
        those are wrong instead, which is put down in `recent`. The course after it; None where that explains nothing. Both values
        are in the engine, so that each was recognised as the other's."""
        for place, one in enumerate(recent[:-1]):
            for other in recent[place + 1 : -1]:
                if not self._alternatives(one, other) or not self._explained(recent[place:], other):
                    continue
                course = one.before.copy()
                again = []
                for done in recent[place:]:
                    before = course.copy()
                    if done is one or done is other:
                        found = [self._exchanged(course, done, other if done is one else one, recent[-1].before)]
                    else:
                        found = list(self._operator(course, done.index))
                    again.append(_Done(done.index, before, found))
                if not any(found.status == "fail" for found in again[-1].found):
                    recent[place:] = again
                    return course
        return None

    def _alternatives(self, one: _Done, other: _Done) -> bool:
        """Whether two operators do the same to the same activations, with other weights, and the engine has a value for each."""
        a, b = (self._walk.steps[done.index] for done in (one, other))
        read = [[i for i, key in zip(s.operator.inputs, s.weights, strict=True) if key is None] for s in (a, b)]
        names = {found.name for done in (one, other) for found in done.found if found.status == "pass"}
        return a.operator.signature == b.operator.signature and read[0] == read[1] and len(names - {""}) == 2

    def _explained(self, steps: Sequence[_Done], other: _Done) -> bool:
        """Whether the last of `steps` agrees with the engine, if the first and `other` have each other's values."""
        latest = steps[-1].before
        [mine], [theirs] = (self._walk.steps[done.index].operator.outputs for done in (steps[0], other))
        ahead = latest.copy()
        ahead.values[mine], ahead.values[theirs] = latest.values[theirs], latest.values[mine]
        behind = {mine, theirs}
        match: _Match | None = None
        for done in steps[1:]:
            step = self._walk.steps[done.index]
            match = None
            if done is other or not behind & set(step.operator.inputs):
                continue
            try:
                _, computed = self._made(ahead, step)
            except Exception as error:  # what was supposed may be nothing that the operator takes
                if not is_confined(error):
                    raise
                return False
            for k, value in enumerate(computed):
                name = step.operator.outputs[k]
                behind.add(name)
                ahead.values[name] = value
                match = self._agreeing(ahead, step.operator, value)
                if match is not None:
                    self._take(ahead, step.operator, k, value, match)
        return match is not None

    def _exchanged(self, course: _Course, done: _Done, other: _Done, latest: _Course) -> Found:
        """An operator that has another's value."""
        step, instead = (self._walk.steps[each.index] for each in (done, other))
        given, _ = self._made(course, step)
        value = latest.values[instead.operator.outputs[0]]
        course.values[step.operator.outputs[0]] = value
        course.taken.add(value.name)
        comparison = compare(value.own, self._references(step.operator, given)[0])
        how: How = "name" if self._named(step.operator, value.name) else "what follows"
        return replace(done.found[0], name=value.name, how=how, comparison=comparison, exchanged=instead.operator.name)

    def _made(self, course: _Course, step: Step) -> tuple[list[_Value], list[_Value]]:
        """The operator's inputs as the engine has them, and what the source makes of those. Where the engine rounds inputs on
        their way to it, and shows what follows from that: as they are rounded."""
        first: tuple[list[_Value], list[_Value]] | None = None
        ways = self._ways(step)
        for weights in ways:
            given = step.read(course.values, weights.__getitem__)
            made = self._computed(step, given)
            first = first or (given, made)
            rounded = [k for k, value in enumerate(given) if self._rounding(value) is not None]
            if (rounded or len(ways) > 1) and self._agrees(course, step, made):
                return given, made
            for some in dict.fromkeys([tuple(rounded), *((k,) for k in rounded)]) if rounded else ():
                other = [self._as_rounded(value) if k in some else value for k, value in enumerate(given)]
                again = self._computed(step, other)
                if self._agrees(course, step, again):
                    return other, again
        assert first is not None
        return first

    def _agrees(self, course: _Course, step: Step, made: Sequence[_Value]) -> bool:
        return any(self._agreeing(course, step.operator, value) is not None for value in made)

    def _ways(self, step: Step) -> list[dict[str, _Value]]:
        """The weights of an operator, by key. There are several ways where several operators read one that the file has
        quantized: it may have a copy for each, rounded otherwise, or for some only."""
        options: dict[str, list[_Value]] = {}
        for key in step.weights:
            if key is not None and key not in options:
                own = self._weights.instead.get(key, ())
                arrays = own if own and self._readers[key] == 1 else (*own, self._model.weight(key))
                options[key] = [_Value(array, array) for array in arrays]
        return [dict(zip(options, some, strict=True)) for some in product(*options.values())]

    @cached_property
    def _readers(self) -> Counter[str]:
        return Counter(key for step in self._walk.steps for key in step.weights if key is not None)

    def _as_rounded(self, value: _Value) -> _Value:
        rounding = self._rounding(value)
        assert rounding is not None
        array = rounding(value.own)
        return replace(value, own=array, exact=array)

    def _rounding(self, value: _Value) -> Callable[[HostArray], HostArray] | None:
        """How the engine rounds it; one that it does not show (a row of many), as it rounds what that is of."""
        if not floating(value.own):
            return None
        names = (value.name,) if value.name else value.of
        return next((self._rounded[name] for name in names if name in self._rounded), None)

    @cached_property
    def _rounded(self) -> dict[str, Callable[[HostArray], HostArray]]:
        """How the engine rounds values, also for those that are equal to one (before a norm's weight of ones, as a reshape)."""
        found = dict(self._seen.rounded)
        for name, rounding in self._seen.rounded.items():
            array = self._seen.values.get(name)
            if array is not None:
                flat = array.reshape(-1)
                equal = (other for other, a in self._seen.values.items() if np.array_equal(a.reshape(-1), flat))
                found |= {other: rounding for other in equal if other not in found}
        return found

    def _computed(self, step: Step, given: Sequence[_Value]) -> list[_Value]:
        """What the source makes of these inputs of the operator."""
        own = self._model.source(step.operator.signature)([v.own for v in given])
        exact = self._model.exact(step.operator.signature)([v.exact for v in given])
        unseen = tuple(dict.fromkeys(name for v in given for name in v.unseen))
        of = tuple(dict.fromkeys(name for v in given for name in ((v.name,) if v.name else v.of)))
        return [_Value(y, e, unseen, "", of) for y, e in zip(own, exact, strict=True)]

    def _weight(self, key: str) -> _Value:
        array = next(iter(self._weights.instead.get(key, ())), None)
        if array is None:
            array = self._model.weight(key)
        return _Value(array, array)

    def _agreeing(
        self, course: _Course, operator: Operator, value: _Value, output: int = 0, judges: _Judges | None = None
    ) -> _Match | None:
        """The value of the engine that agrees with what is computed: of several, one that bears the operator's name. With
        `judges` by the operator's own bound, where one call's error makes it too narrow."""
        best: _Match | None = None
        for name in self._held.near(value.own):
            if not self._plausible(course, operator, name):
                continue
            for fit in fits(self._seen.values[name].shape, value.own.shape, self._real):
                if not _close(fit.taken(self._seen.values[name]), fit.part(value.own)):
                    continue
                comparison = self._compared(value, name, fit)
                if not comparison.passed and judges is not None:
                    comparison = self._judged(judges, output, value, name, fit)
                if comparison.passed:
                    found = _Match(name, fit, comparison)
                    if self._named(operator, name):
                        return found
                    best = best or found
                    break
        return best

    def _called(self, operator: Operator, output: int, value: _Value) -> _Match | None:
        """The value that bears the operator's very name, as one that was asked for by it does; of an operator with one output."""
        array = self._seen.values.get(operator.name)
        if array is None or len(operator.outputs) > 1:
            return None
        found = list(fits(array.shape, value.own.shape, self._real))
        if not found:
            return None
        fit = min(found, key=lambda fit: _off(fit.taken(array), fit.part(value.own)))
        return _Match(operator.name, fit, self._compared(value, operator.name, fit))

    def _wrong(self, course: _Course, index: int, output: int, made: Sequence[_Value]) -> _Match | None:
        """The wrong value that is this operator's; None where the engine just does not show it."""
        if self._leads_on(course, index, output, made, None):
            return None
        candidates = list(self._candidates(course, self._walk.steps[index].operator, made[output]))
        for beside in (False, True):
            for match in candidates:
                if self._leads_on(course, index, output, made, match, beside):
                    return match
        return None

    def _overruled(
        self, course: _Course, index: int, output: int, made: Sequence[_Value], match: _Match
    ) -> _Match | None:
        """A wrong value that is made of a right one, where the operators after it go on from the wrong one: the engine had the
        right one on the way, as a product before a wrong bias is added. Of values that bear the operator's name."""
        operator = self._walk.steps[index].operator
        later = [name for name in self._seen.soon_after(match.name, STEPS) if self._named(operator, name)]
        if not later or self._leads_on(course, index, output, made, None):
            return None
        for supposed in self._candidates(course, operator, made[output], later):
            if not supposed.comparison.passed and self._leads_on(course, index, output, made, supposed):
                return supposed
        return None

    def _leads_on(
        self, course: _Course, index: int, output: int, made: Sequence[_Value], supposed: _Match | None, beside: bool = False
    ) -> bool:
        """Whether an operator after this one agrees with the engine, if the engine has `supposed` for its output (None: the right
        value). With `beside`, operators beside it that do not agree are supposed to be wrong as well (three projections without
        their biases)."""
        operator = self._walk.steps[index].operator
        ahead = course.copy()
        for k, value in enumerate(made):
            ahead.values[operator.outputs[k]] = value
        start = made[output]
        if supposed is not None:
            start = self._take(ahead, operator, output, start, supposed)
        behind = {operator.outputs[output]}
        shown = [start.own]
        for step in self._walk.steps[index + 1 : index + 1 + AHEAD]:
            after = step.operator
            if not all(self._known(ahead, name) for name in after.inputs):
                continue
            hangs = bool(behind & set(after.inputs))
            if not hangs and all(name in ahead.values for name in after.outputs):
                continue
            try:
                _, computed = self._made(ahead, step)
            except Exception as error:  # what was supposed may be nothing that the operator takes
                if not is_confined(error):
                    raise
                return False
            for k, value in enumerate(computed):
                ahead.values[after.outputs[k]] = value
                match = self._agreeing(ahead, after, value)
                if match is not None and hangs and _tells(value.own, shown):
                    return True
                if match is None and not hangs and beside and floating(value.own):
                    match = next(self._candidates(ahead, after, value), None)
                if match is not None:
                    self._take(ahead, after, k, value, match)
                if hangs:
                    behind.add(after.outputs[k])
                    shown.append(value.own)
        return False

    def _known(self, course: _Course, name: str) -> bool:
        return name in course.values or name in self._walk.weights

    def _candidates(
        self, course: _Course, operator: Operator, value: _Value, among: Sequence[str] | None = None
    ) -> Iterator[_Match]:
        """Values of the engine that may be this output, wrong: those with the operator's name, the last first; then by how much
        they are like it; then, where the engine tells what was computed from what, those that come soonest after the inputs."""
        named: list[tuple[str, Fit]] = []
        others: list[tuple[float, str, Fit]] = []
        for place, name in enumerate(self._held.sized(value.own) if among is None else among):
            array = self._seen.values[name]
            if name in course.taken or floating(array) != floating(value.own) or not self._plausible(course, operator, name):
                continue
            found = [(_off(fit.taken(array), fit.part(value.own)), fit) for fit in fits(array.shape, value.own.shape, self._real)]
            if not found:
                continue
            off, fit = min(found, key=lambda pair: (pair[0], not pair[1].plain))
            if off >= ALIKE:
                fit = next((fit for _, fit in found if fit.plain), fit)
            if self._named(operator, name):
                named.insert(0, (name, fit))
            elif off < ALIKE or self._seen.made_of:
                others.append((off if off < ALIKE else 1.0 + place, name, fit))
        rest = [(name, fit) for _, name, fit in sorted(others, key=lambda each: each[0])]
        for name, fit in (named + rest)[:CANDIDATES]:
            yield _Match(name, fit, self._compared(value, name, fit))

    def _as_output(self, course: _Course, operator: Operator, output: int, value: _Value) -> _Match | None:
        """What the engine gives its user in this place: by its name, else the only one of the shape. Where nobody knows what it
        gives, the value that is most alike."""
        if not self._seen.outputs:
            return next(self._candidates(course, operator, value), None)
        graph = self._walk.graph
        keys = [k for k, n in zip(graph.output_keys, graph.outputs, strict=True) if n == operator.outputs[output]]
        fitting = [
            (name, fit) for name in self._seen.outputs
            for fit in [next(fits(self._seen.values[name].shape, value.own.shape, self._real), None)]
            if fit is not None and floating(self._seen.values[name]) == floating(value.own)
        ]  # fmt: skip
        chosen = [pair for pair in fitting if pair[0] in keys] or (fitting if len(fitting) == 1 else [])
        if not chosen:
            return None
        name, fit = chosen[0]
        return _Match(name, fit, self._compared(value, name, fit))

    def _take(self, course: _Course, operator: Operator, output: int, value: _Value, match: _Match) -> _Value:
        """From now on the engine's value stands for the operator's."""
        own = match.fit.over(value.own, self._seen.values[match.name])
        course.values[operator.outputs[output]] = _Value(own, own, (), match.name)
        course.taken.add(match.name)
        return course.values[operator.outputs[output]]

    def _plausible(self, course: _Course, operator: Operator, name: str) -> bool:
        """Whether the engine computed it from what it has for the operator's inputs."""
        given = [course.values[i].name for i in operator.inputs if i in course.values]
        return all(self._seen.depends(name, source) for source in given if source)

    def _named(self, operator: Operator, name: str) -> bool:
        """Whether a value of the engine bears the operator's module path; without the names of outer modules that only one of
        them has."""
        if name in self._model.named:
            return name == operator.name
        path = self._seen.paths.get(name, "")
        if not path or not operator.module:
            return False
        mine, theirs = operator.module.split("."), path.split(".")
        n = min(len(mine), len(theirs))
        return mine[-n:] == theirs[-n:]

    def _compared(self, value: _Value, name: str, fit: Fit) -> Comparison:
        """By how far the source is from float64 on this very call, in the engine's dtype where that is narrower."""
        theirs = self._seen.values[name]
        own, actual = value.own, fit.over(value.own, theirs)
        if floating(own) and theirs.dtype.itemsize < own.dtype.itemsize:
            own, actual = own.astype(theirs.dtype), actual.astype(theirs.dtype)
        mask = undecided(own, value.exact)
        if not floating(own):
            return compare(actual, Reference(own, Accuracy(), None, mask))
        accuracy = measure(own, value.exact, mask)
        return compare(actual, Reference(own, Accuracy(error=accuracy.error), None, mask, spread=accuracy.spread, few=FEW))

    def _judged(self, judges: _Judges, output: int, value: _Value, name: str, fit: Fit) -> Comparison:
        """By the operator's own bound, where all of its inputs are shown and in its own dtype."""
        theirs = self._seen.values[name]
        if value.unseen or dtype_name(theirs) != dtype_name(value.own):
            return self._compared(value, name, fit)
        return compare(fit.over(value.own, theirs), judges()[output])

    def _references(self, operator: Operator, given: Sequence[_Value]) -> Sequence[Reference]:
        return self._model.references(operator.signature).on_host([value.own for value in given])


def _off(theirs: HostArray, own: HostArray) -> float:
    """How far one is from the other, as a share of the norm of the second."""
    a, b = theirs.astype(np.float64), own.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        off = float(np.linalg.norm((a - b).reshape(-1))) / max(float(np.linalg.norm(b.reshape(-1))), 1e-300)
    return off if math.isfinite(off) else math.inf


def _close(theirs: HostArray, own: HostArray) -> bool:
    """A quick look before the real comparison."""
    if not floating(own):
        return bool(np.array_equal(theirs, own))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.allclose(theirs.astype(np.float64), own.astype(np.float64), 0.05, 0.05 * _scale(own), equal_nan=True)


def _scale(own: HostArray) -> float:
    return norm(own) / math.sqrt(max(own.size, 1))


def _tells(value: HostArray, shown: Sequence[HostArray]) -> bool:
    """Whether agreeing with it says anything: it is no constant, and not one of these in another shape or order of axes."""
    if not floating(value) or value.size < 2 or np.all(value == value.flat[0]):
        return False
    mine = np.sort(value, axis=None)
    return not any(other.size == value.size and np.array_equal(np.sort(other, axis=None), mine) for other in shown)
