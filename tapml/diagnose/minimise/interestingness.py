"""Whether a smaller case still fails in the same way: the question that minimising asks at every step.

    interesting = InterestingnessTest(bench, operator, inputs)        raises NotFailing when the case does not fail to begin with
    judged = interesting(candidate)                        None: it does not fail (or cannot be judged)

A candidate is a body as the source computes it, and inputs. It is compiled as the operator was (the same fault, the
schedule that failed), runs with every input uploaded as given, and is compared with what PyTorch answers, under the bound that
the source's own error in float64 gives (`tapml.carving.tolerance`). To fail in the same way it must

- fail with the same status and stage: beyond the bound, or refused, or with the device lost;
- have finite expected outputs where the first case had them, and elements that cannot be compared only if the first had;
- be off by more than rounding explains. Few values and short sums make the source's error small by luck, and a sum that cancels
  is ill-conditioned; there a kernel without a fault may be beyond the bound too. So the inputs are moved by one rounding,
  at random, and the error must be FACTOR times what that does to the output in float64. (If the first case is not that
  clear itself, this is not asked.)
- be wrong by the plain rule of reproducers (`tapml.carving.plain_reference`), if the first case is: a reproducer that does not
  show the fault is none.

A case that is different from run to run is flaky: a candidate then counts as failing if any of FLAKY_RUNS runs fails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tapml.backends.interface import Compiled, Prepared
from tapml.carving.distance import distance
from tapml.carving.plain_reference import PlainReference
from tapml.carving.reference import ReferenceMaker
from tapml.carving.tolerance import FACTOR, Comparison, Reference, compare
from tapml.diagnose.minimise.search import Candidate
from tapml.diagnose.probes.evidence import worst_of
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


class Symptom(NamedTuple):
    """How a case went. `stage` is None when it passed."""

    status: Status
    stage: Stage | None


PASSED, BEYOND = Symptom("pass", None), Symptom("fail", "numeric")


@dataclass(frozen=True)
class Judged(Candidate):
    """A case that has run. `comparisons` has one an output, empty when there was nothing to compare (refused, crashed); `program`
    is None when compiling failed; `plainly`: wrong by the rule of reproducers too."""

    references: tuple[Reference, ...] = ()
    program: Compiled | None = None
    comparisons: tuple[Comparison, ...] = ()
    symptom: Symptom = PASSED
    message: str = ""
    plainly: bool = False


class InterestingnessTest:
    """See the module's docstring. `runs` says how often each candidate runs."""

    def __init__(self, bench: Workbench, operator: Operator, inputs: Sequence[HostArray]) -> None:
        self.bench = bench
        self.operator = operator
        self.runs = 1
        self._functions: dict[str, HostFunction] = {}
        self._makers: dict[str, ReferenceMaker] = {}
        body = bench.model.bodies[operator.signature]
        program = bench.program(operator)
        self.schedules = None if program is None else (program.schedule,)
        prepared = Prepared(program, "ok", None, "", 0.0)
        if program is None:
            verdict = bench.failure(operator)
            prepared = Prepared(None, "crash" if verdict.status == "crash" else "error", verdict.stage, verdict.reason, 0.0)
        self._prepared: dict[str, Prepared | None] = {body.signature: prepared}
        self.first = self._begin(Candidate(body, list(inputs)), prepared)

    def _begin(self, case: Candidate, prepared: Prepared) -> Judged:
        source = self._source(case)
        failing = [j for j in (self._run(case, prepared, source) for _ in range(FIRST_RUNS)) if j.symptom != PASSED]
        if not failing:
            raise NotFailing(
                f"{self.operator.name} does not fail when its kernels run alone with every input uploaded as recorded, so there "
                "is nothing to minimise; the fault is in what it is given (weights, states), or it is rarer than one run in "
                f"{FIRST_RUNS}."
            )
        first = failing[0]
        results = {tuple(c.actual for c in j.comparisons) for j in failing}
        if len(failing) < FIRST_RUNS or len(results) > 1:
            self.runs = FLAKY_RUNS
        self.symptom = first.symptom
        self.finite = all(_finite(r.values) for r in first.references)
        self.judged = all(r.excluded is None for r in first.references)
        self.widest = max((c.bound for c in first.comparisons), default=0.0)
        self.clear = bool(first.comparisons) and self._is_clear(first)
        return first

    def __call__(self, candidate: Candidate) -> Judged | None:
        """The candidate as it failed; None when it does not fail in the same way. Raises IndexError or RuntimeError when the
        source refuses an index among the inputs, and UnavailableError when the device is lost for good."""
        prepared = self._compile(candidate.body)
        if prepared is None or (prepared.compiled is None and self.symptom.stage in ("numeric", "driver", "launch")):
            return None
        source = self._source(candidate)
        if not self._judges(source):
            return None
        for _ in range(self.runs):
            found = self._run(candidate, prepared, source)
            shows = found.plainly or not self.first.plainly
            if found.symptom == self.symptom and shows and (not self.clear or self._is_clear(found)):
                return found
        return None

    def _compile(self, body: Body) -> Prepared | None:
        """None where the injected fault does not fit a smaller body."""
        if body.signature not in self._prepared:
            fits = self._fault_fits(body)
            self._prepared[body.signature] = self.bench.prepared(self.operator, self.schedules, body) if fits else None
        return self._prepared[body.signature]

    def _fault_fits(self, body: Body) -> bool:
        try:
            given = self.bench.body(self.operator, body)
        except Exception:  # a fault that needs what the smaller body no longer has may fail in any way
            return False
        return given.output_specs == body.output_specs and given.inputs == body.inputs

    def _exact(self, body: Body) -> HostFunction:
        if body.signature not in self._functions:
            self._functions[body.signature] = host_function(body, "float64")
        return self._functions[body.signature]

    def _source(self, case: Candidate) -> list[Reference]:
        """What the outputs are judged by."""
        signature = case.body.signature
        if signature not in self._makers:
            self._makers[signature] = ReferenceMaker(case.body, most=_CALLS)
        return self._makers[signature].on_host(case.inputs)

    def _judges(self, source: list[Reference]) -> bool:
        """Whether the source is as good a judge as it was of the first case."""
        if self.finite and not all(_finite(r.values) for r in source):
            return False
        if self.judged and any(r.excluded is not None for r in source):
            return False
        return all(r.accuracy.beyond <= max(self.widest, 1.0 / 16) / FACTOR for r in source)

    def _run(self, case: Candidate, prepared: Prepared, source: list[Reference]) -> Judged:
        """One run; it may pass."""
        body, inputs, program = case.body, case.inputs, prepared.compiled
        if program is None:
            symptom = Symptom("crash" if prepared.status == "crash" else "error", prepared.stage)
            return Judged(body, inputs, None, None, tuple(source), None, (), symptom, prepared.message)
        ran = self.bench.attempt(lambda: self.bench.run(self.operator, program, inputs, body.output_specs, resident=False))
        if not isinstance(ran, Ran):
            return Judged(body, inputs, None, None, tuple(source), program, (), Symptom(ran.status, ran.stage), ran.text)
        found = tuple(compare(y, r) for y, r in zip(ran.value, source, strict=True))
        wrong, worst = worst_of(found)
        symptom = PASSED if worst.passed else BEYOND
        judges = zip(ran.value, source, program.outputs, strict=True)
        plainly = not worst.passed and any(PlainReference.of(r, spec.dtype).fails(y) for y, r, spec in judges)
        return Judged(body, inputs, wrong, worst.index, tuple(source), program, found, symptom, worst.describe(), plainly)

    def _is_clear(self, found: Judged) -> bool:
        """Whether the error is beyond what moving the inputs by one rounding explains."""
        if found.wrong is None:
            return True
        error, judge = found.comparisons[found.wrong].error, found.references[found.wrong]
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
