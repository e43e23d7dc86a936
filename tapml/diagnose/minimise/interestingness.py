"""Whether a smaller case still fails in the same way: the question that minimising asks at every step.

    interesting = InterestingnessTest(bench, operator, inputs)        raises NotFailing when the case does not fail to begin with
    failing = interesting.examine(body, inputs)            None: it does not fail (or cannot be judged)

A candidate is a body as the source computes it, and inputs. It is compiled as the operator was (the same alteration, the
schedule that failed), runs with every input uploaded as given, and is compared with what PyTorch answers, under the bound that
the source's own error in float64 gives (`tapml.carving.tolerance`). To fail in the same way it must

- fail with the same status and stage: beyond the bound, or refused, or with the device lost;
- have finite expected outputs where the first case had them, and elements on which the source is no judge only if the first had;
- be off by more than rounding explains. Few values and short sums make the source's error small by luck, and a sum that cancels
  is ill-conditioned; there a kernel without a fault may be beyond the bound too. So the inputs are moved by one rounding,
  at random, and the error must be FACTOR times what that does to the output in float64. (If the first case is not that
  clear itself, this is not asked.)

A case that is different from run to run is flaky: a candidate then counts as failing if any of FLAKY_RUNS runs fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tapml.backends.interface import Compiled
from tapml.carving.distance import distance
from tapml.carving.reference import ReferenceMaker
from tapml.carving.tolerance import FACTOR, Comparison, Reference, compare
from tapml.errors import TapmlError
from tapml.migrate.outcome import Ran
from tapml.migrate.workbench import Workbench
from tapml.operators.execute import HostFunction, host_function
from tapml.operators.graph import Body, Operator
from tapml.tensors import EPSILON, FLOATS, HostArray, dtype_name
from tapml.verdicts import Stage, Status

# Runs of the first case, to see whether it fails always, and of each candidate when it does not.
FIRST_RUNS = 5
FLAKY_RUNS = 8

_MOVES = 2

# Calls on which the source is measured for a candidate: there are many candidates.
_CALLS = 2


class NotFailing(TapmlError):
    """The case to minimise does not fail when its kernels run alone with every input uploaded."""

    exit_code = 1


@dataclass(frozen=True)
class Outcome:
    """How a case went. `stage` is None when it passed."""

    status: Status
    stage: Stage | None


@dataclass(frozen=True)
class Failing:
    """A case that fails. `comparisons` has one an output, empty when there was
    nothing to compare (refused, crashed); `program` is None when compiling failed. `wrong` is the worst output."""

    body: Body
    inputs: list[HostArray]
    references: list[Reference]
    program: Compiled | None
    comparisons: list[Comparison]
    outcome: Outcome
    message: str
    wrong: int = 0

    @property
    def expected(self) -> list[HostArray]:
        """What the source answers."""
        return [r.values for r in self.references]

    @property
    def elements(self) -> int:
        """Elements of all inputs, weights included."""
        return sum(a.size for a in self.inputs)

    @property
    def cost(self) -> tuple[int, int]:
        """What minimising lowers: elements of the inputs, then elements and number of what is computed."""
        return self.elements, sum(1 + s.elements for n in self.body.nodes for s in n.outputs)


class InterestingnessTest:
    """See the module's docstring. `over` is asked before each candidate and ends the search by raising. `runs` says how often
    each candidate runs; `compiled` counts what went to the compiler."""

    def __init__(
        self, bench: Workbench, operator: Operator, inputs: Sequence[HostArray], over: Callable[[], None] = lambda: None
    ) -> None:
        self.bench = bench
        self.operator = operator
        self.over = over
        self.runs = 1
        self.compiled = 0
        self._programs: dict[str, tuple[Compiled | None, Outcome, str]] = {}
        self._functions: dict[str, HostFunction] = {}
        self._makers: dict[str, ReferenceMaker] = {}
        body = bench.model.bodies[operator.signature]
        program = bench.program(operator)
        self.schedules = None if program is None else (program.schedule,)
        if program is None:
            verdict = bench.failure(operator)
            self._programs[body.signature] = (None, Outcome(verdict.status, verdict.stage), verdict.reason)
        else:
            self._programs[body.signature] = (program, Outcome("pass", None), "")
        self.first = self._begin(body, list(inputs))

    def _begin(self, body: Body, inputs: list[HostArray]) -> Failing:
        source = self._source(body, inputs)
        found = [self._run(body, inputs, source) for _ in range(FIRST_RUNS)]
        failing = [f for f in found if f is not None and f.outcome.status != "pass"]
        if not failing:
            raise NotFailing(
                f"{self.operator.name} does not fail when its kernels run alone with every input uploaded as recorded, so there "
                "is nothing to minimise; the fault is in what it is given (weights, states), or it is rarer than one run in "
                f"{FIRST_RUNS}."
            )
        first = failing[0]
        texts = {tuple(c.actual for c in f.comparisons) for f in failing}
        if len(failing) < FIRST_RUNS or len(texts) > 1:
            self.runs = FLAKY_RUNS
        self.outcome = first.outcome
        self.finite = all(_finite(r.values) for r in first.references)
        self.judged = all(r.excluded is None for r in first.references)
        self.widest = max((c.bound for c in first.comparisons), default=0.0)
        self.clear = bool(first.comparisons) and self._is_clear(first, source)
        return first

    @property
    def flaky(self) -> bool:
        return self.runs > 1

    def examine(self, body: Body, inputs: Sequence[HostArray]) -> Failing | None:
        """The candidate as a failing case; None when it does not fail in the same way. Raises IndexError when the source
        refuses an index among the inputs, and what `over` raises."""
        self.over()
        program, _, _ = self._compile(body)
        if program is None and self.outcome.stage in ("numeric", "driver", "launch"):
            return None
        source = self._source(body, list(inputs))
        if not self._judges(source):
            return None
        for _ in range(self.runs):
            found = self._run(body, list(inputs), source)
            if found is not None and found.outcome == self.outcome and (not self.clear or self._is_clear(found, source)):
                return found
        return None

    def confirm(self, failing: Failing, times: int = 3) -> bool:
        """Whether it fails again each of so many times (each time in any of `runs` runs)."""
        return all(self.examine(failing.body, failing.inputs) is not None for _ in range(times))

    def _compile(self, body: Body) -> tuple[Compiled | None, Outcome, str]:
        if body.signature not in self._programs:
            self._programs[body.signature] = self._compiled(body)
        return self._programs[body.signature]

    def _compiled(self, body: Body) -> tuple[Compiled | None, Outcome, str]:
        self.compiled += 1
        given = body
        if self.bench.alteration is not None:
            try:
                given = self.bench.alteration.body(self.operator, body)
            except Exception as error:  # a fault that needs what the smaller body no longer has may fail in any way
                return None, Outcome("skipped", None), f"the fault does not fit: {error}"
            if given.output_specs != body.output_specs or given.inputs != body.inputs:
                return None, Outcome("skipped", None), "the fault changes the specs of the smaller body"
        result = self.bench.compile_body(given, self.operator, self.schedules)
        if result.compiled is None:
            return None, Outcome("crash" if result.status == "crash" else "error", result.stage), result.message
        return result.compiled, Outcome("pass", None), result.message

    def _exact(self, body: Body) -> HostFunction:
        if body.signature not in self._functions:
            self._functions[body.signature] = host_function(body, "float64")
        return self._functions[body.signature]

    def _source(self, body: Body, inputs: list[HostArray]) -> list[Reference]:
        """What the outputs are judged by."""
        if body.signature not in self._makers:
            self._makers[body.signature] = ReferenceMaker(body, most=_CALLS)
        return self._makers[body.signature].on_host(inputs)

    def _judges(self, source: list[Reference]) -> bool:
        """Whether the source is as good a judge as it was of the first case."""
        if self.finite and not all(_finite(r.values) for r in source):
            return False
        if self.judged and any(r.excluded is not None for r in source):
            return False
        return all(r.accuracy.beyond <= max(self.widest, 1.0 / 16) / FACTOR for r in source)

    def _run(self, body: Body, inputs: list[HostArray], source: list[Reference]) -> Failing | None:
        """One run; the outcome may be a pass. None when the device was lost, or refused, in the course of something else."""
        program, outcome, message = self._compile(body)

        def made(outcome: Outcome, message: str, found: list[Comparison], wrong: int = 0) -> Failing:
            return Failing(body, inputs, source, program, found, outcome, message, wrong)

        if program is None:
            return made(outcome, message, [])
        ran = self.bench.attempt(lambda: self.bench.run(self.operator, program, inputs, body.output_specs, resident=False))
        if not isinstance(ran, Ran):
            return made(Outcome(ran.status, ran.stage), ran.text, [])
        found = [compare(y, r) for y, r in zip(ran.value, source, strict=True)]
        wrong = max(range(len(found)), key=lambda k: (not found[k].passed, found[k].error))
        failed = not found[wrong].passed
        return made(Outcome("fail", "numeric") if failed else Outcome("pass", None), found[wrong].describe(), found, wrong)

    def _is_clear(self, found: Failing, source: list[Reference]) -> bool:
        """Whether the error is beyond what moving the inputs by one rounding explains."""
        error = found.comparisons[found.wrong].error if found.comparisons else math.inf
        judge = source[found.wrong]
        if math.isinf(error) or judge.exact is None:
            return True
        function = self._exact(found.body)
        skip = judge.excluded
        if judge.either is not None:
            skip = judge.either[0] if skip is None else skip | judge.either[0]
        reference = judge.exact if skip is None else np.ma.MaskedArray(judge.exact, skip)
        for seed in range(_MOVES):
            generator = np.random.default_rng(seed)
            moved = [_moved(a, generator) for a in found.inputs]
            if not error > FACTOR * distance(function(moved)[found.wrong], reference):
                return False
        return True


def _moved(array: HostArray, generator: np.random.Generator) -> HostArray:
    """Floats moved by one rounding of their dtype, up or down, in float64."""
    dtype = dtype_name(array)
    if dtype not in FLOATS:
        return array
    sign = generator.integers(0, 2, array.shape) * 2.0 - 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float64) * (1.0 + EPSILON[dtype] * sign)


def _finite(array: HostArray) -> bool:
    return dtype_name(array) not in FLOATS or bool(np.isfinite(np.ma.getdata(array).astype(np.float64)).all())
