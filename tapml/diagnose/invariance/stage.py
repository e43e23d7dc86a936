"""The second part of `tapml test --repeat N`: the same bits in every run, and for a row wherever it stands.

    found = invariance(run, bench, operators, 5, progress)          an `Invariance` (`tapml.migrate.invariance`)

It needs no oracle: a target is held against its own first answer, so it finds races, memory that nobody wrote, and kernels whose
sums depend on how many rows a call has. Whether the numbers are right is a verdict's matter.

Runs. Each recorded call of an operator is run N times. What outputs and scratch hold before differs (`FILLINGS`), and before
every second run another operator runs (the last one that could), so that caches and idle buffers hold something else. Where runs
over the same memory differ, it is the kernel, and otherwise the memory.

Rows. Where rows are treated apart (`rows.py`), the same rows are asked for in other places, among others, and in calls of other
sizes, for which the operator is prepared anew. One operator stands for all that run its kernels, and one recorded call of it is
looked at. Of an operator that differs from run to run nothing more is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tapml.backends.interface import Compiled
from tapml.carving.folder import RunFolder
from tapml.diagnose.invariance.answers import LARGE, LEFT, NAN, ZERO, Apart, answer, difference, same
from tapml.diagnose.invariance.rows import Arrangement, Function, arrangements, rows_of
from tapml.errors import UsageError, is_confined, unexpected
from tapml.migrate.invariance import Invariance, Spread
from tapml.migrate.operator_test import Trial
from tapml.migrate.outcome import Ran
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.execute import host_function
from tapml.operators.graph import Operator
from tapml.tensors import HostArray, TensorSpec, spec_of

# What memory holds before each run, over and over.
FILLINGS = (NAN, ZERO, NAN, LARGE, LEFT)

LEAST = 2


def require(repeat: int, mode: str) -> None:
    """Raises UsageError where the runs cannot be asked for."""
    if repeat < LEAST:
        raise UsageError(f"--repeat {repeat} compares nothing. Give {LEAST} or more, for example --repeat 5.")
    if mode != "isolated":
        raise UsageError("--repeat runs recorded calls again, which --mode cumulative does not. Leave one of them out.")


def invariance(
    run: RunFolder, bench: Workbench, operators: Sequence[Operator], repeat: int, progress: Progress | None = None
) -> Invariance:
    """Looks at these operators. An operator that does not compile, or that the device refuses, is in `not_run`. Raises
    UnavailableError as `Workbench.attempt` does."""
    return _Looking(run, bench, repeat).over(operators, bench.telling(progress))


class _Looking:
    def __init__(self, run: RunFolder, bench: Workbench, repeat: int) -> None:
        self.run = run
        self.bench = bench
        self.repeat = repeat
        self.calls = 0
        self.operators = 0
        self.with_rows = 0
        self.runs: list[Spread] = []
        self.rows: list[Spread] = []
        self.not_run: list[tuple[str, str]] = []

    def over(self, operators: Sequence[Operator], tell: Progress) -> Invariance:
        programs = {o.name: p for o in operators if (p := self.bench.program(o)) is not None}
        kernels = Counter((o.signature, programs[o.name].digest) for o in operators if o.name in programs)
        seen: set[tuple[str, str]] = set()
        before: tuple[Operator, Trial] | None = None
        for index, operator in enumerate(operators):
            tell("repeat", index, len(operators))
            program = programs.get(operator.name)
            if program is None:
                self.not_run.append((operator.name, self.bench.failure(operator).reason))
                continue
            key = operator.signature, program.digest
            trials = self._trials(operator, key in seen)
            if not trials:
                if key not in seen:
                    self.not_run.append((operator.name, "no call was recorded of any operator with this signature"))
                continue
            try:
                said = self._look(operator, program, trials, before, key not in seen, kernels[key])
            except Exception as error:
                if not is_confined(error):
                    raise
                said = unexpected(error)
            seen.add(key)
            if said:
                self.not_run.append((operator.name, said))
            else:
                before = operator, trials[0]
        tell("repeat", len(operators), len(operators))
        return Invariance(
            self.repeat, self.operators, self.calls, self.with_rows, tuple(self.runs), tuple(self.rows), tuple(self.not_run)
        )

    def _trials(self, operator: Operator, known: bool) -> list[Trial]:
        """The operator's own recorded calls; where it has none, and nobody ran its kernels yet, one of its signature with its own
        weights."""
        own = self.run.cases_of(operator.name)
        if own:
            return [Trial(case.label, *self.run.case_references(case), case) for case in own]
        for case in () if known else self.run.cases_of_signature(operator.signature):
            recorded, _ = self.run.case_references(case)
            keys = self.bench.model.weight_keys(operator)
            inputs = [a if key is None else self.bench.model.weight(key) for a, key in zip(recorded, keys, strict=True)]
            return [Trial.computed(self.bench.model, operator, inputs, case.label, case)]
        return []

    def _look(
        self, operator: Operator, program: Compiled, trials: Sequence[Trial], before: tuple[Operator, Trial] | None, rows: bool,
        copies: int,
    ) -> str:
        """Runs and rows of one operator; why it could not be looked at, "" where it could."""
        found: list[Spread] = []
        for trial in trials:
            outcome = self.bench.attempt(partial(self._runs, operator, program, trial, before, copies))
            if not isinstance(outcome, Ran):
                return outcome.text
            found += [outcome.value] if outcome.value is not None else []
            self.calls += 1
        self.operators += 1
        if found:
            worst = max(found, key=_size)
            self.runs.append(worst)
        elif rows:
            arranged = self.bench.attempt(partial(self._arranged, operator, program, trials[0], copies))
            if not isinstance(arranged, Ran):
                return arranged.text
            self.with_rows += arranged.value is not None
            if arranged.value:
                self.rows.append(max(arranged.value, key=_size))
        return ""

    def _runs(
        self, operator: Operator, program: Compiled, trial: Trial, before: tuple[Operator, Trial] | None, copies: int
    ) -> Spread | None:
        """N runs of one call against the first of them."""
        specs = [spec_of(r) for r in trial.expected]
        first: list[HostArray] = []
        made: dict[int | None, list[HostArray]] = {}
        worst: Apart | None = None
        differing, same_memory = 0, False
        for number in range(self.repeat):
            if number % 2 and before is not None:
                self._another(*before)
            filling = FILLINGS[number % len(FILLINGS)]
            outputs = answer(self.bench, operator, program, trial.inputs, specs, filling)
            first = first or outputs
            apart = difference(outputs, first, trial.references)
            if apart is not None:
                differing += 1
                worst = apart if worst is None or apart.size > worst.size else worst
            earlier = made.setdefault(filling, outputs)
            same_memory |= not all(same(a, b) for a, b in zip(outputs, earlier, strict=True))
        if worst is None:
            return None
        certain = self.repeat > len(made)
        what = (
            "it differs from run to run" if same_memory
            else "it depends on what outputs and scratch held before" if certain
            else "it differs from run to run, or depends on what outputs and scratch held before"
        )
        return Spread(
            operator.name, operator.signature, "runs", what, trial.name, self.repeat - 1, differing, worst.output,
            worst.difference, worst.of_bound, copies,
        )  # fmt: skip

    def _another(self, operator: Operator, trial: Trial) -> None:
        """A run of something else in between, whose answer nobody looks at."""
        program = self.bench.program(operator)
        if program is not None:
            answer(self.bench, operator, program, trial.inputs, [spec_of(r) for r in trial.expected], LEFT)

    def _arranged(self, operator: Operator, program: Compiled, trial: Trial, copies: int) -> list[Spread] | None:
        """What differs for rows that are arranged otherwise; None for an operator without rows to arrange."""
        body = self.bench.model.bodies[operator.signature]
        specs = [spec_of(r) for r in trial.expected]
        exact = self.bench.model.exact(operator.signature)
        whole: list[HostArray] = []
        found: list[Spread] = []
        apart = True
        for arrangement in (a for rows in rows_of(body) for a in arrangements(body, rows)):
            again = exact if arrangement.body is None else host_function(arrangement.body, "float64")
            held = _proven(arrangement, exact, again, trial.inputs)
            apart = held if arrangement.relation == "company" else apart
            if not held or not apart:
                continue
            whole = whole or answer(self.bench, operator, program, trial.inputs, specs, NAN)
            spread = self._arrangement(operator, program, trial, arrangement, whole, copies)
            found += [] if spread is None else [spread]
        return found if whole else None

    def _arrangement(
        self, operator: Operator, program: Compiled, trial: Trial, arrangement: Arrangement, whole: Sequence[HostArray],
        copies: int,
    ) -> Spread | None:
        specs = [spec_of(r) for r in trial.expected]
        if arrangement.body is not None:
            prepared = self.bench.prepared(operator, body=arrangement.body)
            if prepared.compiled is None:
                self.not_run.append((operator.name, f"{arrangement.what}: {prepared.message}"))
                return None
            program = prepared.compiled
            specs = _with_dtypes(arrangement.body.output_specs, specs)
        function = partial(self._answer, operator, program, specs)
        again, compared, differing = arrangement.again(function, trial.inputs, whole)
        apart = difference(again, whole, trial.references)
        if apart is None:
            return None
        return Spread(
            operator.name, operator.signature, arrangement.relation, arrangement.what, trial.name, compared, differing,
            apart.output, apart.difference, apart.of_bound, copies,
        )  # fmt: skip

    def _answer(
        self, operator: Operator, program: Compiled, specs: Sequence[TensorSpec], inputs: Sequence[HostArray]
    ) -> list[HostArray]:
        return answer(self.bench, operator, program, inputs, specs, NAN)


def _size(spread: Spread) -> tuple[float, float, int]:
    return spread.size


def _proven(arrangement: Arrangement, exact: Function, again: Function, inputs: Sequence[HostArray]) -> bool:
    """Whether it holds in float64; not where PyTorch refuses the rows so, such as a place beyond the end of a smaller cache."""
    try:
        return arrangement.holds(exact, again, inputs)
    except Exception as error:
        if not is_confined(error):
            raise
        return False


def _with_dtypes(shaped: Sequence[TensorSpec], typed: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The dtypes that a recording has, with the shapes of another size."""
    return [replace(a, dtype=b.dtype) for a, b in zip(shaped, typed, strict=True)]
