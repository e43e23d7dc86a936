"""Calls that read the memory of a tensor instead of its elements: `as_strided`, `resize`. A graph has no memory, only values.

    base, order = memory_of(node)         the traced tensor whose elements, permuted by `order`, are that memory from its begin
    strided(reader, node)                 the call, appended as calls on values

A view sees part of a memory, in some order; the tensor from which the views were made has all of it. Where no tensor of the trace
has (an input that is a view of something larger), nothing says what such a call reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tapml.tensors import TensorSpec

Make = Callable[[str, tuple[Any, ...], dict[str, Any], TensorSpec], dict[str, str]]


def memory_of(node: torch.fx.Node) -> tuple[torch.fx.Node, list[int]] | None:
    """None where no tensor of the trace has all of it."""
    while True:
        order = _order(node.meta["val"])
        if order is not None:
            return node, order
        call: Any = node.target
        returns = call._schema.returns if isinstance(call, torch._ops.OpOverload) else []
        viewed = node.args[0] if len(returns) == 1 and returns[0].alias_info is not None else None
        if not isinstance(viewed, torch.fx.Node):
            return None
        node = viewed


def _order(tensor: torch.Tensor) -> list[int] | None:
    """The dimensions from the slowest to the fastest, of a tensor that fills its memory."""
    order = sorted(range(tensor.dim()), key=lambda k: (-tensor.stride(k), k))
    step = 1
    for k in reversed(order):
        if tensor.shape[k] != 1 and tensor.stride(k) != step:
            return None
        step *= tensor.shape[k]
    whole = tensor.untyped_storage().nbytes() // tensor.element_size() == tensor.numel()
    return order if whole and not tensor.storage_offset() else None


def flat(value: dict[str, str], spec: TensorSpec, order: list[int], make: Make) -> dict[str, str]:
    """The memory of a value [its elements]."""
    if order != list(range(len(order))):
        shape = tuple(spec.shape[k] for k in order)
        value = make("aten.permute.default", (value, order), {}, TensorSpec(shape, spec.dtype))
    return make("aten.reshape.default", (value, [spec.elements]), {}, TensorSpec((spec.elements,), spec.dtype))


def strided(fx: torch.fx.Node, value: dict[str, str], spec: TensorSpec, order: list[int], made: TensorSpec, make: Make) -> Any:
    """`as_strided` of a tensor whose memory is that of `value`."""
    size, stride = fx.args[1], fx.args[2]
    offset = fx.args[3] if len(fx.args) > 3 else fx.kwargs.get("storage_offset")
    if offset is None:
        offset = fx.args[0].meta["val"].storage_offset()
    return make("aten.as_strided.default", (flat(value, spec, order, make), list(size), list(stride), offset), {}, made)


def scattered(
    fx: torch.fx.Node, value: dict[str, str], source: dict[str, str], spec: TensorSpec, order: list[int], make: Make
) -> Any:
    """`as_strided_scatter` into a tensor that fills its memory."""
    size, stride = fx.args[2], fx.args[3]
    offset = fx.args[4] if len(fx.args) > 4 else fx.kwargs.get("storage_offset")
    memory = TensorSpec((spec.elements,), spec.dtype)
    written = (flat(value, spec, order, make), source, list(size), list(stride), offset or 0)
    found = make("aten.as_strided_scatter.default", written, {}, memory)
    shape = tuple(spec.shape[k] for k in order)
    found = make("aten.reshape.default", (found, list(shape)), {}, TensorSpec(shape, spec.dtype))
    back = sorted(range(len(order)), key=order.__getitem__)
    return make("aten.permute.default", (found, back), {}, spec)


def resized(
    value: dict[str, str], spec: TensorSpec, order: list[int], offset: int, made: TensorSpec, make: Make
) -> dict[str, str]:
    """Another size of a tensor: the first elements of its memory, and zeros where PyTorch leaves the new ones undefined."""
    found, count, wanted = flat(value, spec, order, make), spec.elements, math.prod(made.shape)
    taken = min(count - offset, wanted)
    if taken < count:
        found = make("aten.slice.Tensor", (found, 0, offset, offset + taken), {}, TensorSpec((taken,), made.dtype))
    if wanted > taken:
        more = TensorSpec((wanted - taken,), made.dtype)
        zeros = make("aten.full.default", ([wanted - taken], 0), {"dtype": {"dtype": made.dtype}}, more)
        found = make("aten.cat.default", ([found, zeros],), {}, TensorSpec((wanted,), made.dtype))
    return make("aten.reshape.default", (found, list(made.shape)), {}, made)
