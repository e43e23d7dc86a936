"""Running bodies and cut graphs in PyTorch: the source that every target is compared with.

    f = body_function(body)                                    # torch tensors in, torch tensors out
    oracle = body_function(body, torch.float64)                # the same computation in float64
    g = host_function(body)                                    # numpy in, numpy out, for callers that do not import torch
    model = GraphExecutor(graphs, operators, bodies, weights, states, hook)     # a cut model as a Stepper
    model = GraphExecutor.uncut(graphs, weights, states)                        # the same, each graph run as a whole

A node that draws random numbers draws the same ones at each call, since it has a seed of its own: `seeded=False` takes PyTorch's
generator as it stands, as the model itself does. A node that has no counterpart in another dtype (`stays.in_own_dtype`) computes
in its own where the rest is asked for in `dtype`.

Tensors that are passed around may be views of one another: nothing here writes to a tensor, and a hook must not either, nor keep
one without copying it. All of it runs on CPU and CUDA.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import torch

from tapml.errors import ModelError
from tapml.operators.carried import as_complex
from tapml.operators.graph import Body, Graph, Node, Operator, renamed
from tapml.operators.loops import loop
from tapml.operators.overload import literal, marked, named_dtype, overload, values_of, without_strides
from tapml.operators.parts import call_part
from tapml.operators.stays import PART, SIZED, in_own_dtype, is_random, word_of_target
from tapml.tensors import FLOATS, HostArray, TensorSpec

Tensors = Sequence[torch.Tensor]
BodyFunction = Callable[[Tensors], tuple[torch.Tensor, ...]]
HostFunction = Callable[[Sequence[HostArray]], tuple[HostArray, ...]]
Hook = Callable[[Operator, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]], None]

_turn = threading.RLock()


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """PyTorch's default dtype inside of it; None leaves it as it is. There is one for all threads, so whoever computes with it,
    with None as well, has it alone."""
    with _turn:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or before)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def body_function(
    body: Body, dtype: torch.dtype | None = None, device: str | torch.device = "cpu", seeded: bool = True
) -> BodyFunction:
    """The body as a function of its inputs in order, giving its outputs in order.

    With `dtype` (a floating point one) every floating point number in it has that dtype instead: inputs are cast, dtypes named in
    the body are replaced, and PyTorch's default dtype is `dtype` during a call. Threads may call at once; they take turns.
    `device` is where tensors that the body makes from nothing are put; inputs are expected there. Raises ModelError for an
    operator that this PyTorch does not have.
    """
    slots = {f"i{k}": k for k in range(len(body.inputs))}
    for node in body.nodes:
        slots[node.name] = len(slots)
    outputs = tuple(slots[name] for name in body.outputs)
    frees = _frees([[slots[r] for r in node.reads] for node in body.nodes], keep=set(outputs))
    specs, place = _specs(body), torch.device(device)
    plan = [_Instruction(n, slots, free, dtype, place, specs, seeded) for n, free in zip(body.nodes, frees, strict=True)]
    spare: list[Any] = [None] * len(body.nodes)

    def run(inputs: Tensors) -> tuple[torch.Tensor, ...]:
        values = [*_cast(inputs, dtype), *spare]
        with default_dtype(dtype):
            for step in plan:
                step.run(values)
        return tuple([values[k] for k in outputs])

    return run


def _cast(inputs: Tensors, dtype: torch.dtype | None) -> Tensors:
    return inputs if dtype is None else [t.to(dtype) if t.is_floating_point() else t for t in inputs]


def _specs(body: Body) -> dict[str, TensorSpec]:
    """Of the values that are one tensor."""
    found = {f"i{k}": spec for k, spec in enumerate(body.inputs)}
    return found | {node.name: node.outputs[0] for node in body.nodes if len(node.outputs) == 1}


class NodeByNode:
    """A body that is run one node at a time, over a list of values that the caller holds and may change in between.

        steps = NodeByNode(body, torch.float64)
        values = steps.begin(inputs)
        for k in range(len(body.nodes)):
            steps.run(k, values)              # values[steps.slots[name]] are there for all that is read

    `dtype` and `device` as in `body_function`. Nothing is freed before the list is."""

    def __init__(self, body: Body, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> None:
        self.body = body
        self._dtype = dtype
        self.slots = {f"i{k}": k for k in range(len(body.inputs))}
        for node in body.nodes:
            self.slots[node.name] = len(self.slots)
        specs = _specs(body)
        self._plan = [_Instruction(node, self.slots, (), dtype, torch.device(device), specs) for node in body.nodes]

    def begin(self, inputs: Tensors) -> list[Any]:
        return [*_cast(inputs, self._dtype), *[None] * len(self.body.nodes)]

    def run(self, index: int, values: list[Any]) -> Any:
        """Runs a node, and gives what it gave: a tensor, or a tuple of them."""
        with default_dtype(self._dtype):
            self._plan[index].run(values)
        return values[self.slots[self.body.nodes[index].name]]

    def outputs(self, values: list[Any]) -> tuple[torch.Tensor, ...]:
        return tuple([values[self.slots[name]] for name in self.body.outputs])


def host_function(body: Body, dtype: str | None = None, device: str = "cpu") -> HostFunction:
    """`body_function` from numpy arrays to C-contiguous numpy arrays; nothing is copied on the way in. `dtype` is a name
    ("float64"); outputs then have it too. An output may share memory with an input."""
    function = body_function(body, None if dtype is None else named_dtype(dtype), device)

    def run(inputs: Sequence[HostArray]) -> tuple[HostArray, ...]:
        with torch.inference_mode():
            return tuple([host_from_tensor(t) for t in function([tensor_from_host(a, device) for a in inputs])])

    return run


class GraphExecutor:
    """A cut model as a `tapml.runtime.generation.Stepper`: runs each graph operator by operator, keeps the states between calls.

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
        functions = {s: body_function(bodies[s], dtype, self.device, seeded) for s in {o.signature for o in operators}}
        self._plans = {
            graph.name: _Plan(graph, [o for o in operators if o.graph == graph.name], functions, weights) for graph in graphs
        }

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
        with torch.inference_mode():
            given = {key: tensor.to(self.device) for key, tensor in inputs.items()}
            outputs, advanced = self._plans[graph].run(given, self.states, self.hook)
        self.states.update(advanced)
        return outputs


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


class _Plan:
    """One graph, with values in numbered slots: placeholders first (weights filled in), results of operators after."""

    def __init__(
        self,
        graph: Graph,
        operators: Sequence[Operator],
        functions: Mapping[str, BodyFunction],
        weights: Mapping[str, torch.Tensor],
    ) -> None:
        slots: dict[str, int] = {}
        for name in (*(p.name for p in graph.placeholders), *(v for o in operators for v in o.outputs)):
            slots.setdefault(name, len(slots))
        self.base: list[Any] = [None] * len(slots)
        for placeholder in graph.weights:
            self.base[slots[placeholder.name]] = weights[placeholder.key]
        self.inputs = [(p.key, slots[p.name]) for p in graph.inputs]
        self.states = [(p.key, slots[p.name]) for p in graph.states]
        self.outputs = [(key, slots[name]) for key, name in zip(graph.output_keys, graph.outputs, strict=True)]
        self.mutations = [(key, slots[name]) for key, name in graph.mutations.items()]
        reads = [[slots[name] for name in operator.inputs] for operator in operators]
        frees = _frees(reads, keep={slot for _, slot in (*self.outputs, *self.mutations)})
        self.steps = [
            (operator, functions[operator.signature], read, [slots[name] for name in operator.outputs], free)
            for operator, read, free in zip(operators, reads, frees, strict=True)
        ]

    def run(
        self, inputs: Mapping[str, torch.Tensor], states: Mapping[str, torch.Tensor], hook: Hook | None
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        values = self.base.copy()
        for key, slot in self.inputs:
            values[slot] = inputs[key]
        for key, slot in self.states:
            values[slot] = states[key]
        for operator, function, read, write, free in self.steps:
            given = [values[slot] for slot in read]
            made = function(given)
            for slot, value in zip(write, made, strict=True):
                values[slot] = value
            if hook is not None:
                hook(operator, tuple(given), made)
            for slot in free:
                values[slot] = None
        return {key: values[slot] for key, slot in self.outputs}, {key: values[slot] for key, slot in self.mutations}


class _Instruction:
    """One node, ready to run: its function, its constant arguments, and where the others come from and its result goes."""

    __slots__ = ("args", "free", "function", "kwargs", "named", "narrow", "nested", "places", "result", "seed", "wide")

    def __init__(
        self, node: Node, slots: Mapping[str, int], free: Sequence[int], dtype: torch.dtype | None, device: torch.device,
        specs: Mapping[str, TensorSpec] | None = None, seeded: bool = True,
    ) -> None:  # fmt: skip
        known = {} if specs is None else {name: specs[name] for name in node.reads if name in specs}
        # Where the rest is wider than a node can be, what it reads is made narrow, and what it gives wide again.
        self.wide = dtype if dtype is not None and in_own_dtype(node, tuple(known.values())) else None
        self.narrow = {slots[n]: named_dtype(spec.dtype) for n, spec in known.items() if self.wide and spec.dtype in FLOATS}
        dtype = None if self.wide else dtype
        self.function = _function_of(node)
        decode = partial(_decode, slots=slots, dtype=dtype, program=lambda body: body_function(body, dtype, device, seeded))
        self.args: list[Any] = []
        self.places: list[tuple[int, int]] = []
        self.nested: list[tuple[int, Any]] = []
        for position, argument in enumerate(node.args):
            if isinstance(argument, dict) and "ref" in argument:
                self.places.append((position, slots[argument["ref"]]))
                self.args.append(None)
            elif isinstance(argument, list | tuple) and any(isinstance(i, dict) and "ref" in i for i in argument):
                self.nested.append((position, [decode(i) for i in argument]))
                self.args.append(None)
            else:
                self.args.append(decode(argument))
        self.kwargs = {key: decode(value) for key, value in node.kwargs.items()}
        self.named = [key for key, value in self.kwargs.items() if isinstance(value, list | Slot)]
        self.seed: int | None = self.kwargs.pop("generator") if is_random(node) else None
        if not seeded:
            self.seed = None
        if not node.reads and node.target != "getitem":
            self.kwargs["device"] = device
        self.result = slots[node.name]
        self.free = tuple(free)

    def run(self, values: list[Any]) -> None:
        if self.narrow:
            narrow = values.copy()
            for slot, dtype in self.narrow.items():
                narrow[slot] = values[slot].to(dtype)
            self._run(narrow)
            values[self.result] = narrow[self.result]
        else:
            self._run(values)
        if self.wide is not None:
            values[self.result] = _widened(values[self.result], self.wide)
        for slot in self.free:
            values[slot] = None

    def _run(self, values: list[Any]) -> None:
        args = self.args.copy()
        for position, slot in self.places:
            args[position] = values[slot]
        for position, items in self.nested:
            args[position] = filled(items, values)
        kwargs = self.kwargs
        if self.named:
            kwargs = kwargs | {key: filled(kwargs[key], values) for key in self.named}
        if self.seed is None:
            values[self.result] = self.function(*args, **kwargs)
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            values[self.result] = self.function(*args, **kwargs)


def _widened(made: Any, dtype: torch.dtype) -> Any:
    """The floating point results of a call in another dtype; those that only the source has stay."""
    if isinstance(made, list | tuple):
        return tuple(_widened(item, dtype) for item in made)
    own = isinstance(made, torch.Tensor) and str(made.dtype).removeprefix("torch.") in FLOATS
    return made.to(dtype) if own else made


def filled(argument: Any, values: Sequence[Any]) -> Any:
    """The argument, or those in a list, with the value of each slot in its place."""
    if isinstance(argument, list):
        return [filled(item, values) for item in argument]
    return values[argument.index] if isinstance(argument, Slot) else argument


class Slot:
    """Stands in an argument for the value in a slot."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def _decode(
    argument: Any, slots: Mapping[str, int], dtype: torch.dtype | None, program: Callable[[Body], BodyFunction]
) -> Any:
    """An argument of a node as PyTorch takes it (see `tapml.operators.graph` for how arguments are written)."""
    if isinstance(argument, list | tuple):
        return [_decode(item, slots, dtype, program) for item in argument]
    if not isinstance(argument, dict):
        return argument
    what, word = marked(argument)
    if what == "ref":
        return Slot(slots[word])
    if what == "body":
        return program(Body.parsed(word))
    found = literal(what, word)
    if what != "dtype" or dtype is None:
        return found
    return dtype if found.is_floating_point else dtype.to_complex() if found.is_complex else found


def _function_of(node: Node) -> Callable[..., Any]:
    if node.target == "getitem":
        return values_of
    if node.target == "aten.view_as_complex.default":
        return as_complex
    if (repeated := loop(node.target)) is not None:
        return repeated
    if node.target == PART:
        return partial(call_part, specs=node.outputs)
    found: Callable[..., Any] = overload(without_strides(node.target))
    return _as_large(found, node) if word_of_target(node.target) in SIZED else found


def _as_large(function: Callable[..., Any], node: Node) -> Callable[..., Any]:
    """The function with results of the node's sizes, whatever data it gets: what is more is cut off, what is missing is zero.
    Raises ModelError for packed sequences of other lengths, of which that would make none."""

    def run(*args: Any, **kwargs: Any) -> Any:
        made = function(*args, **kwargs)
        several = made if isinstance(made, tuple) else (made,)
        fitted = tuple(
            _fitted(t, spec.shape) if isinstance(t, torch.Tensor) else t for t, spec in zip(several, node.outputs, strict=True)
        )
        if "pack" in node.target and any(a is not b for a, b in zip(several, fitted, strict=True)):
            raise ModelError(
                f"{node.target} gives other sizes than when the model was carved: its sequences have other lengths. A run has "
                "the sizes of its example inputs; carve the model again with these."
            )
        return fitted if isinstance(made, tuple) else fitted[0]

    return run


def _fitted(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if tuple(tensor.shape) == shape or tensor.dim() != len(shape):
        return tensor
    made = tensor.new_zeros(shape)
    common = tuple(slice(min(a, b)) for a, b in zip(tensor.shape, shape, strict=True))
    made[common] = tensor[common]
    return made


def _frees(reads: Sequence[Sequence[int]], keep: set[int]) -> list[list[int]]:
    """For each step, the slots that no later step reads. Slots in `keep` are never freed."""
    last = {slot: step for step, slots in enumerate(reads) for slot in slots}
    frees: list[list[int]] = [[] for _ in reads]
    for slot, step in last.items():
        if slot not in keep:
            frees[step].append(slot)
    return frees


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


def function_of_numbers(target: str) -> Callable[..., float]:
    """An ATen operator such as "aten.sin.default" as a function of Python's numbers, computed in float32."""
    call = overload(target)
    return lambda *numbers: float(call(*(torch.tensor(x, dtype=torch.float32) for x in numbers)))


def tensor_from_host(array: HostArray, device: str | torch.device = "cpu") -> torch.Tensor:
    """A tensor over the array's own memory (copied only to reach another device). Must not be written to."""
    bits = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(np.ascontiguousarray(bits).reshape(bits.shape))
    return (tensor.view(torch.bfloat16) if bits is not array else tensor).to(device)


def host_from_tensor(tensor: torch.Tensor) -> HostArray:
    """The tensor as a C-contiguous array, over its own memory where that is possible."""
    plain = tensor.detach().cpu().resolve_neg().contiguous()
    if plain.dtype == torch.bfloat16:
        bits: HostArray = plain.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: HostArray = plain.numpy()
    return array
