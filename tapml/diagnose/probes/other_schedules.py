"""Whether another schedule of the same operator is right: which schedules say something, and whether one can be asked at all.

    others("blocked", target)          ("simple", "serial", "dlight")

"simple" and "serial" are the fallbacks: one thread an element, and one thread for all. They share neither tiling nor barriers
with the others, so a fault of a schedule is not in them.
"""

from __future__ import annotations

from dataclasses import replace

from tapml.backends.on_device import with_kernels
from tapml.devices.interface import DeviceInfo
from tapml.devices.known import on_processor
from tapml.diagnose.probes.evidence import Evidence, first_line
from tapml.diagnose.probes.guard_bytes import watch
from tapml.diagnose.probes.probe import Probe, Subject
from tapml.diagnose.probes.shots import fire
from tapml.kernels import Program
from tapml.languages import LANGUAGES
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Body
from tapml.targets.schedules import FALLBACKS, ONE_FOR_ALL
from tapml.targets.target import Target

# llvmpipe ends a thread's loops after so many iterations in all, without a word.
LLVMPIPE_ITERATIONS = 65_535

# More iterations than this in one thread take minutes.
MOST_ITERATIONS = 2e9


class OtherSchedule(Probe):
    name = "other schedule"
    question = "Is another schedule of the same lowered function right on this target?"
    right = "Another schedule of the same function is right on this target."
    wrong = "Other schedules are wrong on this target too."
    kernels_only = True

    def run(self, subject: Subject) -> Evidence:
        return any_other(self, subject, subject.bench)


def any_other(probe: Probe, subject: Subject, bench: Workbench | str) -> Evidence:
    """Right as soon as one of the other schedules is right on a bench (or why there is none); wrong if all that ran are."""
    if isinstance(bench, str):
        return probe.not_run(bench)
    seen: list[Evidence] = []
    for schedule in others(subject.program.schedule, bench.target):
        seen.append(with_schedule(probe, subject, bench, schedule))
        if seen[-1].outcome == "right":
            return seen[-1]
    best = next((e for kind in ("wrong", "refused") for e in seen if e.outcome == kind), probe.not_run(""))
    told = "; ".join(f"{e.where}: {e.detail}" for e in seen) or "there is no other schedule"
    return replace(best, detail=told, where=str(bench.choice))


def with_schedule(probe: Probe, subject: Subject, bench: Workbench | str, schedule: str) -> Evidence:
    """The operator compiled anew on a bench (or why there is none), with one schedule."""
    if isinstance(bench, str):
        return probe.not_run(bench)
    where = f"{bench.choice}, {schedule}"
    if unfair := fair(schedule, bench.body(subject.operator), bench.info):
        return probe.not_run(unfair, where)
    made = bench.prepared(subject.operator, (schedule,))
    if made.compiled is None:
        return probe.not_run(f"it does not compile: {first_line(made.message)}", where)
    if bench is subject.bench and same_kernels(with_kernels(made.compiled), with_kernels(subject.program)):
        return probe.not_run("it gives the very same kernels", where)
    if not subject.memory_matters:
        return probe.of_shot(fire(bench, subject.operator, made.compiled, subject.trial, subject.repeats), where)
    watched = watch(bench, made.compiled, subject.trial)
    seen = probe.of_shot(watched.shot, where)
    return replace(seen, outcome="wrong", detail="it writes behind its buffers") if watched.writes_beyond else seen


def others(schedule: str, target: Target) -> tuple[str, ...]:
    """Other schedules to ask, the simplest first. None for plain C."""
    if not LANGUAGES[target.language].threads:
        return ()
    candidates = (*FALLBACKS, *(s for s in target.schedules if s not in FALLBACKS))
    return tuple(s for s in candidates if s != schedule)


def same_kernels(one: Program, other: Program) -> bool:
    """Whether two programs launch the same work: a schedule that cannot do an operator gives what "simple" does."""
    return one.kernels == other.kernels and one.steps == other.steps


def fair(schedule: str, body: Body, info: DeviceInfo) -> str:
    """Why a schedule cannot be asked on this device; "" where it can. One thread for all is too slow for a large operator, and
    llvmpipe cuts its loops short."""
    if schedule != ONE_FOR_ALL or on_processor(info.platform):
        return ""
    count = iterations(body)
    if "llvmpipe" in info.name and count > LLVMPIPE_ITERATIONS:
        return f"one thread would make about {count:.2g} iterations, and llvmpipe ends its loops after {LLVMPIPE_ITERATIONS}"
    if count > MOST_ITERATIONS:
        return f"one thread would make about {count:.2g} iterations, which takes minutes"
    return ""


def iterations(body: Body) -> float:
    """About how many steps one thread makes for all of a body, from above: each node's elements, times its longest input axis
    where the node contracts or reduces."""
    specs = {f"i{k}": spec for k, spec in enumerate(body.inputs)} | {n.name: n.outputs[0] for n in body.nodes}
    total = 0.0
    for node in body.nodes:
        elements = max(spec.elements for spec in node.outputs)
        read = [specs[name] for name in node.reads if name in specs]
        shrinks = any(word in node.target for word in _CONTRACTIONS) or any(s.elements > elements for s in read)
        total += elements * (max((max(s.shape, default=1) for s in read), default=1) if shrinks else 1)
    return total


_CONTRACTIONS = ("linear", "mm", "matmul", "conv", "einsum", "attention", "bmm")
