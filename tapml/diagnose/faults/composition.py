"""Faults of composition: every operator is right, and the plan of a bundle, or how a device carries it out, is wrong.

    for fault in find("29").compose(bundle, seed): ...
        verify(session, composition=fault.composition)

They are put into a plan or into the batches that a player submits (`tapml.deploy.composition`), never into an operator, so only a
bundle can have them. What a device would do by chance is drawn from a seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from tapml.deploy.bundle import BundleFolder
from tapml.deploy.composition import Composition
from tapml.deploy.plan import GraphPlan, Launch, Place, Plan, make_plan
from tapml.deploy.player import OnBatch
from tapml.diagnose.faults.fault import FaultClass, PlanFault, Site
from tapml.operators.graph import Body, Operator
from tapml.runtime.engine import Compiled

# Beyond so many launches submitted together, the fault of long chains shows.
CHAIN = 11


def _nowhere(operator: Operator, body: Body, site: Site) -> None:
    """No operator can have one."""


def early_reuse(bundle: BundleFolder, seed: int) -> Iterator[PlanFault]:
    """What a launch writes is given the slot of a value that is still to be read."""
    plan = bundle.plan
    for name, graph in _shuffled(plan, seed):
        launches = graph.launches
        for k, one in _each(launches, seed):
            if len(one.outputs) != 1 or one.outputs[0].kind != "slot" or one.outputs[0] in _kept(graph):
                continue
            old, nbytes = one.outputs[0], bundle.programs[one.operator].outputs[0].nbytes
            last = _last_reader(launches, k, old)
            for slot in _live(launches, k) - {*one.inputs, *one.scratch, old}:
                written = any(slot in (*launch.outputs, *launch.scratch) for launch in launches[k : last + 1])
                reader = next(j for j in range(k + 1, len(launches)) if slot in launches[j].inputs)
                if last <= k or written or plan.slots[int(slot.name)] < nbytes or old in launches[reader].inputs:
                    continue
                moved = tuple(
                    replace(launch, inputs=tuple(slot if place == old else place for place in launch.inputs),
                            outputs=(slot,) if j == k else launch.outputs)
                    if k <= j <= last else launch for j, launch in enumerate(launches)
                )  # fmt: skip
                changed = replace(plan, graphs=plan.graphs | {name: replace(graph, launches=moved)})
                yield PlanFault(launches[reader].operator, one.operator, Composition(changed))
                break


def missing_hazard(bundle: BundleFolder, seed: int) -> Iterator[PlanFault]:
    """A launch does not wait for the one before it, half of the times."""
    for _, graph in _shuffled(bundle.plan, seed):
        for writer, reader in _pairs(graph, seed):

            def hook(writer: str = writer.operator, reader: str = reader.operator) -> OnBatch:
                rng = random.Random(seed)

                def on_batch(batch: Sequence[Launch]) -> Sequence[Launch]:
                    at = _follows(batch, writer, reader)
                    return batch if at is None or rng.random() < 0.5 else _swapped(batch, at)

                return on_batch

            yield PlanFault(reader.operator, writer.operator, Composition(bundle.plan, hook))


def unsafe_reorder(bundle: BundleFolder, seed: int) -> Iterator[PlanFault]:
    """The first reader of a state's new content runs before it is written."""
    plan = bundle.plan
    for name, graph in _shuffled(plan, seed):
        launches = graph.launches
        for key in graph.advanced:
            place = Place("next", key)
            writer = next(k for k, launch in enumerate(launches) if place in launch.outputs)
            reader = next((k for k, launch in enumerate(launches) if place in launch.inputs), None)
            made = {p for launch in launches[writer + 1 : reader] for p in launch.outputs}
            if reader is None or made & set(launches[reader].inputs):
                continue
            order = [*launches[:writer], launches[reader], *launches[writer:reader], *launches[reader + 1 :]]
            like = replace(plan, graphs=plan.graphs | {name: replace(graph, launches=tuple(order))})
            changed = make_plan(bundle.model, bundle.programs, like)
            yield PlanFault(launches[reader].operator, launches[writer].operator, Composition(changed))


def long_chain(bundle: BundleFolder, seed: int) -> Iterator[PlanFault]:
    """A launch with at least so many before it in its batch sees old content."""
    for _, graph in _shuffled(bundle.plan, seed):
        for writer, reader in _pairs(graph, seed):
            if graph.launches.index(writer) < CHAIN:
                continue

            def hook(writer: str = writer.operator, reader: str = reader.operator) -> OnBatch:
                def on_batch(batch: Sequence[Launch]) -> Sequence[Launch]:
                    at = _follows(batch, writer, reader)
                    return batch if at is None or at < CHAIN else _swapped(batch, at)

                return on_batch

            yield PlanFault(reader.operator, None, Composition(bundle.plan, hook))


def context_shape(bundle: BundleFolder, seed: int) -> Iterator[PlanFault]:
    """Two neighbours are taken for a pattern, and the second is given what the first reads."""
    yield from _short_cuts(bundle, seed, lambda batch, at: True)


def observer(bundle: BundleFolder, seed: int) -> Iterator[PlanFault]:
    """The same, only where the whole call is one batch and the value between them shares its memory with others."""
    whole = {len(graph.launches) for graph in bundle.plan.graphs.values()}

    def active(batch: Sequence[Launch], at: int) -> bool:
        between = set(batch[at].outputs)
        return len(batch) in whole and any(between & set(launch.outputs) for launch in batch[at + 1 :])

    yield from _short_cuts(bundle, seed, active)


def _short_cuts(bundle: BundleFolder, seed: int, active: Callable[[Sequence[Launch], int], bool]) -> Iterator[PlanFault]:
    for _, graph in _shuffled(bundle.plan, seed):
        for first, second in _pairs(graph, seed):
            k = _instead(bundle.programs, first)
            if k is None or first.inputs[k] in (*second.outputs, *second.scratch):
                continue

            def hook(first: str = first.operator, second: str = second.operator, k: int = k) -> OnBatch:
                def on_batch(batch: Sequence[Launch]) -> Sequence[Launch]:
                    at = _follows(batch, first, second)
                    if at is None or not active(batch, at):
                        return batch
                    one, other = batch[at], batch[at + 1]
                    if one.inputs[k] in (*other.outputs, *other.scratch):
                        return batch  # in this plan that would not be a launch
                    inputs = tuple(one.inputs[k] if place == one.outputs[0] else place for place in other.inputs)
                    return [*batch[: at + 1], replace(other, inputs=inputs), *batch[at + 2 :]]

                return on_batch

            if active(graph.launches, graph.launches.index(first)):
                yield PlanFault(second.operator, first.operator, Composition(bundle.plan, hook))


def _instead(programs: Mapping[str, Compiled], first: Launch) -> int | None:
    """An input that has the size of the only output."""
    program = programs[first.operator]
    if len(program.outputs) != 1 or program.forwards:
        return None
    fits = (k for k, (spec, place) in enumerate(zip(program.inputs, first.inputs, strict=True))
            if spec == program.outputs[0] and place.kind == "slot")  # fmt: skip
    return next(fits, None)


def _shuffled(plan: Plan, seed: int) -> list[tuple[str, GraphPlan]]:
    graphs = list(plan.graphs.items())
    random.Random(seed).shuffle(graphs)
    return graphs


def _each(launches: Sequence[Launch], seed: int) -> list[tuple[int, Launch]]:
    numbered = list(enumerate(launches))
    random.Random(seed).shuffle(numbered)
    return numbered


def _pairs(graph: GraphPlan, seed: int) -> list[tuple[Launch, Launch]]:
    """Neighbours of which the second reads what the first wrote into a slot, and does not write where the first reads."""
    pairs = [
        (a, b) for a, b in pairwise(graph.launches)
        if {p for p in a.outputs if p.kind == "slot" and p not in a.inputs} & set(b.inputs)
        and not {*b.outputs, *b.scratch} & {*a.inputs, *a.scratch}
    ]  # fmt: skip
    random.Random(seed).shuffle(pairs)
    return pairs


def _follows(batch: Sequence[Launch], first: str, second: str) -> int | None:
    """Where in a batch one operator directly follows another: the place of the first."""
    for at, (a, b) in enumerate(pairwise(batch)):
        if (a.operator, b.operator) == (first, second):
            return at
    return None


def _swapped(batch: Sequence[Launch], at: int) -> Sequence[Launch]:
    return [*batch[:at], batch[at + 1], batch[at], *batch[at + 2 :]]


def _kept(graph: GraphPlan) -> set[Place]:
    return {*graph.outputs.values(), *graph.carried.values()}


def _last_reader(launches: Sequence[Launch], k: int, place: Place) -> int:
    """The last launch that reads what launch `k` wrote there."""
    last = k
    for j in range(k + 1, len(launches)):
        if place in launches[j].inputs:
            last = j
        if place in (*launches[j].outputs, *launches[j].scratch):
            break
    return last


def _live(launches: Sequence[Launch], k: int) -> set[Place]:
    """Slots that hold something before launch `k` which a later launch reads."""
    held = {place for launch in launches[:k] for place in launch.outputs if place.kind == "slot"}
    found: set[Place] = set()
    for place in held:
        for launch in launches[k + 1 :]:
            if place in launch.inputs:
                found.add(place)
            if place in (*launch.inputs, *launch.outputs, *launch.scratch):
                break
    return found


def _class(
    number: int, name: str, title: str, imitates: str, seen_in: tuple[str, ...],
    compose: Callable[[BundleFolder, int], Iterator[PlanFault]],
) -> FaultClass:  # fmt: skip
    return FaultClass(number, name, title, "plan", "plan", imitates, seen_in, {}, _nowhere, compose)


CLASSES = (
    _class(
        29, "early-reuse", "memory is given away while a reader is still to come",
        "A memory planner that ends a lifetime a step too early. The value that is written over is read once more, by an "
        "operator that is right with what it gets.",
        ("microsoft/onnxruntime#32134", "pytorch/executorch#17430"), early_reuse,
    ),
    _class(
        30, "missing-hazard", "a launch does not wait for the one that it depends on",
        "A dependency or a barrier between two launches that is left out. On hardware the second may run first, or beside the "
        "first; here it runs first in half of the submissions, by a seed.",
        ("ml-explore/mlx#3630", "ggml-org/llama.cpp#25866"), missing_hazard,
    ),
    _class(
        31, "unsafe-reorder", "a state is read before it is written",
        "An optimiser that reorders operators and overlooks that one of them reads a state through a view. Here the first reader "
        "of a state's new content runs before the write.",
        ("ggml-org/llama.cpp#27805",), unsafe_reorder,
    ),
    _class(
        32, "long-chain", "right up to so many dependent launches, wrong beyond",
        "A queue that tracks a limited number of launches: a launch sees old content when it has at least 12 others before it in "
        "one submission. Here one pair of launches meets it; on the real platforms, all that come late.",
        ("apache/tvm#20157", "apache/tvm#20391"), long_chain,
    ),
    _class(
        33, "context-shape", "an operator is compiled otherwise because of its neighbours",
        "A delegate that rewrites a pattern of neighbours wrongly: two launches that are submitted together are fused, and the "
        "second is given what the first reads. Each of them alone is right.",
        ("google-ai-edge/LiteRT#8619",), context_shape,
    ),
    _class(
        34, "observer", "the fault goes away when a value is looked at",
        "A fault that depends on a value being no output: exposing it changes what is fused or where it lies. Here two "
        "neighbours are fused wrongly only where the call is one submission and the value between them shares its memory.",
        ("google-ai-edge/litert-samples#307", "jax-mps#170"), observer,
    ),
)
