"""The specs of every value of a body, found by running it on tensors without content: PyTorch's "meta" device computes shapes
and dtypes only.

    whole = inferred(body)                       the body with each node's `outputs` as they really come out; None if it does
    not run value = run_node(node, values)               one node over such values, for a search that goes node by node

A body whose sizes were rewritten runs exactly when PyTorch accepts its shapes; nothing here knows any operator. What depends on
content (an index out of range) does not show here: run the body on data for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tapml.errors import ModelError
from tapml.operators.execute import _Instruction
from tapml.operators.graph import Body, Node
from tapml.operators.overload import named_dtype
from tapml.tensors import NUMPY, TensorSpec

_META = torch.device("meta")

# What PyTorch raises for shapes, dtypes and arguments that do not go together.
_REFUSALS = (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError, ModelError)


def placeholder(spec: TensorSpec) -> Any:
    """A value of this shape and dtype, without content."""
    return torch.empty(spec.shape, dtype=named_dtype(spec.dtype), device=_META)


def run_node(node: Node, values: Mapping[str, Any]) -> Any | None:
    """The result of a node over the values that it reads; a tuple where the node gives several tensors. None when PyTorch
    refuses."""
    slots = {name: k for k, name in enumerate(node.reads)}
    slots[node.name] = len(slots)
    try:
        with torch.inference_mode():
            instruction = _Instruction(node, slots, (), None, _META)
            room = [*(values[name] for name in node.reads), None]
            instruction.run(room)
    except _REFUSALS:
        return None
    return room[-1]


def specs(value: Any) -> tuple[TensorSpec, ...] | None:
    """Specs of a result; None for a dtype that TapML does not carry."""
    tensors = value if isinstance(value, list | tuple) else (value,)
    found = tuple(TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors)
    return found if all(s.dtype in NUMPY for s in found) else None


def inferred(body: Body) -> Body | None:
    """The same body with the specs that its nodes really give; None when a node does not run."""
    values = {f"i{k}": placeholder(spec) for k, spec in enumerate(body.inputs)}
    nodes: list[Node] = []
    for node in body.nodes:
        result = run_node(node, values)
        found = None if result is None else specs(result)
        if found is None:
            return None
        values[node.name] = result
        nodes.append(replace(node, outputs=found))
    return replace(body, nodes=tuple(nodes))
