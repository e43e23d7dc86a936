"""Exported programs for the tests of this folder, and the checks that every cut model must pass.

`programs(arch)` exports one of the small causal language models as the source stage does; `program(module, inputs)` any module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import torch

from tapml.carving.executor import GraphExecutor, run_graph
from tapml.operators.cut import cut
from tapml.operators.from_fx import graph_from_exported
from tapml.operators.graph import Body, Graph, Operator
from tapml.source import export as source_export
from tapml.source.model import LoadedModel
from tapml.source.trace import trace
from tests.models import causal_lm


@dataclass(frozen=True, eq=False)
class Program:
    """A graph, and the exported program that it came from."""

    graph: Graph
    weights: dict[str, torch.Tensor]
    exported: torch.export.ExportedProgram
    strip_prefix: str = ""


def programs(arch: str) -> tuple[Program, Program]:
    """Prefill (a chunk of 8) and decode of a small model with a cache of 40 positions."""
    return decoder(arch)[1:]


@cache
def decoder(arch: str) -> tuple[source_export.Exported, Program, Program]:
    """A small model as the source stage exports it, and its programs."""
    return of_model(causal_lm(arch), max_len=40)


def of_model(
    model: torch.nn.Module, chunk: int = 8, max_len: int = 16
) -> tuple[source_export.Exported, Program, Program]:
    traced: list[torch.export.ExportedProgram] = []

    def record(*args: Any) -> torch.export.ExportedProgram:
        traced.append(trace(*args))
        return traced[-1]

    with patch.object(source_export, "trace", record):
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        exported = source_export.export(LoadedModel(model, "causal_lm", "test", "test", dtype), chunk=chunk, max_len=max_len)
    prefill, decode = (
        Program(graph, exported.tensors, program, "model") for graph, program in zip(exported.graphs, traced[-2:], strict=True)
    )
    return exported, prefill, decode


def program(module: torch.nn.Module, inputs: dict[str, torch.Tensor], outputs: Sequence[str] = ("output",)) -> Program:
    exported = trace(module.eval(), inputs)
    graph, weights = graph_from_exported("forward", exported, module, tuple(inputs), tuple(outputs))
    return Program(graph, weights, exported)


def random_inputs(graph: Graph, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs and states: random numbers, token ids, and positions in the middle of the cache."""
    random = torch.Generator().manual_seed(seed)
    inputs: dict[str, torch.Tensor] = {}
    for placeholder in graph.inputs:
        shape = placeholder.spec.shape
        if placeholder.key == "position_ids":
            inputs[placeholder.key] = torch.arange(3, 3 + shape[-1])[None]
        elif placeholder.spec.dtype.startswith("int"):
            inputs[placeholder.key] = torch.randint(0, 2 if placeholder.key == "attention_mask" else 7, shape, generator=random)
        else:
            inputs[placeholder.key] = torch.randn(shape, generator=random).to(getattr(torch, placeholder.spec.dtype))
    states = {
        p.key: torch.randn(p.spec.shape, generator=random).to(getattr(torch, p.spec.dtype)) for p in graph.states
    }
    return inputs, states


def check_cut(graph: Graph, operators: Sequence[Operator], bodies: dict[str, Body]) -> None:
    """Each node in exactly one operator, in an order in which everything is there before it is read."""
    placed = [name for operator in operators for name in operator.nodes]
    assert sorted(placed) == sorted(node.name for node in graph.nodes)
    there = {p.name for p in graph.placeholders}
    for operator in operators:
        body = bodies[operator.signature]
        assert set(operator.inputs) <= there, operator.name
        assert body.signature == operator.signature and body.kind == operator.kind
        assert [graph.specs[name] for name in operator.inputs] == list(body.inputs)
        assert tuple(graph.specs[name] for name in operator.outputs) == body.output_specs
        there.update(operator.outputs)
    assert {*graph.outputs, *graph.mutations.values()} <= there
    names = [operator.name for operator in operators]
    assert len(set(names)) == len(names)


def check_values(found: Program, seed: int = 0) -> None:
    """The cut graph gives bit for bit what the graph gives, and that is what the exported program gives."""
    graph = found.graph
    operators, bodies = cut(graph)
    check_cut(graph, operators, bodies)
    inputs, states = random_inputs(graph, seed)
    executor = GraphExecutor([graph], operators, bodies, found.weights, states)
    outputs = executor.step_tensors(graph.name, inputs)
    plain, advanced = run_graph(graph, found.weights, states, inputs)
    module = found.exported.module()
    buffers = dict(module.named_buffers(remove_duplicate=False))
    buffers |= {key.removeprefix(found.strip_prefix + "."): value for key, value in buffers.items()}
    with torch.no_grad():
        before = {key: buffers[key].clone() for key in states}
        for key, value in states.items():
            buffers[key].copy_(value)
        expected = module(**{key: inputs[key] for key in inputs})
        after = {key: buffers[key].clone() for key in states}
        for key, value in before.items():
            buffers[key].copy_(value)
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(expected) if isinstance(leaf, torch.Tensor)]
    for key, leaf in zip(graph.output_keys, leaves, strict=True):
        assert same(outputs[key], plain[key]) and same(outputs[key], leaf), f"{graph.name}: {key}"
    for key in graph.mutations:
        assert same(executor.states[key], advanced[key]) and same(executor.states[key], after[key]), f"{graph.name}: {key}"


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal bit for bit, a NaN being equal to a NaN."""
    return first.dtype == second.dtype and torch.equal(torch.nan_to_num(first), torch.nan_to_num(second)) and torch.equal(
        torch.isnan(first), torch.isnan(second)
    )
