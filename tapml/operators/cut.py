"""Cutting a graph into operators: each node in exactly one, and no cycle between them.

    operators, bodies = cut(graph, "decode")

The search grows groups of nodes, by structure alone:

0. What stays on the source is apart from the rest (`tapml.operators.apart`): a call, with what makes its inputs and outputs of
   the form in which operators hand them on. A group of complex numbers, or of bits, joins the one of its sort that alone reads
   it. Nothing else joins these.
1. Structures that are known by one name (norms, gated activations, rotary tables: `tapml.operators.patterns`) are groups.
2. Each anchor (linear, attention, embedding, softmax, cache update, …) is a group, with the `getitem`s of its results.
3. Chains that repeat data on its way to one reader (the key heads of grouped attention) join that reader.
4. From the last group to the first, each takes the element-wise and re-arranging nodes that follow it, as long as they keep the
   number of elements and lead to one value again. So a sum of two results joins the younger of them.
5. From the last node to the first, each node that is left joins the group that alone reads it, where that group takes it:
   groups without an anchor do; anchors take views, light ones (softmax, norms, reductions) also what has the extent that they
   read; any group takes what depends on weights alone. A node that nobody takes starts a group of
   its own. So a rotation of queries, or a mask, is the tree of nodes above one value.
6. A group without an anchor that reads from one other such group alone joins it, if both or neither are of integers. Groups
   that make masks and positions from integer inputs and constants alone join all groups of that sort that they read from.

Invariant, held at each step for each group: every value that it reads from outside is computed, in the graph's order, before the
first value that it shows to outside. Then the groups, ordered by their first shown value, are in execution order: if H reads a
value of G, that value is one that G shows, so it comes no earlier than G's first, and before H's first by the invariant.
Hence no cycle. The invariant speaks of one group and the graph, not of how the rest is grouped, so no step can
break it for a group that it does not touch, and a single node always holds it.

At most one heavy anchor is in an operator: groups with an anchor never join each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tapml.errors import ModelError
from tapml.operators.apart import apart
from tapml.operators.graph import Body, Graph, Node, Operator, rename
from tapml.operators.names import Unnamed, names_for
from tapml.operators.normalise import common_path
from tapml.operators.patterns import (
    HEAVY,
    VIEWS,
    GraphIndex,
    anchor_kind,
    diamond,
    enlarging_chains,
    find_structures,
    keeps_elements,
    kind_of,
    word_of,
)


def cut(graph: Graph, prefix: str = "") -> tuple[tuple[Operator, ...], dict[str, Body]]:
    """The operators of a graph in execution order, and their bodies by signature. `prefix` goes in front of the names
    ("decode" gives "decode/layers.0.mlp.up_proj")."""
    cutter = _Cutter(GraphIndex(graph))
    groups = cutter.cut()
    names = names_for([cutter.unnamed(group) for group in groups], prefix)
    operators: list[Operator] = []
    bodies: dict[str, Body] = {}
    for name, group in zip(names, groups, strict=True):
        body, inputs, outputs, nodes = body_of(cutter.index, group.nodes, cutter.kind(group))
        bodies.setdefault(body.signature, body)
        module = cutter.unnamed(group).module
        operators.append(Operator(name, graph.name, body.kind, body.signature, inputs, outputs, nodes, module))
    return tuple(operators), bodies


@dataclass(eq=False)
class _Group:
    """Nodes that will be one operator. `center` is the anchor, or the middle of a structure; None for a group of what was
    left."""

    kind: str
    center: str | None
    nodes: set[str] = field(default_factory=set)
    stays: bool = False

    @property
    def heavy(self) -> bool:
        return self.kind in HEAVY


class _Cutter:
    def __init__(self, index: GraphIndex) -> None:
        self.index = index
        self.group_of: dict[str, _Group] = {}

    def cut(self) -> list[_Group]:
        self._set_apart()
        self._seed()
        self._join_repeats()
        self._grow_epilogues()
        self._gather_the_rest()
        self._join_chains()
        groups = list(dict.fromkeys(self.group_of.values()))
        order = self.index.order
        return sorted(groups, key=lambda g: min(order[name] for name in self._shown(g.nodes)))

    def kind(self, group: _Group) -> str:
        found = group.kind or kind_of(self.index, group.nodes)
        # Integers are positions in a model that computes in floats; in one of integers alone they are its data.
        return "elementwise" if found == "position" and self.index.integers_only else found

    def unnamed(self, group: _Group) -> Unnamed:
        nodes = self.index.nodes
        if group.center is not None and group.kind != "gated_activation":
            module = nodes[group.center].module
        else:
            paths = [nodes[name].module for name in sorted(group.nodes, key=self.index.order.__getitem__)]
            module = paths[0]
            for path in paths[1:]:
                module = common_path(module, path)
        detail = ""
        if group.kind == "cache_update" and group.center is not None:
            detail = self.index.placeholders[nodes[group.center].reads[0]].key
        return Unnamed(self.kind(group), module, detail)

    def _holds(self, region: set[str]) -> bool:
        """The invariant, for a group of these nodes."""
        order = self.index.order
        reads = max((order[name] for name in self.index.external(region) if name in order), default=-1)
        return reads < min(order[name] for name in self._shown(region))

    def _shown(self, region: set[str]) -> list[str]:
        """Nodes of a region with readers outside; all of it when nothing is read (which dead code removal excludes)."""
        index = self.index
        shown = [n for n in region if n in index.exposed or any(user not in region for user in index.users[n])]
        return shown or list(region)

    def _add(self, group: _Group, nodes: set[str]) -> bool:
        """Puts nodes into a group, if the invariant holds then."""
        if not self._holds(group.nodes | nodes):
            return False
        group.nodes |= nodes
        self.group_of.update(dict.fromkeys(nodes, group))
        return True

    def _set_apart(self) -> None:
        """What stays on the source is there first, so that nothing joins it."""
        index = self.index
        for part in apart(index):
            if not self._add(_Group(part.sort, part.center, stays=True), set(part.nodes)):
                node = index.nodes[part.center]
                where = f"{node.target} ({node.source})"
                reason = f"{where} shares values that only the source has with calls on both sides of others"
                raise ModelError(f"The model cannot be cut into operators: {reason}. Take it out of what is carved.", reason)
        groups = list(dict.fromkeys(self.group_of.values()))
        for group in sorted(groups, key=lambda g: -max(index.order[name] for name in g.nodes)):
            shown = self._shown(group.nodes)
            readers = {self.group_of.get(user) for name in shown for user in index.users[name]} - {group}
            alone = len(readers) == 1 and not index.exposed & set(shown)
            reader = readers.pop() if alone else None
            if reader is not None and group.kind == reader.kind and group.kind in ("complex", "bits"):
                self._add(reader, group.nodes)

    def _seed(self) -> None:
        index = self.index
        for structure in find_structures(index):
            if not structure.nodes & self.group_of.keys() and self._holds(set(structure.nodes)):
                self._add(_Group(structure.kind, structure.center), set(structure.nodes))
        for node in index.graph.nodes:
            if node.name in self.group_of:
                continue
            if index.sorts[node.name] == "getitem":
                self._add(self.group_of[node.reads[0]], {node.name})
            elif index.sorts[node.name] == "anchor":
                self._add(_Group(anchor_kind(index, node), node.name), {node.name})

    def _join_repeats(self) -> None:
        index = self.index
        for name in sorted(enlarging_chains(index), key=lambda n: -index.order[n]):
            readers = {self.group_of.get(user) for user in index.users[name]}
            group = readers.pop()
            if not readers and group is not None and not group.stays and name not in self.group_of and name not in index.exposed:
                self._add(group, {name})

    def _grow_epilogues(self) -> None:
        index = self.index
        groups = dict.fromkeys(group for group in self.group_of.values() if not group.stays)
        for group in sorted(groups, key=lambda g: -max(index.order[name] for name in g.nodes)):
            grown = True
            while grown:
                grown = any(self._take_epilogue(group, value) for value in index.visible(group.nodes))

    def _take_epilogue(self, group: _Group, value: str) -> bool:
        index = self.index
        if value in index.exposed:
            return False
        elements = index.spec(value).elements

        def allowed(node: Node) -> bool:
            return node.name not in self.group_of and keeps_elements(index, node, elements)

        region = diamond(index, value, allowed)
        return bool(region) and self._add(group, region)

    def _gather_the_rest(self) -> None:
        index = self.index
        for name in sorted(index.order, key=lambda n: -index.order[n]):
            if name in self.group_of:
                continue
            readers = {self.group_of[user] for user in index.users[name]}
            if len(readers) == 1 and name not in index.exposed:
                group = next(iter(readers))
                if self._takes(group, name) and self._add(group, {name}):
                    continue
            self._add(_Group("", None), {name})

    def _takes(self, group: _Group, name: str) -> bool:
        index = self.index
        if group.stays:
            return False
        if group.center is None or name in index.constant:
            return True
        if not index.is_float(name) or group.kind == "rotary_table":
            return False
        if index.sorts[name] == "shape":
            word = word_of(index.nodes[name])
            return word in VIEWS or (word == "constant_pad_nd" and group.kind in ("conv", "pool"))
        if group.heavy or group.kind in ("cache_update", "scatter", "gather", "embedding"):
            return False
        readers = [index.nodes[user] for user in index.users[name]]
        return all(
            index.sorts[reader.name] == "anchor" or reader.outputs[0].elements == index.spec(name).elements for reader in readers
        )

    def _join_chains(self) -> None:
        index = self.index
        loose = [g for g in dict.fromkeys(self.group_of.values()) if g.center is None]
        for group in sorted(loose, key=lambda g: min(index.order[name] for name in g.nodes)):
            if self.group_of[next(iter(group.nodes))] is not group:
                continue  # it has joined another by now
            reads = [name for name in index.external(group.nodes) if name in index.nodes]
            sources = list(dict.fromkeys(self.group_of[name] for name in sorted(reads, key=index.order.__getitem__)))
            if any(source.center is not None for source in sources):
                continue
            if all(self._positional(g) for g in (group, *sources)):
                together = {name for source in sources for name in source.nodes}
                if not self._add(group, together):
                    for source in reversed(sources):
                        self._add(group, source.nodes)
            elif len(sources) == 1:
                source = sources.pop()
                if self._floats(source) == self._floats(group):
                    self._add(source, group.nodes)

    def _positional(self, group: _Group) -> bool:
        """Whether a group makes masks or positions of integers alone."""
        index = self.index
        reads = index.external(group.nodes)
        made = all(name not in index.placeholders or not index.is_float(name) for name in reads)
        return made and kind_of(index, group.nodes) in ("mask", "position", "constant")

    def _floats(self, group: _Group) -> bool:
        return any(self.index.is_float(name) for name in self.index.visible(group.nodes))


def body_of(
    index: GraphIndex, region: set[str], kind: str
) -> tuple[Body, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The body of a region, and the names of its inputs, outputs and nodes in the body's order. Nodes are ordered by
    walking up from the outputs, so the order does not depend on names, nor on what lies between the nodes in the graph."""
    outputs = tuple(index.visible(region))
    nodes: list[Node] = []
    done: set[str] = set()
    stack = [(name, False) for name in reversed(outputs)]
    while stack:
        name, expanded = stack.pop()
        if name in done or name not in region:
            continue
        if expanded:
            done.add(name)
            nodes.append(index.nodes[name])
        else:
            stack.append((name, True))
            stack.extend((read, False) for read in reversed(index.nodes[name].reads))
    inputs = tuple(dict.fromkeys(read for node in nodes for read in node.reads if read not in region))
    names = {name: f"i{k}" for k, name in enumerate(inputs)} | {node.name: f"n{k}" for k, node in enumerate(nodes)}
    roles = tuple(index.placeholders[name].role if name in index.placeholders else "value" for name in inputs)
    body = Body(
        kind,
        tuple(index.spec(name) for name in inputs),
        roles,
        tuple(
            Node(names[n.name], n.target, tuple(rename(list(n.args), names)), rename(n.kwargs, names), n.outputs) for n in nodes
        ),
        tuple(names[name] for name in outputs),
    )
    return body, inputs, outputs, tuple(node.name for node in nodes)
