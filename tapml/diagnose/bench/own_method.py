"""TapML's own way to a fault, as the bench measures it: what `tapml test`, `bisect` and `explain` do, on a workbench that is
open.

    method = OwnMethod(run, bench, backends, passed=clean)
    found = method.find(operators)
    found.operator, found.stage, found.elements

1. Each of the operators is tested on its recorded calls (`tapml.migrate.operator_test`). The first that fails is named.
2. Where all pass, the whole model runs on the target as it ships; where that is wrong, the bisection names the smallest set of
   operators that makes it so. An operator of that set that is wrong on a call that it meets in the model is looked at like one
   of step 1.
3. Triage names the stage, and the minimiser makes the failing call smaller.

A step that breaks off with an error of its own costs what it would have given, never the detection, and the reason says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from tapml.carving.folder import RunFolder
from tapml.diagnose.bench.result import Diagnosis
from tapml.diagnose.bisect.stage import bisect_over
from tapml.diagnose.explain.triage import triage
from tapml.diagnose.minimise.stage import minimise
from tapml.diagnose.probes.reference_backends import ReferenceBackends
from tapml.diagnose.probes.shots import fire
from tapml.diagnose.probes.trials import met, recorded
from tapml.errors import ConnectionLost
from tapml.migrate.end_to_end import Reference
from tapml.migrate.operator_test import OperatorTester, Trial
from tapml.migrate.outcome import Ran
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Operator
from tapml.runtime.hybrid import Hybrid
from tapml.verdicts import Verdict
from tapml.words import plural

# Seconds that the minimiser may take for one fault; what it has by then counts.
MINIMISE_SECONDS = 30.0

# Stages at which the kernel is right on any input, so that there is no input to make smaller.
_NOT_IN_THE_KERNEL = ("weights", "precision", "state")


class OwnMethod:
    """See the module's docstring. `backends` are where triage runs things again; both are the caller's. `passed` are the
    operators that pass on the clean model, and `model_passed` says whether that does."""

    def __init__(
        self, run: RunFolder, bench: Workbench, backends: ReferenceBackends, passed: Collection[str], model_passed: bool = True,
        smaller: bool = True,
    ) -> None:
        self.run = run
        self.bench = bench
        self.backends = backends
        self.passed = frozenset(passed)
        self.model_passed = model_passed
        self.smaller = smaller
        self._reference: Reference | None = None

    def clean(self, progress: Progress | None = None) -> tuple[list[Verdict], str]:
        """What it says of the workbench as it is: every operator's verdict, and what is wrong with the whole model ("":
        nothing)."""
        tester = OperatorTester.over(self.run, self.bench)
        return list(tester.test_all(progress=progress)), self.model_is_wrong()

    def find(self, operators: Sequence[Operator]) -> Diagnosis | None:
        """The fault on the workbench, looked for in these operators and then in the whole model."""
        self.backends.put_in(self.bench.rewrite)
        tester = OperatorTester.over(self.run, self.bench)
        for operator in operators:
            verdict = tester.test(operator.name)
            if verdict.status not in ("pass", "skipped") and operator.name in self.passed:
                measured = tester.measures_of(operator.name)
                case = next((m.case for m in reversed(measured) if m.status != "pass"), None)
                return self._looked_at(operator, verdict.reason, self._trial(operator, case), str(verdict.stage or ""))
        reason = self.model_is_wrong()
        return self._bisected(reason) if reason and self.model_passed else None

    def model_is_wrong(self) -> str:
        """What the check of the whole model complains of with everything on the target; "" when it passes."""
        if self._reference is None:
            self._reference = Reference.of(self.run, Hybrid(self.bench.model, self.bench.model.source))
        refused = next((o.name for o in self.bench.model.operators if self.bench.program(o) is None), None)
        if refused is not None:
            return f"{refused} does not compile"
        reference = self._reference
        outcome = self.bench.attempt(lambda: reference.check(self.bench.everything()))
        if not isinstance(outcome, Ran):
            return f"the run aborted: {outcome.text}"
        return "" if outcome.value.passed else outcome.value.reason

    def _trial(self, operator: Operator, case: str | None) -> Trial | None:
        """The recorded call with this id, or the first."""
        trials = recorded(self.run, self.bench.model, operator)
        first: Trial | None = None
        for trial in trials:
            first = first or trial
            if trial.case is not None and trial.case.id == case:
                return trial
        return first

    def _looked_at(self, operator: Operator, reason: str, trial: Trial | None, stage: str) -> Diagnosis:
        """Triage and minimiser on one failing call. `stage` is what the failing verdict says, which stands where triage gives
        none."""
        found = Diagnosis(operator.name, None, reason)
        if trial is None:
            return found
        try:
            named = triage(self.bench, operator, trial, self.backends)
            found = replace(found, stage=named.stage, reason=f"{reason}; {named.because}")
        except ConnectionLost:
            raise
        except Exception as error:  # whatever else it is, it must not end the bench: it is a finding about triage
            found = replace(found, reason=f"{reason}; triage failed with {type(error).__name__}: {error}")
        if not self.smaller or found.stage in _NOT_IN_THE_KERNEL or self.bench.program(operator) is None:
            return found
        try:
            small = minimise(self.bench, operator, trial.inputs, seconds=MINIMISE_SECONDS)
            return replace(found, elements=small.elements_after)
        except ConnectionLost:
            raise
        except Exception as error:
            words = f"the minimiser failed with {type(error).__name__}: {error}"
            return replace(found, elements=sum(a.size for a in trial.inputs), reason=f"{found.reason}; {words}")

    def _bisected(self, reason: str) -> Diagnosis:
        try:
            result = bisect_over(self.run, self.bench)
        except ConnectionLost:
            raise
        except Exception as error:
            return Diagnosis(None, None, f"{reason}; the bisection failed with {type(error).__name__}: {error}")
        if not result.sets:
            return Diagnosis(None, None, f"{reason}; the bisection found nothing: {result.reason}")
        culprits = result.sets[0]
        words = f"{reason}; after {plural(result.runs, 'run')}: {result.reason}"
        if culprits.stage == "state":
            return Diagnosis(culprits.operators[0], None, words, "state")
        for name in culprits.operators:
            trial = self._met(self.bench.model.named[name])
            if trial is not None:
                return self._looked_at(self.bench.model.named[name], words, trial, "")
        return Diagnosis(culprits.operators[0], None, words, culprits.stage)

    def _met(self, operator: Operator) -> Trial | None:
        """The first call of the model with which the operator is wrong, with the inputs that the target computes."""
        program = self.bench.program(operator)
        if program is None:
            return None
        outcome = self.bench.attempt(lambda: list(met(self.run, self.bench.model, self.bench.everything(), operator)))
        if not isinstance(outcome, Ran):
            return None
        return next((t for t in outcome.value if fire(self.bench, operator, program, t).outcome != "right"), None)
