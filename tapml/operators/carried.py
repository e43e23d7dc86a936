"""Values of a dtype that no target and no file has, in one that both have: how they go from one operator to another.

    pairs = carried(tensor)                      complex64 [2, 4] → float32 [2, 4, 2]; uint16 → int16 with the same bits
    tensor = original(pairs, torch.complex64)    the way back
    names = COMPLEX, CARRIED_AS                  in `tapml.tensors`

Inputs, outputs, weights and states of a model that have such a dtype are handed over in this form as well. An operator that has
such a value within it stays on the source (`tapml.operators.stays`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tapml.operators.graph import Node
from tapml.tensors import CARRIED_AS, COMPLEX, TensorSpec

# What nodes are that only change the form of a value.
FORMS = ("aten.resolve_conj.default", "aten.view_as_real.default", "aten.view_as_complex.default")


def carried(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as operators hand it on; itself where its dtype is one that they do."""
    name = _name(tensor.dtype)
    if name in COMPLEX:
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.view(getattr(torch, CARRIED_AS[name])) if name in CARRIED_AS else tensor.resolve_neg()


def original(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What `carried` was given, in a dtype of the same sort: complex numbers as wide as the tensor's."""
    name = _name(dtype)
    if name in COMPLEX:
        return as_complex(tensor)
    return tensor.view(dtype) if name in CARRIED_AS else tensor


def as_complex(pairs: torch.Tensor) -> torch.Tensor:
    """`torch.view_as_complex`, which wants pairs that begin at even places of memory, whatever made them."""
    return torch.view_as_complex(pairs.clone(memory_format=torch.contiguous_format))


def encoded(name: str, value: str, spec: TensorSpec, module: str, source: str) -> list[Node]:
    """Nodes that make `name`, the form to hand on, of a value of this spec."""
    reference = {"ref": value}
    if spec.dtype in COMPLEX:
        plain = Node(f"{name}_plain", "aten.resolve_conj.default", (reference,), {}, (spec,), module, source)
        pairs = Node(name, "aten.view_as_real.default", ({"ref": plain.name},), {}, (spec.carried,), module, source)
        return [plain, pairs]
    return [Node(name, "aten.view.dtype", (reference, {"dtype": spec.carried.dtype}), {}, (spec.carried,), module, source)]


def decoded(name: str, value: str, spec: TensorSpec, module: str, source: str) -> Node:
    """The node that makes `name`, a value of this spec, of what was handed on."""
    reference = {"ref": value}
    if spec.dtype in COMPLEX:
        return Node(name, "aten.view_as_complex.default", (reference,), {}, (spec,), module, source)
    return Node(name, "aten.view.dtype", (reference, {"dtype": spec.dtype}), {}, (spec,), module, source)


def widened(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The module with its floating point weights in `dtype`, its complex ones as wide. `Module.to` would drop imaginary parts."""
    return module._apply(_cast(dtype))


def _cast(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64

    def cast(tensor: torch.Tensor) -> Any:
        return tensor.to(wide) if tensor.is_complex() else tensor.to(dtype) if tensor.is_floating_point() else tensor

    return cast


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
