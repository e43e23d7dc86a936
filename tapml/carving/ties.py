"""Indices among equal values: what orders elements may name either of two that are equal, and both are right.

    led = leads(body)                        {1: Lead("n0", 2, …)}: output 1 holds indices into the value n0, along dimension 2
    mask = as_good(actual, expected, x, 2)   the elements whose index leads to the value that the expected one leads to

PyTorch itself names another one on another device, or with another size. A stable sort promises which, and is judged by its
indices. Numpy only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapml.operators.graph import Body, Node
from tapml.tensors import HostArray, TensorSpec


class Lead(NamedTuple):
    """`value`: the name of what is ordered, an input or a node of the body; `dim`: along which, not negative; `spec`: its own."""

    value: str
    dim: int
    spec: TensorSpec


# Where the indices are among the results (None: the only one), and at which position the dimension is.
_ORDERED: dict[str, tuple[int | None, int]] = {
    "aten.topk.default": (1, 2), "aten.sort.default": (1, 1), "aten.argsort.default": (None, 1), "aten.kthvalue.default": (1, 2),
    "aten.median.dim": (1, 1), "aten.nanmedian.dim": (1, 1), "aten.mode.default": (1, 1),
}  # fmt: skip


def leads(body: Body) -> dict[int, Lead]:
    """The outputs of a body that are such indices."""
    nodes = {node.name: node for node in body.nodes}
    specs = {f"i{k}": spec for k, spec in enumerate(body.inputs)} | {node.name: node.outputs[0] for node in body.nodes}
    found: dict[int, Lead] = {}
    for k, name in enumerate(body.outputs):
        node, place = nodes.get(name), None
        if node is not None and node.target == "getitem":
            place = node.args[1]
            node = nodes.get(node.args[0]["ref"])
        if node is None or node.target not in _ORDERED or _ORDERED[node.target][0] != place:
            continue
        value = node.args[0]["ref"]
        rank = len(specs[value].shape)
        if rank:
            found[k] = Lead(value, _dim(node, _ORDERED[node.target][1]) % rank, specs[value])
    return found


def _dim(node: Node, position: int) -> int:
    found: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim", -1)
    return int(found)


def has_ties(x: HostArray, dim: int) -> bool:
    """Whether two elements along the dimension are equal, or both NaN."""
    ordered = np.sort(x.astype(np.float64) if x.dtype.kind not in "iub" else x, axis=dim)
    before, after = np.delete(ordered, -1, axis=dim), np.delete(ordered, 0, axis=dim)
    return bool(((before == after) | ((before != before) & (after != after))).any())


def as_good(actual: HostArray, expected: HostArray, x: HostArray, dim: int) -> NDArray[np.bool_]:
    """Of the indices' shape: where `actual` leads to a value equal to that of `expected`. Nowhere along a line in which an index
    comes twice, though none does in `expected`."""
    kept = expected.ndim == x.ndim
    have, want = (a if kept else np.expand_dims(a, dim) for a in (actual.astype(np.int64), expected.astype(np.int64)))
    inside = (have >= 0) & (have < x.shape[dim]) & (want >= 0) & (want < x.shape[dim])
    got, due = (np.take_along_axis(x, np.where(inside, a, 0), axis=dim) for a in (have, want))
    good = inside & ((got == due) | ((got != got) & (due != due))) & (_twice(have, dim) <= _twice(want, dim))
    result: NDArray[np.bool_] = good if kept else np.squeeze(good, dim)
    return result


def _twice(indices: HostArray, dim: int) -> NDArray[np.bool_]:
    ordered = np.sort(indices, axis=dim)
    found: NDArray[np.bool_] = (np.diff(ordered, axis=dim) == 0).any(axis=dim, keepdims=True)
    return found
