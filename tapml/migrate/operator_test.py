"""Testing operators on a device, one at a time (isolated) or as the model runs (cumulative).

    with OperatorTester(run, "opencl") as tester:
        verdict = tester.test("prefill/layers.0.self_attn.q_proj")
        for verdict in tester.test_all("*mlp*"): ...
        for verdict in tester.test_cumulative(): ...

Isolated: an operator gets inputs that were recorded, so errors do not compound. Which inputs:
1. The operator has recorded calls of its own: all of them, with the recorded outputs and the source's recorded error.
2. It has none, and reads weights: a recorded call of an operator with the same signature, with its own weights. What the source
   answers to that, and in float64, is computed on the spot.
3. It has none, and reads no weights: the recorded calls of its signature stand for it as they are. If another operator ran the
   same kernels already, the verdict is that one's, and the reason says whose.

Late positions (`tapml.carving.late`) are recorded from one operator of a signature, and every one of it is run on them.

Outputs and scratch hold garbage (NaN, -1) before every launch, so an element that a kernel forgets to write shows. A failed case
runs three more times; if bits or outcomes differ, the verdict is `flaky`.

`measures_of(name)` gives the numbers of each call that the last test of an operator measured; the verdict has those of the worst.

Cumulative: the whole model runs on the target and on the source side by side, fed with the same tokens; each operator's
outputs on the target, computed from what the target computed before, are compared with the source's at the same moment. Bounds
follow from the source's own compound error. An operator that the device refuses leaves the target, and the model runs again.

Integers are compared as the device stores them, before anything narrows them: one that is out of the range of the graph's dtype
is a failure. Where one inside an operator does not fit what the target stores it in, and more than its low bits are asked of
it, the operator is right by chance: `unchecked`. No trouble with one operator ends the work on the others: an error that nobody
foresaw is its verdict.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any

import numpy as np

from tapml.backends.interface import Backend, Compiled
from tapml.backends.own_folder import OwnFolder
from tapml.carving.beyond import Inside
from tapml.carving.case import Case
from tapml.carving.folder import RunFolder
from tapml.carving.tolerance import FEW, Comparison, Reference, of_source
from tapml.errors import WrongValue, first_line, is_confined, unexpected
from tapml.migrate.end_to_end import check_calls
from tapml.migrate.inject import Inject
from tapml.migrate.judging import ByStep, Coverage, at_step, judged, why_out_of_range, worse
from tapml.migrate.model import Model
from tapml.migrate.outcome import Attempted, Failed, NotCompiled, Ran
from tapml.migrate.picture import picture
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Operator
from tapml.operators.matching import matching
from tapml.runtime.hybrid import Hybrid
from tapml.tensors import HostArray, Layout, spec_of
from tapml.verdicts import Measure, Stage, Status, Verdict

# How often a failing case is run again before it counts as failing for good.
REPEATS = 3


@dataclass(frozen=True)
class Trial:
    """One call to check: all inputs in the body's order, and what each output is judged by. `case` is the recorded call that
    it is made of; `layouts`, by input, how it is to lie in memory where that is not in order."""

    name: str
    inputs: Sequence[HostArray]
    references: Sequence[Reference]
    case: Case | None = None
    layouts: tuple[tuple[int, Layout], ...] = ()

    @property
    def expected(self) -> list[HostArray]:
        """What the source answers."""
        return [r.values for r in self.references]

    @staticmethod
    def computed(
        model: Model, operator: Operator, inputs: Sequence[HostArray], name: str, case: Case | None = None
    ) -> Trial:
        """A trial on any inputs: what the source answers to them now, and how far that is from float64."""
        return Trial(name, inputs, model.references(operator.signature).on_host(inputs), case)


def each_layout(trial: Trial) -> Iterator[Trial]:
    """The trial, and where inputs were recorded that were not contiguous, another that hands them over as they lay in memory."""
    yield trial
    if trial.case is not None and trial.case.layouts:
        yield replace(trial, name=f"{trial.name}, strided as recorded", layouts=trial.case.layouts)


class OperatorTester:
    """See the module's docstring. `target` and `device` are the texts of the command line, or `target` is an opened backend that
    stays the caller's; `inject` is what is put in, `own` are the only kernels that there are. Opening raises TargetError,
    UsageError and UnavailableError; testing raises UnavailableError when the device was lost for good."""

    def __init__(
        self, run: RunFolder, target: str | Backend, device: str = "local", inject: Inject | None = None,
        own: OwnFolder | None = None,
    ) -> None:
        self._stand(run, Workbench.on(run, target, device, inject, own=own))

    @classmethod
    def over(cls, run: RunFolder, bench: Workbench) -> OperatorTester:
        """A tester on a workbench that is open already, and that `close` then closes."""
        tester = cls.__new__(cls)
        tester._stand(run, bench)
        return tester

    def _stand(self, run: RunFolder, bench: Workbench) -> None:
        self.run = run
        self.bench = bench
        self.model = bench.model
        self._by_kernels: dict[tuple[str, str], Verdict] = {}
        self._measures: dict[str, list[Measure]] = {}
        self._pictures: dict[str, dict[str, Any]] = {}
        self._insides: dict[str, Inside | None] = {}

    @property
    def device_name(self) -> str:
        """What was asked for, without a token: for records."""
        return self.bench.device_name

    def __enter__(self) -> OperatorTester:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.bench.close()

    def select(self, glob: str = "*") -> list[Operator]:
        """Operators whose name matches, in execution order. Raises UsageError when none does."""
        return matching(self.model.operators, glob)

    def test_all(self, glob: str = "*", progress: Progress | None = None) -> Iterator[Verdict]:
        """Verdicts of the operators that match, in execution order. Compiles what they need first."""
        operators = self.select(glob)
        self.bench.compile(operators, progress)
        tell = self.bench.telling(progress)
        for index, operator in enumerate(operators):
            tell("test", index, len(operators))
            yield self.test(operator.name)
        tell("test", len(operators), len(operators))

    def prepare(self, names: Sequence[str]) -> None:
        """Compiles what these operators need at once, which is faster than one after the other as `test` would do it. Raises
        UsageError for an unknown name, or where an injected function changes none of their kernels."""
        self.bench.compile([self.run.operator(name) for name in names])

    def test(self, name: str) -> Verdict:
        """The verdict of one operator. Raises UsageError for an unknown name."""
        operator = self.run.operator(name)
        self._measures.pop(name, None)
        self._pictures.pop(name, None)
        started = time.monotonic()
        try:
            return self._tested(operator, started)
        except Exception as error:
            if not is_confined(error):
                raise
            return self._broken_off(operator, error, started)

    def _tested(self, operator: Operator, started: float) -> Verdict:
        name = operator.name
        program = self._program(operator)
        if isinstance(program, Verdict):
            return program
        own = self.run.cases_of(name)
        cases = own or self.run.cases_of_signature(operator.signature)
        if not cases:
            return self._skipped(operator, program)
        weightless = all(key is None for key in self.model.weight_keys(operator))
        if not own and weightless:
            known = self._by_kernels.get((operator.signature, program.digest))
            if known is not None:
                reason = f"same kernels as {known.operator} and no weights, so the same verdict: {known.reason}"
                return replace(known, operator=operator.name, reason=reason, seconds=0.0, same_as=known.operator)
        trials: Iterator[Trial]
        if own or weightless:
            trials = (self._recorded(case) for case in cases)
            how = "" if own else f" recorded from {cases[0].operator}"
        else:
            cases = cases[:1]
            trials = (self._with_own_weights(operator, case) for case in cases)
            how = f" (inputs recorded from {cases[0].operator}, own weights, expected output computed now)"
        at_late = self._recorded if weightless else partial(self._with_own_weights, operator)
        trials = chain(trials, (at_late(case) for case in late_beside(self.run, operator, cases)))
        if self.bench.backend.keeps_layouts:
            trials = chain.from_iterable(each_layout(trial) for trial in trials)
        verdict = self._judge(operator, program, trials, how, started)
        self.remember(verdict)
        return verdict

    def tried(self, operator: Operator, trials: Sequence[Trial], how: str = "") -> Verdict:
        """The verdict of an operator on these trials, of which there is at least one. It need not be one of the run's: its body
        is among the model's. `how` is said after the name of a trial."""
        started = time.monotonic()
        self._measures.pop(operator.name, None)
        try:
            program = self._program(operator)
            return program if isinstance(program, Verdict) else self._judge(operator, program, iter(trials), how, started)
        except Exception as error:
            if not is_confined(error):
                raise
            return self._broken_off(operator, error, started)

    def measures_of(self, name: str) -> tuple[Measure, ...]:
        """The calls that the last test of an operator measured, in order; none where the verdict is another operator's, or where
        nothing ran."""
        return tuple(self._measures.get(name, ()))

    def picture_of(self, name: str) -> dict[str, Any] | None:
        """What the output looked like with which the last test of an operator failed (`tapml.migrate.picture`)."""
        return self._pictures.get(name)

    def remember(self, verdict: Verdict) -> None:
        """Takes a verdict that may be shared with operators that run the same kernels, as after resuming."""
        if verdict.kernel is not None and verdict.status != "skipped":
            self._by_kernels.setdefault((verdict.signature, verdict.kernel), verdict)

    def test_cumulative(self, progress: Progress | None = None) -> Iterator[Verdict]:
        """One verdict an operator: the worst of all calls of the first prompt (prefill and a few decode steps), or of the first
        example. Operators that do not compile stay on the source, and their verdict says why."""
        named = self.model.named
        programs, failures = self.bench.load(self.model.operators, progress)
        verdicts = {
            name: failure.verdict if isinstance(failure, NotCompiled) else self._failed(named[name], failure, time.monotonic())
            for name, failure in failures.items()
        }
        compounds = {name: (self.run.compound_error(name), self.run.compound_spread(name)) for name in programs}
        source = Hybrid(self.model, self.bench.model.source)
        tell = self.bench.telling(progress)
        course = _Course()

        def from_the_start() -> None:
            nonlocal course
            course = _Course()
            self._side_by_side(source, programs, compounds, tell, course)

        while True:
            outcome: Attempted[None] | Exception
            try:
                outcome = self.bench.attempt(from_the_start)
            except Exception as error:
                outcome = error
            if isinstance(outcome, Ran):
                break
            # Values go up before the operator that reads them is under way.
            suspects = () if isinstance(outcome, Exception) else outcome.suspects
            names = [name for name in suspects or (course.under_way,) if name in programs]
            if isinstance(outcome, Exception):
                if not names or not is_confined(outcome):
                    raise outcome
            elif not names:
                outcome.get()
            for name in names:
                verdicts[name] = (
                    self._broken_off(named[name], outcome, course.started) if isinstance(outcome, Exception)
                    else self._failed(named[name], outcome, course.started)
                )  # fmt: skip
                del programs[name]
        verdicts |= course.verdicts
        for name, words in course.refusals.items():
            before = verdicts[name]
            verdicts[name] = replace(before, reason=f"{before.reason}; {words}")
        for operator in self.model.operators:
            yield verdicts.get(operator.name) or self._skipped(operator, programs[operator.name])

    def _side_by_side(
        self, source: Hybrid, programs: Mapping[str, Compiled], compounds: Mapping[str, tuple[ByStep, ByStep]], tell: Progress,
        course: _Course,
    ) -> None:
        """The worst verdict of each operator that ran on the target, from the initial states on, goes into `course`. Where an
        operator on the source refuses what the target computed, the source's own outputs take the place of its outputs."""
        verdicts = course.verdicts
        self._measures.clear()
        source.reset()
        target = self.bench.hybrid()
        target.offload(programs)
        calls = check_calls(self.run)
        for step, call in enumerate(calls):
            tell("test cumulatively", step, len(calls))
            # The source goes first, so that what it gives is there when the target's side needs it.
            pairs = zip(
                course.follow(source.observe(call.graph, call.inputs)),
                target.observe(call.graph, call.inputs, course.instead), strict=True,
            )  # fmt: skip
            for (operator, expected), (_, actual) in pairs:
                if operator.name in programs:
                    errors, spreads = (at_step(known, step, len(expected)) for known in compounds[operator.name])
                    judges = [of_source(r, e, 0, s, FEW) for r, e, s in zip(expected, errors, spreads, strict=True)]
                    found = judged(actual, judges)
                    verdict = self._verdict(
                        operator, programs[operator.name], found, f"cumulative, call {step}", course.started, actual, expected
                    )
                    if verdict.status == "pass" and not all(c.checked for c in found):
                        reason = f"the source itself is too far from float64 here for this to show anything; {verdict.reason}"
                        verdict = replace(verdict, status="unchecked", reason=reason)
                    self._measured(verdict, None, 0, step, call.graph)
                    before = verdicts.get(operator.name)
                    cases = 1 if before is None else before.cases + 1
                    verdicts[operator.name] = replace(worse(before, verdict), cases=cases)
        target.close()

    def _program(self, operator: Operator) -> Compiled | Verdict:
        """What to run, or why it cannot be."""
        program = self.bench.program(operator)
        return self.bench.failure(operator) if program is None else program

    def _recorded(self, case: Case) -> Trial:
        inputs, references = self.run.case_references(case)
        return Trial(case.label, inputs, references, case)

    def _with_own_weights(self, operator: Operator, case: Case) -> Trial:
        recorded, _ = self.run.case_references(case)
        keys = self.model.weight_keys(operator)
        inputs = [array if key is None else self.model.weight(key) for array, key in zip(recorded, keys, strict=True)]
        return Trial.computed(self.model, operator, inputs, case.label, case)

    def _judge(
        self, operator: Operator, program: Compiled, trials: Iterator[Trial], how: str, started: float
    ) -> Verdict:
        """Runs trials until one fails; the verdict carries the numbers of the failed or else the worst one."""
        worst: Verdict | None = None
        count = 0
        coverage = Coverage()
        chance = ""
        for trial in trials:
            outcome = self.bench.attempt(partial(self._tried, operator, program, trial, how, started))
            if isinstance(outcome, Ran):
                found, verdict = outcome.value
                coverage.add(found, trial.inputs, trial.references, self.model.bodies[operator.signature])
                count += 1
                inside = self._inside(operator, trial) if verdict.status in ("pass", "fail") else ""
                if inside and verdict.status == "fail":
                    verdict = replace(verdict, reason=f"{inside}; {verdict.reason}")
                chance = chance or inside
                if verdict.status != "pass":
                    verdict = replace(verdict, cases=count)
            else:
                verdict = self._failed(operator, outcome, started)
            if trial.case is not None:
                self._measured(verdict, trial.case.id, trial.case.prompt, trial.case.step, trial.case.graph)
            if verdict.status != "pass":
                return verdict
            if worst is None or verdict.badness > worst.badness:
                worst = verdict
        assert worst is not None
        worst = replace(
            worst, cases=count, seconds=time.monotonic() - started, elements=coverage.elements, excluded=coverage.excluded,
        )  # fmt: skip
        hollow = coverage.hollow()
        if chance:
            hollow = f"{chance}: the result is right here by chance, so this proves nothing"
        if hollow:
            return replace(worst, status="unchecked", reason=f"{hollow}; {worst.reason}")
        return worst

    def _tried(
        self, operator: Operator, program: Compiled, trial: Trial, how: str, started: float
    ) -> tuple[list[Comparison], Verdict]:
        """One trial, repeated where it fails."""
        actual = self._run(operator, program, trial)
        found = _compare(actual, trial)
        verdict = self._verdict(operator, program, found, f"{trial.name}{how}", started, actual, trial.expected)
        if verdict.status != "pass":
            self._pictures[operator.name] = _picture(found, actual, trial)
            verdict = self._again(operator, program, trial, verdict, actual)
        return found, verdict

    def _inside(self, operator: Operator, trial: Trial) -> str:
        """What to say of integers inside the operator that do not fit (`tapml.carving.beyond`)."""
        signature = operator.signature
        if signature not in self._insides:
            self._insides[signature] = Inside.of(self.model.bodies[signature], self.bench.target.stored("int64"))
        found = self._insides[signature]
        return "" if found is None else found.beyond(trial.inputs)

    def _measured(self, verdict: Verdict, case: str | None, prompt: int, step: int, graph: str) -> None:
        """Keeps the numbers of one call, which the verdict on it has."""
        v = verdict
        measure = Measure(
            v.operator, case, prompt, step, graph, v.error, v.bound, v.source_error, v.status, v.elements, v.excluded,
        )  # fmt: skip
        self._measures.setdefault(v.operator, []).append(measure)

    def _run(self, operator: Operator, program: Compiled, trial: Trial) -> list[HostArray]:
        """The outputs of one run, in the graph's dtypes."""
        specs = [spec_of(r) for r in trial.expected]
        return self.bench.run(
            operator, program, trial.inputs, specs, keep=trial.case is not None, layouts=trial.layouts
        )

    def _again(
        self, operator: Operator, program: Compiled, trial: Trial, first: Verdict, outputs: Sequence[HostArray]
    ) -> Verdict:
        """Repeats a failed trial. A loss of the device while repeating passes through."""
        bits = [_bits(outputs)]
        outcomes = [first.status]
        for _ in range(REPEATS):
            actual = self._run(operator, program, trial)
            bits.append(_bits(actual))
            outcomes.append("pass" if all(c.passed for c in _compare(actual, trial)) else "fail")
        if len(set(bits)) == 1 and len(set(outcomes)) == 1:
            return first
        passed = outcomes.count("pass")
        reason = (
            f"{len(set(bits))} different results in {len(bits)} runs of the same kernels on the same input, {passed} of them "
            f"within the bound; first run: {first.reason}"
        )
        return replace(first, status="flaky", reason=reason)

    def _failed(self, operator: Operator, outcome: Failed, started: float) -> Verdict:
        """What the device said instead of an answer."""
        program = self.bench.program(operator)
        assert program is not None
        return self._made(operator, program, outcome.status, outcome.stage, outcome.text, started)

    def _broken_off(self, operator: Operator, error: Exception, started: float) -> Verdict:
        """The verdict after an error that nobody foresaw."""
        if os.environ.get("TAPML_DEBUG") == "1":
            traceback.print_exception(error)
        return Verdict(
            operator=operator.name, signature=operator.signature, op=operator.kind, status="error", stage=None, error=None,
            bound=None, source_error=None, reason=unexpected(error), seconds=time.monotonic() - started,
        )

    def _verdict(
        self, operator: Operator, program: Compiled, found: Sequence[Comparison], what: str, started: float,
        actual: Sequence[HostArray], expected: Sequence[HostArray],
    ) -> Verdict:
        """Of one trial: the numbers are those of the worst output."""
        index = max(range(len(found)), key=lambda k: (not found[k].passed, found[k].ratio), default=None)
        if index is None:
            raise ValueError(f"{operator.name} has no outputs")
        worst = found[index]
        output = f", output {index}" if len(found) > 1 else ""
        range_ = "" if worst.passed else why_out_of_range(actual[index], expected[index], program.outputs[index])
        return self._made(
            operator, program, "pass" if worst.passed else "fail", None if worst.passed else "numeric",
            f"{what}{output}: {range_}{worst.describe()}", started, worst, sum(c.elements for c in found),
            sum(c.excluded for c in found),
        )

    def _skipped(self, operator: Operator, program: Compiled) -> Verdict:
        reason = (
            "no call was recorded of any operator with this signature, so there is nothing to compare with; carve with a longer "
            "prompt or more --decode-steps"
        )
        return self._made(operator, program, "skipped", None, reason, time.monotonic())

    def _made(
        self, operator: Operator, program: Compiled, status: Status, stage: Stage | None, reason: str, started: float,
        found: Comparison | None = None, elements: int = 0, excluded: int = 0,
    ) -> Verdict:
        before = self.bench.schedules_that_failed(operator)
        if before:
            reason = f"{reason}; not the first schedule: {before}"
        return Verdict(
            operator=operator.name, signature=operator.signature, op=operator.kind, status=status, stage=stage,
            error=None if found is None else found.error, bound=None if found is None else found.bound,
            source_error=None if found is None else found.source_error, reason=reason, seconds=time.monotonic() - started,
            schedule=program.schedule, kernel=program.digest, cases=int(found is not None), elements=elements, excluded=excluded,
        )


def late_beside(run: RunFolder, operator: Operator, cases: Sequence[Case]) -> list[Case]:
    """The cases at late positions that an operator is run on beside `cases`: those of its signature, whoever made them."""
    return [case for case in run.cases_of_signature(operator.signature) if case.late and case not in cases]


class _Course:
    """One run of the model on both sides: the verdicts so far, the operator that is under way and since when, and what operators
    on the source said of what the target computed for them."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self.refusals: dict[str, str] = {}
        self.under_way = ""
        self.started = time.monotonic()
        self._expected: tuple[HostArray, ...] = ()

    def follow(
        self, source: Iterator[tuple[Operator, tuple[HostArray, ...]]]
    ) -> Iterator[tuple[Operator, tuple[HostArray, ...]]]:
        """The source's operators, each noted before the target's side comes to it."""
        for operator, self._expected in source:
            self.under_way, self.started = operator.name, time.monotonic()
            yield operator, self._expected

    def instead(self, operator: Operator, error: WrongValue) -> Sequence[HostArray]:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        self.refusals[operator.name] = (
            f"on the source, its input from the target is out of range: {first_line(cause)}; what follows it gets the source's"
        )
        return self._expected


def _compare(actual: Sequence[HostArray], trial: Trial) -> list[Comparison]:
    return judged(actual, trial.references)


def _picture(found: Sequence[Comparison], actual: Sequence[HostArray], trial: Trial) -> dict[str, Any]:
    """Of the worst output of a trial that failed."""
    worst = max(range(len(found)), key=lambda k: (not found[k].passed, found[k].ratio))
    drawn = picture(actual[worst], trial.references[worst], found[worst].index)
    return {"trial": trial.name, "output": worst, **drawn}


def _bits(outputs: Sequence[HostArray]) -> bytes:
    return b"".join(np.ascontiguousarray(a).tobytes() for a in outputs)
