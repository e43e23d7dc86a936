"""Probes that compile the operator for another target, or hand its text to another driver."""

from __future__ import annotations

from tapml.diagnose.probes.evidence import Evidence
from tapml.diagnose.probes.other_schedules import any_other, with_schedule
from tapml.diagnose.probes.probe import Probe, Subject
from tapml.diagnose.probes.reference_backends import ANOTHER_TARGET, CPU, OTHER_DRIVER
from tapml.diagnose.probes.shots import fire
from tapml.targets.schedules import ONE_FOR_ALL


class Cpu(Probe):
    name = CPU.name
    question = "Is the lowered function right as plain C, in one thread?"
    right = "The lowered function is right: plain C in one thread gives the expected numbers."
    wrong = "The lowered function is wrong: plain C in one thread is wrong too."
    refused = "Plain C in one thread could not be run."
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        return with_schedule(self, subject, subject.backends.get(CPU), ONE_FOR_ALL)


class SameScheduleElsewhere(Probe):
    name = "same schedule elsewhere"
    question = "Is the same schedule right on another target?"
    right = "The same schedule is right on another target."
    wrong = "The same schedule is wrong on another target too."
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        return with_schedule(self, subject, subject.backends.get(ANOTHER_TARGET), subject.program.schedule)


class OtherScheduleElsewhere(Probe):
    name = "other schedule elsewhere"
    question = "Is another schedule right on that other target?"
    right = "Another schedule is right on that other target."
    wrong = "Other schedules are wrong on that other target too."
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        return any_other(self, subject, subject.backends.get(ANOTHER_TARGET))


class OtherDriver(Probe):
    name = OTHER_DRIVER.name
    question = "Is the very same text right with another driver?"
    right = "Another driver runs the very same text correctly."
    wrong = "Another driver gets the very same text wrong too."
    refused = "Another driver refuses the text too."
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        bench = subject.backends.get(OTHER_DRIVER)
        if isinstance(bench, str):
            return self.not_run(bench)
        if subject.writes_beyond:
            return self.not_run("a text that writes behind its buffers is at fault with any driver")
        shot = fire(bench, subject.operator, subject.program, subject.trial, subject.repeats, resident=False)
        return self.of_shot(shot, bench.info.driver)
