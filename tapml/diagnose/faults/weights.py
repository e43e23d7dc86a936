"""Faults of the weights: the kernels are right, what lies on the device is not the model's weight.

A weight is changed for one operator only, on its way to the device: others that read the same weight get the right one.

    other = misread(array, "order")       as a checkpoint of 4-bit blocks is read by somebody who has their layout wrong
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np

from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.diagnose.faults.fault import FaultClass, Site
from tapml.operators.graph import Body, Graph, Operator
from tapml.tensors import FLOATS, HostArray

# Weights in a block that share a scale and a zero point, in GGUF's Q4_0 and Q4_1.
BLOCK = 32
MISTAKES = ("order", "zero point", "sign")

# The usual spread of a fresh initialisation (`initializer_range` of transformers).
FRESH = 0.02


class OtherWeight(Rewrite):
    """One operator gets, for weight `key`, what `make` makes of it. It is made once for the model's own."""

    def __init__(self, what: str, operator: str, key: str, make: Callable[[HostArray], HostArray]) -> None:
        digest = hashlib.blake2b(f"{what}\0{operator}\0{key}".encode(), digest_size=16).hexdigest()
        super().__init__(f"{what} for {key} in {operator}", digest)
        self._operator = operator
        self._key = key
        self._make = make
        self._made: tuple[HostArray, HostArray] | None = None  # what it was made of, and what was made

    def weight(self, operator: str, key: str, array: HostArray) -> HostArray:
        if operator != self._operator or key != self._key:
            return array
        if self._made is None or self._made[0] is not array:
            made = np.ascontiguousarray(self._make(array).astype(array.dtype))
            assert made.shape == array.shape
            self._made = array, made
        return self._made[1]


def misread(array: HostArray, mistake: str) -> HostArray:
    """A weight of any shape whose last dimension is a multiple of BLOCK, as unpacked with one of MISTAKES. A block holds 4-bit
    numbers q with w = scale · q + least; number j shares a byte with number j + 16, j in the low half. Mistakes: "order" takes
    neighbours from one byte; "zero point" leaves `least` out; "sign" reads q as a signed number, so that 8 to 15 are -8 to -1.
    Scale and least are taken from the block itself (its span over 15, its smallest): what the file had where
    the whole span is used."""
    blocks = array.astype(np.float32).reshape(-1, BLOCK)
    if mistake == "order":
        made = blocks.reshape(-1, 2, BLOCK // 2).transpose(0, 2, 1)
    elif mistake == "zero point":
        made = blocks - blocks.min(1, keepdims=True)
    elif mistake == "sign":
        least, span = blocks.min(1, keepdims=True), np.ptp(blocks, 1, keepdims=True)
        upper = blocks - least > span * (7.5 / 15)
        made = np.where(upper, blocks - span * (16 / 15), blocks)
    else:
        raise ValueError(f"no mistake {mistake!r}; there are {', '.join(MISTAKES)}")
    return made.reshape(array.shape)


def fresh(array: HostArray) -> HostArray:
    """A seeded random weight of the same shape: what a loader leaves in a head that the checkpoint does not name."""
    return np.random.default_rng(24).normal(0.0, FRESH, array.shape)


def _packing(operator: Operator, body: Body, site: Site) -> OtherWeight | None:
    """The largest weight matrix of a projection. Which mistake is made goes by the operator's name, so that all of them occur."""
    if operator.kind == "embedding":
        return None
    matrices = [
        k for k, (role, spec) in enumerate(zip(body.roles, body.inputs, strict=True))
        if role == "weight" and spec.dtype in FLOATS and len(spec.shape) >= 2 and spec.shape[-1] % BLOCK == 0 and spec.elements
    ]
    if not matrices:
        return None
    at = max(matrices, key=lambda k: body.inputs[k].elements)
    key = _keys(_graph(operator, site))[operator.inputs[at]]
    mistake = MISTAKES[hashlib.blake2b(operator.name.encode(), digest_size=2).digest()[0] % len(MISTAKES)]
    return OtherWeight(f"fault 15 ({mistake} of 4-bit weights)", operator.name, key, lambda array: misread(array, mistake))


def _head(operator: Operator, body: Body, site: Site) -> OtherWeight | None:
    """The output head: a tied one is left as it was initialised, an untied one gets the embedding."""
    graph = _graph(operator, site)
    keys = _keys(graph)
    tables = {keys[n.reads[0]]: n for n in graph.nodes if n.target == "aten.embedding.default" and n.reads[0] in keys}
    embeddings = {key: graph.specs[node.reads[0]] for key, node in tables.items()}
    if not set(operator.outputs) & set(graph.outputs):
        return None
    for name, role, spec in zip(operator.inputs, body.roles, body.inputs, strict=True):
        if role != "weight" or operator.kind == "embedding":
            continue
        alike = [key for key, other in embeddings.items() if other == spec]
        if keys[name] in alike:
            return OtherWeight("fault 24 (tied head left untied)", operator.name, keys[name], fresh)
        if alike:
            embedding = partial(_instead, site.run, alike[0])
            return OtherWeight("fault 24 (untied head tied)", operator.name, keys[name], embedding)
    return None


def _instead(run: RunFolder, key: str, array: HostArray) -> HostArray:
    return run.weight(key)


def _graph(operator: Operator, site: Site) -> Graph:
    return next(graph for graph in site.run.graphs if graph.name == operator.graph)


def _keys(graph: Graph) -> dict[str, str]:
    return {p.name: p.key for p in graph.weights}


CLASSES = (
    FaultClass(
        number=15, name="int4-packing", title="4-bit weights unpacked wrongly: order in a byte, zero point or sign",
        level="weights", stage="weights",
        imitates="A loader that has the layout of 4-bit blocks wrong. Made on the weights as they were unpacked, in blocks of 32 "
        "along the last dimension: where the model comes from a GGUF file of type Q4_0 or Q4_1 these are the file's own blocks; "
        "for any other model they are imagined. One of the three mistakes, by the operator's name.",
        seen_in=("ROCm/hip-ep#134", "ROCm/hip-ep#178"), cannot={}, place=_packing,
    ),
    FaultClass(
        number=24, name="tied-head", title="the output head has other weights than the model ties it to",
        level="weights", stage="weights",
        imitates="A loader that takes a tied head for an untied one and leaves it as initialised; for a model that is not tied, "
        "one that puts the embedding there. Kernels are right, so only the weights on the device can tell.",
        seen_in=("huggingface/transformers#43429",), cannot={}, place=_head,
    ),
)
