"""The nodes of a graph that stay on the source, as groups that are to be operators.

    for part in apart(index):          Apart(sort, nodes, center)

A group is a node that stays (`tapml.operators.stays`) with all nodes with which it shares values that only the source has: those
that decode what it reads and encode what it gives (`tapml.operators.carried`), and the `getitem`s of its results. Each reader
decodes for itself, so what a group reads and shows other operators can hand on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tapml.operators.carried import FORMS
from tapml.operators.patterns import GraphIndex
from tapml.operators.stays import REASONS, sort_of_stay
from tapml.tensors import CARRIED_AS


@dataclass(frozen=True)
class Apart:
    """`sort` is a key of `stays.REASONS`, `center` the call that the group is about."""

    sort: str
    nodes: frozenset[str]
    center: str


def apart(index: GraphIndex) -> Iterator[Apart]:
    """The groups in execution order."""
    specs = index.graph.specs
    sorts: dict[str, str] = {}
    group_of: dict[str, set[str]] = {}
    for node in index.graph.nodes:
        sort = sort_of_stay(node, tuple(specs[name] for name in node.reads if name in specs))
        within = [n for n in node.reads if n in group_of and (n not in specs or specs[n].dtype in CARRIED_AS)]
        if not sort and not within:
            continue
        sorts[node.name] = sort
        group = {node.name}.union(*(group_of[name] for name in within))
        group_of.update(dict.fromkeys(group, group))
    for group in {id(group): group for group in group_of.values()}.values():
        names = sorted(group, key=index.order.__getitem__)
        center = next((n for n in names if index.nodes[n].target not in FORMS and sorts[n]), names[0])
        sort = next(sort for sort in REASONS if sort in {sorts[name] for name in names})
        yield Apart(sort, frozenset(group), center)
