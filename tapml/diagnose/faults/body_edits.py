"""Making another body out of a body: the few edits that faults of the graph are written with.

    edit = Edit(body)
    square = edit.before("n3", "aten.mul.Tensor", [ref("i0"), ref("i0")], spec)     a new node, computed before n3
    edit.read_instead("n4", "n2", square)                                           n4 now reads it where it read n2
    other = edit.done()                                                             names by position again, dead nodes gone

A body that comes out has the inputs, roles, kind and output specs of the one that went in: `done` checks it. What the nodes
mean, and which ones make a pattern, is for `graph.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tapml.operators.graph import Body, Node, rename
from tapml.tensors import TensorSpec


def ref(name: str) -> dict[str, str]:
    """An argument that is a value of the body."""
    return {"ref": name}


def name_of(argument: Any) -> str | None:
    """The name of the value that an argument is; None for anything else."""
    return argument["ref"] if isinstance(argument, dict) and "ref" in argument else None


def number_of(argument: Any) -> float | None:
    """The plain number that an argument is; None for anything else."""
    return float(argument) if isinstance(argument, int | float) and not isinstance(argument, bool) else None


class View:
    """A body, asked by name: `node` (None for an input), `spec` and `readers` of a value."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self._nodes = {node.name: node for node in body.nodes}
        self._specs = {f"i{k}": spec for k, spec in enumerate(body.inputs)}
        self._specs.update({n.name: n.outputs[0] for n in body.nodes if len(n.outputs) == 1})

    def node(self, name: str | None) -> Node | None:
        return None if name is None else self._nodes.get(name)

    def calls(self, name: str | None, *targets: str) -> Node | None:
        """The node that computes this value, if it calls one of these operators."""
        node = self.node(name)
        return node if node is not None and node.target in targets else None

    def argument(self, node: Node, index: int, *targets: str) -> Node | None:
        """The node behind an argument, if it calls one of these operators."""
        return self.calls(name_of(node.args[index]), *targets) if index < len(node.args) else None

    def spec(self, name: str) -> TensorSpec | None:
        return self._specs.get(name)

    def shape(self, name: str | None) -> tuple[int, ...]:
        """() also for what is no tensor."""
        spec = None if name is None else self._specs.get(name)
        return () if spec is None else spec.shape

    def readers(self, name: str) -> tuple[Node, ...]:
        """In execution order."""
        return tuple(node for node in self.body.nodes if name in node.reads)


class Edit:
    """A body under change. New values get names of their own; the order of execution stays what the edits say."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._nodes = list(body.nodes)
        self._outputs = list(body.outputs)
        self._made = 0

    def before(
        self, place: str, target: str, args: Sequence[Any], spec: TensorSpec, kwargs: dict[str, Any] | None = None
    ) -> str:
        """A new node just before node `place`. Returns its name."""
        return self._insert(self._index(place), target, args, spec, kwargs)

    def after(
        self, place: str, target: str, args: Sequence[Any], spec: TensorSpec, kwargs: dict[str, Any] | None = None
    ) -> str:
        """A new node just after node `place`. Returns its name."""
        return self._insert(self._index(place) + 1, target, args, spec, kwargs)

    def _insert(
        self, index: int, target: str, args: Sequence[Any], spec: TensorSpec, kwargs: dict[str, Any] | None
    ) -> str:
        name = f"new{self._made}"
        self._made += 1
        self._nodes.insert(index, Node(name, target, tuple(args), kwargs or {}, (spec,)))
        return name

    def change(self, name: str, **fields: Any) -> None:
        """Other fields (target, args, kwargs, outputs) for a node."""
        index = self._index(name)
        self._nodes[index] = replace(self._nodes[index], **fields)

    def read_instead(self, reader: str, old: str, new: str) -> None:
        """One node reads `new` wherever it read `old`."""
        index = self._index(reader)
        node = self._nodes[index]
        names = {name: name for name in node.reads} | {old: new}
        self._nodes[index] = replace(node, args=tuple(rename(list(node.args), names)), kwargs=rename(node.kwargs, names))

    def output_instead(self, old: str, new: str) -> None:
        """Outputs that were `old` are `new`."""
        self._outputs = [new if name == old else name for name in self._outputs]

    def replace_value(self, old: str, new: str) -> None:
        """Everybody that read `old` reads `new`, outputs included; `new` itself and what it is made of do not change."""
        made_of = self._made_of(new)
        for node in list(self._nodes):
            if old in node.reads and node.name not in made_of:
                self.read_instead(node.name, old, new)
        self.output_instead(old, new)

    def done(self) -> Body:
        """The new body: nodes that nobody needs are gone, the rest are named by position. ValueError if it is no longer a body of
        the same outputs, or reads a value before it is there."""
        needed = set(self._outputs)
        kept: list[Node] = []
        for node in reversed(self._nodes):
            if node.name in needed:
                needed.update(node.reads)
                kept.append(node)
        kept.reverse()
        names = {f"i{k}": f"i{k}" for k in range(len(self._body.inputs))}
        nodes: list[Node] = []
        for number, node in enumerate(kept):
            if not set(node.reads) <= names.keys():
                raise ValueError(f"{node.name} reads {node.reads}, of which some do not exist yet")
            args = tuple(rename(list(node.args), names))
            nodes.append(replace(node, name=f"n{number}", args=args, kwargs=rename(node.kwargs, names)))
            names[node.name] = f"n{number}"
        body = replace(self._body, nodes=tuple(nodes), outputs=tuple(names[name] for name in self._outputs))
        if body.output_specs != self._body.output_specs:
            raise ValueError(f"the outputs are {body.output_specs} now; they were {self._body.output_specs}")
        return body

    def _index(self, name: str) -> int:
        return next(k for k, node in enumerate(self._nodes) if node.name == name)

    def _made_of(self, name: str) -> set[str]:
        found, by_name = {name}, {node.name: node for node in self._nodes}
        waiting = [name]
        while waiting:
            node = by_name.get(waiting.pop())
            for read in () if node is None else node.reads:
                if read not in found:
                    found.add(read)
                    waiting.append(read)
        return found
