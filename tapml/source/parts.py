"""Parts of a model that do not export: each becomes one call that stays on the source, and the rest is traced.

    found = Parts(model)
    made = found.traced(wrapper, inputs, attempt)      `attempt()` traces; again and again with one part more taken out
    found.why                                          {"layers.0.ffn": why it does not export}

Which part it is follows from the error: the innermost submodule that torch was in, or from which the node came that cannot be
written down. Where that one cannot be called by itself (it takes objects, or writes to its inputs), it is the one around
it. Layers of one class of the model's own go together, since what fails in one fails in all. What is left when it is the model
itself is the error.

A run holds no code. Whoever runs such a call has the model, or loads it from where it was carved: only for a run of this
installation (`tapml.cache.seals`), since a run may come from anybody and a `FILE.py` is code.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from tapml.cache.seals import seal, sound
from tapml.errors import ModelError, TapmlError, UsageError
from tapml.operators import parts
from tapml.operators.buffers import buffers_kept
from tapml.operators.parts import NotWritten
from tapml.source.model import LoadedModel
from tapml.source.trace import chain
from tapml.tensors import CARRIED_AS, NUMPY, TensorSpec

Made = TypeVar("Made")
_SEALED = "code"


@dataclass(frozen=True)
class _Call:
    """One call of a part in a plain run of the model: what it gave, with specs for tensors, and their specs in order."""

    result: Any
    specs: tuple[TensorSpec, ...]


class Parts:
    """Of one model. `why` says of each part that was taken out why it does not export, by path."""

    def __init__(self, model: LoadedModel, unseen: Mapping[str, str] | None = None) -> None:
        """`unseen` are parts that are known not to export, with the reason."""
        self._model = model
        self._root = model.module
        self._paths = {id(part): path for path, part in self._root.named_modules()}
        self.why = dict(unseen or {})
        if self.why:
            parts.hold(model.digest, self._root)

    def traced(self, wrapper: torch.nn.Module, inputs: Mapping[str, Any], attempt: Callable[[], Made]) -> Made:
        """What `attempt` gives, which traces `wrapper`, a module with the model in it, for these inputs. Raises its ModelError
        when no part of the model is to blame, or none that can be called by itself."""
        while True:
            try:
                with self._standing(wrapper, inputs):
                    return attempt()
            except ModelError as error:
                if not self._take(error, wrapper, inputs):
                    raise
            parts.hold(self._model.digest, self._root)

    def _take(self, error: ModelError, wrapper: torch.nn.Module, inputs: Mapping[str, Any]) -> bool:
        """Takes one part more out. False where there is none."""
        path = self._blamed(error)
        why = error.reason[: parts.LONGEST_REASON]
        while path:
            kind = type(self._root.get_submodule(path))
            own = not kind.__module__.startswith("torch.")
            alike = [p for p, part in self._root.named_modules() if type(part) is kind] if own else [path]
            calls = self._watched(wrapper, inputs, alike)
            if calls.get(path):
                for each in alike:
                    if calls.get(each):
                        self.why = {p: w for p, w in self.why.items() if not p.startswith(each + ".")}
                        self.why[each] = why
                return True
            path = path.rpartition(".")[0]
        return False

    def _blamed(self, error: BaseException) -> str:
        """The path of the innermost part that the error came from, which is not taken out yet; "" for the model itself."""
        for one in reversed(chain(error)):
            if isinstance(one, NotWritten):
                return one.module if one.module not in self.why else one.module.rpartition(".")[0]
            found = ""
            for frame, _ in traceback.walk_tb(one.__traceback__):
                own = frame.f_locals.get("self") if "call_impl" in frame.f_code.co_name else None
                found = self._paths.get(id(own), found) if isinstance(own, torch.nn.Module) else found
            if found:
                return found
        return ""

    def _watched(self, wrapper: torch.nn.Module, inputs: Mapping[str, Any], paths: list[str]) -> dict[str, list[_Call]]:
        """The calls of the parts that can be called by themselves, in a plain run; {} where the model does not run."""
        watched = {path: _Watched(self._root.get_submodule(path)) for path in paths}
        stands = {id(w.part): _Stand(w.part, w.call) for w in watched.values()}
        try:
            with buffers_kept(wrapper), torch.no_grad(), _in_their_places(wrapper, stands):
                wrapper(**inputs)
        except Exception:
            # A model's own code can raise anything.
            return {}
        return {path: each.calls for path, each in watched.items() if each.alone}

    @contextmanager
    def _standing(self, wrapper: torch.nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
        """While it lasts, something else stands for each part that was taken out."""
        if not self.why:
            yield
            return
        calls = self._watched(wrapper, inputs, list(self.why))
        self.why = {path: why for path, why in self.why.items() if path in calls}
        with parts.tracing() as table:
            stands = {
                id(part := self._root.get_submodule(path)): _Stand(part, self._recorded(table, path, part, why, calls[path]))
                for path, why in self.why.items()
            }
            with _in_their_places(wrapper, stands):
                yield

    def _recorded(
        self, table: dict[str, parts.Traced], path: str, part: torch.nn.Module, why: str, calls: list[_Call]
    ) -> Callable[[Any, Any], Any]:
        numbers = iter(range(1 << 30))

        def call(args: Any, kwargs: Any) -> Any:
            # A trace may run the model more than once.
            number = next(numbers) % len(calls)
            tensors: list[torch.Tensor] = []
            try:
                arguments = parts.numbered(parts.written((args, kwargs)), tensors)
            except ValueError as error:
                reason = f"its part {path} {error}"
                raise ModelError(f"The model does not export: {reason}.", reason) from error
            word = f"{path}#{number}"
            table[word] = parts.Traced(self._model.digest, path, why, arguments, calls[number].specs, part)
            made = iter(torch.ops.tapml_parts.call(tensors, word))
            return pytree.tree_map_only(TensorSpec, lambda _: next(made), calls[number].result)

        return call


class _Watched:
    """A part that is watched while the model runs. `alone`: it can be called by itself."""

    def __init__(self, part: torch.nn.Module) -> None:
        self.part = part
        self.calls: list[_Call] = []
        self.alone = True

    def call(self, args: Any, kwargs: Any) -> Any:
        versions, state = _versions(args, kwargs), torch.get_rng_state()
        result = self.part(*args, **kwargs)
        try:
            parts.written((args, kwargs))
            tree = pytree.tree_map_only(torch.Tensor, _spec, result)
        except ValueError:
            self.alone = False
            return result
        leaves = pytree.tree_leaves(tree)
        # A number may be another for other data, and an object may hold tensors of this run.
        plain = all(leaf is None or isinstance(leaf, TensorSpec) for leaf in leaves)
        specs = tuple(leaf for leaf in leaves if isinstance(leaf, TensorSpec))
        same = versions == _versions(args, kwargs) and torch.equal(state, torch.get_rng_state())
        self.alone = self.alone and plain and bool(specs) and same
        self.calls.append(_Call(tree, specs))
        return result


@contextmanager
def _in_their_places(wrapper: torch.nn.Module, stands: Mapping[int, torch.nn.Module]) -> Iterator[None]:
    """While it lasts, these modules stand for the parts with these ids."""
    places = [
        (parent._modules, name, child)
        for parent in wrapper.modules() if not isinstance(parent, torch.jit.ScriptModule)
        for name, child in parent._modules.items() if id(child) in stands
    ]
    for children, name, child in places:
        children[name] = stands[id(child)]
    try:
        yield
    finally:
        for children, name, child in places:
            children[name] = child


def _versions(args: Any, kwargs: Any) -> list[int]:
    return [leaf._version for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]


def _spec(tensor: torch.Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_nested or (dtype not in NUMPY and dtype not in CARRIED_AS):
        raise ValueError("gives what no graph has")
    return TensorSpec(tuple(tensor.shape), dtype)


class _Stand(torch.nn.Module):  # type: ignore[misc]
    """Stands for a part while the model is traced."""

    def __init__(self, part: torch.nn.Module, call: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.__dict__.update(part=part, call=call)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["call"](args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["part"], name)


def code_of(model: LoadedModel) -> dict[str, str]:
    """Where a run's process finds the code of its parts again, with the seal of this installation; for the manifest."""
    spec = _absolute(model)
    found = {"model": model.digest, "spec": spec, "dtype": model.dtype}
    return {**found, "seal": seal(_SEALED, _text(found)).hex()}


def offer(code: Mapping[str, Any], run: str) -> None:
    """Says how the model of a run's parts is loaded, if one of them is called in a process that does not hold it."""
    held = {key: str(code.get(key, "")) for key in ("model", "spec", "dtype")}
    parts.offer(held["model"], lambda: _loaded(held, str(code.get("seal", "")), run))


def _loaded(held: Mapping[str, str], found: str, run: str) -> torch.nn.Module:
    from tapml.source.load import load

    again = "Carve the model again on this machine"
    try:
        known = sound(_SEALED, _text(held), bytes.fromhex(found))
    except ValueError:
        known = False
    if not known:
        raise ModelError(
            f"{run} has parts that run as the model's own Python code, and it was not carved by this installation: code that a "
            f"run from elsewhere names is never loaded. {again}."
        )
    if not held["spec"]:
        raise UsageError(
            f"{run} has parts that run as the model's own Python code, and it was carved from a module passed from Python. Do "
            "this in the process that carved it, or carve the model from FILE.py:FUNCTION, which can be loaded again."
        )
    try:
        model = load(held["spec"], dtype=held["dtype"])
    except TapmlError as error:
        raise ModelError(f"The code of the model of {run} cannot be loaded: {error}") from error
    if model.digest != held["model"]:
        raise ModelError(f"{held['spec']} is not the model that {run} was carved from: other weights, or another class. {again}.")
    return model.module


def _text(held: Mapping[str, str]) -> bytes:
    return json.dumps(held, sort_keys=True).encode()


def _absolute(model: LoadedModel) -> str:
    """How the model was asked for, from wherever; "" for a module that was given from Python."""
    if model.spec == type(model.module).__name__:
        return ""
    file, colon, function = model.spec.rpartition(":") if ".py:" in model.spec else (model.spec, "", "")
    path = Path(file).expanduser()
    return f"{path.resolve()}{colon}{function}" if path.exists() else model.spec
