"""Which other schedules say something about an operator on a target, and whether a schedule can be asked at all.

    others("blocked", target)          ("simple", "serial", "dlight")

"simple" and "serial" are the fallbacks: one thread an element, and one thread for all. They share neither tiling nor barriers
with the others, so a fault of a schedule is not in them.
"""

from __future__ import annotations

from tapml.devices.interface import DeviceInfo
from tapml.devices.known import on_processor
from tapml.kernels import Program
from tapml.languages import LANGUAGES
from tapml.operators.graph import Body
from tapml.targets.schedules import FALLBACKS, ONE_FOR_ALL
from tapml.targets.target import Target

# llvmpipe ends a thread's loops after so many iterations in all, without a word.
LLVMPIPE_ITERATIONS = 65_535

# More iterations than this in one thread take minutes.
MOST_ITERATIONS = 2e9


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
