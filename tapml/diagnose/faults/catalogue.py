"""All fault classes, in order, and where each can be put in a model.

    find("16"), find("rotary-pairing")
    for name, alteration in sites(find("16"), bench):        `bench` is a workbench without an alteration
        bench.alter(alteration)
        …
        bench.alter(None)

The classes are made in the files beside this one, by what they alter. What is done with them is for `tapml.diagnose.bench.stage`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tapml.backends.on_device import with_kernels
from tapml.diagnose.faults import device, graph, kernel_text, launch, lowering, schedule, state, weights
from tapml.diagnose.faults.fault import FaultClass, Site, cannot
from tapml.errors import UsageError, nearest
from tapml.kernels import Program
from tapml.migrate.alteration import Alteration
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator

_FILES = (kernel_text, schedule, lowering, launch, graph, weights, state, device)

# Levels whose faults are put into what the compiler gives; the others look at the model only.
_COMPILED = ("kernel text", "schedule", "lowering", "launch")

_NO_KERNELS = cannot(lambda language: "" if language.generated else "what runs there are no kernels of TapML")


def _of_kernels(fault: FaultClass) -> FaultClass:
    return replace(fault, cannot=fault.cannot | _NO_KERNELS) if fault.level in _COMPILED else fault


CATALOGUE: tuple[FaultClass, ...] = tuple(
    sorted((_of_kernels(f) for file in _FILES for f in file.CLASSES), key=lambda f: f.number)
)


def find(text: str) -> FaultClass:
    """A class by its number or name. Raises UsageError for any other text, with the nearest names."""
    word = text.strip().lower()
    for fault in CATALOGUE:
        if word in (str(fault.number), fault.name):
            return fault
    if word.isdecimal():
        raise UsageError(f"There is no fault {word}: they are numbered 1 to {len(CATALOGUE)}. See: tapml faults list")
    raise UsageError(f"There is no fault {text!r}. {nearest(word, [f.name for f in CATALOGUE])} See: tapml faults list")


def sites(fault: FaultClass, bench: Workbench) -> list[tuple[str, Alteration]]:
    """Every operator that the fault can be put into on this bench, in execution order, with the alteration that does it."""
    return list(each_site(fault, bench))


def each_site(fault: FaultClass, bench: Workbench) -> Iterator[tuple[str, Alteration]]:
    """`sites`, one at a time as they are asked for: operators are compiled where the fault's level needs that. The bench must
    have no alteration while it goes on (ValueError). Nothing for a target that cannot express the fault."""
    if bench.choice.name in fault.cannot:
        return
    for operator in bench.model.operators:
        if bench.alteration is not None:
            raise ValueError("sites are looked for on a bench without an alteration")
        body = bench.model.bodies[operator.signature]
        alteration = fault.place(operator, body, _site(fault, bench, operator))
        if alteration is not None:
            yield operator.name, alteration


def _site(fault: FaultClass, bench: Workbench, operator: Operator) -> Site:
    """`program` is left None for faults that are put in before compiling: they do not look at it, and it takes time."""

    def compiled(schedule: str | None) -> Program | None:
        found = bench.program(operator, None if schedule is None else (schedule,))
        return None if found is None else with_kernels(found)

    return Site(bench.folder, bench.target, compiled(None) if fault.level in _COMPILED else None, compiled)
