"""Where a bundle goes wrong although each of its operators is right: the first operator whose bits depend on what is around it.

    found = locate(stand, calls)            None: the plan as it ships gives the bits that its operators give alone

The truth is each operator run alone: in the source's order, each value in memory of its own, each launch waited for. An operator
whose bits differ from run to run even so is the answer, and no fault of the plan. Otherwise the plan as it ships is asked four
questions (`QUESTIONS`), and its first wrong operator is looked for in ways that disturb little:

1. With every value in memory of its own, all of a call submitted at once, and everything read when the call is over. The first
   value with other bits is the answer, and the probe added nothing but memory.
2. Where that is right, memory is used again too early, or the fault minds being looked at. Calls are cut off after some launches,
   and what is still needed then is read: bisection over launches. A value that was right and is overwritten tells who did it.
3. Where that tells nothing either, operators get memory of their own until the fault is gone: the smallest number of them, in
   order, ends at the one that it hangs on.

A found operator is run once more among all others, apart from what was launched before it in growing distance: how many launches
in a row does it take? And the plan runs once more as it ships, unprobed, before anything is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tapml.deploy.bundle import BundleFolder
from tapml.deploy.plan import Launch, Place, Plan, make_plan, set_apart
from tapml.deploy.player import PLANNED, OnBatch, Player, Way
from tapml.deploy.session import Session
from tapml.runtime.engine import Compiled
from tapml.runtime.protocol import Call
from tapml.verdicts import Stage

# How often a call that is right is run again before it is believed, where runs differ from each other.
TRIES = 8

# How probes run: memory holds nothing that a run before left, which may have been right.
FRESH = Way(fresh=True)

Cause = Literal["early-reuse", "missing-hazard", "unsafe-reorder", "long-chain", "context-shape", "observer", "not-deterministic"]

CAUSES: dict[Cause, str] = {
    "early-reuse": "memory is given to another value while a reader is still to come",
    "missing-hazard": "a launch does not wait for the one that it depends on: runs differ, and waiting repairs it",
    "unsafe-reorder": "an operator runs before the write that it should see: the source's order repairs it",
    "long-chain": "a launch sees old content when many others were submitted together before it",
    "context-shape": "two neighbours submitted together give other bits than one after the other",
    "observer": "the fault goes away when the value has memory of its own or the call is cut: looking at it changes it",
    "not-deterministic": "alone, too, it gives other bits from run to run: it is its kernel, not the plan",
}


@dataclass(frozen=True)
class Composition:
    """A plan, and what is done to batches of it: nothing, but for a fault that was put in."""

    plan: Plan
    on_batch: Callable[[], OnBatch] | None = None


@dataclass(frozen=True)
class Stand:
    """A session, and the composition that is asked about on it."""

    session: Session
    composition: Composition

    @property
    def bundle(self) -> BundleFolder:
        return self.session.bundle

    def player(self, plan: Plan | None = None, way: Way = PLANNED) -> Player:
        """As it ships, but for what is given."""
        hook = self.composition.on_batch
        return self.session.player(plan or self.composition.plan, way, None if hook is None else hook())

    def plan(self, source_order: bool = False, reuse: bool = True) -> Plan:
        """The composition's plan, made otherwise."""
        return make_plan(self.bundle.model, self.bundle.programs, None if source_order else self.composition.plan, reuse)

    def truth(self) -> Player:
        """Each operator alone."""
        return self.player(self.plan(source_order=True, reuse=False), Way(serialised=True))


@dataclass(frozen=True)
class Variant:
    """One other way of running a bundle, and the question that it answers."""

    name: str
    question: str
    way: Way = PLANNED
    source_order: bool = False
    reuse: bool = True

    def player(self, stand: Stand, fresh: bool = False) -> Player:
        as_planned = self.reuse and not self.source_order
        plan = None if as_planned else stand.plan(self.source_order, self.reuse)
        return stand.player(plan, replace(self.way, fresh=fresh))


QUESTIONS = (
    Variant("serialised", "Is it the same when each operator is waited for?", Way(serialised=True)),
    Variant("without reuse", "Is it the same when each value has memory of its own?", reuse=False),
    Variant("source's order", "Is it the same in the source's order?", source_order=True),
    Variant("poisoned", "Is it the same with NaN in all memory that is free or fresh?", Way(poisoned=True)),
)


@dataclass(frozen=True)
class Found:
    """`operator` is the first with other bits, in call number `call` (from 0) of the prompt. `other` is the operator that it
    takes besides: the one that wrote over what it reads (early-reuse), the one whose write it should have seen (unsafe-reorder),
    or the first of the launches that have to be submitted together, `span` of them. `wrong` of `TRIES` runs of the plan as it
    ships were wrong, unprobed: none where it reads what an earlier run left, and that was right. `probe`: the fault goes away
    when it is looked at. `answers` says, for each of `QUESTIONS`, whether the bits are those of the truth."""

    operator: str
    graph: str
    call: int
    cause: Cause
    other: str | None = None
    span: int | None = None
    wrong: int = 0
    probe: bool = False
    answers: Mapping[str, bool] = field(default_factory=dict)

    @property
    def because(self) -> str:
        return CAUSES[self.cause]

    @property
    def stage(self) -> Stage:
        return "numeric" if self.cause == "not-deterministic" else "plan"

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.stage, **asdict(self), "because": self.because, "runs": TRIES}


def trace(player: Player, calls: Sequence[Call]) -> list[str]:
    """A digest of the outputs of each call, from the first states on."""
    player.reset()
    return [digest_of(player.step(call.graph, call.inputs)) for call in calls]


def digest_of(outputs: dict[str, Any]) -> str:
    text = hashlib.blake2b(digest_size=16)
    for key in sorted(outputs):
        text.update(key.encode() + b"\0" + outputs[key].tobytes())
    return text.hexdigest()


def locate(stand: Stand, calls: Sequence[Call]) -> Found | None:
    """For the calls of one prompt or example. Slow: many runs of each call."""
    return _Search(stand, calls).found()


# What an operator wrote: its name and the number of the output; and a digest of it.
_Output = tuple[str, int]
_Digests = dict[_Output, str]


class _Search:
    def __init__(self, stand: Stand, calls: Sequence[Call]) -> None:
        self.stand, self.calls = stand, calls
        self.apart = stand.plan(reuse=False)
        with closing(stand.truth()) as player:
            runs = list(self._alone(player))
        self.truths = [written for written, _ in runs]
        self.right = [digest for _, digest in runs]

    def _alone(self, player: Player) -> Iterator[tuple[_Digests, str]]:
        """What each operator of each call writes, each alone, and a digest of the call's outputs."""
        player.reset()
        for call in self.calls:
            player.begin(call.graph, call.inputs)
            player.launch(call.graph, 0, _count(player.plan, call.graph), apart=True)
            written = _written(player, call.graph)
            yield written, digest_of(player.end(call.graph))

    def found(self) -> Found | None:
        wrong, steady = self._unprobed(PLANNED)
        if not wrong:
            hidden, steady = self._unprobed(FRESH)
            if not hidden:
                return None
        answers = {variant.name: self._right_by(variant) for variant in QUESTIONS}
        found = self._unsteady() or self._with_memory_apart(steady, answers) or self._overwritten() or self._shy()
        return None if found is None else replace(found, wrong=wrong, answers=answers)

    def _right_by(self, variant: Variant) -> bool:
        with closing(variant.player(self.stand, fresh=True)) as player:
            return all(trace(player, self.calls) == self.right for _ in range(TRIES))

    def _unprobed(self, way: Way) -> tuple[int, bool]:
        """How many of the runs of the plan as it ships are wrong, and whether all give the same bits."""
        with closing(self.stand.player(way=way)) as player:
            traces = [trace(player, self.calls) for _ in range(TRIES)]
        return sum(one != self.right for one in traces), all(one == traces[0] for one in traces)

    def _unsteady(self) -> Found | None:
        """The first operator that gives other bits from run to run although it runs alone."""
        with closing(self.stand.truth()) as player:
            for _ in range(TRIES - 1):
                for call, (written, _) in enumerate(self._alone(player)):
                    wrong = {operator for operator, _ in self._wrong(call, written)}
                    launches = player.plan.graphs[self.calls[call].graph].launches
                    first = next((launch.operator for launch in launches if launch.operator in wrong), None)
                    if first is not None:
                        return self._told(first, call, "not-deterministic")
        return None

    def _with_memory_apart(self, steady: bool, answers: Mapping[str, bool]) -> Found | None:
        """The first operator with other bits, each value in memory of its own and each call submitted at once: it is wrong by
        order, by a missing wait, or by what was submitted before it."""
        seen = self._first_with_memory_apart()
        if seen is None:
            return None
        call, index = seen
        launches = self.apart.graphs[self.calls[call].graph].launches
        operator = launches[index].operator
        if answers["source's order"] and not answers["serialised"]:
            return self._told(operator, call, "unsafe-reorder", _made_later(launches, index))
        span = self._span(call, index)
        cause: Cause = "missing-hazard" if not steady else "long-chain" if span > 2 else "context-shape"
        return replace(self._told(operator, call, cause, launches[index - span + 1].operator if span > 1 else None), span=span)

    def _first_with_memory_apart(self) -> tuple[int, int] | None:
        with closing(self.stand.player(self.apart, FRESH)) as player:
            for _ in range(TRIES):
                player.reset()
                for number, call in enumerate(self.calls):
                    player.begin(call.graph, call.inputs)
                    player.launch(call.graph, 0, _count(self.apart, call.graph))
                    wrong = {key[0] for key in self._wrong(number, _written(player, call.graph))}
                    for index, launch in enumerate(self.apart.graphs[call.graph].launches):
                        if launch.operator in wrong:
                            return number, index
                    player.end(call.graph)
        return None

    def _wrong(self, call: int, have: _Digests) -> list[_Output]:
        return [key for key, digest in have.items() if digest != self.truths[call][key]]

    def _span(self, call: int, index: int) -> int:
        """How many launches, this one the last of them, have to be submitted together for it to be wrong; all before them are
        submitted one by one."""
        low, high = 0, index
        with closing(self.stand.player(self.apart, Way(serialised=True, fresh=True))) as player:
            while low < high:
                middle = (low + high + 1) // 2
                wrong = any(self._wrong_behind(player, call, middle, index) for _ in range(TRIES))
                low, high = (middle, high) if wrong else (low, middle - 1)
        return index - low + 1

    def _wrong_behind(self, player: Player, call: int, first: int, index: int) -> bool:
        player.reset()
        for before in self.calls[:call]:
            player.step(before.graph, before.inputs)
        graph = self.calls[call].graph
        player.begin(graph, self.calls[call].inputs)
        player.launch(graph, 0, first, apart=True)
        player.launch(graph, first, index + 1)
        wrong = self._wrong(call, _written(player, graph, index))
        player.end(graph)
        return bool(wrong)

    def _overwritten(self) -> Found | None:
        """Bisection over the launches of the first wrong call, as planned: the launch after which a value that is still needed is
        no longer what it was."""
        with closing(self.stand.player(way=FRESH)) as player:
            for call, one in enumerate(self.calls):
                launches = player.plan.graphs[one.graph].launches
                low, high = 0, len(launches)
                if not self._lost(player, call, high):
                    continue
                while low + 1 < high:
                    middle = (low + high) // 2
                    low, high = (low, middle) if self._lost(player, call, middle) else (middle, high)
                writer = launches[high - 1]
                for (maker, k), place in self._lost(player, call, high):
                    if maker != writer.operator and place in (*writer.outputs, *writer.scratch):
                        named = player.model.named
                        value = named[maker].outputs[k]
                        reader = (launch.operator for launch in launches[high:] if value in named[launch.operator].inputs)
                        return self._told(next(reader, maker), call, "early-reuse", writer.operator)
                return None
        return None

    def _lost(self, player: Player, call: int, count: int) -> list[tuple[_Output, Place]]:
        """What is needed after so many launches of a call, and is no longer what it was."""
        graph = self.calls[call].graph
        player.reset()
        for before in self.calls[:call]:
            player.step(before.graph, before.inputs)
        player.begin(graph, self.calls[call].inputs)
        player.launch(graph, 0, count)
        needed = list(_needed(player, graph, count))
        have = _digests(player, needed)
        player.end(graph)
        return [(key, place) for key, place in needed if have[key] != self.truths[call][key]]

    def _shy(self) -> Found | None:
        """The first operator that needs memory of its own for the fault to go away, all before it having that too."""
        call = next((k for k in range(len(self.calls)) if self._wrong_apart(k, ())), None)
        if call is None:
            return None
        names = [launch.operator for launch in self.stand.composition.plan.graphs[self.calls[call].graph].launches]
        if self._wrong_apart(call, names):
            return None
        low, high = 0, len(names)
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if self._wrong_apart(call, names[:middle]) else (low, middle)
        return replace(self._told(names[high - 1], call, "observer"), probe=True)

    def _wrong_apart(self, call: int, names: Sequence[str]) -> bool:
        bundle = self.stand.bundle
        plan = set_apart(self.stand.composition.plan, bundle.model, bundle.programs, names)
        with closing(self.stand.player(plan, FRESH)) as player:
            return any(trace(player, self.calls[: call + 1])[-1] != self.right[call] for _ in range(TRIES))

    def _told(self, operator: str, call: int, cause: Cause, other: str | None = None) -> Found:
        return Found(operator, self.calls[call].graph, call, cause, other)


def _count(plan: Plan, graph: str) -> int:
    return len(plan.graphs[graph].launches)


def _written(player: Player, graph: str, index: int | None = None) -> _Digests:
    """What the operators of a graph wrote, or one of them, each in memory of its own."""
    launches = player.plan.graphs[graph].launches
    chosen = launches if index is None else launches[index : index + 1]
    return _digests(player, [pair for launch in chosen for pair in outputs_of(player.programs, launch)])


def outputs_of(programs: Mapping[str, Compiled], launch: Launch) -> Iterator[tuple[_Output, Place]]:
    """Those that it writes."""
    forwards = dict(programs[launch.operator].forwards)
    yield from (((launch.operator, k), place) for k, place in enumerate(launch.outputs) if k not in forwards)


def _digests(player: Player, asked: Sequence[tuple[_Output, Place]]) -> _Digests:
    if not asked:
        return {}
    sizes = [player.programs[name].outputs[k].nbytes for (name, k), _ in asked]
    data = player.contents([(place, nbytes) for (_, place), nbytes in zip(asked, sizes, strict=True)])
    return {key: _digest(content) for (key, _), content in zip(asked, data, strict=True)}


def _needed(player: Player, graph: str, count: int) -> Iterator[tuple[_Output, Place]]:
    """What was made by so many launches and is read by a later one, or is an output or a state; and where it is read."""
    plan, facts = player.plan.graphs[graph], player.model.graphs[graph]
    makers: dict[str, _Output] = {}
    for launch in plan.launches[:count]:
        operator, forwards = player.model.named[launch.operator], dict(player.programs[launch.operator].forwards)
        for k, value in enumerate(operator.outputs):
            if k not in forwards:
                makers[value] = (operator.name, k)
            elif operator.inputs[forwards[k]] in makers:
                makers[value] = makers[operator.inputs[forwards[k]]]
    read = [
        (value, place) for launch in plan.launches[count:]
        for value, place in zip(player.model.named[launch.operator].inputs, launch.inputs, strict=True)
    ]  # fmt: skip
    read += [(value, plan.outputs[key]) for key, value in zip(facts.output_keys, facts.outputs, strict=True)]
    read += [(value, plan.carried.get(key, Place("next", key))) for key, value in facts.mutations.items()]
    yield from dict.fromkeys((makers[value], place) for value, place in read if value in makers)


def _made_later(launches: Sequence[Launch], index: int) -> str | None:
    """Who writes what this launch reads, after it."""
    read = set(launches[index].inputs)
    return next((launch.operator for launch in launches[index + 1 :] if read & set(launch.outputs)), None)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
