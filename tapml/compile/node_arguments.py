"""Reading the arguments of an fx node, by position or by name, with tensors as Relax variables."""

from __future__ import annotations

from typing import Any

from tapml.tensors import TensorSpec


class Refusal(Exception):
    """Arguments that a conversion cannot take, and for which torch's decomposition of the operator does not give what its kernel
    gives. The message says which."""


def read(importer: Any, node: Any, position: int, name: str, default: Any = None) -> Any:
    """The argument at `position`, or the keyword `name`, or `default`. fx nodes become their Relax values, in lists too."""
    value = node.args[position] if position < len(node.args) else node.kwargs.get(name, default)
    return _resolved(importer, value)


def _resolved(importer: Any, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_resolved(importer, v) for v in value]
    return importer.env[value] if hasattr(value, "meta") and hasattr(value, "op") else value


def output(node: Any, k: int = 0) -> TensorSpec:
    spec: TensorSpec = node.meta["specs"][k]
    return spec


def axis(dim: int, rank: int) -> int:
    """A dimension counted from the end as one counted from the start; a scalar counts as one dimension."""
    return dim + max(rank, 1) if dim < 0 else dim
