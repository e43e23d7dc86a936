"""What to try, derived from what was seen: each piece of advice names the evidence that it follows from.

    for line in advise(triage, context): ...

Nothing is said that was not measured: a schedule or a target is recommended only where a probe of the triage found it right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tapml.backends.interface import Compiled
from tapml.backends.on_device import kernels_of
from tapml.diagnose.probes.evidence import Evidence, FindingKind, Triage
from tapml.targets.known import REFERENCE
from tapml.tensors import FLOATS, HostArray, dtype_name
from tapml.verdicts import Stage

# Above these, exp gives infinity: the logarithm of the largest number.
EXP_OVERFLOWS = {"float64": 709.8, "float32": 88.7, "bfloat16": 88.7, "float16": 11.1}

_CALLS_EXP = re.compile(r"\b(native_|half_)?(exp2?|exp10|tanh|pow)f?\s*\(")


@dataclass(frozen=True)
class Context:
    """What advice needs besides the triage. `run` and `target` are as typed; `values` are the inputs except for weights.
    `cases` is how many recorded calls were checked. `wide` is what the same target with f16=0 gave, None where float16 plays no
    part. `stage` is that of the whole model where it was asked, `model_wrong` whether the model is wrong with everything on the
    target. `own` is the `--inject` that put in the text of this operator's kernels; empty where none of them was changed."""

    run: str
    target: str
    operator: str
    program: Compiled | None
    values: Sequence[HostArray]
    cases: int
    wide: Evidence | None = None
    stage: Stage | None = None
    model_wrong: bool = False
    own: str = ""


def advise(triage: Triage, context: Context) -> tuple[str, ...]:
    """The most useful first."""
    bisect = f"tapml bisect {context.run} --target {context.target}"
    if context.stage == "state":
        return (
            f"Find the operators that are wrong together: {bisect}",
            "Look at what is passed between calls: the order in which states are updated, the position that is uploaded "
            "for the first decode step, buffers that two operators share.",
        )
    if triage.passed and not triage.findings:
        what = "The model is still wrong: find the cause with" if context.model_wrong else "If an answer is still wrong:"
        few = "Only one call was recorded for it: carve with more prompts or --decode-steps to see it on other values."
        return (f"{what} {bisect}", *([few] if context.cases <= 1 else []))
    lines = [*_memory(triage), *_numbers(triage, context), *_by_stage(triage, context), *_places(triage, context)]
    if not triage.passed and triage.stage != "precision":
        lines.append(f"Meanwhile `tapml migrate {context.run} --target {context.target}` leaves this operator in PyTorch, "
            f"and offloads the rest.")
    return tuple(lines)


# What a finding asks for.
_MEMORY: dict[FindingKind, str] = {
    "race": "Threads do not wait for each other: look for a barrier that is missing between a write and a read of workgroup "
    "memory, and for two threads that write one element.",
    "early return": "Threads leave before a barrier: let every thread of the workgroup reach it, and put the condition around "
    "the work only.",
    "uninitialised read": "The result depends on memory that nobody wrote: initialise the accumulator or the buffer before it "
    "is read.",
    "unwritten output": "Some output elements are never written: compare the number of threads launched with the number of "
    "elements, and look at conditions that return early.",
    "out-of-bounds read": "The result depends on bytes behind a buffer: check the index against the extent before reading (or "
    "read 0).",
    "out-of-bounds write": "Bytes behind a buffer are overwritten: check the index against the extent before writing.",
}


def _memory(triage: Triage) -> list[str]:
    return list(dict.fromkeys(_MEMORY[f.kind] for f in triage.findings if f.kind in _MEMORY))


def _numbers(triage: Triage, context: Context) -> list[str]:
    found: list[str] = []
    if context.wide is not None and context.wide.outcome == "right":
        found.append(f"Accumulate in float32: with f16=0 the operator is right ({context.wide.detail}). Use --target "
            f"{context.wide.where}.")
    worst = triage.comparison
    if worst is None or context.program is None or worst.actual is None or worst.expected is None:
        return found
    if not math.isfinite(worst.actual) and math.isfinite(worst.expected):
        text = "\n".join(kernel.source for kernel in kernels_of(context.program))
        floats = [a for a in context.values if dtype_name(a) in FLOATS and a.size]
        largest = max((_largest(a) for a in floats), default=0.0)
        stored = {s.dtype for s in context.program.inputs if s.dtype in EXP_OVERFLOWS}
        limit = min((EXP_OVERFLOWS[d] for d in stored), default=EXP_OVERFLOWS["float32"])
        match = _CALLS_EXP.search(text)
        if match and largest > 0:
            call = match.group(2)
            found.append(
                f"The result is {worst.actual!r} where {worst.expected:.4g} is expected, the kernel calls {call}, and its "
                f"inputs reach {largest:.4g} ({call} overflows "
                f"{'above' if call != 'tanh' else 'in its exponential form above'} about {limit:g}): clamp the argument."
            )
    return found


def _largest(array: HostArray) -> float:
    """The largest finite magnitude."""
    wide = array.astype(np.float64)
    return float(np.abs(np.where(np.isfinite(wide), wide, 0.0)).max())


def _by_stage(triage: Triage, context: Context) -> list[str]:
    stage = triage.stage
    if stage == "precision":
        return ["Carve again with a wider dtype (--dtype float32): the source's own rounding is larger than the target's."]
    if stage == "convert":
        return ["The graph is at fault, not the platform: compare the operator's nodes (bodies.jsonl) with the model's code "
            "at the lines named above."]
    if stage == "weights":
        keys = [f.text for f in triage.findings if f.kind == "weight differs"]
        return [f"Upload these weights again, and look at how they are packed, quantised or tied: "
            f"{'; '.join(keys)}."] if keys else [
            "Look at how weights are packed, quantised or tied on their way to the device."]
    if stage == "launch":
        size = triage.found("launch size")
        grids = ", ".join(f"{k.entry} {list(k.grid)} of {list(k.block)}" for k in kernels_of(context.program))
        if size is not None:
            return [f"Launch more workgroups: {size.text} (launched now: {grids}). Round the division up."]
        return [f"Stay within the device's limits (launched now: {grids}), or split the work into several launches."]
    if stage == "lower":
        return ["Every target gets this fault: look at the conversion of the operator's nodes and at the passes before "
            f"scheduling. The reproducer for `{REFERENCE.name}` is plain C, which a debugger can step through."]
    if stage in ("codegen", "driver", "schedule", "backend") and context.own:
        return [f"Look at the text that {context.own} put in: without it the generated text runs."]
    who = {
        "codegen": "the compiler's code generator", "driver": "the driver", "schedule": "the compiler's schedule",
        "backend": f"what runs behind {context.target}",
    }.get(stage or "")  # fmt: skip
    if who is not None:
        return [f"Report it to the maintainers of {who}, with the reproducer: it needs neither TapML nor the model."]
    return []  # fmt: skip


def _places(triage: Triage, context: Context) -> list[str]:
    found: list[str] = []
    schedule = triage.of("other schedule")
    if schedule is not None and schedule.outcome == "right":
        name = schedule.where.rpartition(", ")[2]
        found.append(f"Use the schedule {name}, which was measured to be right here ({schedule.detail}): --target "
            f"{_with(context.target, name)}")
    elsewhere = (triage.of(probe) for probe in ("same schedule elsewhere", "other schedule elsewhere"))
    there = next((e for e in elsewhere if e is not None and e.outcome == "right"), None)
    if there is not None:
        target = there.where.partition(",")[0]
        found.append(f"Use the target {target} on this machine, where the operator was measured to be right ({there.detail}).")
    return found


def _with(target: str, schedule: str) -> str:
    name, _, options = target.partition(":")
    kept = [o for o in options.split(",") if o and not o.startswith("schedule=")]
    return f"{name}:{','.join([*kept, f'schedule={schedule}'])}"
