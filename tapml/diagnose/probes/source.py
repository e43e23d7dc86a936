"""Probes that ask the source: whether the target or PyTorch is inaccurate, and whether the graph was right."""

from __future__ import annotations

from dataclasses import replace

from tapml.carving.tolerance import compare
from tapml.diagnose.probes.evidence import Evidence, worst_of
from tapml.diagnose.probes.probe import Probe, Subject
from tapml.diagnose.probes.reference_backends import FLOAT64, GRAPH
from tapml.diagnose.probes.shots import judge
from tapml.migrate.outcome import Ran
from tapml.tensors import FLOATS


class Float64(Probe):
    """Right where every output of the target is within its bound of float64, which is computed anew."""

    name = FLOAT64.name
    question = "Is the target nearer to float64 than the source is?"
    right = "Against float64 the target is right: the reference is at fault."
    wrong = "The reference is not at fault: it is nearer to float64 than the target."
    wrong_is_open = True

    def run(self, subject: Subject) -> Evidence:
        where, first = "PyTorch in float64", subject.first
        if not first.outputs:
            return self.not_run("there are no outputs", where)
        if first.comparison is not None and first.comparison.passed:
            return self.not_run("the numbers are right, only what it does to memory is not", where)
        if subject.memory_matters or first.flaky:
            return self.not_run("the numbers vary with memory or time, which the source's precision does not explain", where)
        source = subject.backends.get(FLOAT64)
        if isinstance(source, str):
            return self.not_run(source, where)
        exact = source(subject.operator)(subject.trial.inputs)
        recorded = zip(subject.trial.references, exact, strict=True)
        references = [replace(r, exact=x) if r.dtype in FLOATS else r for r, x in recorded]
        compared = [compare(y, r) for y, r in zip(first.outputs, references, strict=True)]
        _, worst = worst_of(compared)
        off = f"the target is {worst.error:.3g} away from float64, the source {worst.source_error:.3g}"
        right = all(found.passed for found in compared)
        return self.gave("right" if right else "wrong", f"{off}; the bound is {worst.bound:.3g}", where, worst)


class Graph(Probe):
    name = GRAPH.name
    question = "Does the graph that the compiler was given compute the recorded outputs, in PyTorch?"
    right = "The graph that was compiled is right: PyTorch computes the recorded outputs with it."
    wrong = "The graph that was compiled is wrong: PyTorch computes something else with it."

    def run(self, subject: Subject) -> Evidence:
        source = subject.backends.get(GRAPH)
        if isinstance(source, str):
            return self.not_run(source)
        trial = subject.trial
        return self.of_shot(judge(trial, [lambda: Ran(source(subject.operator)(trial.inputs))]), "PyTorch")
