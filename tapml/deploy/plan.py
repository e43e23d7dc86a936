"""The plan of a bundle: in which order its operators run in a call, and where each value lies meanwhile.

    plan = make_plan(model, programs)                  in the source's order, buffers used again after their last reader
    check_plan(plan, model, programs)                  BundleError unless every operator reads what it should

Places. A value lies in a `slot` (a transient buffer, given to another value after the last reader of this one), in the buffer of
an `input`, a `weight` or a `constant`, or in one of the two buffers of a `state`: "state" is its content before the call, "next"
the one that the call writes, and at the end of a call the two change roles. Operators that read nothing but weights give
constants: they run once, when the bundle is loaded, with the kernels that passed.

A plan is data, and says nothing of devices: `tapml.deploy.player` carries it out. Because it is data it can be proven:
`check_plan` walks it with names in place of numbers, and sees that what each operator finds at its places is what the graph gives
it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from tapml import strict
from tapml.errors import BundleError
from tapml.operators.graph import Graph, Operator
from tapml.runtime.engine import Compiled
from tapml.runtime.model import ModelData
from tapml.tensors import NUMPY, TensorSpec

Kind: TypeAlias = Literal["slot", "input", "weight", "constant", "state", "next"]
KINDS: tuple[Kind, ...] = ("slot", "input", "weight", "constant", "state", "next")


@dataclass(frozen=True)
class Place:
    """`name` is the number of a slot, the key of an input, a weight or a state, the name of a constant. `dtype` is what an input
    or a weight is stored in, "" for the others."""

    kind: Kind
    name: str
    dtype: str = ""

    def to_json(self) -> list[str]:
        return [self.kind, self.name, self.dtype] if self.dtype else [self.kind, self.name]

    @staticmethod
    def from_json(data: Any) -> Place:
        kind: Kind = strict.one_of(data, 0, KINDS)
        dtype = strict.one_of(data, 2, tuple(NUMPY)) if kind in ("input", "weight") else ""
        return Place(kind, strict.name(data, 1), dtype)


@dataclass(frozen=True)
class Launch:
    """One operator over its places."""

    operator: str
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    scratch: tuple[Place, ...]

    def to_json(self) -> list[Any]:
        return [self.operator, *([p.to_json() for p in group] for group in (self.inputs, self.outputs, self.scratch))]

    @staticmethod
    def from_json(data: Any) -> Launch:
        inputs, outputs, scratch = (tuple(Place.from_json(p) for p in strict.items(data, k)) for k in (1, 2, 3))
        return Launch(strict.name(data, 0), inputs, outputs, scratch)


@dataclass(frozen=True)
class GraphPlan:
    """`launches` in order. `outputs` says where each output lies at the end, by key. `advanced` are the states whose next content
    lies in their other buffer, `carried` those whose next content lies elsewhere and is copied."""

    launches: tuple[Launch, ...]
    outputs: dict[str, Place]
    advanced: tuple[str, ...]
    carried: dict[str, Place]

    def to_json(self) -> dict[str, Any]:
        return {
            "launches": [launch.to_json() for launch in self.launches],
            "outputs": {key: place.to_json() for key, place in self.outputs.items()}, "advanced": list(self.advanced),
            "carried": {key: place.to_json() for key, place in self.carried.items()},
        }  # fmt: skip

    @staticmethod
    def from_json(data: Any) -> GraphPlan:
        outputs, carried = (
            {key: Place.from_json(place) for key, place in strict.inner(data, which).items()} for which in ("outputs", "carried")
        )
        launches = tuple(Launch.from_json(launch) for launch in strict.items(data, "launches"))
        return GraphPlan(launches, outputs, strict.several(strict.name, data, "advanced"), carried)


@dataclass(frozen=True)
class Plan:
    """`slots` are sizes in bytes, shared by all graphs; `constants` the launches that make the constants, in order, and
    `constant_bytes` their sizes by name; `states` how each state is stored."""

    slots: tuple[int, ...]
    constants: tuple[Launch, ...]
    constant_bytes: dict[str, int]
    states: dict[str, TensorSpec]
    graphs: dict[str, GraphPlan]

    @property
    def planned_bytes(self) -> int:
        """Of everything but weights and inputs: slots, constants, both buffers of each state."""
        return sum(self.slots) + sum(self.constant_bytes.values()) + 2 * sum(s.nbytes for s in self.states.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "slots": list(self.slots), "constants": [launch.to_json() for launch in self.constants],
            "constant_bytes": self.constant_bytes, "states": {key: spec.to_json() for key, spec in self.states.items()},
            "graphs": {name: graph.to_json() for name, graph in self.graphs.items()},
        }  # fmt: skip

    @staticmethod
    def from_json(data: Any) -> Plan:
        sizes = strict.inner(data, "constant_bytes")
        return Plan(
            strict.several(strict.whole, data, "slots"),
            tuple(Launch.from_json(launch) for launch in strict.items(data, "constants")),
            {key: strict.whole(sizes, key) for key in sizes},
            {key: TensorSpec.from_json(spec) for key, spec in strict.inner(data, "states").items()},
            {name: GraphPlan.from_json(graph) for name, graph in strict.inner(data, "graphs").items()},
        )


def make_plan(
    model: ModelData, programs: Mapping[str, Compiled], like: Plan | None = None, reuse: bool = True
) -> Plan:
    """Operators run in the source's order, or in that of the plan `like`; without `reuse`, each value has a slot of its own.
    Raises BundleError where two programs disagree on how a value between them is stored."""
    planner = _Planner(model, programs, reuse)
    for name in model.graphs:
        operators = model.operators_of[name]
        if like is not None:
            place = {launch.operator: k for k, launch in enumerate(like.graphs[name].launches)}
            operators = tuple(sorted(operators, key=lambda o: place.get(o.name, -1)))
        planner.graph(name, operators)
    return planner.done()


def set_apart(plan: Plan, model: ModelData, programs: Mapping[str, Compiled], names: Collection[str]) -> Plan:
    """The same plan, but for what these operators write into slots: that gets slots of its own, and all else stays in place."""
    slots = list(plan.slots)
    graphs: dict[str, GraphPlan] = {}
    for name, graph in plan.graphs.items():
        moved: dict[str, Place] = {}
        launches: list[Launch] = []
        for launch in graph.launches:
            operator, program = model.named[launch.operator], programs[launch.operator]
            forwards = dict(program.forwards)
            for k, (value, spec, place) in enumerate(zip(operator.outputs, program.outputs, launch.outputs, strict=True)):
                if k in forwards and operator.inputs[forwards[k]] in moved:
                    moved[value] = moved[operator.inputs[forwards[k]]]
                elif k not in forwards and place.kind == "slot" and launch.operator in names:
                    moved[value] = Place("slot", str(len(slots)))
                    slots.append(spec.nbytes)
            inputs, outputs = (
                tuple(moved.get(value, place) for value, place in zip(values, places, strict=True))
                for values, places in ((operator.inputs, launch.inputs), (operator.outputs, launch.outputs))
            )
            launches.append(replace(launch, inputs=inputs, outputs=outputs))
        facts = model.graphs[name]
        ends = dict(zip(facts.output_keys, facts.outputs, strict=True))
        graphs[name] = replace(
            graph, launches=tuple(launches),
            outputs={key: moved.get(ends[key], place) for key, place in graph.outputs.items()},
            carried={key: moved.get(facts.mutations[key], place) for key, place in graph.carried.items()},
        )  # fmt: skip
    return replace(plan, slots=tuple(slots), graphs=graphs)


def naive_bytes(plan: Plan, programs: Mapping[str, Compiled]) -> int:
    """What `plan.planned_bytes` would be if every value and every scratch buffer had memory of its own."""
    slots = 0
    for launch in (launch for graph in plan.graphs.values() for launch in graph.launches):
        program = programs[launch.operator]
        own = dict(program.forwards)
        slots += sum(spec.nbytes for k, (spec, place) in enumerate(zip(program.outputs, launch.outputs, strict=True))
                     if place.kind == "slot" and k not in own)  # fmt: skip
        slots += sum(program.scratch)
    return slots + plan.planned_bytes - sum(plan.slots)


@dataclass
class _Slots:
    """Slots by number; those that nobody holds are handed out again."""

    reuse: bool
    sizes: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)
    holders: dict[int, int] = field(default_factory=dict)

    def take(self, nbytes: int) -> Place:
        fitting = [i for i in self.free if self.sizes[i] >= nbytes]
        if fitting:
            index = min(fitting, key=lambda i: self.sizes[i])
            self.free.remove(index)
        elif self.free:
            index = max(self.free, key=lambda i: self.sizes[i])  # none is large enough: the largest grows
            self.free.remove(index)
            self.sizes[index] = nbytes
        else:
            index = len(self.sizes)
            self.sizes.append(nbytes)
        self.holders[index] = 1
        return Place("slot", str(index))

    def hold(self, place: Place) -> None:
        if place.kind == "slot":
            self.holders[int(place.name)] += 1

    def drop(self, place: Place) -> None:
        if place.kind == "slot":
            index = int(place.name)
            self.holders[index] -= 1
            if not self.holders[index] and self.reuse:
                self.free.append(index)

    def drop_all(self) -> None:
        """Between graphs: nothing in a slot outlives a call."""
        self.free = list(range(len(self.sizes))) if self.reuse else []
        self.holders.clear()


class _Planner:
    def __init__(self, model: ModelData, programs: Mapping[str, Compiled], reuse: bool) -> None:
        self.model, self.programs = model, programs
        self.slots = _Slots(reuse)
        self.constants: list[Launch] = []
        self.constant_bytes: dict[str, int] = {}
        self.states: dict[str, TensorSpec] = {}
        self.graphs: dict[str, GraphPlan] = {}
        self._same: dict[tuple[str, tuple[Place, ...]], Launch] = {}  # of constants, by program and inputs

    def done(self) -> Plan:
        return Plan(tuple(self.slots.sizes), tuple(self.constants), self.constant_bytes, self.states, self.graphs)

    def graph(self, name: str, operators: Sequence[Operator]) -> None:
        graph = self.model.graphs[name]
        last = {value: k for k, o in enumerate(operators) for value in (*o.inputs, *o.outputs)}
        kept = {*graph.outputs, *graph.mutations.values()}
        next_of = _next_of(graph)
        self.slots.drop_all()
        # A next content has its place from the start, so that an order that reads it too early (no sound one) can be planned.
        places = _given(graph) | {value: Place("next", key) for value, key in next_of.items()}
        stored: dict[str, TensorSpec] = {}
        launches: list[Launch] = []
        for index, operator in enumerate(operators):
            program = self.programs[operator.name]
            inputs = tuple(
                self._read(graph, value, spec, places, stored)
                for value, spec in zip(operator.inputs, program.inputs, strict=True)
            )
            if all(place.kind in ("weight", "constant") for place in inputs) and not next_of.keys() & set(operator.outputs):
                outputs = self._constant(operator, program, inputs)
            else:
                outputs = self._written(operator, program, inputs, next_of)
                scratch = tuple(self.slots.take(nbytes) for nbytes in program.scratch)
                launches.append(Launch(operator.name, inputs, outputs, scratch))
                for place in scratch:
                    self.slots.drop(place)
            places.update(zip(operator.outputs, outputs, strict=True))
            stored.update(zip(operator.outputs, program.outputs, strict=True))
            for value in dict.fromkeys((*operator.inputs, *operator.outputs)):
                if last[value] == index and value not in kept:
                    self.slots.drop(places[value])
        advanced, carried = self._advance(graph, places, stored)
        keys = zip(graph.output_keys, graph.outputs, strict=True)
        outputs_at = {key: self._output(graph, value, places) for key, value in keys}
        self.graphs[name] = GraphPlan(tuple(launches), outputs_at, advanced, carried)

    def _read(
        self, graph: Graph, value: str, spec: TensorSpec, places: dict[str, Place], stored: dict[str, TensorSpec]
    ) -> Place:
        place = places[value]
        if place.kind in ("input", "weight"):
            return Place(place.kind, place.name, spec.dtype)
        if place.kind == "state":
            self._store(place.name, spec)
        elif (have := stored.get(value, spec)).dtype != spec.dtype or have.elements != spec.elements:
            raise BundleError(f"{value} of graph {graph.name} is stored as {have} by one kernel, and read as {spec} by another.")
        return place

    def _store(self, key: str, spec: TensorSpec) -> None:
        have = self.states.setdefault(key, spec)
        if have.dtype != spec.dtype or have.elements != spec.elements:
            raise BundleError(f"The state {key} is stored as {have} by one kernel, and as {spec} by another.")

    def _constant(self, operator: Operator, program: Compiled, inputs: tuple[Place, ...]) -> tuple[Place, ...]:
        same = self._same.get((program.digest, inputs))
        if same is not None:
            return same.outputs
        forwards = dict(program.forwards)
        outputs: list[Place] = []
        for k, (value, spec) in enumerate(zip(operator.outputs, program.outputs, strict=True)):
            if k in forwards:
                outputs.append(inputs[forwards[k]])
                continue
            name = f"{operator.graph}/{value}"
            self.constant_bytes[name] = spec.nbytes
            outputs.append(Place("constant", name))
        # What it needs besides is taken like a value of the call, and free again before the first call.
        scratch = tuple(self.slots.take(nbytes) for nbytes in program.scratch)
        launch = Launch(operator.name, inputs, tuple(outputs), scratch)
        for place in scratch:
            self.slots.drop(place)
        self.constants.append(launch)
        self._same[program.digest, inputs] = launch
        return launch.outputs

    def _written(
        self, operator: Operator, program: Compiled, inputs: tuple[Place, ...], next_of: Mapping[str, str]
    ) -> tuple[Place, ...]:
        forwards = dict(program.forwards)
        outputs: list[Place] = []
        for k, (value, spec) in enumerate(zip(operator.outputs, program.outputs, strict=True)):
            if k in forwards:
                self.slots.hold(inputs[forwards[k]])
                outputs.append(inputs[forwards[k]])
            elif value in next_of:
                self._store(next_of[value], spec)
                outputs.append(Place("next", next_of[value]))
            else:
                outputs.append(self.slots.take(spec.nbytes))
        return tuple(outputs)

    def _advance(
        self, graph: Graph, places: Mapping[str, Place], stored: Mapping[str, TensorSpec]
    ) -> tuple[tuple[str, ...], dict[str, Place]]:
        advanced: list[str] = []
        carried: dict[str, Place] = {}
        for key, value in graph.mutations.items():
            place = self._output(graph, value, places)
            if place == Place("next", key):
                advanced.append(key)
            elif place != Place("state", key):
                self.states.setdefault(key, stored.get(value, graph.specs[value]))
                carried[key] = place
        return tuple(advanced), carried

    def _output(self, graph: Graph, value: str, places: Mapping[str, Place]) -> Place:
        place = places[value]
        if place.kind in ("input", "weight") and not place.dtype:
            return Place(place.kind, place.name, graph.specs[value].dtype)
        if place.kind == "state":
            self.states.setdefault(place.name, graph.specs[value])
        return place


def _given(graph: Graph) -> dict[str, Place]:
    """Where the values lie that a graph is given. Inputs and weights get a dtype where they are read."""
    kinds: dict[str, Kind] = {"input": "input", "weight": "weight", "state": "state"}
    return {p.name: Place(kinds[p.role], p.key) for p in graph.placeholders}


def _next_of(graph: Graph) -> dict[str, str]:
    """Values that are the next content of one state."""
    found: dict[str, str] = {}
    for key, value in graph.mutations.items():
        found.setdefault(value, key)
    given = {p.name for p in graph.placeholders}
    return {value: key for value, key in found.items() if value not in given}


def check_plan(plan: Plan, model: ModelData, programs: Mapping[str, Compiled]) -> None:
    """Raises BundleError unless the plan computes what the graphs say: every operator once, each finding at its places the values
    that it reads, none writing where it reads, every output and state in its place at the end, every slot large enough."""
    if set(plan.graphs) != set(model.graphs):
        raise BundleError(f"Its plan is for the graphs {', '.join(plan.graphs)}, and it has {', '.join(model.graphs)}.")
    for name in model.graphs:
        for said in _Proof(plan, model, programs, name).unsound():
            raise BundleError(f"Its plan is not sound: {said}.")


# What a place holds: ("weight", key), ("input", key), ("state", key) before the call, or (graph, value).
_Content: TypeAlias = tuple[str, str]
_NOTHING: _Content = ("nothing", "needed")


class _Proof:
    """One graph's call, walked with the names of values in place of numbers."""

    def __init__(self, plan: Plan, model: ModelData, programs: Mapping[str, Compiled], graph: str) -> None:
        self.plan, self.programs, self.model = plan, programs, model
        self.graph, self.planned = model.graphs[graph], plan.graphs[graph]
        self.held: dict[Place, _Content] = {Place("state", key): ("state", key) for key in plan.states}
        self.given = {g.name: {p.name: (p.role, p.key) for p in g.placeholders} for g in model.graphs.values()}
        self.alike: dict[_Content, _Content] = {}
        self.folded = {launch.operator for launch in plan.constants}
        self.spared: set[str] = set()

    def unsound(self) -> Iterator[str]:
        """What is wrong, a sentence each; the first one may be the cause of others."""
        yield from self._constants_made_once()
        for launch in self.plan.constants:
            yield from self._run(launch, "constant")
        todo = {o.name for o in self.model.operators_of[self.graph.name]} - self.folded - self.spared
        for launch in self.planned.launches:
            if launch.operator not in todo:
                yield f"{launch.operator[:80]} runs twice, or is no operator of {self.graph.name}"
                return
            todo.remove(launch.operator)
            yield from self._run(launch, "slot")
        if todo:
            yield f"{min(todo)} does not run"
        yield from self._ends()

    def _constants_made_once(self) -> Iterator[str]:
        """Operators that give the constants which another one gives already do not run: notes that their outputs are alike."""
        named = self.model.named
        if unknown := [name for name in self.folded if name not in named]:
            yield f"there is no operator {unknown[0][:80]}"
        launched = {launch.operator for planned in self.plan.graphs.values() for launch in planned.launches}
        makers: dict[tuple[str, tuple[_Content, ...]], Operator] = {}
        for operator in self.model.operators:
            program = self.programs[operator.name]
            reads = tuple(self._means(operator.graph, value) for value in operator.inputs)
            key = program.digest, reads
            if operator.name in self.folded:
                makers[key] = operator
            elif key in makers and operator.name not in launched:
                self.spared.add(operator.name)
                for value, same in zip(operator.outputs, makers[key].outputs, strict=True):
                    self.alike[operator.graph, value] = self._means(makers[key].graph, same)
            for out, into in program.forwards:
                self.alike[operator.graph, operator.outputs[out]] = reads[into]

    def _means(self, graph: str, value: str) -> _Content:
        return self.given[graph].get(value) or self.alike.get((graph, value), (graph, value))

    def _holds(self, place: Place) -> _Content:
        return (place.kind, place.name) if place.kind in ("input", "weight") else self.held.get(place, _NOTHING)

    def _run(self, launch: Launch, made: Kind) -> Iterator[str]:
        operator, program = self.model.named[launch.operator], self.programs[launch.operator]
        name, forwards = operator.name, dict(program.forwards)
        counts = [(launch.inputs, program.inputs), (launch.outputs, program.outputs), (launch.scratch, program.scratch)]
        if any(len(places) != len(of) for places, of in counts):
            yield f"{name} has other inputs, outputs or scratch than its kernels"
            return
        for value, place, spec in zip(operator.inputs, launch.inputs, program.inputs, strict=True):
            wanted, found = self._means(operator.graph, value), self._holds(place)
            if wanted != found:
                yield f"{name} reads {' '.join(wanted)} in {place.kind} {place.name}, where {' '.join(found)} is"
            if place.kind in ("input", "weight") and place.dtype != spec.dtype:
                yield f"{name} reads {place.kind} {place.name} as {spec.dtype}, and it is stored as {place.dtype}"
        written: list[tuple[Place, Kind, int, _Content]] = [
            (place, "slot", nbytes, _NOTHING) for place, nbytes in zip(launch.scratch, program.scratch, strict=True)
        ]
        for k, (value, place, spec) in enumerate(zip(operator.outputs, launch.outputs, program.outputs, strict=True)):
            if k not in forwards:
                written.append((place, made, spec.nbytes, (operator.graph, value)))
            elif place != launch.inputs[forwards[k]]:
                yield f"{name} hands on {value}, and the plan has it elsewhere"
        places = [place for place, *_ in written]
        if len(set(places)) != len(places) or set(places) & set(launch.inputs):
            yield f"{name} writes where it reads, or twice in one place"
        for place, kind, nbytes, content in written:
            if place.kind != kind and not (place.kind == "next" and made == "slot"):
                yield f"{name} writes into {place.kind} {place.name}"
            if (room := self._room(place)) < nbytes:
                yield f"{name} writes {nbytes:,} bytes into {place.kind} {place.name}, which has {room:,}"
            self.held[place] = content

    def _room(self, place: Place) -> int:
        if place.kind == "slot":
            index = int(place.name) if place.name.isdecimal() else len(self.plan.slots)
            return self.plan.slots[index] if index < len(self.plan.slots) else 0
        if place.kind == "constant":
            return self.plan.constant_bytes.get(place.name, 0)
        return self.plan.states[place.name].nbytes if place.name in self.plan.states else 0

    def _ends(self) -> Iterator[str]:
        graph, planned = self.graph, self.planned
        if set(planned.outputs) != set(graph.output_keys):
            yield f"its outputs are {', '.join(planned.outputs)}, not {', '.join(graph.output_keys)}"
            return
        given = zip(graph.output_keys, graph.outputs, strict=True)
        ends = [(f"output {key}", value, planned.outputs[key]) for key, value in given]
        for key, value in graph.mutations.items():
            place = planned.carried.get(key, Place("next" if key in planned.advanced else "state", key))
            ends.append((f"state {key}", value, place))
        for what, value, place in ends:
            wanted, found = self._means(graph.name, value), self._holds(place)
            if wanted != found:
                yield f"{what} is {' '.join(wanted)}, and {' '.join(found)} lies there"
        if extra := (set(planned.advanced) | set(planned.carried)) - set(graph.mutations):
            yield f"it changes {min(extra)[:80]}, which is no state that {graph.name} changes"
