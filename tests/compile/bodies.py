"""Bodies for the compiler's tests, made from calls of ATen operators on real tensors, and a runner for their programs.

    made = call("aten.add.Tensor", x, 1.5)          made.body, made.inputs, made.outputs (what PyTorch gives)
    check(made, "opencl", "simple")                 compiled here, run on the real driver, compared with PyTorch
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from tapml.carving.distance import distance
from tapml.compile.build import build
from tapml.devices.open import open_here
from tapml.devices.runner import ProgramRunner
from tapml.errors import UnavailableError
from tapml.kernels import Program
from tapml.operators.execute import host_from_tensor
from tapml.operators.graph import Body, Node
from tapml.targets.parse import parse
from tapml.targets.resolve import resolve
from tapml.targets.target import Target
from tapml.tensors import EPSILON, HostArray, TensorSpec, convert, spec_of


@dataclass(frozen=True, eq=False)
class Made:
    body: Body
    inputs: tuple[HostArray, ...]
    outputs: tuple[HostArray, ...]


def spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def call(target: str, *args: Any, **kwargs: Any) -> Made:
    """One call as a body: tensors among the arguments become its inputs. A tuple result is read by getitem nodes."""
    return chain([(target, args, kwargs)])


def chain(calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> Made:
    """Several calls; `Result(k)` among the arguments is the result of the k-th. All results of the last are outputs."""
    inputs: list[torch.Tensor] = []
    nodes: list[Node] = []
    results: list[tuple[str, Any]] = []

    def encoded(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            at = next((k for k, t in enumerate(inputs) if t is value), len(inputs))
            if at == len(inputs):
                inputs.append(value)
            return {"ref": f"i{at}"}
        if isinstance(value, Result):
            return {"ref": results[value.index][0]}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, float) and not np.isfinite(value):
            return {"float": str(value)}
        return [encoded(v) for v in value] if isinstance(value, list | tuple) else value

    def real(value: Any) -> Any:
        if isinstance(value, Result):
            return results[value.index][1]
        return [real(v) for v in value] if isinstance(value, list | tuple) else value

    value: Any = None
    for target, args, kwargs in calls:
        operator: Any = torch.ops
        for part in target.split("."):
            operator = getattr(operator, part)
        with without_onednn():
            value = operator(*[real(a) for a in args], **{k: real(v) for k, v in kwargs.items()})
        name = f"n{len(nodes)}"
        many = value if isinstance(value, list | tuple) else [value]
        nodes.append(Node(name, target, tuple(encoded(a) for a in args), {k: encoded(v) for k, v in kwargs.items()},
                          tuple(spec(v) for v in many)))
        results.append((name, value))
    outputs = [results[-1][0]]
    last = [value]
    if isinstance(value, list | tuple):
        outputs, last = [], list(value)
        for k, v in enumerate(value):
            outputs.append(f"n{len(nodes)}")
            nodes.append(Node(outputs[-1], "getitem", ({"ref": results[-1][0]}, k), {}, (spec(v),)))
    kind, specs = calls[-1][0].split(".")[1], tuple(spec(t) for t in inputs)
    body = Body(kind, specs, ("value",) * len(inputs), tuple(nodes), tuple(outputs))
    arrays = tuple(host_from_tensor(t.contiguous()) for t in inputs)
    return Made(body, arrays, tuple(host_from_tensor(t.contiguous()) for t in last))


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """PyTorch's own kernels: oneDNN's GELU of infinity is NaN on processors with AVX-512."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@dataclass(frozen=True)
class Result:
    index: int


@functools.cache
def opened(name: str) -> tuple[Target, ProgramRunner]:
    """The target narrowed to this machine's device, and a runner on it. Raises UnavailableError where there is none."""
    device = open_here(name, None)
    return resolve(parse(name), device.info), ProgramRunner(device)


def platform(name: str) -> tuple[Target, ProgramRunner]:
    """`opened`; skips the test where there is no device."""
    try:
        return opened(name)
    except UnavailableError as error:
        pytest.skip(f"{name}: {error}")


def compiled(made: Made, name: str, schedule: str) -> Program:
    return build(made.body, platform(name)[0], schedule, lambda stage: None)


def run(program: Program, made: Made, name: str) -> list[HostArray]:
    """The program's outputs in the body's dtypes, over poisoned memory."""
    results = platform(name)[1].run_once(program, made.inputs, poison=True)
    return [convert(r.reshape(e.shape), spec_of(e).dtype) for r, e in zip(results, made.outputs, strict=True)]


def check(made: Made, name: str, schedule: str) -> Program:
    """Compiles, runs and compares: within 32 roundings of the output's dtype, in the unit of `tolerance.distance`."""
    program = compiled(made, name, schedule)
    for actual, expected in zip(run(program, made, name), made.outputs, strict=True):
        bound = 32 * EPSILON.get(spec_of(expected).dtype, 0.0)
        error = distance(actual, expected)
        assert error <= bound, f"{made.body.nodes[0].target} on {name}/{schedule}: {error:.3g} > {bound:.3g}"
    return program
