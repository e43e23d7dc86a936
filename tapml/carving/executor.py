"""Whole graphs in PyTorch: the source while a model is carved.

    model = GraphExecutor(graphs, operators, bodies, weights, states, hook)     # a cut model as a Stepper
    model = GraphExecutor.uncut(graphs, weights, states)                        # the same, each graph run as a whole

Tensors that are passed around may be views of one another: nothing here writes to a tensor, and a hook must not either, nor keep
one without copying it. All of it runs on CPU and CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from tapml.operators.execute import body_function, host_from_tensor, tensor_from_host
from tapml.operators.graph import Body, Graph, Operator, renamed
from tapml.operators.overload import named_dtype
from tapml.runtime.walk import Walk
from tapml.tensors import HostArray, TensorSpec

Hook = Callable[[Operator, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]], None]


class GraphExecutor:
    """A cut model as a `tapml.runtime.protocol.Stepper`: runs each graph operator by operator, keeps the states between calls.

    `operators` hold those of all graphs, each graph's in execution order; `bodies` are by signature. `states` gives for each
    state its spec (it starts as zeros) or its first content. Weights decide the device. `hook(operator, inputs, outputs)` is
    called after each operator. States advance after the last operator, so all operators of a call see the old content.
    Values are freed after their last use. `dtype` and `seeded` are as for `body_function`: None is the source's own dtype.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        operators: Sequence[Operator],
        bodies: Mapping[str, Body],
        weights: Mapping[str, torch.Tensor],
        states: Mapping[str, TensorSpec | torch.Tensor],
        hook: Hook | None = None,
        dtype: torch.dtype | None = None,
        seeded: bool = True,
    ) -> None:
        self.hook = hook
        self.graphs, self.operators = tuple(graphs), tuple(operators)
        self.device = next((t.device for t in weights.values()), torch.device("cpu"))
        self._first = {key: first_content(value, self.device) for key, value in states.items()}
        self.states = dict(self._first)
        self._functions = {s: body_function(bodies[s], dtype, self.device, seeded) for s in {o.signature for o in operators}}
        self._weight = weights.__getitem__
        self._walks = {graph.name: Walk(graph, [o for o in operators if o.graph == graph.name]) for graph in graphs}

    @staticmethod
    def uncut(
        graphs: Sequence[Graph],
        weights: Mapping[str, torch.Tensor],
        states: Mapping[str, TensorSpec | torch.Tensor],
        dtype: torch.dtype | None = None,
        seeded: bool = True,
    ) -> GraphExecutor:
        """The model with each graph as one operator: what cutting must reproduce."""
        wholes = [_whole(graph) for graph in graphs]
        bodies = {o.signature: b for o, b in wholes}
        return GraphExecutor(graphs, [o for o, _ in wholes], bodies, weights, states, dtype=dtype, seeded=seeded)

    def reset(self) -> None:
        self.states = dict(self._first)

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        given = {key: tensor_from_host(array, self.device) for key, array in inputs.items()}
        return {key: host_from_tensor(tensor) for key, tensor in self.step_tensors(graph, given).items()}

    def step_tensors(self, graph: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`step` with torch tensors, which may lie on any device; the outputs lie on the model's."""
        walk, weight = self._walks[graph], self._weight
        with torch.inference_mode():
            values = walk.begin({key: tensor.to(self.device) for key, tensor in inputs.items()}, self.states)
            for step in walk.steps:
                given = step.read(values, weight)
                made = self._functions[step.operator.signature](given)
                if self.hook is not None:
                    self.hook(step.operator, tuple(given), made)
                step.done(values, made)
        self.states.update(walk.advanced(values, weight))
        return walk.outputs(values, weight)


def run_graph(
    graph: Graph,
    weights: Mapping[str, torch.Tensor],
    states: Mapping[str, torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One call of a graph that is not cut: its outputs by key, and the next content of the states that it writes."""
    executor = GraphExecutor.uncut([graph], weights, states)
    outputs = executor.step_tensors(graph.name, inputs)
    return outputs, {key: executor.states[key] for key in graph.mutations}


def _whole(graph: Graph) -> tuple[Operator, Body]:
    """A graph as a single operator. Node names stay: its body is for running only, not for comparing."""
    names = {p.name: f"i{k}" for k, p in enumerate(graph.placeholders)}
    names |= {n.name: f"n{k}" for k, n in enumerate(graph.nodes)}
    nodes = tuple(renamed(node, names) for node in graph.nodes)
    outputs = tuple(dict.fromkeys((*graph.outputs, *graph.mutations.values())))
    inputs = tuple(p.spec for p in graph.placeholders)
    body = Body("graph", inputs, tuple(p.role for p in graph.placeholders), nodes, tuple(names[o] for o in outputs))
    operator = Operator(
        graph.name, graph.name, "graph", body.signature, tuple(p.name for p in graph.placeholders), outputs,
        tuple(n.name for n in graph.nodes), "",
    )
    return operator, body


def first_content(value: TensorSpec | torch.Tensor, device: torch.device) -> torch.Tensor:
    """What a state holds before the first call: the tensor that is given, or zeros of the spec."""
    if isinstance(value, TensorSpec):
        return torch.zeros(value.shape, dtype=named_dtype(value.dtype), device=device)
    return value.to(device)
