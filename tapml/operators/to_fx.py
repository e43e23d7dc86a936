"""A body as a `torch.fx.Graph`, for tools that read fx nodes (the compiler's importer).

Nothing is executed here and no tensor is made. Each node carries its recorded specs in `meta["specs"]`, so that a reader
can check its own shapes and dtypes against PyTorch's. Executing a body is `tapml.operators.execute`'s work.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tapml.operators.graph import Body
from tapml.operators.overload import literal, marked, overload


def to_fx(body: Body) -> torch.fx.Graph:
    """Placeholders "i0", "i1", …, one call a node, and an output that is the tuple of the body's outputs.

    Raises ModelError for an operator that this PyTorch does not have, and for one that a body may not call."""
    graph = torch.fx.Graph()
    nodes: dict[str, torch.fx.Node] = {}
    for k, spec in enumerate(body.inputs):
        name = f"i{k}"
        nodes[name] = graph.create_node("placeholder", name, name=name)
        nodes[name].meta["specs"] = (spec,)
    for node in body.nodes:
        args = tuple(argument(a, nodes) for a in node.args)
        kwargs = {k: argument(v, nodes) for k, v in node.kwargs.items()}
        made = graph.create_node("call_function", function(node.target), args, kwargs, name=node.name)
        made.meta["specs"] = node.outputs
        nodes[node.name] = made
    graph.output(tuple(nodes[name] for name in body.outputs))
    return graph


def function(target: str) -> Callable[..., Any]:
    """What a node's target names."""
    if target == "getitem":
        return operator.getitem
    found: Callable[..., Any] = overload(target)
    return found


def argument(value: Any, nodes: Mapping[str, Any]) -> Any:
    """A node's argument with the values that it refers to."""
    if isinstance(value, list | tuple):
        return [argument(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    what, word = marked(value)
    return nodes[word] if what == "ref" else literal(what, word)
