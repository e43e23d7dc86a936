"""Running bodies in PyTorch: the source that every target is compared with. Whole graphs are run by `tapml.carving.executor`.

    f = body_function(body)                                    # torch tensors in, torch tensors out
    oracle = body_function(body, torch.float64)                # the same computation in float64
    g = host_function(body)                                    # numpy in, numpy out, for callers that do not import torch

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
from tapml.operators.graph import Body, Node
from tapml.operators.loops import loop
from tapml.operators.overload import literal, marked, named_dtype, overload, values_of, without_strides
from tapml.operators.parts import call_part
from tapml.operators.stays import PART, SIZED, in_own_dtype, is_random, word_of_target
from tapml.tensors import FLOATS, HostArray, TensorSpec

Tensors = Sequence[torch.Tensor]
BodyFunction = Callable[[Tensors], tuple[torch.Tensor, ...]]
HostFunction = Callable[[Sequence[HostArray]], tuple[HostArray, ...]]

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
