"""An operator that is right alone, seen in the whole model: is it the model's fault, the operator's with other inputs, or that
of what hands values over?

    seen = in_model(run, bench, operator, progress)
    seen.stage         "state" where the operator is right with all that it is given, and the model is wrong because of it
    seen.trial         a call of the model with which the operator is wrong after all, for `triage`

The model runs as it ships (`bisect/model_check.py`), with the calls and bounds of `tapml.migrate.end_to_end`, and where it is
right there up to the step at which tokens parted in the last migration (`bisect/parting.py`): with everything on the
target, with everything but this operator, and with this operator only. If the operator makes a difference, it runs once more on
every input that it meets in the model, uploaded and read back one by one. Where it is right on all of them, the fault is in what
lies between operators: states, positions, buffers that stay on the device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tapml.backends.interface import Compiled
from tapml.carving.folder import RunFolder
from tapml.diagnose.bisect.model_check import ModelCheck
from tapml.diagnose.bisect.parting import journalled
from tapml.diagnose.probes.evidence import Evidence, Outcome, Question, share
from tapml.diagnose.probes.shots import Shot, fire
from tapml.diagnose.probes.trials import met
from tapml.migrate.end_to_end import Answer
from tapml.migrate.operator_test import Trial
from tapml.migrate.outcome import Ran
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Operator
from tapml.runtime.protocol import Call
from tapml.verdicts import Stage
from tapml.words import plural


class Whole(Question):
    name = "model"
    question = "Is the whole model right with every operator on the target?"
    right = "The whole model is right with every operator on the target."
    wrong = "The whole model is wrong with every operator on the target."


class Without(Question):
    name = "model without"
    question = "Is it right with every operator but this one on the target?"
    right = "Without this operator on the target, the model is right."
    wrong = "Without this operator on the target, the model is wrong too."


class Only(Question):
    name = "model with only"
    question = "Is it right with this operator alone on the target?"
    right = "With this operator alone on the target, the model is right."
    wrong = "With this operator alone on the target, the model is wrong."


class Met(Question):
    name = "met"
    question = "Is the operator right on the inputs that it meets while the model runs on the target?"
    right = "On every input that it meets in the model, the operator itself is right."
    wrong = "On an input that it meets in the model, the operator is wrong."


# Asked of the whole model where an operator is right with all that was recorded.
MODEL_QUESTIONS: tuple[Question, ...] = (Whole(), Without(), Only(), Met())


@dataclass(frozen=True)
class InModel:
    """`stage` is "state" or None. `blamed` says whether the operator makes the model wrong. `trial` is the first call of the
    model with which the operator itself is wrong."""

    stage: Stage | None
    blamed: bool
    because: str
    evidence: tuple[Evidence, ...]
    answer: Answer | None = None
    trial: Trial | None = None

    @property
    def wrong(self) -> bool:
        """Whether the whole model is wrong, because of this operator or of others."""
        return any(e.probe == Whole.name and e.outcome != "right" for e in self.evidence)


def in_model(run: RunFolder, bench: Workbench, operator: Operator, progress: Progress | None = None) -> InModel:
    """Compiles the whole model. Raises UnavailableError when the device was lost for good."""
    tell: Progress = progress or (lambda stage, done, total: None)
    programs, failures = bench.prepare(run.operators, progress)
    whole = ModelCheck(run, bench, programs)
    everything = frozenset(programs)
    evidence: list[Evidence] = []

    def check(asked: Question, names: frozenset[str], number: int) -> Answer:
        tell("check", number, 3)
        started = time.monotonic()
        answer = whole.together(names).answer
        words = answer.reason if answer.error is None or answer.bound is None else _share(answer)
        left = f"; {plural(len(failures), 'operator')} without kernels" if failures else ""
        where = f"{bench.choice}, {len(names)} of {plural(len(run.operators), 'operator')}"
        outcome: Outcome = "right" if answer.passed else "wrong" if answer.error is not None else "refused"
        evidence.append(_timed(asked.gave(outcome, words + left, where, answer), started))
        return answer

    all_of_it = check(Whole(), everything, 0)
    calls: Sequence[Call] | None = None
    for further in (f for parting in journalled(run, bench) for f in parting.checks(run)):
        if not all_of_it.passed:
            break
        whole.turn_to(further)
        calls = further.calls
        all_of_it = check(Whole(), everything, 0)
        evidence[-1] = replace(evidence[-1], detail=f"{further.words}: {evidence[-1].detail}")
    if all_of_it.passed:
        return InModel(None, False, "the operator is right alone, and so is the model with everything on the "
            "target", tuple(evidence))
    without = check(Without(), everything - {operator.name}, 1)
    only = all_of_it if without.passed else check(Only(), frozenset({operator.name}), 2)
    if not without.passed and only.passed:
        words = (
            "the model is wrong with and without this operator on the target, and right with this operator alone: another one "
            "is at fault"
        )
        return InModel(None, False, words, tuple(evidence), all_of_it)
    tell("check", 3, 3)
    trial, found = _met(run, bench, operator, programs, calls)
    evidence.append(found)
    if trial is not None:
        words = "the operator is right on its recorded inputs, and wrong on an input that it gets in the model"
        return InModel(None, True, words, tuple(evidence), only, trial)
    words = (
        "the operator is right with every input that it is given, and the model is wrong because it is on the target: the "
        "fault is in what is passed between calls or operators"
    )
    return InModel("state", True, words, tuple(evidence), only)


def _met(
    run: RunFolder, bench: Workbench, operator: Operator, programs: dict[str, Compiled], calls: Sequence[Call] | None
) -> tuple[Trial | None, Evidence]:
    """The first call of the model on which the operator is wrong, and what was seen."""
    started = time.monotonic()

    def collected() -> list[Trial]:
        hybrid = bench.hybrid()
        hybrid.offload(programs)
        return list(met(run, bench.model, hybrid, operator, calls))

    outcome = bench.attempt(collected)
    trials, stopped = (outcome.value, "") if isinstance(outcome, Ran) else ([], outcome.text)
    worst: Shot | None = None
    for trial in trials:
        shot = fire(bench, operator, programs[operator.name], trial)
        if shot.outcome != "right":
            return trial, _timed(replace(Met().of_shot(shot, ""), detail=f"{trial.name}: {shot.detail}"), started)
        worst = shot if worst is None or _error(shot) > _error(worst) else worst
    if worst is None:
        return None, _timed(Met().not_run(stopped or "no call of the model runs it"), started)
    told = f"{plural(len(trials), 'call')}, the worst with {worst.detail}"
    return None, _timed(replace(Met().of_shot(worst, ""), detail=told), started)


def _timed(evidence: Evidence, started: float) -> Evidence:
    return replace(evidence, seconds=time.monotonic() - started)


def _error(shot: Shot) -> float:
    return 0.0 if shot.comparison is None else shot.comparison.error


def _share(answer: Answer) -> str:
    assert answer.error is not None and answer.bound is not None
    told = share(answer.error, answer.bound) if answer.bound else f"error {answer.error:.3g}"
    return f"{told}; {answer.reason}"
