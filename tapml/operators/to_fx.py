"""A body as a `torch.fx.Graph`, for tools that read fx nodes (the compiler's importer).

Nothing is executed here and no tensor is made. Each node carries its recorded specs in `meta["specs"]`, so that a reader
can check its own shapes and dtypes against PyTorch's. Executing a body is `tapml.operators.execute`'s work.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from tapml.operators.graph import Body


def to_fx(body: Body) -> torch.fx.Graph:
    """Placeholders "i0", "i1", …, one call a node, and an output that is the tuple of the body's outputs.

    Raises ValueError for an operator that this PyTorch does not have."""
    graph = torch.fx.Graph()
    nodes: dict[str, torch.fx.Node] = {}
    for k, spec in enumerate(body.inputs):
        name = f"i{k}"
        nodes[name] = graph.create_node("placeholder", name, name=name)
        nodes[name].meta["specs"] = (spec,)
    for node in body.nodes:
        args = tuple(_argument(a, nodes) for a in node.args)
        kwargs = {k: _argument(v, nodes) for k, v in node.kwargs.items()}
        made = graph.create_node("call_function", _function(node.target), args, kwargs, name=node.name)
        made.meta["specs"] = node.outputs
        nodes[node.name] = made
    graph.output(tuple(nodes[name] for name in body.outputs))
    return graph


def _function(target: str) -> Callable[..., Any]:
    if target == "getitem":
        return operator.getitem
    found: Any = torch.ops
    try:
        for part in target.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ValueError(f"PyTorch {torch.__version__} has no operator {target}") from error
    assert callable(found)
    return found  # type: ignore[no-any-return]


def _argument(value: Any, nodes: dict[str, torch.fx.Node]) -> Any:
    if isinstance(value, list | tuple):
        return [_argument(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    (kind, content), = value.items()
    if kind == "ref":
        return nodes[content]
    if kind in ("dtype", "memory_format", "layout"):
        return getattr(torch, content)
    if kind == "device":
        return torch.device(content)
    if kind == "float":
        return float(content)
    raise ValueError(f"an argument of unknown kind {kind!r} in a body: {value!r}")
