"""The graph of a model and its operators, as plain data: no torch here, so that every stage can read it.

A `Graph` is what `torch.export` gave, functional and normalised: named values, and nodes that call ATen operators on them.
Cutting (`tapml.operators.cut`) assigns each node to one `Operator`. An operator's `Body` is the same
computation with its values renamed by position; equal bodies have equal signatures, so operators that differ only
in their weights share one body, and with it the compiled kernels.

Arguments of a node are JSON: numbers, strings, booleans, None and lists stand for themselves; `{"ref": "name"}` is a value;
`{"dtype": "float32"}`, `{"memory_format": "contiguous_format"}`, `{"layout": "strided"}`, `{"device": "cpu"}`, `{"float":
"inf"}` (also "-inf", "nan") and `{"complex": "1j"}` are what they say; `{"seed": "3"}`, as the argument `generator` of a node
that draws random numbers, is the seed with which it draws; `{"body": text}` is a program that a loop runs
(`tapml.operators.loops`), a `Body` as JSON. A node that returns several tensors is read by nodes of target "getitem".

Values that other operators, the user or a state read have a dtype of `tapml.tensors.NUMPY`; within an operator they may have one
of `CARRIED_AS`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from tapml import strict
from tapml.errors import ModelError
from tapml.tensors import CARRIED_AS, TensorSpec

Role = Literal["input", "weight", "state"]
ROLES: tuple[Role, ...] = ("input", "weight", "state")
BODY_ROLES = (*ROLES, "value")

# How constants are written in arguments, and how deep lists are in them.
_WORDS = ("ref", "dtype", "memory_format", "layout", "device", "float", "complex", "seed", "body")
_DEEPEST = 8


@dataclass(frozen=True)
class Node:
    """One call of an ATen operator, `target` as torch spells it ("aten.linear.default"). `outputs` has one spec,
    or several when the call returns a tuple. `module` is the module path that it came from, `source` the line of
    the model's code ("modeling_llama.py:84"), both "" when unknown."""

    name: str
    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[TensorSpec, ...]
    module: str = ""
    source: str = ""

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of the values that it reads, each once, in order of appearance."""
        found: dict[str, None] = {}
        _collect([list(self.args), self.kwargs], found)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "target": self.target,
            "args": list(self.args),
            "kwargs": self.kwargs,
            "outputs": [o.to_json() for o in self.outputs],
            "module": self.module,
            "source": self.source,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Node:
        kwargs = strict.inner(data, "kwargs")
        outputs = tuple(TensorSpec.from_json(o, within=True) for o in strict.items(data, "outputs"))
        if not outputs:
            raise ValueError("a node has no outputs")
        return Node(
            strict.word(data, "name"), strict.text(data, "target", strict.LONGEST_NAME),
            tuple(_argument(a) for a in strict.items(data, "args")), {k: _argument(v) for k, v in kwargs.items()}, outputs,
            strict.text(data, "module"), strict.text(data, "source"),
        )


def _argument(value: Any, depth: int = 0) -> Any:
    """An argument as the module's docstring has them. Raises ValueError for anything else."""
    if isinstance(value, list | tuple) and depth < _DEEPEST:
        return [_argument(item, depth + 1) for item in value]
    if isinstance(value, dict) and len(value) == 1:
        (what,) = value
        if what in _WORDS:
            return {what: strict.text(value, what) if what == "body" else strict.name(value, what)}
    elif isinstance(value, str | int | float | None):
        short = len(value) <= strict.LONGEST_NAME if isinstance(value, str) else True
        if short and (type(value) is not int or -(2**63) <= value < 2**64):
            return value
    raise ValueError(f"{ascii(value) if isinstance(value, str | int) else type(value).__name__:.60} is not an argument of a node")


def _ordered(given: Sequence[str], nodes: Sequence[Node], read: Iterable[str]) -> None:
    """Raises ValueError unless every name is made once, and before it is read."""
    known = set(given)
    if len(known) != len(given):
        raise ValueError("two of its inputs have one name")
    for node in nodes:
        if missing := [name for name in node.reads if name not in known]:
            raise ValueError(f"node {node.name} reads {missing[0]:.80}, which nothing before it makes")
        if node.name in known:
            raise ValueError(f"the name {node.name:.80} is made twice")
        known.add(node.name)
    if missing := [name for name in read if name not in known]:
        raise ValueError(f"{missing[0]:.80} is an output, and nothing makes it")


def _handed_on(specs: Iterable[TensorSpec]) -> None:
    """Raises ValueError for a value that has a dtype which only values within operators have."""
    if wrong := [spec for spec in specs if spec.dtype in CARRIED_AS]:
        raise ValueError(f"a value that is {wrong[0]} leaves an operator")


def _collect(argument: Any, found: dict[str, None]) -> None:
    if isinstance(argument, dict):
        if "ref" in argument:
            found[argument["ref"]] = None
        else:
            for item in argument.values():
                _collect(item, found)
    elif isinstance(argument, list | tuple):
        for item in argument:
            _collect(item, found)


def rename(argument: Any, names: dict[str, str]) -> Any:
    """The same argument with every `{"ref": …}` renamed."""
    if isinstance(argument, dict):
        if "ref" in argument:
            return {"ref": names[argument["ref"]]}
        return {k: rename(v, names) for k, v in argument.items()}
    if isinstance(argument, list | tuple):
        return [rename(item, names) for item in argument]
    return argument


def renamed(node: Node, names: dict[str, str]) -> Node:
    """The node with itself and what it reads renamed, and without its place in the model."""
    args = tuple(rename(list(node.args), names))
    return replace(node, name=names[node.name], args=args, kwargs=rename(node.kwargs, names), module="", source="")


@dataclass(frozen=True)
class Placeholder:
    """A value that a graph is given. `key` is the user's argument name for an input, the key in the weights
    table for a weight (parameters, constants and buffers that never change), the buffer's name for a state."""

    name: str
    role: Role
    key: str
    spec: TensorSpec

    def to_json(self) -> list[Any]:
        return [self.name, self.role, self.key, self.spec.to_json()]

    @staticmethod
    def from_json(data: list[Any]) -> Placeholder:
        role: Role = strict.one_of(data, 1, ROLES)
        return Placeholder(strict.word(data, 0), role, strict.name(data, 2), TensorSpec.from_json(data[3]))


@dataclass(frozen=True)
class Graph:
    """A functional graph: nodes in execution order. `outputs` names the values that the user gets, with
    `output_keys` naming them; `mutations` maps a state's key to the value that becomes its next content (after the
    whole graph has run)."""

    name: str
    placeholders: tuple[Placeholder, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    output_keys: tuple[str, ...]
    mutations: dict[str, str]

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Spec of every value that is one tensor."""
        found = {p.name: p.spec for p in self.placeholders}
        found.update({n.name: n.outputs[0] for n in self.nodes if len(n.outputs) == 1})
        return found

    @cached_property
    def inputs(self) -> tuple[Placeholder, ...]:
        return tuple(p for p in self.placeholders if p.role == "input")

    @cached_property
    def weights(self) -> tuple[Placeholder, ...]:
        return tuple(p for p in self.placeholders if p.role == "weight")

    @cached_property
    def states(self) -> tuple[Placeholder, ...]:
        return tuple(p for p in self.placeholders if p.role == "state")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "placeholders": [p.to_json() for p in self.placeholders],
            "nodes": [n.to_json() for n in self.nodes],
            "outputs": list(self.outputs),
            "output_keys": list(self.output_keys),
            "mutations": self.mutations,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Graph:
        found = Graph(
            strict.name(data, "name"),
            tuple(Placeholder.from_json(p) for p in strict.items(data, "placeholders")),
            tuple(Node.from_json(n) for n in strict.items(data, "nodes")),
            strict.several(strict.name, data, "outputs"), strict.several(strict.name, data, "output_keys"),
            {key: strict.name(data["mutations"], key) for key in strict.inner(data, "mutations")},
        )
        _ordered([p.name for p in found.placeholders], found.nodes, (*found.outputs, *found.mutations.values()))
        if len(found.outputs) != len(found.output_keys):
            raise ValueError(f"{len(found.outputs)} outputs have {len(found.output_keys)} keys")
        if unknown := set(found.outputs) - set(found.specs):
            raise ValueError(f"output {min(unknown):.80} is not a single tensor")
        if unknown := found.mutations.keys() - {p.key for p in found.states}:
            raise ValueError(f"{min(unknown):.80} is written and is not a state")
        _handed_on(found.specs[name] for name in found.outputs)
        return found


@dataclass(frozen=True)
class Body:
    """An operator's computation with values named by position: inputs "i0", "i1", …; node results "n0", "n1", ….
    `roles` says what each input is in the graph ("value" for a result of another operator). `kind` is what the
    operator is called to people: "linear", "rms_norm", "attention", …"""

    kind: str
    inputs: tuple[TensorSpec, ...]
    roles: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @cached_property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        specs = {n.name: n.outputs[0] for n in self.nodes if len(n.outputs) == 1}
        specs.update({f"i{k}": spec for k, spec in enumerate(self.inputs)})
        return tuple(specs[name] for name in self.outputs)

    @cached_property
    def signature(self) -> str:
        """Hash of everything that the kernels depend on: graph, shapes, dtypes and constants; not weights' values."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "inputs": [i.to_json() for i in self.inputs],
            "roles": list(self.roles),
            "nodes": [n.to_json() for n in self.nodes],
            "outputs": list(self.outputs),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Body:
        found = Body(
            strict.text(data, "kind", 100), tuple(TensorSpec.from_json(i) for i in strict.items(data, "inputs")),
            tuple(strict.one_of(data["roles"], k, BODY_ROLES) for k in range(len(strict.items(data, "roles")))),
            tuple(Node.from_json(n) for n in strict.items(data, "nodes")), strict.several(strict.name, data, "outputs"),
        )
        _ordered([f"i{k}" for k in range(len(found.inputs))], found.nodes, found.outputs)
        if len(found.roles) != len(found.inputs):
            raise ValueError(f"{len(found.inputs)} inputs have {len(found.roles)} roles")
        _handed_on(found.output_specs)
        return found


    @staticmethod
    def parsed(text: str) -> Body:
        """Of the text of an argument. Raises ModelError."""
        try:
            return Body.from_json(strict.parse_small(text))
        except strict.UNREADABLE as error:
            raise ModelError(f"A program within the model is damaged ({error}). Carve again with --fresh.") from error


@dataclass(frozen=True)
class Operator:
    """A region of a graph. `name` is unique in the run and comes from the module path, with the graph's name in front
    when there are several graphs ("decode/layers.3.self_attn.q_proj"). `inputs` are value names of the graph in the order of
    the body's inputs; `outputs` are the values that others read, in the order of the body's outputs; `nodes` are the
    names of its nodes in execution order."""

    name: str
    graph: str
    kind: str
    signature: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]
    module: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "graph": self.graph,
            "kind": self.kind,
            "signature": self.signature,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "nodes": list(self.nodes),
            "module": self.module,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Operator:
        return Operator(
            strict.name(data, "name"), strict.name(data, "graph"), strict.text(data, "kind", 100),
            strict.hexadecimal(data, "signature"), strict.several(strict.name, data, "inputs"),
            strict.several(strict.name, data, "outputs"), strict.several(strict.name, data, "nodes"), strict.text(data, "module"),
        )
