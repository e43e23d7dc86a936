"""How one call of a graph runs when some operators are on the target: worked out once, then replayed at each call.

`plan_call` walks the operators of a graph in order and says what happens when, without touching a device: which values go up,
which launches can be submitted together, which values come back. A value lives where it was made, and is moved when
somebody needs it elsewhere, never before. `Hybrid` (tapml.runtime.hybrid) turns the result into real buffers and launches.

Places. On the device a value lies in a `Slot` (reused after the last reader), in a weight's buffer, or in one of the two buffers
of a state. A graph is functional: an operator that updates a state writes a new value while others may still read the old
one. So each state has two buffers and the new content goes into the spare one; at the end of the call they change
roles. Where each state is at the start of a call is its `Residence`; a plan is made for one `Layout` (the residences of all
states) and tells the layout after it. A generation passes through very few layouts.

Order. Launches pile up until something has to wait for them: a read, or an upload into a slot that a waiting launch may still
use. Uploads of graph inputs come first, so a graph that is wholly on the target is uploads, one batch, one read per output.
A device carries out writes, batches and reads in the order in which it got them (see `tapml.devices.interface`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from tapml.operators.graph import Operator
from tapml.runtime.engine import Compiled
from tapml.runtime.walk import Step, Walk
from tapml.tensors import TensorSpec


@dataclass(frozen=True)
class Slot:
    """A transient buffer of the plan, number `index` of `Plan.slots`."""

    index: int


@dataclass(frozen=True)
class WeightPlace:
    """The buffer of a weight, stored as `spec`."""

    key: str
    spec: TensorSpec


@dataclass(frozen=True)
class StatePlace:
    """One of the two buffers of a state, stored as `spec`."""

    key: str
    which: int
    spec: TensorSpec


Place: TypeAlias = Slot | WeightPlace | StatePlace


@dataclass(frozen=True)
class Residence:
    """Where a state's content is: in its device buffer number `which`, stored as `stored`, if that is not None; on the host
    if `host` (or both)."""

    which: int = 0
    host: bool = True
    stored: TensorSpec | None = None


Layout: TypeAlias = tuple[tuple[str, Residence], ...]


@dataclass(frozen=True)
class Upload:
    """Write a host value to a place, stored as `spec`."""

    value: str
    place: Place
    spec: TensorSpec


@dataclass(frozen=True)
class Run:
    """Launch the program of operator number `operator` over these places; submitted with its neighbours."""

    operator: int
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    scratch: tuple[Slot, ...]


@dataclass(frozen=True)
class Submit:
    """Submit everything that `Run`s recorded since the last one."""

    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Read:
    """Read a value back: stored as `stored`, and `dtype` in the graph."""

    value: str
    place: Place
    stored: TensorSpec
    dtype: str


@dataclass(frozen=True)
class Call:
    """Run operator number `operator`, that of `step`, on the source."""

    operator: int
    step: Step


@dataclass(frozen=True)
class Forget:
    """Host values that nobody reads any more."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Observe:
    """Operator number `operator` is done, and its outputs are on the host."""

    operator: int


Action: TypeAlias = Upload | Submit | Read | Call | Forget | Observe


@dataclass(frozen=True)
class Plan:
    """`slots` are sizes in bytes. `kept` maps a state's key to the host value that becomes its content, where that is on the
    host. `outputs` are host values at the end."""

    actions: tuple[Action, ...]
    slots: tuple[int, ...]
    outputs: tuple[str, ...]
    kept: dict[str, str]
    after: Layout


@dataclass
class _Slots:
    """Transient buffers, handed out again as soon as nobody holds them."""

    sizes: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    holders: dict[int, int] = field(default_factory=dict)

    def take(self, nbytes: int) -> Slot:
        fitting = [i for i in self.free if self.sizes[i] >= nbytes]
        if fitting:
            index = min(fitting, key=lambda i: self.sizes[i])
            self.free.remove(index)
        elif self.free:
            index = max(self.free, key=lambda i: self.sizes[i])  # none is large enough: let the largest grow
            self.free.remove(index)
            self.sizes[index] = nbytes
        else:
            index = len(self.sizes)
            self.sizes.append(nbytes)
        self.holders[index] = 1
        return Slot(index)

    def hold(self, place: Place) -> None:
        if isinstance(place, Slot):
            self.holders[place.index] += 1

    def drop(self, place: Place) -> None:
        if isinstance(place, Slot):
            self.holders[place.index] -= 1
            if not self.holders[place.index]:
                self.free.append(place.index)


class _Planner:
    def __init__(self, walk: Walk, programs: Mapping[str, Compiled], layout: Layout, observe: bool) -> None:
        self.graph = graph = walk.graph
        self.steps = walk.steps
        self.programs = programs
        self.observe = observe
        self.actions: list[Action] = []
        self.pending: list[Run] = []
        self.slots = _Slots()
        self.residences = dict(layout)
        self.states = {p.name: p.key for p in graph.states}
        self.weights = walk.weights
        self.host: set[str] = {p.name for p in graph.inputs}
        self.host |= {name for name, key in self.states.items() if self.residences[key].host}
        self.places: dict[str, Place] = {}
        self.stored: dict[str, TensorSpec] = {}
        for name, key in self.states.items():
            residence = self.residences[key]
            if residence.stored is not None:
                self.places[name] = StatePlace(key, residence.which, residence.stored)
                self.stored[name] = residence.stored
        counts: dict[str, int] = {}
        for value in graph.mutations.values():
            counts[value] = counts.get(value, 0) + 1
        # Values that become a state's content, and may be written straight into its spare buffer.
        self.next_of = {value: key for key, value in graph.mutations.items() if counts[value] == 1}

    def plan(self) -> Plan:
        self._upload_first()
        for index, step in enumerate(self.steps):
            program = self.programs.get(step.operator.name)
            if program is not None:
                self._run(index, step.operator, program)
            else:
                self._call(index, step)
            self._release(step.dead)
        kept, after = self._states_after()
        for value in self.graph.outputs:
            self._to_host(value)
        self._submit()
        return Plan(tuple(self.actions), tuple(self.slots.sizes), self.graph.outputs, kept, after)

    def _upload_first(self) -> None:
        """Inputs and states that are only on the host and that an operator on the device reads."""
        for step in self.steps:
            program = self.programs.get(step.operator.name)
            if program is not None:
                for value, spec in zip(step.operator.inputs, program.inputs, strict=True):
                    if value in self.host and value not in self.places:
                        self._to_device(value, spec)

    def _run(self, index: int, operator: Operator, program: Compiled) -> None:
        inputs = tuple(self._to_device(v, s) for v, s in zip(operator.inputs, program.inputs, strict=True))
        forwards = dict(program.forwards)
        outputs: list[Place] = []
        for k, (value, spec) in enumerate(zip(operator.outputs, program.outputs, strict=True)):
            key = self.next_of.get(value)
            if k in forwards:
                place = inputs[forwards[k]]
                self.slots.hold(place)
            elif key is not None:
                place = StatePlace(key, 1 - self.residences[key].which, spec)
            else:
                place = self.slots.take(spec.nbytes)
            self.places[value], self.stored[value] = place, spec
            outputs.append(place)
        scratch = tuple(self.slots.take(nbytes) for nbytes in program.scratch)
        self.pending.append(Run(index, inputs, tuple(outputs), scratch))
        for slot in scratch:
            self.slots.drop(slot)
        if self.observe:
            for value in operator.outputs:
                self._to_host(value)
            self.actions.append(Observe(index))

    def _call(self, index: int, step: Step) -> None:
        for value in step.operator.inputs:
            self._to_host(value)
        self.actions.append(Call(index, step))
        self.host |= set(step.operator.outputs)
        if self.observe:
            self.actions.append(Observe(index))

    def _release(self, dead: Sequence[str]) -> None:
        gone = tuple(v for v in dead if v in self.host)
        for value in dead:
            if value in self.places:
                self.slots.drop(self.places.pop(value))
        if gone:
            self.actions.append(Forget(gone))
            self.host -= set(gone)

    def _to_device(self, value: str, spec: TensorSpec) -> Place:
        if value in self.weights:
            return WeightPlace(self.weights[value], spec)
        if value in self.places:
            have = self.stored[value]
            if have.dtype != spec.dtype or have.elements != spec.elements:
                raise ValueError(f"{value} of graph {self.graph.name} is stored as {have}, and wanted as {spec}")
            return self.places[value]
        assert value in self.host, f"{value} of graph {self.graph.name} is nowhere"
        self._submit()
        if value in self.states:
            place: Place = StatePlace(self.states[value], self.residences[self.states[value]].which, spec)
        else:
            place = self.slots.take(spec.nbytes)
        self.actions.append(Upload(value, place, spec))
        self.places[value], self.stored[value] = place, spec
        return place

    def _to_host(self, value: str) -> None:
        if value in self.host or value in self.weights:
            return
        self._submit()
        self.actions.append(Read(value, self.places[value], self.stored[value], self.graph.specs[value].dtype))
        self.host.add(value)

    def _submit(self) -> None:
        if self.pending:
            self.actions.append(Submit(tuple(self.pending)))
            self.pending = []

    def _states_after(self) -> tuple[dict[str, str], Layout]:
        kept: dict[str, str] = {}
        after: dict[str, Residence] = dict(self.residences)
        for name, key in self.states.items():
            value = self.graph.mutations.get(key, name)
            place = self.places.get(value)
            ours = place if isinstance(place, StatePlace) and place.key == key else None
            if ours is None:
                self._to_host(value)
            known = value in self.host or value in self.weights
            if known:
                kept[key] = value
            which = self.residences[key].which if ours is None else ours.which
            after[key] = Residence(which, known, None if ours is None else ours.spec)
        return kept, tuple(sorted(after.items()))


def plan_call(walk: Walk, programs: Mapping[str, Compiled], layout: Layout, observe: bool = False) -> Plan:
    """The plan of one call of a graph. Operators that have a program run on the target. With `observe`, every operator's outputs
    are read back right after it. Raises ValueError where two programs disagree on how a value between them is stored."""
    return _Planner(walk, programs, layout, observe).plan()
