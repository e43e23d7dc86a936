"""Integers inside an operator that do not fit what a target stores them in.

    inside = Inside.of(body, "int32")           int64 is stored so; None where there is nothing to look at
    words = inside.beyond(inputs)               "inside it, aten.mul.Tensor gives 6000000000, and …", or ""

Where int64 lies in 32 bits, sums, differences and products wrap. What comes out is right as long as nothing is asked of a wrapped
number but sums, differences, products and low bits, and the end fits again. A quotient, a remainder, a comparison, a conversion
to float of one is wrong, or right by chance. So the operator is run in PyTorch on the inputs of a test, node by node, and what
is asked of a value beyond 32 bits is looked at. int64's own limits do not count: they stand for "no limit", and become int32's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tapml.operators.execute import NodeByNode, tensor_from_host
from tapml.operators.graph import Body, Node
from tapml.tensors import NUMPY, HostArray

# What gives the same low bits of its result for all numbers with the same low bits: it calculates with them, or moves them.
_BY_LOW_BITS = frozenset((
    "add", "sub", "rsub", "mul", "neg", "square", "addcmul", "sum", "prod", "cumsum", "cumprod", "dot", "mv", "mm", "bmm",
    "matmul", "addmm", "baddbmm", "scatter_add", "index_add",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "__and__", "__or__", "__xor__", "bitwise_left_shift", "__lshift__",
    "_to_copy", "to", "convert_element_type", "clone", "alias", "detach", "contiguous", "copy", "view", "_unsafe_view", "reshape",
    "permute", "transpose", "t", "expand", "slice", "select", "narrow", "squeeze", "unsqueeze", "cat", "stack", "split",
    "split_with_sizes", "chunk", "unbind", "flip", "roll", "repeat", "index_select", "gather", "index", "where", "masked_fill",
    "constant_pad_nd", "tril", "triu", "diagonal", "movedim",
))  # fmt: skip


class Inside:
    """See the module's docstring. `places` are the nodes to look at."""

    def __init__(self, body: Body, places: Sequence[int], stored: str) -> None:
        self._body = body
        self._places = frozenset(places)
        self._stored = stored
        self._steps = NodeByNode(body)

    @staticmethod
    def of(body: Body, stored: str) -> Inside | None:
        """None where 64 bits are stored, or where nothing but low bits is asked of the integers that the body computes."""
        if NUMPY[stored].itemsize == 8:
            return None
        asked = {name for node in body.nodes if not _by_low_bits(node) for name in node.reads}
        places = [
            k for k, node in enumerate(body.nodes) if node.name in asked and [s.dtype for s in node.outputs] == ["int64"]
        ]
        return Inside(body, places, stored) if places else None

    def beyond(self, inputs: Sequence[HostArray]) -> str:
        """What of these inputs makes an integer that does not fit, and which; "" where all fit."""
        low, high = (int(f) for f in (np.iinfo(NUMPY[self._stored]).min, np.iinfo(NUMPY[self._stored]).max))
        endless = torch.iinfo(torch.int64)
        with torch.inference_mode():
            values = self._steps.begin([tensor_from_host(a) for a in inputs])
            for k in range(max(self._places) + 1):
                made = self._steps.run(k, values)
                if k not in self._places:
                    continue
                far = made[((made < low) | (made > high)) & (made != endless.min) & (made != endless.max)]
                if far.numel():
                    return (
                        f"inside it, {self._body.nodes[k].target} gives {int(far.flatten()[0])}, and this target stores int64 as "
                        f"{self._stored}"
                    )
        return ""


def _by_low_bits(node: Node) -> bool:
    if node.target == "getitem":
        return True
    name = node.target.split(".")[1]
    return name in _BY_LOW_BITS and all(spec.dtype.startswith(("int", "uint")) for spec in node.outputs)
