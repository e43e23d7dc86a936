"""An operator's inside on the source: the value of every node, and what each node alone gives in float64 for what it got.

    anatomy = Anatomy(body)
    values = anatomy.values(inputs)                      "i0", … and every node's result, in the source's dtypes
    for part in anatomy.parts:
        exact = anatomy.exact(part, values)              the same node in float64, fed with the source's own values
        most = anatomy.accumulated(part, values)         a bound on the partial sums of its contraction; None where it has none

A node is judged by what it was given, so whatever it was handed (an Inf, a rounded number) is not its own doing.

The bound on accumulators. A sum of products is added up in an order that each platform chooses. Whatever the order, no partial
sum is larger than the sum of |a·b| over the contraction; for linear layers, matrix products and convolutions that is the same
node over the absolute values of its tensors (a bias included). For a sum or mean it is the sum of |a|, for a norm the sum of a²,
for attention the scores before scaling, since kernels may scale afterwards. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tapml.operators.execute import HostFunction, host_function
from tapml.operators.graph import Body, Node, rename
from tapml.tensors import FLOATS, HostArray, TensorSpec, dtype_name

Values = Mapping[str, HostArray]

# Nodes that are sums of products, so that the node over absolute values bounds every partial sum.
_PRODUCTS = frozenset((
    "linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "einsum", "_grouped_mm", "convolution",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sum", "cumsum",
))  # fmt: skip

# Nodes that fill with a constant: an infinity, or a number that the dtype cannot hold, is meant.
_FILLS = frozenset(("masked_fill", "where", "full_like", "fill", "constant_pad_nd", "pad", "tril", "triu"))


@dataclass(frozen=True)
class Part:
    """A node with one floating point result. `reads` are names of values; `node` is the one that computes, also where the result
    is one of several."""

    name: str
    node: Node
    reads: tuple[str, ...]
    spec: TensorSpec
    body: Body

    @property
    def word(self) -> str:
        """ "aten.add.Tensor" → "add"."""
        return self.node.target.split(".")[1]

    @property
    def constant(self) -> bool:
        """It makes its values from nothing, or puts constants among them."""
        return not self.reads or self.word in _FILLS


class Anatomy:
    """See the module's docstring. Raises ModelError where PyTorch lacks an operator of the body."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self._functions: dict[str, HostFunction] = {}

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """In execution order."""
        specs = {f"i{k}": spec for k, spec in enumerate(self.body.inputs)}
        nodes = {node.name: node for node in self.body.nodes}
        found: list[Part] = []
        for node in self.body.nodes:
            if len(node.outputs) > 1:
                continue
            specs[node.name] = node.outputs[0]
            if node.outputs[0].dtype not in FLOATS:
                continue
            chain = (nodes[node.reads[0]], node) if node.target == "getitem" else (node,)
            reads = chain[0].reads
            names = {name: f"i{k}" for k, name in enumerate(reads)} | {n.name: n.name for n in chain}
            inputs = tuple(specs[name] for name in reads)
            body = Body("node", inputs, ("value",) * len(reads), tuple(_renamed(n, names) for n in chain), (node.name,))
            found.append(Part(node.name, chain[0], reads, node.outputs[0], body))
        return tuple(found)

    @cached_property
    def _whole(self) -> tuple[tuple[str, ...], HostFunction]:
        names = tuple(node.name for node in self.body.nodes if len(node.outputs) == 1)
        return names, host_function(replace(self.body, outputs=names))

    def values(self, inputs: Sequence[HostArray]) -> dict[str, HostArray]:
        """Inputs and results of all nodes, by name."""
        names, function = self._whole
        found = {f"i{k}": array for k, array in enumerate(inputs)}
        return found | dict(zip(names, function(inputs), strict=True))

    def exact(self, part: Part, values: Values) -> HostArray:
        """The part's result in float64, from the values that it read."""
        return self._function(part)([values[name] for name in part.reads])[0]

    def accumulated(self, part: Part, values: Values) -> float | None:
        given = [values[name] for name in part.reads]
        with np.errstate(all="ignore"):
            if part.word in _PRODUCTS:
                return largest(self._function(part)([_absolute(a) for a in given])[0])
            bound = _SUMS.get(part.word)
            return None if bound is None else bound(part, given)

    def _function(self, part: Part) -> HostFunction:
        if part.name not in self._functions:
            self._functions[part.name] = host_function(part.body, "float64")
        return self._functions[part.name]


def largest(array: HostArray) -> float:
    """The largest finite magnitude; 0.0 when there is none."""
    sizes = np.abs(array[np.isfinite(array)])
    return float(sizes.max()) if sizes.size else 0.0


def _absolute(array: HostArray) -> HostArray:
    return np.abs(array) if dtype_name(array) in FLOATS else array


def _renamed(node: Node, names: dict[str, str]) -> Node:
    kwargs: Any = rename(node.kwargs, names)
    return replace(node, args=tuple(rename(list(node.args), names)), kwargs=kwargs)


def _of_mean(part: Part, given: Sequence[HostArray]) -> float:
    """The sum before it is divided. `args` are (input, dims, keepdim)."""
    x = given[0].astype(np.float64)
    dims = part.node.args[1] if len(part.node.args) > 1 else None
    return largest(np.abs(x).sum(axis=None if not dims else tuple(dims)))


def _of_last_dims(part: Part, given: Sequence[HostArray]) -> float:
    """A norm over the last dimensions: `args` are (input, normalized_shape, …)."""
    x = given[0].astype(np.float64)
    return largest(np.square(x).sum(axis=tuple(range(x.ndim - len(part.node.args[1]), x.ndim))))


def _of_attention(part: Part, given: Sequence[HostArray]) -> float:
    """Scores |q|·|k| with q [..., heads, queries, n] and k [..., fewer heads, keys, n]."""
    q, k = (np.abs(a.astype(np.float64)) for a in given[:2])
    if q.ndim > 2 and k.shape[-3] != q.shape[-3]:
        k = np.repeat(k, q.shape[-3] // k.shape[-3], axis=-3)
    return largest(np.matmul(q, np.swapaxes(k, -1, -2)))


_SUMS: dict[str, Callable[[Part, Sequence[HostArray]], float]] = {
    "mean": _of_mean,
    "layer_norm": _of_last_dims,
    "native_layer_norm": _of_last_dims,
    "rms_norm": _of_last_dims,
    "_fused_rms_norm": _of_last_dims,
    "scaled_dot_product_attention": _of_attention,
}
