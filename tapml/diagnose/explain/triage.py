"""Names the stage at which an operator goes wrong, by running it again with one thing changed at a time.

    with Workbench.on(run, "opencl", inject="faults.py:broken") as bench, ReferenceBackends(run, bench) as backends:
        for trial in recorded(run, bench.model, operator):
            result = triage(bench, operator, trial, backends)
            if not result.passed: ...               result.stage, result.because, result.evidence, result.findings

The probes and their questions are `evidence.QUESTIONS`, in this order: same kernels first (seconds), then other schedules, then
other targets, whose kernels must be compiled. What their outcomes mean together is `decide.RULES`; a probe that cannot change
the stage any more is left out, and the evidence says so. Memory is always looked at. A fault that shows in some runs only is
repeated until each probe would show it with 99% confidence, 20 times at most.

Not here: choosing the trial (`probes/trials.py`), making the case smaller (`minimise/stage.py`), the whole model
(`in_model.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from tapml.backends.on_device import kernels_of, with_kernels
from tapml.carving.tolerance import compare
from tapml.diagnose.explain.decide import FOREIGN_RULES, RULES, Decision, decide, needed
from tapml.diagnose.probes import hazards
from tapml.diagnose.probes.evidence import CPU, QUESTIONS, Evidence, Finding, FindingKind, Outcome, Triage, left_out, worst_of
from tapml.diagnose.probes.grid import beyond_limits, larger_grids
from tapml.diagnose.probes.guard_bytes import PLAIN, Watched, run_guarded, watch
from tapml.diagnose.probes.reference_backends import ReferenceBackends
from tapml.diagnose.probes.schedules import fair, others, same_kernels
from tapml.diagnose.probes.shots import Shot, fire, judge, repeats_for
from tapml.errors import is_confined, unexpected
from tapml.kernels import Program
from tapml.languages import LANGUAGES
from tapml.migrate.operator_test import Trial
from tapml.migrate.outcome import Ran
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.execute import host_function
from tapml.operators.graph import Operator
from tapml.targets.schedules import ONE_FOR_ALL
from tapml.tensors import TensorSpec, as_read, convert, spec_of
from tapml.verdicts import Status
from tapml.words import plural

# How often the operator is run as it is, before anything is changed.
REPEATS = 3

# How often where all of these are right: a fault that shows in a quarter of the runs is then missed once in 300 times.
PATIENCE = 20

# These are made whatever the others say: without them nothing is known, and what memory shows is worth saying beside any stage.
_ALWAYS = ("compile", "limits", "load", "run", "memory", "text")

# These change the kernels, read them, or compile them for something else: questions for backends with kernels.
OF_KERNELS = (
    "limits", "text", "grid", CPU, "converted", "other schedule", "text elsewhere", "same schedule elsewhere",
    "other schedule elsewhere", "other driver",
)  # fmt: skip

_HAZARD: dict[hazards.Kind, FindingKind] = {
    "uninitialised": "uninitialised read", "no barrier": "race", "early return": "early return",
}  # fmt: skip


def triage(
    bench: Workbench, operator: Operator, trial: Trial, backends: ReferenceBackends, progress: Progress | None = None
) -> Triage:
    """The stage of the fault that `operator` shows on `trial`, and the evidence. `backends` may be kept for many triages, altered
    as `bench` is. Raises UnavailableError when the device is lost for good."""
    return _Probing(bench, operator, trial, backends, progress).carry_out()


class _Probing:
    """One triage: each probe is the method of its name, and gives one piece of evidence."""

    def __init__(
        self, bench: Workbench, operator: Operator, trial: Trial, backends: ReferenceBackends, progress: Progress | None
    ) -> None:
        self.bench = bench
        self.operator = operator
        self.trial = trial
        self.backends = backends
        self.tell: Progress = progress or (lambda stage, done, total: None)
        self.made: dict[str, Evidence] = {}
        self.findings: list[Finding] = []
        self.first = Shot()
        self.watched: Watched | None = None
        self.hazards: tuple[hazards.Hazard, ...] = ()
        self.repeats = 1
        self.beyond = False  # whether it writes behind its buffers, so that every other run is watched for that too
        self.here = str(bench.choice)

    @property
    def outcomes(self) -> dict[str, Outcome]:
        return {probe: e.outcome for probe, e in self.made.items()}

    def carry_out(self) -> Triage:
        compiled = self.bench.compile_body(self.bench.body(self.operator), self.operator, self._order())
        if compiled.compiled is None:
            return self._not_compiled(compiled.stage, compiled.message, compiled.status == "crash")
        self.program = compiled.compiled
        note = f" ({compiled.message})" if compiled.message else ""
        kernels = plural(len(kernels_of(self.program)), "kernel" if self.bench.backend.has_kernels else "function")
        self.made["compile"] = Evidence(
            "compile", "right", f"{kernels}, schedule {self.program.schedule}{note}", self.here
        )
        rules = RULES if self.bench.backend.has_kernels else FOREIGN_RULES
        for number, probe in enumerate(QUESTIONS):
            self.tell("diagnose", number, len(QUESTIONS))
            if probe in OF_KERNELS and not self.bench.backend.has_kernels:
                self.made[probe] = Evidence(probe, "not needed", "what runs here are no kernels of TapML", self.here)
            elif probe not in self.made and (probe in _ALWAYS or needed(probe, self.outcomes, rules)):
                started = time.monotonic()
                try:
                    evidence = _PROBES[probe](self)
                except Exception as error:
                    if not is_confined(error):
                        raise
                    evidence = Evidence(probe, "not run", unexpected(error), self.here)
                self.made[probe] = replace(evidence, seconds=time.monotonic() - started)
        self.tell("diagnose", len(QUESTIONS), len(QUESTIONS))
        decision = decide({p: o for p, o in self.outcomes.items() if p not in ("compile", "memory")}, rules)
        if decision.stage == "weights":
            self.findings += self._weights()
        return self._triage(decision)

    def _triage(self, decision: Decision) -> Triage:
        return Triage(
            self.operator.name, self._status(), decision.stage, decision.because, self.trial.name,
            left_out(list(self.made.values())), tuple(self.findings), self.first.comparison, self.first.output,
        )  # fmt: skip

    def _status(self) -> Status:
        outcomes = self.outcomes
        if outcomes.get("run") == "right":
            return "pass"
        if self.first.lost:
            return "crash"
        if "wrong" not in (outcomes.get("run"),):
            return "error"
        return "flaky" if self.first.flaky else "fail"

    def _not_compiled(self, stage: object, message: str, crashed: bool) -> Triage:
        words = "the compiler died or took too long" if crashed else "the compiler refused"
        self.made["compile"] = Evidence("compile", "refused", message, self.here)
        made = Triage(
            self.operator.name, "crash" if crashed else "error", None, f"{words} at this stage: "
                f"{_first_line(message)}", self.trial.name,
            left_out(list(self.made.values())), (),
        )  # fmt: skip
        return replace(made, stage=stage)  # type: ignore[arg-type]

    def _order(self) -> tuple[str, ...] | None:
        """The schedules that the target tries for this operator, as `Workbench.program` does."""
        first = None if self.bench.alteration is None else self.bench.alteration.schedule(self.operator)
        return None if first is None else (first, *(s for s in self.bench.target.schedules if s != first))

    # The probes, in the order of QUESTIONS.

    def limits(self) -> Evidence:
        words = beyond_limits(with_kernels(self.program), self.bench.info)
        return Evidence("limits", "wrong" if words else "right", words or "all of them", self.bench.info.name)

    def load(self) -> Evidence:
        outcome = self.bench.attempt(lambda: self.bench.backend.load(self.program))
        if isinstance(outcome, Ran):
            return Evidence("load", "right", "it does", self.bench.info.driver)
        return Evidence("load", "refused", outcome.text, self.bench.info.driver)

    def run(self) -> Evidence:
        if self.made["load"].outcome == "refused":
            return Evidence("run", "not run", "the driver refused the kernels", self.here)
        # Watched first: in buffers with room behind them a kernel that writes too far harms neither driver nor later runs.
        self.watched = watch(self.bench, self.program, self.trial.inputs, self.trial)
        if self.watched.shot.lost:  # perhaps of a run before: once more, on the device that was opened anew
            self.watched = watch(self.bench, self.program, self.trial.inputs, self.trial)
        self.beyond = beyond(self.watched)
        if self.beyond:
            self.first = self.watched.shot
            made = self._seen("run", self.first, self.here)
            return replace(made, outcome="wrong", detail=f"it writes behind its buffers; its own numbers: {self.first.detail}")
        self.first = fire(self.bench, self.operator, self.program, self.trial, REPEATS)
        if self.first.outcome == "right" and self.watched.shot.outcome == "right":
            # Perhaps a fault that comes and goes: it was reported of this call, or of the model.
            self.first = fire(self.bench, self.operator, self.program, self.trial, PATIENCE)
        if self.first.refused or self.first.lost:
            return self._seen("run", self.first, self.here)
        self.repeats = repeats_for(self.first.wrong, self.first.runs) if self.first.flaky else 1
        if self.first.outcome == "right" and self.watched.shot.outcome == "wrong":
            self.first = self.watched.shot
            made = self._seen("run", self.first, self.here)
            return replace(made, detail=f"right over one content of memory, and not over others: {self.first.detail}")
        return self._seen("run", self.first, self.here)

    def memory(self) -> Evidence:
        if self.watched is None:
            return Evidence("memory", "not run", "there was no run to watch", self.here)
        if self.watched.shot.refused or self.watched.shot.lost:
            return Evidence("memory", "refused", self.watched.shot.message, self.here)
        self.findings += self.watched.findings
        if self.watched.findings:
            return Evidence("memory", "wrong", "; ".join(f"{f.kind}: {f.text}" for f in self.watched.findings), self.here)
        runs = plural(self.watched.shot.runs, "run")
        detail = f"the same bits in {runs} over other contents of memory, in and around the buffers"
        return Evidence("memory", "right", detail, self.here)

    def float64(self) -> Evidence:
        """Right where every output of the target is within its bound of float64."""
        where = "PyTorch in float64"
        if not self.first.outputs:
            return Evidence("float64", "not run", "there are no outputs", where)
        if self.first.comparison is not None and self.first.comparison.passed:
            return Evidence("float64", "not run", "the numbers are right, only what it does to memory is not", where)
        if self._memory_matters() or self.first.flaky:
            words = "the numbers come and go with memory or time, which no precision of the source explains"
            return Evidence("float64", "not run", words, where)
        judged = [compare(y, r) for y, r in zip(self.first.outputs, self.trial.references, strict=True)]
        _, worst = worst_of(judged)
        off = f"the target is {worst.error:.3g} away from float64, the source {worst.source_error:.3g}"
        detail = f"{off}; the bound is {worst.bound:.3g}"
        outcome: Outcome = "right" if all(found.passed for found in judged) else "wrong"
        return Evidence("float64", outcome, detail, where, worst.error, worst.bound, worst.source_error)

    def graph(self) -> Evidence:
        body = self.bench.body(self.operator)
        shot = judge(self.trial, [lambda: host_function(body)(self.trial.inputs)])
        return self._seen("graph", shot, "PyTorch")

    def uploads(self) -> Evidence:
        if all(key is None for key in self.bench.model.weight_keys(self.operator)):
            return Evidence("uploads", "not run", "the operator reads no weights", self.here)
        if self.first.lost or self._memory_matters():
            return Evidence("uploads", "not run", "the fault is one of memory, which no weight can cause", self.here)
        shot = fire(self.bench, self.operator, self.program, self.trial, self.repeats, resident=False)
        return self._seen("uploads", shot, self.here)

    def text(self) -> Evidence:
        """The hazards that the kernels' text has on any platform (`tapml.diagnose.probes.hazards`)."""
        if not hazards.is_read(self.bench.target.language):
            return Evidence("text", "not run", f"{self.bench.target.language} is not read for hazards", self.here)
        self.hazards = hazards.of_program(kernels_of(self.program))
        self.findings += [Finding(_HAZARD[h.kind], h.text) for h in self.hazards]
        words = "; ".join(h.text for h in self.hazards)
        return Evidence("text", "wrong" if words else "right", words or "none was found", self.here)

    def text_elsewhere(self) -> Evidence:
        """Wrong where the other text has a hazard of the same kind."""
        backend = self.backends.other_target()
        if isinstance(backend, str):
            return Evidence("text elsewhere", "not run", backend)
        where = f"{backend.choice}, {self.program.schedule}"
        made = backend.compile_body(backend.body(self.operator), self.operator, (self.program.schedule,))
        if made.compiled is None or not hazards.is_read(backend.target.language):
            words = made.message or f"{backend.target.language} is not read for hazards"
            return Evidence("text elsewhere", "not run", words, where)
        kinds = {h.kind for h in self.hazards}
        words = "; ".join(h.text for h in hazards.of_program(kernels_of(made.compiled)) if h.kind in kinds)
        return Evidence("text elsewhere", "wrong" if words else "right", words or "it has none of the same kind", where)

    def grid(self) -> Evidence:
        if self.first.lost or self.beyond:
            return Evidence("grid", "not run", "more workgroups would do no less harm", self.here)
        if self.first.flaky:
            words = "the fault comes and goes by itself, so that a right answer would prove nothing"
            return Evidence("grid", "not run", words, self.here)
        tried: list[str] = []
        for words, larger in larger_grids(with_kernels(self.program)):
            shot = self._guarded(larger)
            if shot.outcome == "right":
                self.findings.append(Finding("launch size", f"right with {words}"))
                return self._seen("grid", shot, self.here)
            tried.append(words)
        if not tried:
            return Evidence("grid", "not run", "the platform has no workgroups", self.here)
        return Evidence("grid", "wrong", f"wrong with {'; '.join(tried)}", self.here)

    def other_schedule(self) -> Evidence:
        if not LANGUAGES[self.bench.target.language].threads:
            return Evidence("other schedule", "not run", "plain C has one schedule", self.here)
        return self._any_schedule("other schedule", self.bench, others(self.program.schedule, self.bench.target))

    def cpu(self) -> Evidence:
        backend = self.backends.cpu()
        if isinstance(backend, str):
            return Evidence(CPU, "not run", backend, CPU)
        return self._with_schedule(CPU, backend, ONE_FOR_ALL)

    def converted(self) -> Evidence:
        where = "TVM's virtual machine"
        outputs = self.bench.converted(self.operator, self.trial.inputs)
        if isinstance(outputs, str):
            return Evidence("converted", "not run", _first_line(outputs), where)
        return self._seen("converted", judge(self.trial, [lambda: outputs]), where)

    def same_schedule_elsewhere(self) -> Evidence:
        backend = self.backends.other_target()
        if isinstance(backend, str):
            return Evidence("same schedule elsewhere", "not run", backend)
        return self._with_schedule("same schedule elsewhere", backend, self.program.schedule)

    def other_schedule_elsewhere(self) -> Evidence:
        backend = self.backends.other_target()
        if isinstance(backend, str):
            return Evidence("other schedule elsewhere", "not run", backend)
        return self._any_schedule("other schedule elsewhere", backend, others(self.program.schedule, backend.target))

    def other_driver(self) -> Evidence:
        drivers, words = self.backends.other_drivers()
        if not drivers:
            return Evidence("other driver", "not run", words)
        backend = drivers[0]
        if self.beyond:
            return Evidence("other driver", "not run", "a text that writes behind its buffers is at fault with any driver")
        shot = fire(backend, self.operator, self.program, self.trial, self.repeats, resident=False)
        return self._seen("other driver", shot, backend.info.driver)

    # What they share.

    def _any_schedule(self, probe: str, bench: Workbench, names: tuple[str, ...]) -> Evidence:
        """Right as soon as one of these schedules is; wrong if all that ran are."""
        seen: list[Evidence] = []
        for name in names:
            evidence = self._with_schedule(probe, bench, name)
            if evidence.outcome == "right":
                return evidence
            seen.append(evidence)
        best = next((e for e in seen if e.outcome == "wrong"), None) or next((e for e in seen if e.outcome == "refused"), None)
        told = "; ".join(f"{e.where}: {e.detail}" for e in seen) or "there is no other schedule"
        found = best or Evidence(probe, "not run", told)
        return replace(found, detail=told, where=str(bench.choice))

    def _with_schedule(self, probe: str, bench: Workbench, schedule: str) -> Evidence:
        where = f"{bench.choice}, {schedule}"
        body = bench.body(self.operator)
        unfair = fair(schedule, body, bench.info)
        if unfair:
            return Evidence(probe, "not run", unfair, where)
        made = bench.compile_body(body, self.operator, (schedule,))
        if made.compiled is None:
            return Evidence(probe, "not run", f"it does not compile: {_first_line(made.message)}", where)
        if bench is self.bench and same_kernels(with_kernels(made.compiled), with_kernels(self.program)):
            return Evidence(probe, "not run", "it gives the very same kernels", where)
        if self._memory_matters():
            watched = watch(bench, made.compiled, self.trial.inputs, self.trial)
            seen = self._seen(probe, watched.shot, where)
            return replace(seen, outcome="wrong", detail="it writes behind its buffers") if beyond(watched) else seen
        return self._seen(probe, fire(bench, self.operator, made.compiled, self.trial, self.repeats), where)

    def _memory_matters(self) -> bool:
        """Whether the fault shows over some contents of memory only, so that the other runs must be judged over all of them."""
        return self.watched is not None and self.first is self.watched.shot

    def _guarded(self, program: Program) -> Shot:
        room = max([1 << 16, *(s.nbytes for s in program.outputs)])

        def once() -> object:
            made = run_guarded(self.bench, program, self.trial.inputs, PLAIN, min(room, 1 << 26))
            if isinstance(made, Shot):
                return made
            return [as_read(a.reshape(r.shape), spec_of(r).dtype) for a, r in zip(made.outputs, self.trial.expected, strict=True)]

        return judge(self.trial, [once] * self.repeats)  # type: ignore[list-item]

    def _seen(self, probe: str, shot: Shot, where: str) -> Evidence:
        found = shot.comparison
        return Evidence(
            probe, shot.outcome, shot.detail, where, None if found is None else found.error,
            None if found is None else found.bound, None if found is None else found.source_error,
        )  # fmt: skip

    def _weight_there(self, key: str, spec: TensorSpec) -> bytes:
        return self.bench.backend.read_many([(self.bench.weight_buffer(self.operator, key, spec.dtype), spec.nbytes, 0)])[0]

    def _weights(self) -> list[Finding]:
        """Which weights on the device are not the model's."""
        found: list[Finding] = []
        for key, spec in zip(self.bench.model.weight_keys(self.operator), self.program.inputs, strict=True):
            if key is None:
                continue
            there = self.bench.attempt(partial(self._weight_there, key, spec)).get()
            clean = convert(self.bench.model.weight(key), spec.dtype)
            differs = _differing(there, clean.tobytes(), clean.dtype.itemsize)
            if differs:
                found.append(Finding("weight differs", f"{key}: {differs} of {clean.size} elements on the device are not the "
                    f"model's"))
        return found


_PROBES: dict[str, Callable[[_Probing], Evidence]] = {
    "limits": _Probing.limits,
    "load": _Probing.load,
    "run": _Probing.run,
    "float64": _Probing.float64,
    "graph": _Probing.graph,
    "uploads": _Probing.uploads,
    "memory": _Probing.memory,
    "text": _Probing.text,
    "grid": _Probing.grid,
    "other schedule": _Probing.other_schedule,
    CPU: _Probing.cpu,
    "converted": _Probing.converted,
    "text elsewhere": _Probing.text_elsewhere,
    "same schedule elsewhere": _Probing.same_schedule_elsewhere,
    "other schedule elsewhere": _Probing.other_schedule_elsewhere,
    "other driver": _Probing.other_driver,
}


def beyond(watched: Watched) -> bool:
    """Whether a program was seen to write behind its buffers."""
    return any(f.kind == "out-of-bounds write" for f in watched.findings)


def _differing(left: bytes, right: bytes, itemsize: int) -> int:
    kind = f"u{itemsize}"
    return int((np.frombuffer(left, kind) != np.frombuffer(right, kind)).sum())


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0][:300]
