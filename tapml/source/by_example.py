"""A trace in which what depends on the data is what the example inputs give: sizes, and values that Python reads.

    with by_example() as seen:
        program = _export(…)                 # all shapes are numbers
    seen                                     {("nonzero", "moe.py:31"): None, …}: the calls, and where the model makes them

torch.export stands a symbol for the number of elements that a mask selects, and gives up where the model's Python code asks for a
value (`if x.sum() > 0`, `int(lengths.max())`). Here it computes with the example's numbers beside its trace (as torch's draft
export does), and the calls whose result depends on data give what these give. The parts of torch that do so have no public name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree

Seen = dict[tuple[str, str], None]

# Layers over packed sequences have as many rows as there are steps in all sequences.
_PACKED = ("_pack_padded_sequence", "_pad_packed_sequence", "lstm", "gru", "rnn_tanh", "rnn_relu")
# An operator of the user that says nothing of the sizes of what it gives.
_NO_FAKE = "no fake impl registered"
_MASKS = (torch.bool, torch.uint8)


@contextmanager
def by_example() -> Iterator[Seen]:
    """Takes the memory of a run: weights twice, and what all operators give."""
    from torch._functorch import config
    from torch._subclasses import fake_impls, meta_utils

    seen: Seen = {}
    rule = (_depends, _rule(seen))
    fake_impls.op_implementations_checks.insert(0, rule)
    try:
        with (
            _sizes_of_own_operators(seen), config.patch(fake_tensor_propagate_real_tensors=True), torch.random.fork_rng(),
            # Strides of real tensors may differ from those that a trace assumes; nothing reads them.
            _replaced(FakeTensorMode, "_maybe_infer_fake_kernel_from_pytree_out", _as_traced),
            # torch leaves the numbers of parameters undefined.
            _replaced(meta_utils, "_safe_copy", _copied),
        ):
            yield seen
    finally:
        fake_impls.op_implementations_checks.remove(rule)


@contextmanager
def _sizes_of_own_operators(seen: Seen) -> Iterator[None]:
    """Operators that the user wrote and that say nothing of what they give are carried out on the example to see it."""
    silent = [own for own in OPDEFS.values() if own._abstract_fn is None]

    def sizes(own: Any) -> Callable[..., Any]:
        def fake(*args: Any, **kwargs: Any) -> Any:
            seen[own._name, _place()] = None
            with unset_fake_temporarily():
                made = own(*_real(args), **_real(kwargs))
            return pytree.tree_map_only(
                torch.Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device), made
            )

        return fake

    for own in silent:
        own._abstract_fn = sizes(own)
    try:
        yield
    finally:
        for own in silent:
            own._abstract_fn = None


def _real(given: Any) -> Any:
    return pytree.tree_map_only(FakeTensor, lambda t: t.real_tensor, given)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def depends_on_data(program: torch.export.ExportedProgram) -> bool:
    """Whether a traced program has sizes or numbers that are symbols."""
    symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
    for node in program.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            numbers = value.shape if isinstance(value, torch.Tensor) else [value]
            if any(isinstance(number, symbols) for number in numbers):
                return True
    return False


def gave_up_on_data(errors: list[BaseException]) -> bool:
    """Whether one of these is torch's word that a trace depends on data, or that nobody said what an operator gives."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    kinds = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)
    return any(isinstance(error, kinds) or _NO_FAKE in str(error) for error in errors)


def is_machinery(file: str) -> bool:
    """Files of torch, of transformers' plumbing and of this package: not where a model computes."""
    path, library = Path(file), sys.modules.get("transformers")
    if library is not None and library.__file__ and path.is_relative_to(Path(library.__file__).parent):
        return "models" not in path.parts
    inside = path.is_relative_to(Path(torch.__file__).parent)
    return inside or file.startswith("<") or path.parent == Path(__file__).parent or path.name == "contextlib.py"


def _depends(func: Any) -> bool:
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    word = func._schema.name.partition("::")[2]
    return any(tag in func.tags for tag in tags) or (word in _PACKED and func._overloadname in ("default", "data"))


def _rule(seen: Seen) -> Callable[..., Any]:
    def rule(mode: FakeTensorMode, func: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
        word = func._schema.name.partition("::")[2]
        masked = word != "index" or any(t is not None and t.dtype in _MASKS for t in args[1])
        if not masked or any(t.real_tensor is None for t in tensors):
            return NotImplemented
        seen[word, _place()] = None
        args, kwargs = _real((args, kwargs))
        return pytree.tree_map_only(torch.Tensor, lambda t: _like(mode, t), func(*args, **kwargs))

    return rule


def _like(mode: FakeTensorMode, real: torch.Tensor) -> torch.Tensor:
    with mode:
        return torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=real.device)


def _place() -> str:
    """The line of the model's own code that is under way."""
    frame = sys._getframe(1)
    while frame is not None:
        if not is_machinery(frame.f_code.co_filename):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _as_traced(mode: Any, func: Any, given: Any, real_given: Any, made: Any, real_made: Any) -> Any:
    return made


def _copied(into: torch.Tensor, numbers: torch.Tensor | None) -> None:
    if isinstance(numbers, torch.Tensor):
        into.copy_(numbers.detach())
