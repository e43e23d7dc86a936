"""Probes that run the operator as it is: whether it compiles, whether the driver takes it, and whether its numbers are right;
also with the weights uploaded anew, and as it was converted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from tapml.backends.on_device import kernels_of
from tapml.diagnose.probes.evidence import Evidence, Finding, first_line
from tapml.diagnose.probes.guard_bytes import watch
from tapml.diagnose.probes.probe import Probe, Subject
from tapml.diagnose.probes.shots import fire, judge, repeats_for
from tapml.migrate.outcome import Ran
from tapml.tensors import TensorSpec, convert
from tapml.words import plural

# How often the operator is run as it is, before anything is changed.
REPEATS = 3

# How often where all of these are right: a fault that shows in a quarter of the runs is then missed once in 300 times.
PATIENCE = 20


class Compile(Probe):
    """The schedules are tried in the order in which `Workbench.program` tries them."""

    name = "compile"
    question = "Does the compiler make kernels of the operator?"
    right = "It compiles."
    refused = "The compiler makes no kernels for it."
    start = "It compiles"
    always = True

    def run(self, subject: Subject) -> Evidence:
        bench = subject.bench
        prepared = subject.prepared = bench.prepared(subject.operator)
        if prepared.compiled is None:
            return self.gave("refused", prepared.message, subject.here)
        note = f" ({prepared.message})" if prepared.message else ""
        kernels = plural(len(kernels_of(prepared.compiled)), "kernel" if bench.backend.has_kernels else "function")
        return self.gave("right", f"{kernels}, schedule {prepared.compiled.schedule}{note}", subject.here)


class Load(Probe):
    name = "load"
    question = "Does the driver accept the kernels?"
    right = "The driver accepts it."
    refused = "The driver refuses the kernels."
    start = "the driver accepts it"
    always = True

    def run(self, subject: Subject) -> Evidence:
        bench = subject.bench
        outcome = bench.attempt(lambda: bench.backend.load(subject.program))
        if isinstance(outcome, Ran):
            return self.gave("right", "", bench.info.driver)
        return self.gave("refused", outcome.text, bench.info.driver)


class AsItIs(Probe):
    name = "run"
    question = "Are the numbers right, in every repetition and whatever memory held before?"
    right = "It is right on the target, whatever memory held before."
    wrong = "It is wrong on the target."
    refused = "The device refuses to run it."
    always = True

    def run(self, subject: Subject) -> Evidence:
        if subject.evidence[Load.name].outcome == "refused":
            return self.not_run("the driver refused the kernels", subject.here)
        bench, program, trial = subject.bench, subject.program, subject.trial
        # Watched first: in buffers with room behind them a kernel that writes too far harms neither driver nor later runs.
        watched = watch(bench, program, trial)
        if watched.shot.lost:  # perhaps because of a run before: once more, on the device that was opened anew
            watched = watch(bench, program, trial)
        subject.watched = watched
        if watched.writes_beyond:
            subject.first = watched.shot
            made = self.of_shot(watched.shot, subject.here)
            return replace(made, outcome="wrong", detail=f"it writes behind its buffers; its own numbers: {made.detail}")
        subject.first = fire(bench, subject.operator, program, trial, REPEATS)
        if subject.first.outcome == "right" and watched.shot.outcome == "right":
            # Perhaps a fault that comes and goes: it was reported of this call, or of the model.
            subject.first = fire(bench, subject.operator, program, trial, PATIENCE)
        if subject.first.flaky:
            subject.repeats = repeats_for(subject.first.wrong, subject.first.runs)
        if subject.first.outcome == "right" and watched.shot.outcome == "wrong":
            subject.first = watched.shot
            made = self.of_shot(watched.shot, subject.here)
            return replace(made, detail=f"right with one content of memory, and wrong with others: {made.detail}")
        return self.of_shot(subject.first, subject.here)


class Converted(Probe):
    name = "converted"
    question = "Is the operator right as it was converted, before it is lowered?"
    right = "What it was converted to is right, before anything is lowered."
    wrong = "What it was converted to is wrong already, before anything is lowered."
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        where = "TVM's virtual machine"
        outputs = subject.bench.converted(subject.operator, subject.trial.inputs)
        if isinstance(outputs, str):
            return self.not_run(first_line(outputs), where)
        return self.of_shot(judge(subject.trial, [lambda: Ran(outputs)]), where)


class Uploads(Probe):
    name = "uploads"
    question = "Are the same kernels right when the weights are uploaded as plain inputs?"
    right = "The same kernels are right once the weights are uploaded again: those on the device are wrong."
    wrong = "The weights on the device are not the cause: uploaded again, they give the same wrong result."
    wrong_is_open = True

    def run(self, subject: Subject) -> Evidence:
        if all(key is None for key in subject.bench.model.weight_keys(subject.operator)):
            return self.not_run("the operator reads no weights", subject.here)
        if subject.first.lost or subject.memory_matters:
            return self.not_run("the fault is one of memory, which no weight can cause", subject.here)
        shot = fire(subject.bench, subject.operator, subject.program, subject.trial, subject.repeats, resident=False)
        if shot.outcome == "right":
            subject.findings += _differing(subject)
        return self.of_shot(shot, subject.here)


def _differing(subject: Subject) -> list[Finding]:
    """Which weights on the device are not the model's, as far as they can be read back."""
    model, found = subject.bench.model, []
    for key, spec in zip(model.weight_keys(subject.operator), subject.program.inputs, strict=True):
        there = None if key is None else subject.bench.attempt(partial(_read, subject, key, spec))
        if key is None or not isinstance(there, Ran):
            continue
        clean = convert(model.weight(key), spec.dtype)
        kind = f"u{clean.dtype.itemsize}"
        differ = int((np.frombuffer(there.value, kind) != np.frombuffer(clean.tobytes(), kind)).sum())
        if differ:
            text = f"{key}: {differ} of {clean.size} elements on the device are not the model's"
            found.append(Finding("weight differs", text))
    return found


def _read(subject: Subject, key: str, spec: TensorSpec) -> bytes:
    buffer = subject.bench.weight_buffer(subject.operator, key, spec.dtype)
    return subject.bench.backend.read_many([(buffer, spec.nbytes, 0)])[0]
