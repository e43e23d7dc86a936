"""Whether the tables of a run fit each other: what one names, another has. Each table alone is checked where it is read.

    check_consistent(run)       RunError that names the table and the line

A run that was damaged, or made to do harm, is refused when it is opened, before anything is computed with it. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tapml.carving import layout
from tapml.errors import RunError
from tapml.operators.graph import Body
from tapml.runtime.protocol import Cached, Generating
from tapml.tensors import Layout

if TYPE_CHECKING:
    from tapml.carving.folder import RunFolder

# Table, line from 1, what is wrong.
Problem = tuple[str, int, str]


def check_consistent(run: RunFolder) -> None:
    """Raises RunError for the first line that does not fit."""
    for check in (_graphs, _operators, _cases, _protocol, _oracle):
        for table, line, what in check(run):
            raise RunError(f"{run.path / table} is damaged at line {line}: {what}. Carve again with --fresh.")


def _twice(table: str, names: list[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if name in seen:
            yield table, number, f"{name[:80]!a} appears twice"
        seen.add(name)


def _graphs(run: RunFolder) -> Iterator[Problem]:
    yield from _twice(layout.GRAPHS, [g.name for g in run.graphs])
    yield from _twice(layout.STATES, [s.key for s in run.states])
    states = {s.key: s.spec for s in run.states}
    for number, graph in enumerate(run.graphs, 1):
        for p in graph.weights:
            if p.key not in run.weights.entries:
                yield layout.GRAPHS, number, f"there is no weight {p.key[:80]!a}"
            elif run.weights.entries[p.key].spec != p.spec:
                yield layout.GRAPHS, number, f"the weight {p.key[:80]!a} is {run.weights.entries[p.key].spec}, not {p.spec}"
        for p in graph.states:
            if states.get(p.key) != p.spec:
                yield layout.GRAPHS, number, f"there is no state {p.key[:80]!a} that is {p.spec}"
        for key, name in graph.mutations.items():
            if graph.specs.get(name) != states.get(key):
                yield layout.GRAPHS, number, f"the state {key[:80]!a} becomes something of another shape"


def _operators(run: RunFolder) -> Iterator[Problem]:
    yield from _twice(layout.OPERATORS, [o.name for o in run.operators])
    graphs = {g.name: g for g in run.graphs}
    known = {g.name: {p.name for p in g.placeholders} for g in run.graphs}
    nodes = {g.name: {n.name for n in g.nodes} for g in run.graphs}
    roles = {g.name: {p.name: p.role for p in g.placeholders} for g in run.graphs}
    for number, operator in enumerate(run.operators, 1):
        graph, body = graphs.get(operator.graph), run.bodies.get(operator.signature)
        if graph is None or body is None:
            yield layout.OPERATORS, number, f"there is no {'graph' if graph is None else 'body'} of {operator.name[:80]!a}"
            continue
        if (len(operator.inputs), len(operator.outputs)) != (len(body.inputs), len(body.outputs)):
            yield layout.OPERATORS, number, "its inputs and outputs are not those of its body"
            continue
        if not set(operator.nodes) <= nodes[graph.name]:
            yield layout.OPERATORS, number, "it has a node that its graph does not have"
        for name, role, spec in zip(operator.inputs, body.roles, body.inputs, strict=True):
            if name not in known[graph.name]:
                yield layout.OPERATORS, number, f"it reads {name[:80]!a}, which nothing before it makes"
            elif role != roles[graph.name].get(name, "value") or graph.specs.get(name, spec) != spec:
                yield layout.OPERATORS, number, f"its body reads {name[:80]!a} as a {role} that is {spec}"
        for name, spec in zip(operator.outputs, body.output_specs, strict=True):
            if graph.specs.get(name) != spec:
                yield layout.OPERATORS, number, f"its output {name[:80]!a} is no {spec} in its graph"
        known[graph.name] |= set(operator.outputs)
    for number, graph in enumerate(run.graphs, 1):
        if missing := sorted({*graph.outputs, *graph.mutations.values()} - known[graph.name]):
            yield layout.GRAPHS, number, f"no operator makes {missing[0][:80]!a}"


def _cases(run: RunFolder) -> Iterator[Problem]:
    yield from _twice(layout.CASES, [c.id for c in run.cases])
    named = {o.name: o for o in run.operators}
    for number, case in enumerate(run.cases, 1):
        operator = named.get(case.operator)
        if operator is None or (operator.signature, operator.graph) != (case.signature, case.graph):
            yield layout.CASES, number, f"there is no operator {case.operator[:80]!a} with this signature in this graph"
        elif any(not _lies(run.bodies[case.signature], k, how) for k, how in case.layouts):
            yield layout.CASES, number, "the memory layout of an input does not fit the input"
        elif len(case.accuracy) != len(operator.outputs):
            yield layout.CASES, number, f"it says how exact {len(case.accuracy)} outputs are, and has {len(operator.outputs)}"


def _lies(body: Body, k: int, how: Layout) -> bool:
    return k < len(body.inputs) and how.fits(body.inputs[k].shape)


def _protocol(run: RunFolder) -> Iterator[Problem]:
    shape = run.protocol
    graphs = {g.name: (number, g) for number, g in enumerate(run.graphs, 1)}
    for name in shape.graphs:
        if name not in graphs:
            yield layout.GRAPHS, 1, f"a {shape.kind} has a graph {name!r}"
            continue
        number, graph = graphs[name]
        if what := shape.unlike(graph):
            yield layout.GRAPHS, number, what
    if not isinstance(shape, Generating):
        return
    yield from _twice(layout.PROMPTS, [str(p.index) for p in run.prompts])
    for number, prompt in enumerate(run.prompts, 1):
        if prompt.index != number - 1 or not 0 < len(prompt.tokens) <= shape.max_len:
            yield layout.PROMPTS, number, f"it is not a prompt for a cache of {shape.max_len} positions"
        if max((*prompt.tokens, *prompt.generated), default=0) >= shape.vocabulary:
            yield layout.PROMPTS, number, f"it has a token that is not among {shape.vocabulary}"
    late = run.late
    if late is None or not isinstance(shape, Cached):
        return
    fits = len(late.tokens) == shape.max_len and late.reached <= shape.max_len and max(late.tokens, default=0) < shape.vocabulary
    fits = fits and all(start + shape.chunk <= shape.max_len for start in late.chunks)
    if not fits or any(p >= shape.max_len or t >= shape.vocabulary for p, t in late.steps):
        yield layout.LATE, 1, f"it is not a text for a cache of {shape.max_len} positions"


def _oracle(run: RunFolder) -> Iterator[Problem]:
    outputs = {o.name: len(o.outputs) for o in run.operators}
    for number, line in enumerate(run.oracle, 1):
        if "operator" in line and (len(line["source_error"]) != outputs.get(line["operator"])
                                   or len(line["spread"]) != len(line["source_error"])):
            yield layout.ORACLE, number, "its operator is not in the run, or has other outputs"
