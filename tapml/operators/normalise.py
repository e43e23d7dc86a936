"""Rewrites of a graph that keep every value bit for bit: static shapes, an RMS norm's eps, no no-op views, nothing empty
computed, written or put beside something, no equal nodes, no dead nodes.

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
from tapml.tensors import CARRIED_AS, TensorSpec

_RESHAPES = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")
# Calls that return parts of a tensor, to the position of their `dim` argument: read one part at a time, as slices.
_PARTS = {"split": 2, "split_with_sizes": 2, "chunk": 2, "tensor_split": 2, "unbind": 1, "unsafe_chunk": 2, "unsafe_split": 2}
# Calls that give a constant: the position of the value, or the value itself. All are written as `full`.
_FILLED: dict[str, tuple[int | None, int]] = {
    "zeros": (None, 0), "ones": (None, 1), "zeros_like": (None, 0), "ones_like": (None, 1), "full_like": (1, 0),
    "new_zeros": (None, 0), "new_ones": (None, 1), "new_full": (2, 0),
    # Memory that PyTorch leaves undefined: zeros, so that two runs see the same.
    "empty": (None, 0), "empty_like": (None, 0), "empty_strided": (None, 0), "empty_permuted": (None, 0), "new_empty": (None, 0),
    "new_empty_strided": (None, 0),
}
_PYTHON_NAMES = {
    "aten.__and__.Tensor": "aten.bitwise_and.Tensor", "aten.__or__.Tensor": "aten.bitwise_or.Tensor",
    "aten.__xor__.Tensor": "aten.bitwise_xor.Tensor",
}
_SAME_IF_SAME_SHAPE = (*_RESHAPES, "aten.expand.default", "aten.slice.Tensor")

# Write into their first argument where their index says: the third argument, or for index_put any of the second.
_WRITES = ("index_put", "index_add", "index_copy", "index_fill", "index_reduce", "scatter", "scatter_add", "scatter_reduce")

_TAKES = ("index", "index_select", "gather", "take", "embedding")


def normalise(graph: Graph) -> Graph:
    """The same graph with `-1` sizes and open slice ends written out, reshapes all written as view, constants as full, parts of
    a split as slices, views and concatenations that change nothing dropped, equal single-output nodes merged unless only the
    source has their dtype (the module path becomes what their paths have in common), and nodes and placeholders that nothing
    reads dropped. User inputs and states stay even when nothing reads them."""
    names = {p.name: p.name for p in graph.placeholders}
    specs = {p.name: p.spec for p in graph.placeholders}
    whole = {n.name: n for n in graph.nodes if len(n.outputs) > 1 and _word(n) in _PARTS}
    kept: dict[str, Node] = {}
    seen: dict[str, str] = {}
    for node in graph.nodes:
        if node.name in whole:
            whole[node.name] = replace(node, args=tuple(rename(list(node.args), names)))
            continue
        if node.target == "getitem" and node.args[0]["ref"] in whole:
            node = _part(node, whole[node.args[0]["ref"]])
        else:
            node = replace(node, args=tuple(rename(list(node.args), names)), kwargs=rename(node.kwargs, names))
        node = _of_one_number(_static(node, specs), kept, specs)
        same = _same(node, specs)
        if same is not None:
            names[node.name] = same
            continue
        if len(node.outputs) == 1:
            specs[node.name] = node.outputs[0]
            if node.outputs[0].dtype in CARRIED_AS:  # each operator that reads such a value makes it anew
                names[node.name], kept[node.name] = node.name, node
                continue
            key = json.dumps([node.target, node.args, node.kwargs, node.outputs[0].to_json()], sort_keys=True)
            first = seen.setdefault(key, node.name)
            if first != node.name:
                names[node.name] = first
                kept[first] = replace(kept[first], module=common_path(kept[first].module, node.module))
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


def _word(node: Node) -> str:
    return node.target.split(".")[1] if "." in node.target else node.target


def _part(node: Node, whole: Node) -> Node:
    """A `getitem` of a split, as the slice (or, of an unbind, the selection) that it is."""
    index, position = node.args[1], _PARTS[_word(whole)]
    dim = whole.args[position] if len(whole.args) > position else whole.kwargs.get("dim", 0)
    if _word(whole) == "unbind":
        return replace(node, target="aten.select.int", args=(whole.args[0], dim, index))
    sizes = [spec.shape[dim] for spec in whole.outputs]
    start = sum(sizes[:index])
    return replace(node, target="aten.slice.Tensor", args=(whole.args[0], dim, start, start + sizes[index]))


def _same(node: Node, specs: dict[str, TensorSpec]) -> str | None:
    """The value that the node hands on as it is."""
    if node.target in _SAME_IF_SAME_SHAPE and specs[node.args[0]["ref"]] == node.outputs[0]:
        return str(node.args[0]["ref"])
    if node.target == "aten.cat.default" and len(node.args[0]) == 1:
        return str(node.args[0][0]["ref"])
    if _word(node) in _WRITES and specs[node.args[0]["ref"]] == node.outputs[0] and _writes_nothing(node, specs):
        return str(node.args[0]["ref"])
    return None


def _writes_nothing(node: Node, specs: dict[str, TensorSpec]) -> bool:
    """Whether the places that a node writes to are none."""
    where = node.args[1] if _word(node) == "index_put" else [node.args[2]]
    return any(index is not None and 0 in specs[index["ref"]].shape for index in where)


def _static(node: Node, specs: dict[str, TensorSpec]) -> Node:
    if len(node.outputs) == 1 and 0 in node.outputs[0].shape and node.outputs[0].dtype not in CARRIED_AS:
        spec = node.outputs[0]  # no element, whatever they would be
        return replace(node, target="aten.full.default", args=(list(spec.shape), 0), kwargs={"dtype": {"dtype": spec.dtype}})
    if node.target in _RESHAPES:
        return replace(node, target="aten.view.default", args=(node.args[0], list(node.outputs[0].shape)))
    if node.target == "aten.expand.default":
        return replace(node, args=(node.args[0], list(node.outputs[0].shape), *node.args[2:]))
    if _word(node) in _FILLED and node.target.startswith("aten."):
        position, value = _FILLED[_word(node)]
        spec = node.outputs[0]
        filled = value if position is None else node.args[position]
        return replace(
            node, target="aten.full.default", args=(list(spec.shape), filled), kwargs={"dtype": {"dtype": spec.dtype}}
        )
    if node.target in _PYTHON_NAMES:
        return replace(node, target=_PYTHON_NAMES[node.target])
    if node.target == "aten.cat.default":
        # A rotary embedding of the whole head puts the rest of it, no element, behind it. In another dtype that could decide the
        # dtype of the whole.
        parts = [(part, specs[part["ref"]]) for part in node.args[0]]
        something = [part for part, spec in parts if 0 not in spec.shape]
        if something and all(spec.dtype == node.outputs[0].dtype for _, spec in parts):
            return replace(node, args=(something, *node.args[1:]))
    if node.target in ("aten.rms_norm.default", "aten._fused_rms_norm.default"):
        return _with_eps(node)
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


def _of_one_number(node: Node, kept: dict[str, Node], specs: dict[str, TensorSpec]) -> Node:
    """What is taken out of a tensor whose elements are all one number, or that has one element, is such a tensor."""
    if _word(node) in _TAKES and isinstance(node.args[0], dict) and node.args[0]["ref"] in specs:
        one, spec = specs[node.args[0]["ref"]], node.outputs[0]
        if one.elements == 1 and len(one.shape) <= len(spec.shape) and one.dtype not in CARRIED_AS:
            return replace(node, target="aten.expand.default", args=(node.args[0], list(spec.shape)), kwargs={})
    source = kept.get(node.args[0]["ref"]) if _word(node) in _TAKES and isinstance(node.args[0], dict) else None
    if source is None or source.target != "aten.full.default" or 0 in source.outputs[0].shape:
        return node
    spec = node.outputs[0]
    return replace(
        node, target="aten.full.default", args=(list(spec.shape), source.args[1]), kwargs={"dtype": {"dtype": spec.dtype}}
    )


def rms_norm_eps(dtype: str) -> float:
    """What PyTorch takes where no eps is given: that of the dtype in which it computes, float32 also for half precision."""
    return 2.0**-52 if dtype == "float64" else 2.0**-23


def _with_eps(node: Node) -> Node:
    """With its eps written out, so that the operator computed in float64 has the same."""
    eps = node.args[3] if len(node.args) > 3 else node.kwargs.get("eps")
    if eps is not None:
        return node
    value = rms_norm_eps(node.outputs[0].dtype)
    if len(node.args) > 3:
        return replace(node, args=(*node.args[:3], value, *node.args[4:]))
    return replace(node, kwargs={**node.kwargs, "eps": value})


def _index(given: int | None, size: int, default: int) -> int:
    if given is None:
        return default
    return min(max(given + size if given < 0 else given, 0), size)
