"""Every operator of whole small models: compiled as `migrate` would, run on the real driver on what the model really saw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch

from tapml.carving.distance import distance
from tapml.carving.executor import GraphExecutor
from tapml.compile.build import build
from tapml.operators.cut import cut
from tapml.operators.execute import host_from_tensor
from tapml.operators.graph import Body, Operator
from tapml.runtime.decoder import Decoder
from tapml.source.export import export
from tapml.source.load import load
from tapml.targets.known import TARGETS
from tapml.tensors import EPSILON, convert, spec_of
from tests import models
from tests.compile.bodies import HostArray, platform


@dataclass(frozen=True, eq=False)
class Seen:
    """One call of each signature."""

    body: Body
    inputs: list[HostArray]
    outputs: list[HostArray]


@cache
def seen_by(name: str) -> list[Seen]:
    """What each signature saw last: two prefill chunks and a decode step of a decoder, one call of another module."""
    if name in ("conv_net", "encoder"):
        module, inputs = getattr(models, name)()
        model = load(module, example_inputs=inputs)
    else:
        model = load(models.causal_lm(name))
    exported = export(model, chunk=8, max_len=32)
    operators: list[Operator] = []
    bodies: dict[str, Body] = {}
    for graph in exported.graphs:
        found, own = cut(graph)
        operators += found
        bodies |= own
    seen: dict[str, Seen] = {}

    def hook(operator: Operator, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        arrays = [[host_from_tensor(t).copy() for t in tensors] for tensors in (inputs, outputs)]
        seen[operator.signature] = Seen(bodies[operator.signature], *arrays)

    states = {key: exported.initial.get(key, spec) for key, spec in exported.states.items()}
    executor = GraphExecutor(exported.graphs, operators, bodies, exported.tensors, states, hook)
    if not isinstance(exported.protocol, Decoder):
        executor.step_tensors(exported.graphs[0].name, exported.examples)
    else:
        for each in exported.protocol.forced(range(3, 16), [5]):
            executor.step(each.graph, each.inputs)
    assert set(seen) == set(bodies)
    return list(seen.values())


@pytest.mark.parametrize(("name", "target"), [
    ("llama", "opencl"), ("mixtral", "opencl"), ("gpt2", "opencl"), ("bloom", "opencl"), ("conv_net", "opencl"),
    ("encoder", "opencl"), ("phi3", "opencl"),
    ("gemma2", "vulkan"), ("gpt_bigcode", "vulkan"), ("conv_net", "vulkan"),
])
def test_every_operator_of(name: str, target: str) -> None:
    resolved, runner = platform(target)
    wrong: list[str] = []
    for each in seen_by(name):
        program = build(each.body, resolved, resolved.schedules[0], lambda stage: None)
        results = runner.run_once(program, each.inputs, poison=True)
        for actual, expected in zip(results, each.outputs, strict=True):
            dtype = spec_of(expected).dtype
            error = distance(convert(actual.reshape(expected.shape), dtype), expected)
            if error > 64 * EPSILON.get(dtype, 0.0):
                wrong.append(f"{each.body.kind} {each.body.signature}: {error:.3g}")
    assert not wrong


@pytest.mark.parametrize(("target", "word"), [("cuda", "__global__"), ("metal", "kernel void")])
def test_text_is_generated_for_targets_that_nothing_here_runs(target: str, word: str) -> None:
    for seen in seen_by("llama"):
        if target == "metal" and seen.body.kind not in ("mask", "embedding", "rms_norm"):
            continue  # one matrix product takes the compiler the better part of a minute there
        program = build(seen.body, TARGETS[target], TARGETS[target].schedules[0], lambda stage: None)
        assert all(word in kernel.source and kernel.entry in kernel.source for kernel in program.kernels)
