"""A model whose operators run partly on the target and partly on the source: what exists at every moment of a migration.

Values live where they were made and move only when somebody needs them elsewhere; what happens when is planned once per set of
offloaded operators (`tapml.runtime.plan`), and a step replays the plan. Consecutive offloaded operators are one
batch with no read-back between. Weights go up once and stay, whatever the set; transient buffers are shared by all
plans. With every operator offloaded a decode step is the uploads of its inputs, one batch, and one read of the logits; with
none it is the source, operator by operator.

    hybrid = Hybrid(model, source, engine, weight_buffer)
    hybrid.offload({name: program for ...})
    tokens = [token for token, _ in greedy(hybrid, prompt, shape, 16)]

Not here: compiling, judging, and which operators to offload.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tapml.errors import DoesNotFit, ModelError, WrongValue, first_line, is_confined
from tapml.operators.graph import Operator
from tapml.runtime.buffers import as_bytes
from tapml.runtime.engine import Compiled, Engine, HostFunction, HostFunctions, Part
from tapml.runtime.model import ModelData
from tapml.runtime.plan import (
    Call,
    Forget,
    Layout,
    Observe,
    Place,
    Plan,
    Read,
    Residence,
    Slot,
    StatePlace,
    Submit,
    Upload,
    WeightPlace,
    plan_call,
)
from tapml.tensors import NUMPY, HostArray, TensorSpec, as_read, convert, out_of_range

# Gives the device's buffer with a weight for an operator (None: as the model has it), by its key and the dtype that it is
# stored in.
WeightBuffer = Callable[[Operator | None, str, str], int]

# Changes a graph's input or a state, by graph and key, on its way up: how a fault of handing over is put in.
OnUpload = Callable[[str, str, HostArray], HostArray]

# Gives the outputs of an operator on the source that refuses what the target computed for it.
OnRefusal = Callable[[Operator, WrongValue], Sequence[HostArray]]


@dataclass(frozen=True)
class _Write:
    value: str
    buffer: int
    dtype: str


@dataclass(frozen=True)
class _Batch:
    work: tuple[Any, ...]


@dataclass(frozen=True)
class _Fetch:
    value: str
    buffer: int
    stored: TensorSpec
    spec: TensorSpec


@dataclass(frozen=True)
class _Fetches:
    """Values that are fetched together."""

    fetches: tuple[_Fetch, ...]

    @property
    def parts(self) -> list[Part]:
        return [(fetch.buffer, fetch.stored.nbytes, 0) for fetch in self.fetches]


_Action: TypeAlias = _Write | _Batch | _Fetches | Call | Forget | Observe


@dataclass(frozen=True)
class _Ready:
    """A plan with buffers and loaded kernels in place of names."""

    actions: tuple[_Action, ...]
    plan: Plan


class Hybrid:
    """A `Stepper` (see `tapml.runtime.protocol`). `source` gives the operators' functions on the source. `engine` and
    `weight_buffer` may be left out as long as nothing is offloaded; they stay the caller's. `close` gives back the buffers that
    were taken from the engine's pool."""

    def __init__(
        self, model: ModelData, source: HostFunctions, engine: Engine | None = None, weight_buffer: WeightBuffer | None = None,
        on_upload: OnUpload | None = None,
    ) -> None:
        self._model = model
        self._source = source
        self._engine = engine
        self._weight_buffer = weight_buffer
        self._on_upload = on_upload
        self._keys = {name: {p.name: p.key for p in (*g.inputs, *g.states)} for name, g in model.graphs.items()}
        self._programs: dict[str, Compiled] = {}
        self._plans: dict[tuple[str, Layout, bool], _Ready] = {}
        self._arena: list[tuple[int, int]] = []  # (nbytes, buffer), transient, shared by all plans
        self._state_buffers: dict[tuple[str, int], tuple[int, int]] = {}  # (key, which) -> (nbytes, buffer)
        self._states: dict[str, HostArray] = {}
        self._layout: Layout = ()
        self.reset()

    @property
    def offloaded(self) -> frozenset[str]:
        return frozenset(self._programs)

    def offload(self, programs: Mapping[str, Compiled]) -> None:
        """Sets which operators run on the device, with which programs, and resets the states. All others run on the source."""
        if programs and (self._engine is None or self._weight_buffer is None):
            raise ValueError("a hybrid without a device cannot offload operators")
        unknown = set(programs) - {o.name for o in self._model.operators}
        if unknown:
            raise ValueError(f"no such operators: {sorted(unknown)}")
        self._programs = dict(programs)
        self._plans.clear()
        self.reset()

    def reset(self) -> None:
        """Sets every state back to its initial content."""
        self._states = dict(self._model.initial_states)
        self._layout = tuple(sorted((key, Residence()) for key in self._states))

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        """Runs one graph. Raises DeviceError, DeviceLost or ConnectionLost where the device does, WrongValue where a value that
        is read back is out of the range of its dtype, or an operator on the source refuses what the target computed for it."""
        values = self._begin(graph, inputs)
        ready = self._ready(graph, observe=False)
        for _ in self._execute(graph, ready, values, strict=True):
            pass
        return self._end(graph, ready, values)

    def observe(
        self, graph: str, inputs: dict[str, HostArray], on_refusal: OnRefusal | None = None
    ) -> Iterator[tuple[Operator, tuple[HostArray, ...]]]:
        """Runs one graph like `step`, and yields each operator with its outputs as soon as it is done. Much slower: each
        operator is submitted and read back alone. States advance when the iterator is exhausted. Integers out of the range of
        their dtype are yielded as the device stores them; where an operator on the source refuses its inputs, `on_refusal` is
        asked for its outputs."""
        values = self._begin(graph, inputs)
        ready = self._ready(graph, observe=True)
        operators = self._model.operators_of[graph]
        for index in self._execute(graph, ready, values, on_refusal):
            operator = operators[index]
            yield operator, tuple(values[name] for name in operator.outputs)
        self._end(graph, ready, values)

    def close(self) -> None:
        """Gives the transient and state buffers back to the engine's pool. Weights and kernels stay where they are."""
        if self._engine is not None:
            for _, buffer in [*self._arena, *self._state_buffers.values()]:
                self._engine.pool.release(buffer)
        self._arena, self._state_buffers = [], {}
        self._plans.clear()

    def _begin(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        values: dict[str, HostArray] = {}
        for placeholder in self._model.graphs[graph].placeholders:
            if placeholder.role == "input":
                if placeholder.key not in inputs:
                    raise ValueError(f"graph {graph} wants input {placeholder.key!r}; given: {', '.join(inputs)}")
                array = inputs[placeholder.key]
                if tuple(array.shape) != placeholder.spec.shape:
                    raise ValueError(f"input {placeholder.key!r} of {graph} has shape {array.shape}, not {placeholder.spec}")
                values[placeholder.name] = array
            elif placeholder.role == "state" and placeholder.key in self._states:
                values[placeholder.name] = self._states[placeholder.key]
        return values

    def _execute(
        self, graph: str, ready: _Ready, values: dict[str, HostArray], on_refusal: OnRefusal | None = None,
        strict: bool = False,
    ) -> Iterator[int]:
        """Carries out the plan over `values`, the host's values by name; yields the index of each observed operator. `strict`: an
        integer out of range is a WrongValue when it is read."""
        engine = self._engine
        for action in ready.actions:
            if isinstance(action, Call):
                operator = action.step.operator
                results = self._on_source(graph, operator, action.step.read(values, self._model.weight), on_refusal)
                values.update(zip(operator.outputs, results, strict=True))
            elif isinstance(action, Forget):
                for name in action.values:
                    del values[name]
            elif isinstance(action, Observe):
                yield action.operator
            else:
                assert engine is not None
                if isinstance(action, _Batch):
                    engine.submit(action.work)
                elif isinstance(action, _Write):
                    array = values[action.value]
                    if self._on_upload is not None and action.value in self._keys[graph]:
                        array = self._on_upload(graph, self._keys[graph][action.value], array)
                    engine.write(action.buffer, as_bytes(self._stored(graph, action, array)))
                else:
                    for fetch, data in zip(action.fetches, engine.read_many(action.parts), strict=True):
                        array = np.frombuffer(data, NUMPY[fetch.stored.dtype], fetch.stored.elements)
                        values[fetch.value] = as_read(array.reshape(fetch.spec.shape), fetch.spec.dtype)
                        if strict:
                            self._check_range(graph, fetch.value, array)

    def _on_source(
        self, graph: str, operator: Operator, inputs: list[HostArray], on_refusal: OnRefusal | None
    ) -> Sequence[HostArray]:
        """One operator on the source. With nothing on the target an error is what it is; else the inputs are to blame."""
        function = self._source(operator.signature)
        if not self._programs:
            return self._alone(operator, function, inputs)
        try:
            return function(inputs)
        except Exception as error:
            if not is_confined(error):
                raise
            refused = refusal(operator, error, makers(self._model, graph, operator, self._programs))
            if on_refusal is None:
                raise refused from error
            refused.__cause__ = error
            return on_refusal(operator, refused)

    def _alone(self, operator: Operator, function: HostFunction, inputs: list[HostArray]) -> Sequence[HostArray]:
        """The same where nothing but the run can be to blame."""
        try:
            made = function(inputs)
        except Exception as error:
            if not is_confined(error) or isinstance(error, ModelError):
                raise
            raise ModelError(
                f"PyTorch refuses the operator {operator.name} as the run has it ({first_line(error)}). Carve again with --fresh."
            ) from error
        for array, spec in zip(made, self._model.bodies[operator.signature].output_specs, strict=True):
            if array.shape != spec.shape:
                raise ModelError(
                    f"The operator {operator.name} gives the shape {list(array.shape)}, and the run says {spec}. Carve again "
                    "with --fresh."
                )
        return made

    def _stored(self, graph: str, action: _Write, array: HostArray) -> HostArray:
        try:
            return convert(array, action.dtype)
        except DoesNotFit as error:
            readers = [o.name for o in self._model.operators_of[graph] if o.name in self._programs and action.value in o.inputs]
            raise DoesNotFit(f"{', '.join(readers)}: {error}", readers) from error

    def _check_range(self, graph: str, name: str, array: HostArray) -> None:
        words = out_of_range(array, self._model.graphs[graph].specs[name].dtype)
        if words:
            maker = next((o.name for o in self._model.operators_of[graph] if name in o.outputs), name)
            raise WrongValue(maker, f"{maker}: {words}", (maker,))

    def _end(self, graph: str, ready: _Ready, values: dict[str, HostArray]) -> dict[str, HostArray]:
        walk, plan, weight = self._model.walks[graph], ready.plan, self._model.weight
        host = {r for r, residence in plan.after if residence.host}
        kept = {key: walk.value(name, values, weight) for key, name in plan.kept.items()}
        self._states = {k: v for k, v in {**self._states, **kept}.items() if k in host}
        self._layout = plan.after
        return walk.outputs(values, weight)

    def _ready(self, graph: str, observe: bool) -> _Ready:
        key = (graph, self._layout, observe)
        if key not in self._plans:
            plan = plan_call(self._model.walks[graph], self._programs, self._layout, observe)
            self._plans[key] = self._bind(graph, plan)
        return self._plans[key]

    def _bind(self, graph: str, plan: Plan) -> _Ready:
        slots = self._take_slots(plan.slots)
        operators = self._model.operators_of[graph]
        specs = self._model.graphs[graph].specs

        def buffer(place: Place, operator: Operator | None = None) -> int:
            if isinstance(place, Slot):
                return slots[place.index]
            if isinstance(place, WeightPlace):
                assert self._weight_buffer is not None
                return self._weight_buffer(operator, place.key, place.spec.dtype)
            return self._state_buffer(place)

        actions: list[_Action] = []
        for action in plan.actions:
            if isinstance(action, Upload):
                actions.append(_Write(action.value, buffer(action.place), action.spec.dtype))
            elif isinstance(action, Read):
                spec = TensorSpec(specs[action.value].shape, action.dtype)
                fetch = _Fetch(action.value, buffer(action.place), action.stored, spec)
                if actions and isinstance(before := actions[-1], _Fetches):
                    actions[-1] = _Fetches((*before.fetches, fetch))
                else:
                    actions.append(_Fetches((fetch,)))
            elif isinstance(action, Submit):
                work: list[Any] = []
                for run in action.runs:
                    assert self._engine is not None
                    operator = operators[run.operator]
                    program = self._programs[operator.name]
                    places = [[buffer(p, operator) for p in group] for group in (run.inputs, run.outputs, run.scratch)]
                    work += self._engine.record(program, *places)
                if work:
                    actions.append(_Batch(tuple(work)))
            else:
                actions.append(action)
        return _Ready(tuple(actions), plan)

    def _take_slots(self, sizes: Sequence[int]) -> list[int]:
        """A buffer for each slot: distinct within a plan, shared between plans, smallest sufficient one first."""
        assert self._engine is not None or not sizes
        free = list(self._arena)
        found: dict[int, int] = {}
        for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            fitting = [entry for entry in free if entry[0] >= sizes[index]]
            if fitting:
                entry = min(fitting)
                free.remove(entry)
            else:
                assert self._engine is not None
                entry = (sizes[index], self._engine.pool.allocate(sizes[index]))
                self._arena.append(entry)
            found[index] = entry[1]
        return [found[i] for i in range(len(sizes))]

    def _state_buffer(self, place: StatePlace) -> int:
        assert self._engine is not None
        key = (place.key, place.which)
        if key not in self._state_buffers:
            self._state_buffers[key] = (place.spec.nbytes, self._engine.pool.allocate(place.spec.nbytes))
        nbytes, buffer = self._state_buffers[key]
        if nbytes < place.spec.nbytes:
            raise ValueError(f"state {place.key} is stored in {nbytes} bytes by one operator, {place.spec.nbytes} by another")
        return buffer


def refusal(operator: Operator, error: Exception, suspects: Sequence[str]) -> WrongValue:
    """What an error of an operator on the source means where the target computed its inputs."""
    whose = f" (from {', '.join(suspects)})" if suspects else ""
    words = f"{operator.name}, on the source, refuses what the target computed for it{whose}: {first_line(error)}"
    return WrongValue(operator.name, words, suspects)


def makers(model: ModelData, graph: str, operator: Operator, on_target: Collection[str]) -> list[str]:
    """The operators on the target whose outputs reach an operator by way of the source alone, the nearest first."""
    made_by = {name: o for o in model.operators_of[graph] for name in o.outputs}
    found: list[str] = []
    waiting, seen = list(operator.inputs), set()
    while waiting:
        maker = made_by.get(waiting.pop(0))
        if maker is None or maker.name in seen:
            continue
        seen.add(maker.name)
        if maker.name in on_target:
            found.append(maker.name)
        else:
            waiting += maker.inputs
    return found
