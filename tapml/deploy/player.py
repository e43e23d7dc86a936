"""Carries out the plan of a bundle on a device.

    player = Player(model, programs, plan, engine, weight)
    tokens = [token for token, _ in greedy(player, prompt, protocol, 16)]        it is a `Stepper`

A call is the uploads of its inputs, one submission of work that was recorded at the first such call, and one read of its outputs.
The same plan can be run in other ways, for `tapml.deploy.verify`: each operator submitted and waited for alone (`serialised`),
with NaN in every buffer from the moment when nothing in it is needed any more (`poisoned`), or in pieces: `begin`, `launch`,
`contents` and `end` are what `step` is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapml.deploy.plan import GraphPlan, Launch, Place, Plan
from tapml.errors import ConnectionLost, DeviceLost, WrongValue
from tapml.runtime.buffers import as_bytes
from tapml.runtime.engine import Compiled, Engine
from tapml.runtime.model import ModelData
from tapml.tensors import NUMPY, HostArray, TensorSpec, as_read, convert, out_of_range

# These bytes are NaN in every float dtype, -1 in signed integers.
POISON = b"\xff"

# Gives the buffer with a weight, by its key and the dtype that it is stored in.
WeightBuffer = Callable[[str, str], int]

# Changes what is submitted together: how a fault of composition is put in.
OnBatch = Callable[[Sequence[Launch]], Sequence[Launch]]


@dataclass(frozen=True)
class Way:
    """How a plan is run. `fresh`: NaN in all memory whenever states are set back, so that nothing that an earlier call left there
    can pass for what this one should have written. `poisoned`: also as soon as nothing in a buffer is needed any more."""

    serialised: bool = False
    fresh: bool = False
    poisoned: bool = False


PLANNED = Way()


class Player:
    """A `Stepper` (see `tapml.runtime.protocol`). The engine and the weights stay the caller's; `close` gives back the buffers
    that were taken from the engine's pool. Opening makes the constants. Raises DeviceError, DeviceLost or ConnectionLost where
    the device does, WrongValue where an output is out of the range of its dtype. `wait` waits for all that was submitted."""

    def __init__(
        self, model: ModelData, programs: Mapping[str, Compiled], plan: Plan, engine: Engine, weight: WeightBuffer,
        wait: Callable[[], None] = lambda: None, way: Way = PLANNED, on_batch: OnBatch | None = None,
    ) -> None:
        self.model, self.programs, self.plan = model, programs, plan
        self._engine, self._weight, self._wait, self._way, self._on_batch = engine, weight, wait, way, on_batch
        self._buffers: dict[Place, int] = {}
        self._sizes: dict[Place, int] = {}
        self._halves: dict[str, tuple[int, int]] = {}
        self._which = dict.fromkeys(plan.states, 0)
        self._work: dict[tuple[Launch, tuple[int, ...]], Sequence[Any]] = {}
        self._batches: dict[tuple[str, tuple[int, ...]], Sequence[Any]] = {}
        self._given: dict[str, HostArray] = {}
        self._inputs = {
            name: tuple(dict.fromkeys(p for launch in graph.launches for p in launch.inputs if p.kind == "input"))
            for name, graph in plan.graphs.items()
        }
        self._stored = {
            (o.graph, value): spec
            for o in model.operators
            for value, spec in zip(o.outputs, programs[o.name].outputs, strict=True)
        }
        self._dying = {name: dying(graph) for name, graph in plan.graphs.items()} if way.poisoned else {}
        try:
            self._take()
            self._submit(plan.constants)
            self.reset()
        except (DeviceLost, ConnectionLost):
            raise
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        for index, nbytes in enumerate(self.plan.slots):
            self._allocate(Place("slot", str(index)), nbytes)
        for name, nbytes in self.plan.constant_bytes.items():
            self._allocate(Place("constant", name), nbytes)
        for key, spec in self.plan.states.items():
            for place in (Place("state", key), Place("next", key)):
                self._allocate(place, spec.nbytes)
            self._halves[key] = self._buffers[Place("state", key)], self._buffers[Place("next", key)]

    def _allocate_once(self, place: Place, nbytes: int) -> None:
        if place not in self._buffers:
            self._allocate(place, nbytes)

    def _allocate(self, place: Place, nbytes: int) -> None:
        self._buffers[place] = self._engine.pool.allocate(nbytes)
        self._sizes[place] = nbytes
        if self._way.fresh or self._way.poisoned:
            self._engine.write(self._buffers[place], POISON * nbytes)

    def prepare(self) -> None:
        """Records the first call of each graph, which brings the weights onto the device; else the first call does so."""
        for name in self.plan.graphs:
            for place in self._inputs[name]:
                spec = next(p.spec for p in self.model.graphs[name].inputs if p.key == place.name)
                self._allocate_once(place, TensorSpec(spec.shape, place.dtype).nbytes)
            self._recorded(name)

    def reset(self) -> None:
        """Sets every state back to its initial content."""
        if self._way.fresh or self._way.poisoned:
            for place, nbytes in self._sizes.items():
                if place.kind != "constant":
                    self._engine.write(self._buffers[place], POISON * nbytes)
        for key, spec in self.plan.states.items():
            self._which[key] = 0
            self._engine.write(self._halves[key][0], as_bytes(convert(self.model.initial_states[key], spec.dtype)))

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        """Runs one graph: inputs by key, outputs by key. States advance."""
        self.begin(graph, inputs)
        launches = self.plan.graphs[graph].launches
        if self._way.serialised or self._way.poisoned:
            self.launch(graph, 0, len(launches), apart=True)
        elif self._on_batch is not None:
            self.launch(graph, 0, len(launches))
        else:
            self._engine.submit(self._recorded(graph))
        return self.end(graph)

    def launches(self, graph: str) -> int:
        """How many launches a call submits."""
        return len(self._recorded(graph))

    def repeat(self, graph: str, times: int) -> None:
        """Submits the launches of a call so many times with what lies in the buffers now, and waits for all of them. Nothing is
        uploaded or read, and states do not advance."""
        for _ in range(times):
            self._engine.submit(self._recorded(graph))
        self._wait()

    def begin(self, graph: str, inputs: dict[str, HostArray]) -> None:
        """Uploads the inputs of a call."""
        specs = {p.key: p.spec for p in self.model.graphs[graph].inputs}
        for key, spec in specs.items():
            if key not in inputs:
                raise ValueError(f"graph {graph} wants input {key!r}; given: {', '.join(inputs)}")
            if tuple(inputs[key].shape) != spec.shape:
                raise ValueError(f"input {key!r} of {graph} has shape {inputs[key].shape}, not {spec}")
        self._given = {key: inputs[key] for key in specs}
        for place in self._inputs[graph]:
            array = convert(self._given[place.name], place.dtype)
            self._allocate_once(place, array.nbytes)
            self._engine.write(self._buffers[place], as_bytes(array))
        if self._way.poisoned:
            self._poison(Place("next", key) for key in self.plan.graphs[graph].advanced)

    def launch(self, graph: str, first: int, last: int, apart: bool = False) -> None:
        """Submits the launches from `first` up to before `last`: together, or each alone with `apart`."""
        step = 1 if apart else max(last - first, 1)
        for start in range(first, last, step):
            self._submit(self.plan.graphs[graph].launches[start : start + step])
            if self._way.serialised:
                self._wait()
            if self._way.poisoned:
                self._poison(place for index in range(start, start + step) for place in self._dying[graph][index])

    def end(self, graph: str) -> dict[str, HostArray]:
        """The outputs of the call, by key. States advance."""
        planned, facts = self.plan.graphs[graph], self.model.graphs[graph]
        wanted = [(value, planned.outputs[key]) for key, value in zip(facts.output_keys, facts.outputs, strict=True)]
        carried = [(facts.mutations[key], place) for key, place in planned.carried.items()]
        arrays = self.values(graph, [*wanted, *carried])
        for key, array in zip(planned.carried, arrays[len(wanted) :], strict=True):
            data = as_bytes(convert(array, self.plan.states[key].dtype))
            self._engine.write(self._halves[key][1 - self._which[key]], data)
        for key in (*planned.advanced, *planned.carried):
            self._which[key] = 1 - self._which[key]
        return dict(zip(facts.output_keys, arrays, strict=False))

    def values(self, graph: str, asked: Sequence[tuple[str, Place]]) -> list[HostArray]:
        """What lies in some places now, as the values of the graph that they hold. What was given is as it was given."""
        there = [(value, place) for value, place in asked if place.kind not in ("input", "weight")]
        specs = [self._stored.get((graph, value)) or self.plan.states[place.name] for value, place in there]
        data = self.contents([(place, spec.nbytes) for (_, place), spec in zip(there, specs, strict=True)]) if there else []
        found: dict[str, HostArray] = {}
        for (value, _), spec, content in zip(there, specs, data, strict=True):
            have, wanted = np.frombuffer(content, NUMPY[spec.dtype], spec.elements), self.model.graphs[graph].specs[value]
            if words := out_of_range(have, wanted.dtype):
                maker = next((o.name for o in self.model.operators_of[graph] if value in o.outputs), value)
                raise WrongValue(maker, f"{maker}: {words}", (maker,))
            found[value] = as_read(have.reshape(wanted.shape), wanted.dtype)
        for value, place in asked:
            if place.kind == "input":
                found[value] = self._given[place.name]
            elif place.kind == "weight":
                found[value] = self.model.weight(place.name)
        return [found[value] for value, _ in asked]

    def contents(self, places: Sequence[tuple[Place, int]]) -> list[bytes]:
        """What lies in some places now, the first so many bytes of each."""
        return self._engine.read_many([(self._buffer(place), nbytes, 0) for place, nbytes in places])

    def close(self) -> None:
        """Gives the buffers back to the engine's pool. Weights and kernels stay where they are."""
        for buffer in self._buffers.values():
            self._engine.pool.release(buffer)
        self._buffers.clear()
        self._batches.clear()
        self._work.clear()

    def _buffer(self, place: Place) -> int:
        if place.kind == "weight":
            return self._weight(place.name, place.dtype)
        if place.kind in ("state", "next"):
            return self._halves[place.name][self._which[place.name] ^ (place.kind == "next")]
        return self._buffers[place]

    def _poison(self, places: Iterable[Place]) -> None:
        for place in places:
            self._engine.write(self._buffer(place), POISON * self._sizes[place])

    def _submit(self, launches: Sequence[Launch]) -> None:
        together = launches if self._on_batch is None else self._on_batch(launches)
        work = [item for launch in together for item in self._one(launch)]
        if work:
            self._engine.submit(work)

    def _one(self, launch: Launch) -> Sequence[Any]:
        key = launch, tuple(self._which.values())
        if key not in self._work:
            places = [[self._buffer(place) for place in group] for group in (launch.inputs, launch.outputs, launch.scratch)]
            self._work[key] = self._engine.record(self.programs[launch.operator], *places)
        return self._work[key]

    def _recorded(self, graph: str) -> Sequence[Any]:
        key = graph, tuple(self._which.values())
        if key not in self._batches:
            launches = self.plan.graphs[graph].launches
            self._batches[key] = tuple(item for launch in launches for item in self._one(launch))
        return self._batches[key]


def dying(graph: GraphPlan) -> list[tuple[Place, ...]]:
    """For each launch the slots in which nothing is needed any more after it."""
    kept = {*graph.outputs.values(), *graph.carried.values()}
    needed = {place for place in kept if place.kind == "slot"}
    found: list[tuple[Place, ...]] = []
    for launch in reversed(graph.launches):
        touched = dict.fromkeys((*launch.inputs, *launch.outputs, *launch.scratch))
        found.append(tuple(place for place in touched if place.kind == "slot" and place not in needed))
        needed -= {*launch.outputs, *launch.scratch}
        needed |= {place for place in launch.inputs if place.kind == "slot"}
    return found[::-1]
