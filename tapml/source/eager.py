"""The module itself, run plainly: what the graphs that were exported from it must agree with.

    own = EagerModule(model)                     in the dtype that it has
    exact = wide_copy(model)                in float64; None where that cannot be had
    exact.logits(tokens, rows)              one forward over a whole text, without a cache
    exact.outputs(inputs)                   what a module that is not a decoder returns, as named tensors

In float64 two right ways to compute the same differ by far less than any mistake changes, whatever the source's own dtype is.
Memory that PyTorch leaves undefined (`torch.empty` and its kin) reads as zero here, as it does in graphs. Each call begins with
the same state of PyTorch's random generator.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tapml.operators.buffers import buffers_kept
from tapml.operators.carried import carried, widened
from tapml.operators.execute import default_dtype
from tapml.source.checked import batch_experts
from tapml.source.export import flat_outputs
from tapml.source.model import LoadedModel, called

WIDE = torch.float64

# With which each call of the module begins, so that what draws random numbers draws the same.
SEED = 0

# What a copy in float64 may take of the memory that is free.
_SHARE = 0.4

_UNDEFINED = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")

Seen = Callable[[str, torch.Tensor | None, torch.Tensor], None]


class EagerModule:
    """A module to be called as it is. With `dtype` every floating point dtype that its code names becomes that one."""

    def __init__(self, model: LoadedModel, module: Any = None, dtype: torch.dtype | None = None) -> None:
        self.module = model.module if module is None else module
        self.device = model.device
        self.positional = model.positional
        self.dtype = dtype

    def logits(self, tokens: Sequence[int], rows: Sequence[int], seen: Seen | None = None, **more: Any) -> torch.Tensor:
        """Logits [rows, vocabulary] after the tokens at these places of a text. `seen` is told each submodule's path, first input
        and output, in the order in which they end. `more` goes to the module."""
        wanted: dict[str, Any] = {"use_cache": False, "return_dict": True, **more}
        places = torch.tensor(list(rows), device=self.device)
        accepted = inspect.signature(self.module.forward).parameters
        keeps = "logits_to_keep" in accepted
        if keeps:
            wanted["logits_to_keep"] = places
        ids = torch.tensor([list(tokens)], device=self.device)
        with self._plainly(seen):
            found: torch.Tensor = self.module(input_ids=ids, **wanted).logits
            return (found if keeps else found.index_select(1, places))[0].to("cpu", WIDE)

    def outputs(self, inputs: Mapping[str, Any], seen: Seen | None = None) -> dict[str, torch.Tensor]:
        """The tensors that the module returns, named, in the form in which operators hand them on. Its buffers are afterwards
        what they were."""

        def placed(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            value = value.to(self.device).clone()
            if self.dtype is None or not (value.is_floating_point() or value.is_complex()):
                return value
            return value.to(self.dtype.to_complex() if value.is_complex() else self.dtype)

        given = pytree.tree_map(placed, dict(inputs))
        with buffers_kept(self.module), self._plainly(seen):
            result = called(self.module, given, self.positional)
            return {key: carried(value.detach().cpu().clone()) for key, value in flat_outputs(result).items()}

    @contextmanager
    def _plainly(self, seen: Seen | None) -> Iterator[None]:
        handles = [] if seen is None else [
            part.register_forward_hook(_hook(path, seen)) for path, part in self.module.named_modules()
        ]
        try:
            # Control flow would be compiled, and what is compiled under a mode is later used without it.
            eagerly = torch.compiler.set_stance("force_eager")
            with (
                default_dtype(self.dtype), torch.no_grad(), eagerly, _no_fast_path(), torch.random.fork_rng(), _Plain(self.dtype),
            ):
                torch.manual_seed(SEED)
                yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """PyTorch's layers of transformers take another way in evaluation, over nested tensors, in which what is padded is zero. A
    trace takes the other."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def wide_copy(model: LoadedModel) -> EagerModule | None:
    """The module in float64; None where there is no room for it, or it cannot be copied."""
    tensors = [*model.module.parameters(), *model.module.buffers()]
    if 8 * sum(t.numel() for t in tensors) > _SHARE * _free_bytes():
        return None
    try:
        module: Any = widened(copy.deepcopy(model.module), WIDE)
        batch_experts(module)
        return EagerModule(model, module, WIDE)
    except Exception:
        # A module's own code decides how it is copied, and can raise anything.
        return None


def _free_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 4.0 * 2**30


def _hook(path: str, seen: Seen) -> Callable[[Any, Any, Any], None]:
    def hook(_: Any, inputs: Any, output: Any) -> None:
        made = next((leaf for leaf in pytree.tree_leaves(_plain_tree(output)) if isinstance(leaf, torch.Tensor)), None)
        given = next((leaf for leaf in inputs if isinstance(leaf, torch.Tensor)), None)
        if made is not None:
            seen(path, None if given is None else given.detach().clone(), made.detach().clone())

    return hook


def _plain_tree(output: Any) -> Any:
    return dict(output) if isinstance(output, Mapping) else output


class _Plain(TorchDispatchMode):  # type: ignore[misc]
    """Undefined memory reads as zero, and dtypes are widened. `torch.cond` and `while_loop` run as Python would run them."""

    supports_higher_order_operators = True

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, torch._ops.HigherOrderOperator):
            return self._flow(func, args, kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        args, kwargs = pytree.tree_map(self._widened, (args, kwargs or {})) if self.dtype is not None else (args, kwargs or {})
        if name in ("resize_", "resize"):
            return _resized(func, args, kwargs)
        result = func(*args, **kwargs)
        if name in _UNDEFINED:
            result.zero_()
        return result

    def _flow(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func.name() not in ("cond", "while_loop"):
            return func(*args, **kwargs)
        with self:
            if func.name() == "cond":
                chosen, yes, no, given = args
                return (yes if bool(chosen) else no)(*given)
            goes_on, body, state, more = args
            while bool(goes_on(*state, *more)):
                state = body(*state, *more)
            return state

    def _widened(self, value: Any) -> Any:
        if self.dtype is None or not isinstance(value, torch.dtype):
            return value
        return self.dtype if value.is_floating_point else self.dtype.to_complex() if value.is_complex else value


def _resized(func: Any, args: Any, kwargs: Any) -> Any:
    before = args[0].numel()
    result = func(*args, **kwargs)
    if result.numel() > before:
        result.as_strided((result.numel(),), (1,))[before:].zero_()
    return result
