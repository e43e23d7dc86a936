"""Parts of a model that no trace sees through: one call each of the part's own Python code, which stays on the source.

    outputs = call_part(model, path, arguments)           the tensors that the part at `path` of the model gives

In a graph such a call is one node of target `tapml.operators.stays.PART`. A text cannot hold Python code: the node names the
model and the part, and the process that runs it must hold the model. `hold` says that it does, `offer` how it would get it.
Nothing here loads a model: who may, and which, is the business of `tapml.source.parts`.

How arguments are written: a tensor is a value of the graph, constants are themselves, and what holds others is a list that begins
with its sort: ["list", …], ["tuple", …], ["dict", key, value, key, value, …].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tapml.errors import ModelError
from tapml.operators.buffers import buffers_kept
from tapml.tensors import TensorSpec

LONGEST_REASON = 300

# Models that are held at once: a process that carves many would keep all of them.
_HELD = 4


class NotWritten(ModelError):
    """Of a node that cannot be written down: `module` is the path of the part of the model that it came from."""

    def __init__(self, message: str, module: str, reason: str) -> None:
        super().__init__(message, reason)
        self.module = module


_held: dict[str, torch.nn.Module] = {}
_offered: dict[str, Callable[[], torch.nn.Module]] = {}


@dataclass(frozen=True)
class Traced:
    """A call of a part within a trace: what the node says, with the tensors as the numbers of their places in the call.
    `specs` are those of what the part gave for tensors of these shapes."""

    model: str
    path: str
    why: str
    arguments: Any
    specs: tuple[TensorSpec, ...]
    module: torch.nn.Module


# The calls of the trace that is under way, by the word that stands in it.
_traced: dict[str, Traced] = {}


@contextmanager
def tracing() -> Iterator[dict[str, Traced]]:
    """While it lasts, `torch.ops.tapml_parts.call(tensors, word)` stands for the call under this word of the dict."""
    before = dict(_traced)
    _traced.clear()
    try:
        yield _traced
    finally:
        _traced.clear()
        _traced.update(before)


def traced(word: str) -> Traced:
    return _traced[word]


@torch.library.custom_op("tapml_parts::call", mutates_args=())  # type: ignore[untyped-decorator]
def _call(tensors: list[torch.Tensor], word: str) -> list[torch.Tensor]:
    call = traced(word)
    return given_by(call.module, filled(call.arguments, tensors))


@_call.register_fake  # type: ignore[untyped-decorator]
def _(tensors: list[torch.Tensor], word: str) -> list[torch.Tensor]:
    device = tensors[0].device if tensors else torch.device("cpu")
    return [torch.empty(s.shape, dtype=getattr(torch, s.dtype), device=device) for s in traced(word).specs]


def hold(model: str, module: torch.nn.Module) -> None:
    """This process has the model: its parts can be called."""
    _held.pop(model, None)
    _held[model] = module
    while len(_held) > _HELD:
        del _held[next(iter(_held))]


def offer(model: str, load: Callable[[], torch.nn.Module]) -> None:
    """`load` is called when a part of this model is, in a process that does not hold it. It may raise TapmlError."""
    _offered[model] = load


def call_part(
    model: str, path: str, arguments: Any, why: str = "", device: Any = None, specs: Sequence[TensorSpec] = ()
) -> Any:
    """What the part gives: one tensor, or a tuple of them. Raises ModelError in a process that has not got the model, and where
    the part gives other shapes or dtypes than `specs`: a graph has those of its examples."""
    if model not in _held:
        if model not in _offered:
            raise ModelError(
                f"The part {path} of the model runs as its own Python code, which this process does not have. Carve the model "
                "again with --fresh."
            )
        hold(model, _offered[model]())
    try:
        part = _held[model].get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"The model has no part {path:.200}. Carve it again with --fresh.") from error
    made = given_by(part, arguments)
    sizes = [(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in made]
    if sizes != [(spec.shape, spec.dtype) for spec in specs]:
        raise ModelError(
            f"The part {path} of the model gives {sizes} here and gave {[(s.shape, s.dtype) for s in specs]} when it was carved: "
            "its sizes depend on the data, and a run has those of its examples."
        )
    return made[0] if len(made) == 1 else tuple(made)


def given_by(part: torch.nn.Module, arguments: Any) -> list[torch.Tensor]:
    """The tensors that a part gives, in order, each with memory of its own. Its buffers are afterwards what they were."""
    args, kwargs = unwritten(arguments)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    taken = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    own = []
    with buffers_kept(part), torch.no_grad():
        made = [leaf for leaf in pytree.tree_leaves(part(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
        taken |= {buffer.untyped_storage().data_ptr() for buffer in part.buffers()}
        for tensor in made:
            place = tensor.untyped_storage().data_ptr()
            own.append(tensor.detach().clone(memory_format=torch.contiguous_format) if place in taken else tensor.detach())
            taken.add(place)
    return own


def written(value: Any) -> Any:
    """Arguments as a node has them, but for tensors, which stay. Raises ValueError for what a text cannot hold."""
    if value is None or isinstance(value, torch.Tensor | torch.dtype | bool | int | float | str):
        return value
    if type(value) in (list, tuple):
        return [type(value).__name__, *map(written, value)]
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return ["dict", *(written(item) for pair in value.items() for item in pair)]
    raise ValueError(f"takes a {type(value).__name__}")


def unwritten(arguments: Any) -> Any:
    if not isinstance(arguments, list):
        return arguments
    if not arguments or arguments[0] not in ("list", "tuple", "dict"):
        raise ModelError("The arguments of a part of the model are written in a way that is not known. Carve again with --fresh.")
    items = [unwritten(item) for item in arguments[1:]]
    if arguments[0] == "dict":
        return dict(zip(items[::2], items[1::2], strict=True))
    return items if arguments[0] == "list" else tuple(items)


def filled(arguments: Any, tensors: Sequence[Any]) -> Any:
    """With the tensors in the places of their numbers."""
    if isinstance(arguments, Place):
        return tensors[arguments.number]
    return [filled(item, tensors) for item in arguments] if isinstance(arguments, list) else arguments


@dataclass(frozen=True)
class Place:
    """Stands in arguments for a tensor of the call."""

    number: int


def numbered(arguments: Any, tensors: list[torch.Tensor]) -> Any:
    """The arguments with places for tensors, which are appended to `tensors`."""
    if isinstance(arguments, torch.Tensor):
        tensors.append(arguments)
        return Place(len(tensors) - 1)
    return [numbered(item, tensors) for item in arguments] if isinstance(arguments, list) else arguments
