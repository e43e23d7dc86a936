"""The stage that shrinks a failing case of one operator while it still fails in the same way.

    found = minimise(bench, operator, inputs)            inputs: all of the body's, in order, weights included
    found.elements_before, found.elements_after          e.g. 350208 and 2
    write_reproducer(folder, "vulkan", found, bench.info)

`interestingness.py` says what failing is, and runs candidates on the bench; `search.py` looks for smaller ones and knows of no
device. A time limit, Ctrl-C, or a device that is lost for good end the search with the best so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tapml.backends.interface import Compiled
from tapml.carving.tolerance import Comparison, Reference
from tapml.diagnose.minimise.budget import Budget
from tapml.diagnose.minimise.interestingness import InterestingnessTest, Judged, NotFailing, Symptom
from tapml.diagnose.minimise.search import Search
from tapml.errors import ConnectionLost, UnavailableError
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Body, Operator
from tapml.tensors import HostArray

__all__ = ["Minimised", "NotFailing", "minimise"]


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
    symptom: Symptom
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
    budget = Budget(seconds, tell=progress)
    interesting = InterestingnessTest(bench, operator, inputs)
    search = Search(interesting.first, interesting, budget)
    if interesting.runs > 1:
        search.steps.append(f"the failure is intermittent: a candidate fails if any of {interesting.runs} runs does")
    try:
        _carry_out(search)
        bench.trim()
    except ConnectionLost:
        raise
    except UnavailableError as error:
        search.steps.append(f"ended because the device is gone: {error}")
    best, wrong = search.best, search.best.wrong
    return Minimised(
        operator=operator.name, body=best.body, inputs=tuple(np.ascontiguousarray(a).reshape(a.shape) for a in best.inputs),
        references=best.references, program=best.program, comparison=None if wrong is None else best.comparisons[wrong],
        wrong=wrong or 0, symptom=best.symptom, message=best.message, elements_before=interesting.first.elements,
        elements_after=best.elements, steps=tuple(search.steps), runs=interesting.runs, seconds=budget.elapsed,
    )  # fmt: skip


def _carry_out(search: Search[Judged]) -> None:
    try:
        search.go()
    except KeyboardInterrupt:
        search.steps.append("interrupted")
    search.confirm()
