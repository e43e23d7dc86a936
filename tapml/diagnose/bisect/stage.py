"""Which operators make a migrated model wrong: the smallest sets that do, found on the real target.

    result = bisect(run, "opencl")
    result.culprits          ("prefill/layers.7.mlp.down_proj",), or () when the model is right with everything on the target
    result.runs, result.bound, result.sets, result.flaky

1. Everything that compiles goes to the target and the model is checked as it ships, a few times. Right each time, bit for bit the
   same: done.
   Right, and tokens part later on (the last migration saw it, or `tokens` are compared and do): the calls up to there are
   the check from here on (`parting.py`).
2. The same set is checked operator by operator (`prefix.py`). If it is wrong there too, the search goes on there,
   where a check shares all work with those before it. If it is right there, the fault is in no operator alone but in what lies
   between them: states and values that stay on the device, memory that they share. Then the search goes on with the real
   hybrid, and the stage of what is found is "state" (none is named where the fault comes and goes).
3. The search (`search.py`) looks at the calls up to the first wrong one only, and at the operators of their graphs:
   what runs later cannot have made an earlier call wrong. What it finds is made 1-minimal over all calls.
4. The set alone is checked as it ships, then what is left without it. Where that is wrong again there are more sets.

Flaky faults. Where runs of the same set give different bits or different outcomes, no result of the target is used twice; how
often the whole fails is measured, and a set that passes is asked again until it is believed with the stated confidence.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tapml.backends.interface import Backend
from tapml.carving.folder import RunFolder
from tapml.diagnose.bisect.model_check import Checked, How, ModelCheck
from tapml.diagnose.bisect.parting import Further, compared, journalled
from tapml.diagnose.bisect.result import BisectResult, Culprit, FailingSet, Missing
from tapml.diagnose.bisect.search import (
    Known,
    Rate,
    Repeated,
    confidence_of_each,
    failing_core,
    made_minimal,
    measured,
    most_checks,
    repeats,
)
from tapml.errors import UsageError
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.inject import Inject
from tapml.migrate.workbench import Progress, Workbench
from tapml.verdicts import Stage

CONFIDENCE = 0.95

# Runs of the same set before its answer counts as steady.
REPEATS = 3

# Runs of the whole model before it counts as right, where it is the first thing that is looked at.
RIGHT = 9

# Where runs differ but none is wrong: faults that show less often than this are not looked for.
RARE = 0.1


def bisect(
    run: RunFolder,
    target: str | Backend,
    device: str = "local",
    inject: Inject | None = None,
    all_sets: bool = False,
    confidence: float = CONFIDENCE,
    progress: Progress | None = None,
    tokens: int | None = None,
) -> BisectResult:
    """Finds what makes the model wrong on the target of a text, or on an opened backend, which stays the caller's. `all_sets`:
    after one set, go on without it until the rest is right. `confidence`, within (0, 1), is that of the answer where a fault
    comes and goes. `tokens`: where the check is right, compare so many tokens of each answer; without it, the last migration says
    where they part. Raises UsageError for another confidence or a faulty `inject`, TargetError and UnavailableError as
    `Workbench` does."""
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"--confidence {confidence:g} is not between 0 and 1. Give a share such as 0.95.")
    with Workbench.on(run, target, device, inject) as bench:
        return bisect_over(run, bench, progress, all_sets, confidence, tokens)


def bisect_over(
    run: RunFolder, bench: Workbench, progress: Progress | None = None, all_sets: bool = False, confidence: float = CONFIDENCE,
    tokens: int | None = None,
) -> BisectResult:
    """`bisect` on a bench that is open and stays the caller's, with what was put in now."""
    started = time.monotonic()
    return _Bisection(run, bench, confidence, progress, tokens).carry_out(all_sets, started)


class _Bisection:
    def __init__(
        self, run: RunFolder, bench: Workbench, confidence: float, progress: Progress | None, tokens: int | None
    ) -> None:
        self.run = run
        self.bench = bench
        self.tokens = tokens
        self.further: Further | None = None  # the check that is made instead of the run's, once it is wrong
        self.confidence = confidence
        self.tell = bench.telling(progress)
        self.programs, failures = bench.prepare(run.operators, self.tell)
        self.missing = [Missing(name, failure.stage, failure.text) for name, failure in failures.items()]
        self.tell("check", 0, RIGHT)
        self.whole = ModelCheck(run, bench, self.programs)
        self.searched = 0  # runs that the searches made, and the most that they may have made
        self.allowed = 0
        self.rate: Rate | None = None  # of the whole, once it was seen to differ from run to run

    def carry_out(self, all_sets: bool, started: float) -> BisectResult:
        rest = tuple(self.programs)
        sets: list[FailingSet] = []
        first: _Seen | None = None
        last: _Seen | None = None
        while rest:
            last = self._as_it_ships(frozenset(rest), REPEATS if sets else RIGHT)
            if last.right and not sets:
                last = self._further(frozenset(rest)) or last
            first = first or last
            if last.right or (sets and not all_sets):
                break
            sets.append(self._search(rest, last))
            rest = tuple(name for name in rest if name not in sets[-1].operators)
            last = None  # with nothing left on the target the model is the source
        engine = self.whole.engine
        return BisectResult(
            target=str(self.bench.choice), device=self.bench.info, sets=tuple(sets),
            answer=None if first is None else first.checked.answer, without=last.checked.answer if last and sets else None,
            more=last is not None and not last.right, first_wrong_call=None if first is None else first.checked.call,
            confidence=self.confidence, rate=self.rate, unsteady=tuple(sorted(engine.unsteady)), offloaded=len(self.programs),
            not_compiled=tuple(self.missing), course=tuple(self.whole.course),
            bound=self.whole.runs - self.searched + self.allowed, operators_run=engine.executed,
            operators_without_memory=engine.asked, seconds=time.monotonic() - started,
            circumstances=Circumstances.of(self.bench), positions=self.run.positions,
            further=None if self.further is None else self.further.words,
            tokens=self.tokens if self.run.protocol.chooses else None,
        )

    def _further(self, names: frozenset[str]) -> _Seen | None:
        """The first check that is wrong of those that go on to where tokens part; None where there is none."""
        if self.run.protocol.chooses is None:
            return None
        if self.tokens is None:
            partings = journalled(self.run, self.bench)
        else:
            parting = compared(self.run, self.bench, self.programs, self.tokens, self.tell)
            partings = [] if parting is None else [parting]
        for further in (f for parting in partings for f in parting.checks(self.run)):
            self.whole.turn_to(further)
            seen = self._as_it_ships(names, REPEATS)
            if not seen.right:
                self.further = further
                return seen
        self.whole.turn_to(None)
        return None

    def _as_it_ships(self, names: frozenset[str], right: int) -> _Seen:
        """A few runs of the real hybrid, `right` where none is wrong; many where they differ."""
        seen: list[Checked] = []

        def fails() -> bool:
            self.tell("check", min(len(seen), right), right)
            seen.append(self.whole.together(names))
            return not seen[-1].passed

        rate = measured(fails, REPEATS)
        if not rate.failures:
            rate = measured(fails, right, rate)
        steady = len({(checked.passed, checked.bits) for checked in seen}) == 1
        if not steady:
            rate = measured(fails, repeats(self.confidence, RARE), rate)
            self.rate = self.rate or rate
        elif self.rate is not None and not rate.failures:
            # The model was seen to be wrong at times: what is left of it is right only if it passes for long enough.
            rate = measured(fails, repeats(self.confidence, self.rate.least(self.confidence) or RARE), rate)
        self.tell("check", right, right)
        wrong = [checked for checked in seen if not checked.passed]
        return _Seen((wrong or seen)[0], not wrong, steady and len(wrong) in (0, len(seen)), rate)

    def _search(self, rest: Sequence[str], seen: _Seen) -> FailingSet:
        """One 1-minimal set among these operators, which together are wrong."""
        way = self._way(frozenset(rest), seen)
        check = self.whole.one_by_one if way.how == "one by one" else self.whole.together
        horizon = None if way.call is None else way.call + 1
        graphs = self.whole.graphs(horizon or self.whole.calls)
        named = self.bench.model.named
        candidates = tuple(name for name in rest if named[name].graph in graphs)
        answers: dict[frozenset[str], Checked] = {}
        before = self.whole.runs
        expected = way.repeats * most_checks(len(candidates), 1)

        def asking(calls: int | None) -> Known:
            def fails(names: frozenset[str]) -> bool:
                if names in answers and not answers[names].passed:
                    return True  # wrong in the first calls is wrong
                done = self.whole.runs - before
                self.tell("bisect", done, max(expected, done + 1))
                answers[names] = check(names, calls)
                return not answers[names].passed

            return Known(fails if way.steady else Repeated(fails, way.repeats))

        found = made_minimal(failing_core(candidates, asking(horizon)), asking(None))
        self.searched += (spent := self.whole.runs - before)
        self.tell("bisect", spent, spent)
        self.allowed += way.repeats * most_checks(len(candidates), len(found))
        names = frozenset(found)
        checked = answers.get(names, way.wrong)  # nothing was asked where there was one candidate only
        alone = [self.whole.together(names)]
        while len(alone) < REPEATS and not (way.steady and _agree(alone[0], checked)):
            alone.append(self.whole.together(names))
        if way.steady and len({(c.passed, c.bits) for c in alone}) > 1:
            # It comes and goes after all, and the first runs agreed by chance.
            return self._search(rest, self._measured(frozenset(rest), seen.checked))
        while not way.steady and all(c.passed for c in alone) and len(alone) < way.repeats:
            alone.append(self.whole.together(names))
        return FailingSet(
            culprits=tuple(self._culprit(name) for name in found), how=way.how, stage=_stage(way, checked), steady=way.steady,
            rate=way.rate, repeats=way.repeats, first_wrong_call=checked.call, answer=checked.answer,
            alone=next((c for c in alone if not c.passed), alone[0]).answer,
        )

    def _measured(self, names: frozenset[str], wrong: Checked) -> _Seen:
        """How often these are wrong as they ship, of which `wrong` is a run."""
        most = repeats(self.confidence, RARE)
        rate = measured(lambda: not self.whole.together(names).passed, most)
        self.rate = self.rate or rate
        return _Seen(wrong, False, False, rate if rate.failures else Rate(1, most + 1))

    def _way(self, names: frozenset[str], seen: _Seen) -> _Way:
        """How to search. The engine is tried; where it does not give the bits of the hybrid, once more without its memory."""
        engine, check = self.whole.engine, self.whole.one_by_one
        self.tell("check", 0, 1)
        engine.steady = True
        found = [check(names)]
        if not (seen.steady and _agree(found[0], seen.checked)):
            engine.steady = False
            found.append(check(names))
            engine.steady = seen.steady and _agree(*found) and not engine.unsteady & names
        self.tell("check", 1, 1)
        wrong = [checked for checked in found if not checked.passed]
        if engine.steady and wrong:
            return _Way("one by one", True, 1, wrong[0].call, None, wrong[0])
        if not engine.steady:

            def fails() -> bool:
                found.append(check(names))
                return not found[-1].passed

            most = repeats(self.confidence, RARE) if seen.steady else self._repeats(seen.rate, names)
            rate = measured(fails, most, Rate(len(wrong), len(found)))
            wrong = [checked for checked in found if not checked.passed]
            if wrong:
                self.rate = self.rate or rate
                return _Way("one by one", False, self._repeats(rate, names), None, rate, wrong[0])
        if seen.steady:
            return _Way("together", True, 1, seen.checked.call, None, seen.checked)
        return _Way("together", False, self._repeats(seen.rate, names), None, seen.rate, seen.checked)

    def _repeats(self, rate: Rate, names: frozenset[str]) -> int:
        return repeats(confidence_of_each(self.confidence, len(names)), rate.least(self.confidence))

    def _culprit(self, name: str) -> Culprit:
        operator, program = self.bench.model.named[name], self.programs[name]
        alike = tuple(other for other, p in self.programs.items() if p.digest == program.digest and other != name)
        return Culprit(
            name, operator.kind, operator.graph, operator.module, operator.signature, program.digest, program.schedule, alike
        )


def _agree(one: Checked, other: Checked) -> bool:
    return one.passed == other.passed and one.bits == other.bits


def _stage(way: _Way, checked: Checked) -> Stage | None:
    """A fault that shows only where operators run together, and each time, is in what they hand over. One that comes and goes may
    as well be a race that needs the neighbours to show, so no stage is named."""
    if way.how == "one by one":
        return checked.answer.stage
    return "state" if way.steady else None


@dataclass(frozen=True)
class _Seen:
    """Runs of one set as it ships: the first wrong one, or the first; whether none was wrong; whether all gave the same bits."""

    checked: Checked
    right: bool
    steady: bool
    rate: Rate


@dataclass(frozen=True)
class _Way:
    """How a search checks, whether runs agree, how often it asks a set that passes, the first wrong call (None: it looks at all),
    and a wrong run."""

    how: How
    steady: bool
    repeats: int
    call: int | None
    rate: Rate | None
    wrong: Checked
