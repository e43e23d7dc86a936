"""Rewrites of a graph that keep every value bit for bit: static shapes, no no-op views, no equal nodes, no dead nodes.

Works on plain data, without torch. `tapml.operators.from_fx` calls `normalise` on what it read; the result is what the cutter
sees.

Invariant of the pass: nodes are visited in execution order, so all arguments of a node are already in their final form, and
one pass is enough for nodes that become equal only after their arguments did.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from tapml.operators.graph import Graph, Node, rename
from tapml.tensors import TensorSpec

_RESHAPES = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
_SAME_IF_SAME_SHAPE = (*_RESHAPES, "aten.expand.default", "aten.slice.Tensor")


def normalise(graph: Graph) -> Graph:
    """The same graph with `-1` sizes and open slice ends written out, reshapes all written as view, views that change nothing
    dropped, equal single-output nodes merged (the module path becomes what their paths have in common), and nodes and
    placeholders that nothing reads dropped. User inputs and states stay even when nothing reads them."""
    names = {p.name: p.name for p in graph.placeholders}
    specs = {p.name: p.spec for p in graph.placeholders}
    kept: dict[str, Node] = {}
    seen: dict[str, str] = {}
    for node in graph.nodes:
        node = _static(replace(node, args=tuple(rename(list(node.args), names)), kwargs=rename(node.kwargs, names)), specs)
        if node.target in _SAME_IF_SAME_SHAPE and specs[node.args[0]["ref"]] == node.outputs[0]:
            names[node.name] = node.args[0]["ref"]
            continue
        if len(node.outputs) == 1:
            specs[node.name] = node.outputs[0]
            key = json.dumps([node.target, node.args, node.kwargs, node.outputs[0].to_json()], sort_keys=True)
            same = seen.setdefault(key, node.name)
            if same != node.name:
                names[node.name] = same
                kept[same] = replace(kept[same], module=common_path(kept[same].module, node.module))
                continue
        names[node.name] = node.name
        kept[node.name] = node
    outputs = tuple(names[name] for name in graph.outputs)
    mutations = {key: names[name] for key, name in graph.mutations.items()}
    read = {*outputs, *mutations.values()}
    alive: list[Node] = []
    for node in reversed(kept.values()):
        if node.name in read:
            alive.append(node)
            read.update(node.reads)
    placeholders = tuple(p for p in graph.placeholders if p.role != "weight" or p.name in read)
    return replace(graph, placeholders=placeholders, nodes=tuple(reversed(alive)), outputs=outputs, mutations=mutations)


def common_path(first: str, second: str) -> str:
    """The module path that both are under: "layers.0.mlp", "layers.0.norm" → "layers.0"."""
    shared: list[str] = []
    for a, b in zip(first.split("."), second.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


def _static(node: Node, specs: dict[str, TensorSpec]) -> Node:
    if node.target in _RESHAPES:
        return replace(node, target="aten.view.default", args=(node.args[0], list(node.outputs[0].shape)))
    if node.target == "aten.expand.default":
        return replace(node, args=(node.args[0], list(node.outputs[0].shape), *node.args[2:]))
    if node.target == "aten.slice.Tensor":
        given: list[Any] = [*node.args[1:], *[None, None, None, None][len(node.args) - 1 :]]
        dim = given[0] if given[0] is not None else node.kwargs.get("dim", 0)
        size = specs[node.args[0]["ref"]].shape[dim]
        start = given[1] if given[1] is not None else node.kwargs.get("start")
        end = given[2] if given[2] is not None else node.kwargs.get("end")
        step = given[3] if given[3] is not None else node.kwargs.get("step", 1)
        start, end = _index(start, size, 0), _index(end, size, size)
        return replace(node, args=(node.args[0], dim % len(specs[node.args[0]["ref"]].shape), start, end, step), kwargs={})
    return node


def _index(given: int | None, size: int, default: int) -> int:
    if given is None:
        return default
    return min(max(given + size if given < 0 else given, 0), size)
