"""Shrinks a failing case of one operator while it still fails: extents, then outputs, then values.

    found = minimise(bench, operator, inputs)            inputs: all of the body's, in order, weights included
    found.elements_before, found.elements_after          e.g. 350208 and 2
    write_reproducer(folder, "vulkan", found, bench.info)

The search, and what holds at each moment. `best` is a failing case (see `interestingness.py` for what failing is): it was
run and judged, and is never replaced by a case that costs more. The cost is (elements of the inputs, elements and number of the
values computed); steps on values leave it as it is and make values simpler. So each phase ends, and the phases go round only as
long as one of them made progress:

1. Extents (`shrink_body`, `shrink_inputs`). First all extents at once at 1, 2, 3, 4, 8, …: the first that fails is taken, and for
   most faults nothing is left to do. Then each on its own, the one that saves most first: 1, 2, 4, … until it fails, then by
   halving between the last that did not and the first that did. Each size is compiled once and tried with several inputs.
2. Outputs (`shrink_outputs`): an earlier value as the only output, else the wrong output alone.
3. Values (`shrink_values`).

At the end the best case must fail again three times; if it does not, the one before it is taken, and so on: the case
that was handed in is at the bottom. If a smaller body never fails, only values shrink. A time limit, Ctrl-C, or a device that
is lost for good end the search with the best so far.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tapml.backends.interface import Compiled
from tapml.carving.tolerance import Comparison, Reference
from tapml.diagnose.minimise.interestingness import Failing, InterestingnessTest, NotFailing, Outcome
from tapml.diagnose.minimise.shrink_body import Extent, find_extents, resized
from tapml.diagnose.minimise.shrink_inputs import renumbered, smaller_inputs
from tapml.diagnose.minimise.shrink_outputs import fewer
from tapml.diagnose.minimise.shrink_values import Arrays, simplify
from tapml.errors import ConnectionLost, UnavailableError
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Body, Operator
from tapml.tensors import HostArray

__all__ = ["Minimised", "NotFailing", "minimise"]

_TOGETHER = (1, 2, 3, 4, 6, 8, 16, 32, 64)
_ROUNDS = 4
_VALUE_CALLS = 1500


@dataclass(frozen=True)
class Minimised:
    """The smallest failing case that was found. `body` is what the source computes; `program` the kernels that fail, None when
    compiling is what fails; `references` what each output is judged by; `comparison` that of the worst output, `wrong`, and
    None where nothing could be compared (`message` says why). Elements are those of all inputs, weights included. `runs` is how
    often a run must be repeated to see a flaky failure."""

    operator: str
    body: Body
    inputs: tuple[HostArray, ...]
    references: tuple[Reference, ...]
    program: Compiled | None
    comparison: Comparison | None
    wrong: int
    outcome: Outcome
    message: str
    elements_before: int
    elements_after: int
    steps: tuple[str, ...]
    runs: int
    seconds: float

    @property
    def expected(self) -> list[HostArray]:
        """What the source answers."""
        return [r.values for r in self.references]


def minimise(
    bench: Workbench, operator: Operator, inputs: Sequence[HostArray], progress: Progress | None = None, seconds: float = 60.0
) -> Minimised:
    """The smallest failing case found within `seconds` (checked between candidates). Raises NotFailing when the case does not
    fail with every input uploaded as given, and UnavailableError when the device is lost for good before anything was seen to
    fail."""
    search = _Search(bench, operator, inputs, progress, seconds)
    search.go()
    return search.result()


class _OutOfTime(Exception):
    pass


class _Search:
    def __init__(
        self, bench: Workbench, operator: Operator, inputs: Sequence[HostArray], progress: Progress | None, seconds: float
    ) -> None:
        self.bench = bench
        self.operator = operator
        self.progress = progress
        self.seconds = seconds
        self.started = time.monotonic()
        self.steps: list[str] = []
        self.interesting = InterestingnessTest(bench, operator, inputs, self._over)
        self.taken = [self.interesting.first]
        if self.interesting.flaky:
            self.steps.append(f"the failure comes and goes: a candidate fails if any of {self.interesting.runs} runs does")

    @property
    def best(self) -> Failing:
        return self.taken[-1]

    def _over(self) -> None:
        spent = time.monotonic() - self.started
        if spent > self.seconds:
            raise _OutOfTime
        if self.progress is not None:
            self.progress("minimise", int(spent), max(1, int(self.seconds)))

    def go(self) -> None:
        """All phases, until none makes progress. Afterwards `best` fails again three times, or is the first case."""
        try:
            for number in range(_ROUNDS):
                before = self._state()
                self.shrink_extents()
                self.shrink_outputs()
                if self._state() == before and number > 0:
                    break
                self.shrink_values()
                if self._state() == before:
                    break
        except _OutOfTime:
            self.steps.append(f"ended at the limit of {self.seconds:g} s")
        except KeyboardInterrupt:
            self.steps.append("interrupted")
        except ConnectionLost:
            raise
        except UnavailableError as error:
            self.steps.append(f"ended because the device is gone: {error}")
            return
        self._confirm()
        self.bench.trim()

    def _state(self) -> tuple[str, bytes]:
        return self.best.body.signature, b"".join(a.tobytes() for a in self.best.inputs if a.size < 1 << 16)

    def _confirm(self) -> None:
        self.interesting.over = lambda: None
        while len(self.taken) > 1:
            try:
                if self.interesting.confirm(self.best):
                    return
            except ConnectionLost:
                raise
            except UnavailableError as error:
                self.steps.append(f"not confirmed, because the device is gone: {error}")
                return
            self.taken.pop()
            self.steps.append("taken back: did not fail again three times")

    def _take(self, failing: Failing, what: str) -> None:
        self.taken.append(failing)
        self.steps.append(f"{what}: {failing.elements} input elements")

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

    def _together(self, base: Failing, extents: Sequence[Extent], limit: int) -> list[int]:
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

    def _alone(self, base: Failing, extents: Sequence[Extent], sizes: list[int], number: int) -> list[int]:
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

    def _try(self, base: Failing, extents: Sequence[Extent], sizes: Sequence[int]) -> bool:
        """Whether the case fails at these sizes; it is then the best one."""
        body = resized(base.body, extents, sizes)
        if body is None:
            return False
        worst: tuple[tuple[int, int], ...] = ()
        if base.comparisons and (index := base.comparisons[base.wrong].index) is not None:
            worst = tuple(zip(index, base.expected[base.wrong].shape, strict=True))
        for inputs, kept in smaller_inputs(base.inputs, extents, sizes, worst):
            if any(a.shape != s.shape for a, s in zip(inputs, body.inputs, strict=True)):
                continue
            failing = self._examine(body, inputs, [inputs, *renumbered(inputs, kept)])
            if failing is not None and failing.cost < self.best.cost:
                changed = ", ".join(f"{e.size} to {n}" for e, n in zip(extents, sizes, strict=True) if e.size != n)
                self._take(failing, f"extents {changed}")
                return True
        return False

    def _examine(self, body: Body, inputs: Arrays, choices: Sequence[Arrays]) -> Failing | None:
        """The first choice that the source accepts decides."""
        for choice in choices:
            try:
                return self.interesting.examine(body, choice)
            except (IndexError, RuntimeError):  # what PyTorch raises for an index out of range, depending on the operator
                continue
        return None

    # Outputs

    def shrink_outputs(self) -> None:
        best = self.best
        if not best.comparisons:
            return
        for body, kept in fewer(best.body, best.wrong):
            failing = self._examine(body, best.inputs, [[best.inputs[k] for k in kept]])
            if failing is not None and failing.cost < best.cost:
                self._take(failing, f"outputs {len(best.body.outputs)} to 1, nodes {len(best.body.nodes)} to {len(body.nodes)}")
                return

    # Values

    def shrink_values(self) -> None:
        body, found = self.best.body, self.best

        def fails(inputs: Arrays) -> bool:
            nonlocal found
            failing = self._examine(body, inputs, [inputs])
            if failing is not None:
                found = failing
            return failing is not None

        calls = 0
        try:
            _, calls = simplify(self.best.inputs, fails, _VALUE_CALLS)
        finally:
            if found is not self.best:
                zeros = sum(int((a == 0).sum()) for a in found.inputs)
                self._take(found, f"values ({calls or 'some'} tried): {zeros} are zero")

    def result(self) -> Minimised:
        best, first = self.best, self.interesting.first
        return Minimised(
            operator=self.operator.name,
            body=best.body,
            inputs=tuple(np.ascontiguousarray(a).reshape(a.shape) for a in best.inputs),
            references=tuple(best.references),
            program=best.program,
            comparison=best.comparisons[best.wrong] if best.comparisons else None,
            wrong=best.wrong,
            outcome=best.outcome,
            message=best.message,
            elements_before=first.elements,
            elements_after=best.elements,
            steps=tuple(self.steps),
            runs=self.interesting.runs,
            seconds=time.monotonic() - self.started,
        )


def _share(base: Failing, extent: Extent) -> int:
    """Elements of the inputs that have an axis of this extent: what shrinking it can save."""
    return sum(base.inputs[k].size for k in {k for k, _ in extent.axes()})
