"""All fault classes, in order, and where each can be put in a model.

    find("16"), find("rotary-pairing")
    for name, rewrite in sites(find("16"), bench):        `bench` is a workbench without a rewrite
        put_in(bench, rewrite)
        changed(bench, operator)                    for each operator: whether it is another one now
        put_in(bench, None)

The classes are made in the files beside this one, by what they change. What is done with them is for
`tapml.diagnose.bench.stage`. """

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tapml.backends.on_device import with_kernels
from tapml.backends.rewrite import Rewrite, Rewritten, rewritten
from tapml.diagnose.faults import composition, device, graph, kernel_text, launch, lowering, schedule, state, weights
from tapml.diagnose.faults.fault import COMPILED, NO_KERNELS, FaultClass, Site, cannot
from tapml.errors import UsageError, nearest
from tapml.kernels import Program
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator

_FILES = (kernel_text, schedule, lowering, launch, graph, weights, state, device, composition)

_NO_KERNELS = cannot(lambda language: "" if language.generated else NO_KERNELS)


def _of_kernels(fault: FaultClass) -> FaultClass:
    return replace(fault, cannot=fault.cannot | _NO_KERNELS) if fault.level in COMPILED else fault


CATALOGUE: tuple[FaultClass, ...] = tuple(
    sorted((_of_kernels(f) for file in _FILES for f in file.CLASSES), key=lambda f: f.number)
)

# Those that are put into an operator of a run, and those that are put into the plan of a bundle.
OF_OPERATORS = tuple(fault for fault in CATALOGUE if fault.compose is None)
OF_PLANS = tuple(fault for fault in CATALOGUE if fault.compose is not None)


def find(text: str) -> FaultClass:
    """A class by its number or name. Raises UsageError for any other text, with the nearest names."""
    word = text.strip().lower()
    for fault in CATALOGUE:
        if word in (str(fault.number), fault.name):
            return fault
    if word.isdecimal():
        raise UsageError(f"There is no fault {word}: they are numbered 1 to {len(CATALOGUE)}. See: tapml faults list")
    raise UsageError(f"There is no fault {text!r}. {nearest(word, [f.name for f in CATALOGUE])} See: tapml faults list")


def sites(fault: FaultClass, bench: Workbench) -> list[tuple[str, Rewrite]]:
    """Every operator that the fault can be put into on this bench, in execution order, with the rewrite that does it."""
    return list(each_site(fault, bench))


def each_site(fault: FaultClass, bench: Workbench) -> Iterator[tuple[str, Rewrite]]:
    """`sites`, one at a time as they are asked for: operators are compiled where the fault's level needs that. The bench must
    have no rewrite while it goes on (ValueError). Nothing for a target that cannot express the fault."""
    if fault.why_not(bench.choice.name):
        return
    for operator in bench.model.operators:
        if bench.rewrite is not None:
            raise ValueError("sites are looked for on a bench without a rewrite")
        body = bench.model.bodies[operator.signature]
        rewrite = fault.place(operator, body, _site(fault, bench, operator))
        if rewrite is not None:
            yield operator.name, rewrite


def put_in(bench: Workbench, rewrite: Rewrite | None) -> None:
    """Puts a fault in on an open bench, in place of the one that it has; None takes that out. The device, the weights on it and
    what was compiled stay."""
    bench.change(rewritten(bench.backend, rewrite))


def changed(bench: Workbench, operator: Operator) -> bool:
    """Whether what was put in on this bench changes what runs for an operator: its body, how that is compiled, its kernels, its
    weights. A change of the values that are handed over between operators is none of one operator."""
    backend, model = bench.backend, bench.model
    if not isinstance(backend, Rewritten):
        return False
    if not model.why_it_stays(operator) and backend.changes(operator.name, model.bodies[operator.signature]):
        return True
    weights = {key: model.weight(key) for key in model.weight_keys(operator) if key is not None}
    return any(backend.weight(operator.name, key, array) is not array for key, array in weights.items())


def _site(fault: FaultClass, bench: Workbench, operator: Operator) -> Site:
    """`program` is left None for faults that are put in before compiling: they do not look at it, and it takes time."""

    def compiled(schedule: str | None) -> Program | None:
        found = bench.program(operator, None if schedule is None else (schedule,))
        return None if found is None else with_kernels(found)

    return Site(bench.folder, bench.target, compiled(None) if fault.level in COMPILED else None, compiled)
