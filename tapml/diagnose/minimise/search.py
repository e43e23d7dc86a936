"""The search for a smaller failing case: extents, then outputs, then values. It knows a predicate and a budget, and no device.

    search = Search(first, fails, Budget(seconds=60.0))     fails(candidate): the candidate as it failed, None where it does not
    search.go()
    search.confirm()
    search.best, search.steps

What holds at each moment. `best` is a candidate that `fails` has accepted, and is never replaced by one that costs more. The cost
is (elements of the inputs, elements and number of the values computed); steps on values leave it as it is and make values
simpler. So each phase ends, and the phases go round only as long as one of them made progress:

1. Extents (`operators/extents.py`, `shrink_inputs`). First all extents at once at 1, 2, 3, 4, 8, …: the first that fails is
   taken, and for most faults nothing is left to do. Then each on its own, the one that saves most first: 1, 2, 4, … until it
   fails, then by halving between the last that did not and the first that did. Each size is tried with several inputs.
2. Outputs (`shrink_outputs`): an earlier value as the only output, else the wrong output alone.
3. Values (`shrink_values`).

At the end the best case must fail again three times; if it does not, the one before it is taken, and so on: the case that was
handed in is at the bottom. If a smaller body never fails, only values shrink. Where the budget is spent, no candidate fails any
more, and the search ends with the best so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tapml.diagnose.minimise.budget import Budget
from tapml.diagnose.minimise.shrink_inputs import renumbered, smaller_inputs
from tapml.diagnose.minimise.shrink_outputs import fewer
from tapml.diagnose.minimise.shrink_values import Arrays, simplify
from tapml.operators.extents import Extent, find_extents, resized
from tapml.operators.graph import Body

_TOGETHER = (1, 2, 3, 4, 6, 8, 16, 32, 64)
_ROUNDS = 4
_VALUE_CALLS = 1500


@dataclass(frozen=True)
class Candidate:
    """A case of an operator: what the source computes, and all of its inputs. Of one that failed, `wrong` is the output that is
    farthest off (None where nothing could be compared), and `at` its worst element."""

    body: Body
    inputs: Arrays
    wrong: int | None = None
    at: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        """Elements of all inputs, weights included."""
        return sum(a.size for a in self.inputs)

    @property
    def cost(self) -> tuple[int, int]:
        """What the search lowers: elements of the inputs, then elements and number of what is computed."""
        return self.elements, sum(1 + s.elements for n in self.body.nodes for s in n.outputs)


C = TypeVar("C", bound=Candidate)


class Search(Generic[C]):
    """See the module's docstring. `first` has failed. `fails` may raise IndexError or RuntimeError where the source refuses the
    inputs (an index among them that is out of range); whatever else it raises ends the search, and `best` stands."""

    def __init__(self, first: C, fails: Callable[[Candidate], C | None], budget: Budget) -> None:
        self.fails = fails
        self.budget = budget
        self.taken = [first]
        self.steps: list[str] = []

    @property
    def best(self) -> C:
        return self.taken[-1]

    def go(self) -> None:
        """All phases, until none makes progress or the budget is spent."""
        for number in range(_ROUNDS):
            before = self._state()
            self.shrink_extents()
            self.shrink_outputs()
            if self.budget.spent or (self._state() == before and number > 0):
                break
            self.shrink_values()
            if self.budget.spent or self._state() == before:
                break
        if self.budget.spent:
            self.steps.append(f"ended at the limit of {self.budget.seconds:g} s")

    def confirm(self, times: int = 3) -> None:
        """Afterwards `best` has failed again so many times, or is the first case."""
        while len(self.taken) > 1 and not all(self.fails(self.best) for _ in range(times)):
            self.taken.pop()
            self.steps.append("reverted: it did not fail three more times")

    def _state(self) -> tuple[str, bytes]:
        return self.best.body.signature, b"".join(a.tobytes() for a in self.best.inputs if a.size < 1 << 16)

    def _take(self, failing: C, what: str) -> None:
        self.taken.append(failing)
        self.steps.append(f"{what}: {failing.elements} input elements")

    def _failing(self, body: Body, choices: Sequence[Arrays]) -> C | None:
        """The first choice of inputs that the source accepts decides."""
        for inputs in choices:
            if not self.budget.take():
                return None
            try:
                return self.fails(Candidate(body, inputs))
            except (IndexError, RuntimeError):  # what PyTorch raises for an index out of range, depending on the operator
                continue
        return None

    # Extents

    def shrink_extents(self) -> None:
        """Extents of the current body, found anew each time since what divides what changes with the sizes."""
        base = self.best
        extents = find_extents(base.body)
        sizes = [e.size for e in extents]
        for limit in _TOGETHER:
            candidate = self._together(base, extents, limit)
            if candidate == sizes:
                break
            if self._try(base, extents, candidate):
                sizes = candidate
                break
        for number in sorted(range(len(extents)), key=lambda k: -_share(base, extents[k])):
            sizes = self._alone(base, extents, sizes, number)

    def _together(self, base: C, extents: Sequence[Extent], limit: int) -> list[int]:
        """Every extent at `limit` at most, as far as they go together."""
        sizes = [e.size for e in extents]
        for number, extent in enumerate(extents):
            for size in dict.fromkeys((limit, limit + 1, 2 * limit)):
                if size < extent.size:
                    candidate = [*sizes[:number], size, *sizes[number + 1 :]]
                    if resized(base.body, extents, candidate) is not None:
                        sizes = candidate
                        break
        return sizes

    def _alone(self, base: C, extents: Sequence[Extent], sizes: list[int], number: int) -> list[int]:
        def at(size: int) -> list[int]:
            return [*sizes[:number], size, *sizes[number + 1 :]]

        low, high, size = 0, sizes[number], 1
        while size < high:
            if self._try(base, extents, at(size)):
                high = size
            else:
                low, size = size, 2 * size
        while high - low > max(1, high // 8):
            middle = (low + high) // 2
            if self._try(base, extents, at(middle)):
                high = middle
            else:
                low = middle
        return at(high)

    def _try(self, base: C, extents: Sequence[Extent], sizes: Sequence[int]) -> bool:
        """Whether the case fails at these sizes; it is then the best one."""
        body = None if self.budget.spent else resized(base.body, extents, sizes)
        if body is None:
            return False
        worst: tuple[tuple[int, int], ...] = ()
        if base.wrong is not None and base.at is not None:
            worst = tuple(zip(base.at, base.body.output_specs[base.wrong].shape, strict=True))
        for inputs, kept in smaller_inputs(base.inputs, extents, sizes, worst):
            if any(a.shape != s.shape for a, s in zip(inputs, body.inputs, strict=True)):
                continue
            failing = self._failing(body, [inputs, *renumbered(inputs, kept)])
            if failing is not None and failing.cost < self.best.cost:
                changed = ", ".join(f"{e.size} to {n}" for e, n in zip(extents, sizes, strict=True) if e.size != n)
                self._take(failing, f"extents {changed}")
                return True
        return False

    # Outputs

    def shrink_outputs(self) -> None:
        best = self.best
        for body, kept in () if best.wrong is None else fewer(best.body, best.wrong):
            failing = self._failing(body, [[best.inputs[k] for k in kept]])
            if failing is not None and failing.cost < best.cost:
                self._take(failing, f"outputs {len(best.body.outputs)} to 1, nodes {len(best.body.nodes)} to {len(body.nodes)}")
                return

    # Values

    def shrink_values(self) -> None:
        body, found = self.best.body, self.best

        def fails(inputs: Arrays) -> bool:
            nonlocal found
            failing = self._failing(body, [inputs])
            found = failing or found
            return failing is not None

        part = self.budget.part(_VALUE_CALLS)
        try:
            simplify(self.best.inputs, fails, part)
        finally:
            if found is not self.best:
                zeros = sum(int((a == 0).sum()) for a in found.inputs)
                self._take(found, f"values ({part.used} tried): {zeros} are zero")


def _share(base: Candidate, extent: Extent) -> int:
    """Elements of the inputs that have an axis of this extent: what shrinking it can save."""
    return sum(base.inputs[k].size for k in {k for k, _ in extent.axes()})
