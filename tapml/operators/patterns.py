"""What the nodes of a graph are, and the structures of several nodes that are known by one name.

`sort_of` says of a node alone what part it can play in an operator. The `find_…` functions recognise structures by their
shape alone (no module names, no model names): norms, gated activations, rotary tables. `kind_of` names a group that is no
structure and has no anchor. How groups grow and why they never form a cycle is in `tapml.operators.cut`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

from tapml.errors import ModelError
from tapml.operators.graph import Graph, Node
from tapml.operators.overload import overload
from tapml.tensors import FLOATS, TensorSpec

Sort = Literal["elementwise", "shape", "factory", "anchor", "getitem"]

# Operations that an operator is built around, and what such an operator is called.
ANCHORS = {
    "linear": ("linear", "addmm", "mm"),
    "matmul": ("matmul", "bmm", "baddbmm", "mv", "addmv", "dot", "einsum", "_grouped_mm", "addbmm"),
    "conv": ("convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    "attention": ("scaled_dot_product_attention",),
    "embedding": ("embedding",),
    "layer_norm": ("layer_norm", "native_layer_norm"),
    "rms_norm": ("rms_norm", "_fused_rms_norm"),
    "group_norm": ("group_norm", "native_group_norm", "instance_norm"),
    "batch_norm": ("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm", "cudnn_batch_norm"),
    "softmax": ("softmax", "_softmax", "log_softmax", "_log_softmax"),
    "scatter": (
        "index_copy", "index_put", "_unsafe_index_put", "index_add", "scatter", "scatter_add", "scatter_reduce", "slice_scatter",
        "select_scatter", "masked_scatter",
    ),
    "topk": ("topk",),
    "sort": ("sort", "argsort", "msort", "kthvalue", "median"),
    "scan": ("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"),
    "argmax": ("argmax", "argmin"),
    "pool": (
        "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
        "adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
    ),
    "reduce": (
        "sum", "mean", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean", "all", "any", "norm",
        "linalg_vector_norm", "logsumexp", "aminmax", "count_nonzero",
    ),
    "gather": ("index", "gather", "index_select", "take_along_dim", "take", "_unsafe_index"),
    "resize": ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "grid_sampler_2d"),
}
_ANCHOR_KIND = {word: kind for kind, words in ANCHORS.items() for word in words}
# Anchors with so much work of their own that nothing is computed on the way into them.
HEAVY = frozenset(("linear", "matmul", "conv", "attention", "topk", "sort", "scan"))
# Kinds that are one module's whole work in most models: their operator may bear the module's name alone.
WHOLE_MODULE = frozenset((
    "linear", "conv", "embedding", "layer_norm", "rms_norm", "group_norm", "batch_norm", "pool", "softmax", "rotary_table",
    "resize",
))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SHAPE = _words(
    "view reshape transpose permute t unsqueeze squeeze expand slice select cat stack flip roll repeat constant_pad_nd pad "
    "clone contiguous diagonal unfold as_strided movedim repeat_interleave narrow unbind split pixel_shuffle "
    "pixel_unshuffle reflection_pad1d reflection_pad2d replication_pad2d flatten unflatten tile diag_embed"
)
_ELEMENTWISE = _words(
    "_to_copy to hardswish floor_divide rsub full_like zeros_like ones_like fill prelu tril triu log_sigmoid type_as "
    "masked_fill where dropout"
)
_FACTORY = _words("arange full zeros ones eye scalar_tensor linspace empty tril_indices triu_indices")
_COMPARE = _words("le lt ge gt eq ne logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not tril triu where")
_NONLINEAR = _words(
    "silu gelu relu sigmoid tanh erf leaky_relu elu hardswish hardsigmoid hardtanh softplus mish relu6 celu selu log_sigmoid"
)
_KEEPS_ELEMENTS = _words("view reshape transpose permute t unsqueeze squeeze clone contiguous movedim flatten unflatten")

# Re-arrangements that are index arithmetic only, whatever reads them.
VIEWS = _KEEPS_ELEMENTS | _words("slice select expand narrow")


def word_of(node: Node) -> str:
    """"aten.add.Tensor" → "add"."""
    return node.target.split(".")[1] if "." in node.target else node.target


@cache
def _pointwise(target: str) -> bool:
    try:
        return torch.Tag.pointwise in overload(target).tags
    except ModelError:
        return False  # an operator that is not registered here: it gets an operator of its own


def sort_of(node: Node) -> Sort:
    word = word_of(node)
    if word == "getitem":
        return "getitem"
    if len(node.outputs) > 1 or word in _ANCHOR_KIND:
        return "anchor"
    if word in _SHAPE:
        return "shape"
    if word in _FACTORY or (not node.reads and not word.startswith("rand")):
        return "factory"
    return "elementwise" if word in _ELEMENTWISE or _pointwise(node.target) else "anchor"


class GraphIndex:
    """A graph with what cutting asks of it. `order` numbers nodes in an execution order in which nodes that depend on weights
    alone come first, so that they are there before whatever uses them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.placeholders = {p.name: p for p in graph.placeholders}
        self.sorts = {node.name: sort_of(node) for node in graph.nodes}
        self.users: dict[str, list[str]] = {name: [] for name in (*self.placeholders, *self.nodes)}
        self.constant: set[str] = {p.name for p in graph.weights}
        for node in graph.nodes:
            for name in node.reads:
                self.users[name].append(node.name)
            if all(name in self.constant for name in node.reads):
                self.constant.add(node.name)
        first = sorted(self.nodes, key=lambda name: name not in self.constant)  # stable
        self.order = {name: position for position, name in enumerate(first)}
        self.exposed = {*graph.outputs, *graph.mutations.values()}
        self.integers_only = not any(spec.dtype in FLOATS for spec in graph.specs.values())

    def spec(self, name: str) -> TensorSpec:
        return self.graph.specs[name]

    def is_float(self, name: str) -> bool:
        return name in self.graph.specs and self.spec(name).dtype in FLOATS

    def producer(self, argument: Any) -> Node | None:
        """The node that an argument refers to; None for placeholders and constants."""
        return self.nodes.get(argument["ref"]) if isinstance(argument, dict) and "ref" in argument else None

    def only_in(self, name: str, region: Iterable[str]) -> bool:
        """Whether a value is read inside of the region and nowhere else."""
        return name not in self.exposed and all(user in region for user in self.users[name])

    def external(self, region: set[str]) -> set[str]:
        """Values that a region reads from outside."""
        return {read for name in region for read in self.nodes[name].reads if read not in region}

    def visible(self, region: set[str]) -> list[str]:
        """Values of a region that are read outside of it, in order."""
        found = [n for n in region if n in self.exposed or any(user not in region for user in self.users[n])]
        return sorted((n for n in found if n in self.graph.specs), key=self.order.__getitem__)

    def backward(self, start: set[str], enter: Callable[[Node], bool]) -> set[str]:
        """`start` with all nodes above it that `enter` allows and whose value is read in the region only."""
        region = set(start)
        queue = [(-self.order[r], r) for name in start for r in self.nodes[name].reads if r in self.nodes]
        heapq.heapify(queue)
        while queue:  # from late to early: all readers of a node are decided before it is
            _, name = heapq.heappop(queue)
            if name in region or not self.only_in(name, region) or not enter(self.nodes[name]):
                continue
            region.add(name)
            for read in self.nodes[name].reads:
                if read in self.nodes:
                    heapq.heappush(queue, (-self.order[read], read))
        return region


@dataclass(frozen=True)
class Structure:
    """Nodes that are one operator, known by structure. `center` is the node whose module gives the name."""

    kind: str
    nodes: frozenset[str]
    center: str


def find_structures(index: GraphIndex) -> Iterator[Structure]:
    """All structures of a graph, none overlapping another."""
    taken: set[str] = set()
    for find in (_rotary_tables, _norms, _gated_activations):
        for structure in find(index, taken):
            taken |= structure.nodes
            yield structure


def _norms(index: GraphIndex, taken: set[str]) -> Iterator[Structure]:
    """x / sqrt(mean(x²) + eps), where x may be a cast or z − mean(z); the root written as rsqrt, as sqrt and division or
    reciprocal, or as a power of −0.5. The mean may be `var` of z. Weights and casts that follow join as epilogue."""
    for node in index.graph.nodes:
        root = word_of(node) in ("rsqrt", "sqrt") or (word_of(node) == "pow" and node.args[1] in (-0.5, 0.5))
        if node.name in taken or not root:
            continue
        found = _norm_at(index, node)
        if found is not None and not found.nodes & taken:
            yield found


def _norm_at(index: GraphIndex, root: Node) -> Structure | None:
    region = {root.name}
    statistic = index.producer(root.args[0])
    while statistic is not None and word_of(statistic) in ("add", "clamp", "clamp_min", "maximum") and len(statistic.reads) == 1:
        region.add(statistic.name)
        statistic = index.producer(statistic.args[0])
    if statistic is None or word_of(statistic) not in ("mean", "sum", "var", "linalg_vector_norm"):
        return None
    region.add(statistic.name)
    inner: str | None = statistic.args[0].get("ref") if isinstance(statistic.args[0], dict) else None
    kind = "rms_norm" if word_of(statistic) == "mean" else "l2_norm"
    if word_of(statistic) == "var":
        kind = "layer_norm"
    else:
        square = index.nodes.get(inner or "")
        if square is None or word_of(square) not in ("pow", "mul", "square") or len(square.reads) != 1:
            return None
        if word_of(square) == "pow" and square.args[1] != 2:
            return None
        region.add(square.name)
        inner = square.reads[0]
    scale = root.name
    users = index.users[scale]
    if len(users) == 1 and word_of(index.nodes[users[0]]) == "reciprocal":
        scale = users[0]
        region.add(scale)
        users = index.users[scale]
    if len(users) != 1 or word_of(index.nodes[users[0]]) not in ("mul", "div") or scale in index.exposed:
        return None
    result = index.nodes[users[0]]
    others = [name for name in result.reads if name != scale]
    if len(others) != 1 or (word_of(result) == "div" and result.args[0] != {"ref": others[0]}):
        return None
    region.add(result.name)
    centred = index.nodes.get(others[0])
    if centred is not None and word_of(centred) == "sub" and len(centred.reads) == 2:
        mean = index.producer(centred.args[1])
        if mean is not None and word_of(mean) == "mean":
            kind = "layer_norm"
            region |= {centred.name, mean.name}
    if inner is not None and others[0] not in (inner, *region) and not _casts_of_one(index, inner, others[0]):
        return None
    for name in sorted(index.external(region), key=lambda n: -index.order.get(n, -1)):
        if name in index.nodes and word_of(index.nodes[name]) == "_to_copy" and index.only_in(name, region):
            region.add(name)
    hidden = [name for name in region if name != result.name and not index.only_in(name, region)]
    return None if hidden else Structure(kind, frozenset(region), root.name)


def _casts_of_one(index: GraphIndex, first: str, second: str) -> bool:
    def origin(name: str) -> str:
        node = index.nodes.get(name)
        return node.reads[0] if node is not None and word_of(node) == "_to_copy" else name

    return origin(first) == origin(second)


def _gated_activations(index: GraphIndex, taken: set[str]) -> Iterator[Structure]:
    """activation(gate) · up, of two different values in one shape. The activation may be many element-wise nodes, and may
    use the gate several times; both sides may be scaled or clamped on the way."""
    for node in index.graph.nodes:
        if word_of(node) != "mul" or len(node.reads) != 2 or node.name in taken or not index.is_float(node.name):
            continue
        shape = index.spec(node.name).shape
        if any(index.spec(name).shape != shape or name in index.constant for name in node.reads):
            continue

        def enter(inner: Node, shape: tuple[int, ...] = shape) -> bool:
            name = inner.name
            return index.sorts[name] == "elementwise" and name not in taken and index.spec(name).shape == shape

        sides = [
            index.backward({node.name, name}, enter) - {node.name}
            if name in index.nodes and index.only_in(name, {node.name}) and enter(index.nodes[name])
            else set()
            for name in node.reads
        ]
        if sides[0] & sides[1]:
            continue
        sources = [
            {n for n in index.external(side) if n not in index.constant} if side else {name}
            for name, side in zip(node.reads, sides, strict=True)
        ]
        acts = [any(word_of(index.nodes[n]) in _NONLINEAR for n in side) for side in sides]
        for k in (0, 1):
            if len(sources[k]) != 1 and not acts[k]:  # a plain side that mixes values is somebody else's work
                sides[k], sources[k] = set(), {node.reads[k]}
        if any(acts) and len(sources[0]) == len(sources[1]) == 1 and sources[0] != sources[1]:
            yield Structure("gated_activation", frozenset({node.name} | sides[0] | sides[1]), node.name)


def _rotary_tables(index: GraphIndex, taken: set[str]) -> Iterator[Structure]:
    """cos and sin of the same angles, where the angles come from inputs and weights alone: with all that only they need
    above them, and all that is made of nothing but them below."""
    for node in index.graph.nodes:
        if word_of(node) != "cos" or node.name in taken:
            continue
        pair = {name for name in index.users[node.reads[0]] if word_of(index.nodes[name]) in ("cos", "sin")}
        if len({word_of(index.nodes[name]) for name in pair}) != 2:
            continue
        anchors: list[str] = []

        def enter(inner: Node, anchors: list[str] = anchors) -> bool:
            if word_of(inner) in ("matmul", "bmm") and not anchors:
                anchors.append(inner.name)
                return True
            return index.sorts[inner.name] in ("elementwise", "shape", "factory")

        region = index.backward(pair, enter)
        if any(index.is_float(name) and name in index.nodes for name in index.external(region)):
            continue
        for name in index.nodes:
            reads = index.nodes[name].reads
            if (
                name not in region and reads and index.sorts[name] in ("elementwise", "shape")
                and all(read in region or read in index.constant for read in reads) and any(read in region for read in reads)
            ):
                region.add(name)
        if not region & taken:
            yield Structure("rotary_table", frozenset(region), node.name)


def diamond(index: GraphIndex, value: str, allowed: Callable[[Node], bool], limit: int = 32) -> set[str]:
    """The nodes from a value to the first point where all that was computed from it is one value again; empty if a reader
    is not allowed, or there is no such point within `limit` nodes. A single reader is the smallest such region."""
    region: set[str] = set()
    open_values = {value}
    queue = [(index.order[user], user) for user in index.users[value]]
    heapq.heapify(queue)
    while queue and len(region) < limit and not open_values & index.exposed:
        _, name = heapq.heappop(queue)
        if name in region:
            continue
        if not allowed(index.nodes[name]):
            return set()
        region.add(name)
        open_values.add(name)
        open_values = {v for v in open_values if v == name or any(user not in region for user in index.users[v])}
        if open_values == {name}:
            return region
        for user in index.users[name]:
            heapq.heappush(queue, (index.order[user], user))
    return set()


def keeps_elements(index: GraphIndex, node: Node, elements: int) -> bool:
    """Whether a node is element-wise or a pure re-arrangement with this many elements in its result."""
    if len(node.outputs) != 1 or node.outputs[0].elements != elements:
        return False
    return index.sorts[node.name] == "elementwise" or word_of(node) in _KEEPS_ELEMENTS


def enlarging_chains(index: GraphIndex) -> set[str]:
    """Nodes of shape-only chains that repeat data on its way to one reader (the heads of grouped attention): the repeating
    node, the re-arrangements right before it, and those after it."""
    chains: set[str] = set()
    for node in index.graph.nodes:
        if word_of(node) not in ("expand", "repeat", "repeat_interleave", "tile") or len(index.users[node.name]) != 1:
            continue
        chains.add(node.name)
        above = index.producer(node.args[0])
        while above is not None and word_of(above) in _KEEPS_ELEMENTS and index.only_in(above.name, chains):
            chains.add(above.name)
            above = index.producer(above.args[0])
        below = index.nodes[index.users[node.name][0]]
        while index.sorts[below.name] == "shape" and below.reads == (node.name,) and len(index.users[below.name]) == 1:
            chains.add(below.name)
            node, below = below, index.nodes[index.users[below.name][0]]
    return chains


def anchor_kind(index: GraphIndex, node: Node) -> str:
    """What an operator around this node is called. A scatter into a state is a cache update."""
    kind = _ANCHOR_KIND.get(word_of(node), word_of(node).strip("_"))
    if kind == "scatter" and node.reads:
        placeholder = index.placeholders.get(node.reads[0])
        if placeholder is not None and placeholder.role == "state":
            return "cache_update"
    return kind


def kind_of(index: GraphIndex, region: set[str]) -> str:
    """What a group without an anchor is called."""
    nodes = [index.nodes[name] for name in region]
    words = {word_of(node) for node in nodes}
    floats = any(index.is_float(name) for name in index.visible(region))
    products = sum(word_of(node) == "mul" for node in nodes)
    if {"cos", "sin"} <= words:
        return "rotary_table"
    halves = words & {"cat", "stack"} and words & {"slice", "select"}
    if halves and products >= 2 and words & {"neg", "sub"} and words & {"add", "sub"}:
        return "rotary"
    if all(index.sorts[node.name] in ("shape", "factory") for node in nodes):
        return "position" if not floats else "constant" if region <= index.constant else "reshape"
    if any(index.spec(name).dtype == "bool" for name in index.visible(region)):
        return "mask"
    if words & _COMPARE and not _reads_data(index, region):
        return "mask"
    if not floats:
        return "position"
    return "activation" if words & _NONLINEAR else "elementwise"


def _reads_data(index: GraphIndex, region: set[str]) -> bool:
    return any(index.is_float(name) and name not in index.constant for name in index.external(region))
