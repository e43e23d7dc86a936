"""Fewer outputs and nodes of a failing operator: what was right, or comes after the place where it goes wrong, is left out.

    for body, kept in fewer(body, wrong): ...      `kept` are the inputs that the smaller body still reads, by their old positions
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tapml.operators.graph import Body, rename
from tapml.tensors import FLOATS


def fewer(body: Body, wrong: int) -> Iterator[tuple[Body, list[int]]]:
    """Smaller bodies, smallest first: with an earlier value of floating point as the only output instead of output number
    `wrong`, and then with that output alone."""
    needed = _needed(body, (body.outputs[wrong],))
    specs = {node.name: node.outputs for node in body.nodes}
    last = body.outputs[wrong]
    for node in body.nodes:
        if node.name in needed and node.name != last and len(specs[node.name]) == 1 and specs[node.name][0].dtype in FLOATS:
            yield with_outputs(body, (node.name,))
    if len(body.outputs) > 1:
        yield with_outputs(body, (last,))


def with_outputs(body: Body, outputs: Sequence[str]) -> tuple[Body, list[int]]:
    """The body with these values as outputs, without the nodes and inputs that they do not need, renamed by position."""
    needed = _needed(body, outputs)
    kept = [k for k in range(len(body.inputs)) if f"i{k}" in needed]
    nodes = [node for node in body.nodes if node.name in needed]
    names = {f"i{k}": f"i{new}" for new, k in enumerate(kept)} | {node.name: f"n{new}" for new, node in enumerate(nodes)}
    made = Body(
        body.kind,
        tuple(body.inputs[k] for k in kept),
        tuple(body.roles[k] for k in kept),
        tuple(
            replace(n, name=names[n.name], args=tuple(rename(list(n.args), names)), kwargs=rename(n.kwargs, names)) for n in nodes
        ),
        tuple(names[name] for name in outputs),
    )
    return made, kept


def _needed(body: Body, outputs: Sequence[str]) -> set[str]:
    needed = set(outputs)
    for node in reversed(body.nodes):
        if node.name in needed:
            needed.update(node.reads)
    return needed
