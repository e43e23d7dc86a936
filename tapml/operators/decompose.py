"""A node that a compiler has no conversion for, written with operators that it has: torch's own decompositions.

    simpler = decomposed(body, {"n3"}, known)       # n3 and what it breaks into, until every operator is known

torch defines hundreds of operators as compositions of others, by a Python function (`torch._decomp`) or by the kernel that its
dispatcher uses when no backend has one. The recorded operator stays what the model calls; only what the compiler reads changes,
and the kernels are compared with what the whole operator returned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tapml.operators.execute import Slot, filled
from tapml.operators.from_fx import graph_from_exported
from tapml.operators.graph import Body, Graph, Node, rename
from tapml.operators.overload import named_dtype
from tapml.operators.own_decompositions import OWN
from tapml.operators.to_fx import argument, function
from tapml.tensors import TensorSpec

# A decomposition may use others; none of torch's goes deeper than this.
_ROUNDS = 4


class NoDecomposition(Exception):
    """torch has no decomposition of the operator; the message says which, or why what it has is of no use."""


def decomposed(body: Body, names: Collection[str], known: Callable[[str], bool]) -> Body:
    """The body with the nodes of these names replaced by what they are made of. `known` says for the name of an overload
    ("add.Tensor") whether it may stay. Outputs keep their order, dtypes and shapes. Raises NoDecomposition."""
    specs: dict[str, tuple[TensorSpec, ...]] = {f"i{k}": (spec,) for k, spec in enumerate(body.inputs)}
    specs |= {node.name: node.outputs for node in body.nodes}
    renamed: dict[str, str] = {}
    parts: dict[str, tuple[str, ...]] = {}
    nodes: list[Node] = []
    for node in body.nodes:
        node = replace(node, args=tuple(rename(list(node.args), _Same(renamed))), kwargs=rename(node.kwargs, _Same(renamed)))
        if node.target == "getitem" and node.args[0]["ref"] in parts:
            renamed[node.name] = parts[node.args[0]["ref"]][node.args[1]]
            continue
        if node.name not in names:
            nodes.append(node)
            continue
        graph, given = _traced(node, specs, known)
        inner = {p.name: ref for p, ref in zip(graph.placeholders, given, strict=True)}
        for k, each in enumerate(graph.nodes):
            inner[each.name] = f"{node.name}_{k}"
            args, kwargs = tuple(rename(list(each.args), inner)), rename(each.kwargs, inner)
            nodes.append(replace(each, name=inner[each.name], args=args, kwargs=kwargs, module=node.module, source=node.source))
            specs[inner[each.name]] = each.outputs
        made = tuple(inner[name] for name in graph.outputs)
        if len(node.outputs) == 1:
            renamed[node.name] = made[0]
        else:
            parts[node.name] = made
    outputs = tuple(renamed.get(name, name) for name in body.outputs)
    return replace(body, nodes=tuple(nodes), outputs=outputs)


class _Same(dict[str, str]):
    """Names that are not renamed stay."""

    def __missing__(self, name: str) -> str:
        return name


class _Call(torch.nn.Module):  # type: ignore[misc]
    """One call as a module over its tensors, as our own decomposition has it where there is one."""

    def __init__(
        self, target: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], outputs: tuple[TensorSpec, ...]
    ) -> None:  # fmt: skip
        super().__init__()
        self._call = (OWN.get(target, target), args, kwargs)
        self._more = outputs[1:]

    def forward(self, *tensors: torch.Tensor) -> Any:
        target, args, kwargs = self._call
        made = target(*filled(args, tensors), **{key: filled(value, tensors) for key, value in kwargs.items()})
        if not self._more or not isinstance(made, torch.Tensor):
            return made
        return made, *(torch.zeros(spec.shape, dtype=named_dtype(spec.dtype)) for spec in self._more)


def _traced(node: Node, specs: dict[str, tuple[TensorSpec, ...]], known: Callable[[str], bool]) -> tuple[Graph, list[str]]:
    """What the node is made of, as a graph, and the names of the values that its placeholders are."""
    given = list(node.reads)
    places = {name: Slot(k) for k, name in enumerate(given)}
    kwargs = {key: argument(value, places) for key, value in node.kwargs.items()}
    call = _Call(function(node.target), argument(list(node.args), places), kwargs, node.outputs)
    with FakeTensorMode():
        tensors = tuple(torch.empty(specs[name][0].shape, dtype=named_dtype(specs[name][0].dtype)) for name in given)
    try:
        with torch.no_grad():
            program = torch.export.export(call.eval(), tensors, strict=False)
            for _ in range(_ROUNDS):
                table = _table(program, node.target, known)
                if not table:
                    break
                program = program.run_decompositions(table)
        keys = tuple(f"t{k}" for k in range(len(given)))
        graph, weights = graph_from_exported("part", program, None, keys, tuple(f"o{k}" for k in range(len(node.outputs))))
    except Exception as error:
        # Whatever tracing raises, the operator has no decomposition here.
        raise NoDecomposition(f"torch does not decompose {node.target} ({type(error).__name__}: {error})") from error
    if weights:
        raise NoDecomposition(f"torch's decomposition of {node.target} has a table of constants")
    if any(n.target == node.target and not known(overload_of(n)) for n in graph.nodes):
        raise NoDecomposition(f"torch has no decomposition of {node.target}")
    made = tuple(graph.specs[name] for name in graph.outputs)
    if made != node.outputs:
        raise NoDecomposition(f"torch's decomposition of {node.target} gives {made}, not {node.outputs}")
    return graph, [given[int(p.key[1:])] for p in graph.placeholders]


@cache
def _core_decompositions() -> Any:
    """Of a thousand operators, which takes a while to make."""
    return torch.export.default_decompositions()


def _table(program: Any, target: str, known: Callable[[str], bool]) -> dict[Any, Callable[..., Any]]:
    """How each operator of the program that may not stay is decomposed."""
    core, more = _core_decompositions(), torch._decomp.decomposition_table
    found: dict[Any, Callable[..., Any]] = {}
    for fx in program.graph.nodes:
        if isinstance(fx.target, torch._ops.OpOverload) and not known(fx.target.__name__):
            parts = OWN.get(fx.target) or (core[fx.target] if fx.target in core else more.get(fx.target))
            if parts is not None:
                found[fx.target] = parts
    return found


def overload_of(node: Node) -> str:
    """"add.Tensor" for a node of aten.add.Tensor."""
    return node.target.partition(".")[2]
