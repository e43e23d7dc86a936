"""A model on two places at once, operator by operator on host values, that never computes the same thing twice.

    engine = PrefixHybrid(bench, programs)          a Stepper, like `tapml.runtime.hybrid.Hybrid`
    engine.offload(frozenset({"prefill/norm"}))     these run on the target, all others on the source
    answer = reference.check(engine)
    engine.executed, engine.asked                   operators that ran, and that would have run without the memory

Bisection checks many sets of operators that agree over long stretches of the model. What an operator makes is kept under
(operator, place, content of its inputs), so a set that agrees with an earlier one up to some position goes through it by
looking up, and starts to compute there. That holds within a call and from one call to the next, states included, since a state
is a value like any other; and where an operator gives the same bits on both places (views, copies, gathers), what comes after
it is shared by sets that differ. Values are immutable and kept by reference.

Memory is bounded by `budget` bytes. When it is full, what goes first is what the fewest recent checks used, and among that what
lies farthest along: the next set will agree with this one at the front, and a front without its tail is of use, while a tail
without its front is not.

Faults that come and go: with `steady` False no result of the target is used again, only the source's. An operator that is seen to
give different bits for the same inputs is noted in `unsteady`, in either mode.

What it cannot see: states and values that stay on the device, memory that operators share there, launches of several operators
in one batch. There is no hand-over here: each operator is given host values and hands host values back. Where the real `Hybrid`
is wrong and this is right with the same set, the fault is in what lies between the operators.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tapml.backends.interface import Compiled
from tapml.errors import DeviceError, DeviceLost, WrongValue, is_confined
from tapml.migrate.outcome import Lost, Refused
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator
from tapml.runtime.hybrid import makers, refusal
from tapml.tensors import HostArray, out_of_range

# Bytes of values that are kept unless something else is said.
BUDGET = 512 << 20


@dataclass(frozen=True, slots=True)
class Value:
    """An array and the digest of its content (of a weight: its key, which stands for it)."""

    array: HostArray
    digest: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the device said instead of an answer: DeviceError's stage and text, or the text of a loss (stage "")."""

    stage: str
    text: str


Values: TypeAlias = tuple[Value, ...]
Made: TypeAlias = Values | Refusal
Key: TypeAlias = tuple[str, bool, tuple[bytes, ...]]


def value_of(array: HostArray) -> Value:
    """A value of its own: the array is copied, so that what is kept holds no larger one alive."""
    own = np.array(array, order="C", copy=True)
    digest = hashlib.blake2b(f"{own.dtype} {own.shape} ".encode(), digest_size=16)
    digest.update(own.reshape(-1).view("uint8").data)
    return Value(own, digest.digest())


class Memory:
    """What operators made, up to `budget` bytes. `check` numbers the current check, `position` the operator within it."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self.evicted = 0
        self._kept: dict[Key, tuple[Values, int]] = {}
        self._used: dict[Key, tuple[int, int]] = {}
        self._heap: list[tuple[int, int, Key]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key, check: int, position: int) -> Values | None:
        found = self._kept.get(key)
        if found is None:
            return None
        self._used[key] = (check, -position)  # the heap learns of it when the old entry comes to its top
        return found[0]

    def put(self, key: Key, made: Values, check: int, position: int) -> None:
        """Keeps it, if there is room for it beside what is more useful."""
        if key in self._kept:
            return
        size = sum(value.array.nbytes for value in made)
        self._kept[key] = (made, size)
        self._used[key] = (check, -position)
        self.nbytes += size
        heapq.heappush(self._heap, (check, -position, key))
        while self.nbytes > self.budget:
            self._evict()

    def _evict(self) -> None:
        while True:
            check, position, key = heapq.heappop(self._heap)
            if self._used[key] == (check, position):
                break
            heapq.heappush(self._heap, (*self._used[key], key))
        _, size = self._kept.pop(key)
        del self._used[key]
        self.nbytes -= size
        self.evicted += 1


class PrefixHybrid:
    """See the module's docstring. `programs` are what may be offloaded, by operator. DeviceError and DeviceLost of an operator
    name
    it; a device that was lost has been opened anew by then. In steady mode a refusal or loss is remembered like any other result:
    the same operator with the same inputs is not tried again."""

    def __init__(self, bench: Workbench, programs: Mapping[str, Compiled], budget: int = BUDGET) -> None:
        self._bench = bench
        self._programs = dict(programs)
        self._model = bench.model
        self._memory = Memory(budget)
        self._refused: dict[str, Refusal] = {}
        self._seen: dict[Key, tuple[bytes, ...]] = {}
        self._weights: dict[str, Value] = {}
        self._first_states = {key: value_of(array) for key, array in self._model.initial_states.items()}
        self._states = dict(self._first_states)
        self._offloaded: frozenset[str] = frozenset()
        self._check = 0
        self._position = 0
        self.steady = True
        self.executed = 0
        self.asked = 0
        self.unsteady: set[str] = set()

    @property
    def memory(self) -> Memory:
        return self._memory

    def offload(self, names: frozenset[str]) -> None:
        """Sets which operators run on the target, and resets the states. ValueError for one without a program."""
        unknown = names - self._programs.keys()
        if unknown:
            raise ValueError(f"no programs of {sorted(unknown)}")
        self._offloaded = names
        self.reset()

    def reset(self) -> None:
        """Every state back to its initial content: a new check begins."""
        self._states = dict(self._first_states)
        self._check += 1
        self._position = 0

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        """Runs one graph. Raises DeviceError or DeviceLost where the device does, WrongValue as `Hybrid.step`. That one is not
        remembered: it follows from the inputs."""
        walk = self._model.walks[graph]
        values = walk.begin({p.key: value_of(inputs[p.key]) for p in walk.graph.inputs}, self._states)
        for step in walk.steps:
            step.done(values, self._made(step.operator, step.read(values, self._weight)))
        self._states |= walk.advanced(values, self._weight)
        return {key: value.array for key, value in walk.outputs(values, self._weight).items()}

    def _weight(self, key: str) -> Value:
        if key not in self._weights:
            self._weights[key] = Value(self._model.weight(key), key.encode())
        return self._weights[key]

    def _made(self, operator: Operator, inputs: Sequence[Value]) -> Values:
        on_target = operator.name in self._offloaded
        key = (operator.name, on_target, tuple(value.digest for value in inputs))
        self.asked += 1
        self._position += 1
        reusable = self.steady or not on_target
        made: Made | None = None
        if reusable:
            refused = self._refused.get(operator.name) if on_target else None
            made = refused or self._memory.get(key, self._check, self._position)
        if made is None:
            self.executed += 1
            made = self._on_target(operator, inputs) if on_target else self._on_source(operator, inputs)
            if on_target:
                self._compare(key, made)
            if isinstance(made, Refusal):
                self._refused[operator.name] = made
            elif reusable:
                self._memory.put(key, made, self._check, self._position)
        if isinstance(made, Refusal):
            text = f"{operator.name}: {made.text}"
            raise DeviceError(made.stage, text) if made.stage else DeviceLost(text)
        return made

    def _on_source(self, operator: Operator, inputs: Sequence[Value]) -> Made:
        try:
            results = self._model.source(operator.signature)([value.array for value in inputs])
        except Exception as error:
            if not self._offloaded or not is_confined(error):
                raise
            raise refusal(operator, error, makers(self._model, operator.graph, operator, self._offloaded)) from error
        return tuple(value_of(result) for result in results)

    def _on_target(self, operator: Operator, inputs: Sequence[Value]) -> Made:
        specs = self._model.bodies[operator.signature].output_specs
        program, arrays = self._programs[operator.name], [v.array for v in inputs]
        outcome = self._bench.attempt(lambda: self._bench.run(operator, program, arrays, specs))
        if isinstance(outcome, Lost):
            return Refusal("", str(outcome.error))
        if isinstance(outcome, Refused):
            return Refusal(outcome.error.stage, outcome.text)
        results = outcome.value
        words = next((w for r, spec in zip(results, specs, strict=True) if (w := out_of_range(r, spec.dtype))), "")
        if words:
            raise WrongValue(operator.name, f"{operator.name}: {words}", (operator.name,))
        return tuple(value_of(result) for result in results)

    def _compare(self, key: Key, made: Made) -> None:
        """Notes an operator that does not repeat itself."""
        digests = () if isinstance(made, Refusal) else tuple(value.digest for value in made)
        if self._seen.setdefault(key, digests) != digests:
            self.unsteady.add(key[0])
