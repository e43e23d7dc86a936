"""Names the stage at which an operator goes wrong, by running it again with one thing changed at a time.

    with Workbench.on(run, "opencl", inject="faults.py:broken") as bench, ReferenceBackends(run, bench) as backends:
        for trial in recorded(run, bench.model, operator):
            result = triage(bench, operator, trial, backends)
            if not result.passed: ...               result.stage, result.because, result.evidence, result.findings

The probes are `probes/catalogue.py`'s, in their order. What their outcomes mean together is `decide.RULES`; a probe that cannot
change the stage any more is left out, and the evidence says so. A fault that shows in some runs only is repeated until each probe
would show it with 99% confidence, 20 times at most.

Not here: choosing the trial (`probes/trials.py`), making the case smaller (`minimise/stage.py`), the whole model
(`in_model.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from tapml.diagnose.explain.decide import FOREIGN_RULES, RULES, Decision, Rule, decide, needed
from tapml.diagnose.probes.catalogue import PROBES
from tapml.diagnose.probes.evidence import Evidence, Outcome, Triage, first_line
from tapml.diagnose.probes.probe import Probe, Subject
from tapml.diagnose.probes.reference_backends import ReferenceBackends
from tapml.errors import is_confined, unexpected
from tapml.migrate.operator_test import Trial
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Operator
from tapml.verdicts import Status


def triage(
    bench: Workbench, operator: Operator, trial: Trial, backends: ReferenceBackends, progress: Progress | None = None,
    probes: Sequence[Probe] = PROBES,
) -> Triage:
    """The stage of the fault that `operator` shows on `trial`, and the evidence. `backends` may be kept for many triages, with
    the same put in as on `bench`. Raises UnavailableError when the device is lost for good."""
    tell: Progress = progress or (lambda stage, done, total: None)
    subject = Subject(bench, operator, trial, backends)
    rules = RULES if bench.backend.has_kernels else FOREIGN_RULES
    for number, probe in enumerate(probes):
        tell("diagnose", number, len(probes))
        subject.evidence[probe.name] = _made(probe, subject, rules)
    tell("diagnose", len(probes), len(probes))
    decision, status = _meaning(subject, rules)
    return Triage(
        operator.name, status, decision.stage, decision.because, trial.name, tuple(subject.evidence.values()),
        tuple(subject.findings), subject.first.comparison, subject.first.output,
    )  # fmt: skip


def _made(probe: Probe, subject: Subject, rules: Sequence[Rule]) -> Evidence:
    """What a probe gave, or why it was left out."""
    compiled = subject.prepared is None or subject.prepared.compiled is not None
    if not compiled or not (probe.always or needed(probe.name, _outcomes(subject), rules)):
        return probe.gave("not needed", "the probes before it decide the stage already")
    if probe.kernels_only and not subject.bench.backend.has_kernels:
        return probe.gave("not needed", "the backend runs no kernels of TapML", subject.here)
    started = time.monotonic()
    try:
        evidence = probe.run(subject)
    except Exception as error:
        if subject.prepared is None or not is_confined(error):
            raise
        evidence = probe.not_run(unexpected(error), subject.here)
    return replace(evidence, seconds=time.monotonic() - started)


def _outcomes(subject: Subject) -> dict[str, Outcome]:
    return {name: e.outcome for name, e in subject.evidence.items() if e.outcome != "not needed"}


def _meaning(subject: Subject, rules: Sequence[Rule]) -> tuple[Decision, Status]:
    """What the outcomes mean together. Where it does not compile, the compiler has said at which stage."""
    prepared, run = subject.prepared, subject.evidence["run"].outcome
    assert prepared is not None
    if prepared.compiled is None:
        crashed = prepared.status == "crash"
        words = "the compiler died or took too long" if crashed else "the compiler refused"
        because = f"{words} at this stage: {first_line(prepared.message)}"
        return Decision(prepared.stage, because), "crash" if crashed else "error"
    decision = decide(_outcomes(subject), rules)
    if run == "right":
        return decision, "pass"
    if subject.first.lost:
        return decision, "crash"
    if run != "wrong":
        return decision, "error"
    return decision, "flaky" if subject.first.flaky else "fail"
