"""Functions of Python that somebody wrote in place of an operator, or of single calls in it: the text that calls them, and how
they are called.

    text_with_functions(body, "rms_norm_0", "cpu", stored, layouts, {"": (file, digest, names)})         the whole operator
    text_with_functions(…, {"aten.silu.default": (file, digest, names)})       the rest of the body stays PyTorch's

The text runs as any that PyTorch runs (`tapml.devices.torch_device`), so in a process of its own. A function gets tensors as the
operator has them and gives tensors, arrays of numpy, or anything that PyTorch makes tensors of. It must not write to what it is
given, since others read that too: a call that did is an error.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tapml.errors import nearest
from tapml.manifest import digest as digest_of
from tapml.operators.graph import Body
from tapml.operators.to_text import python_text
from tapml.tensors import Layout

# A file, the digest of its text as it was read, and the names of which the function has one.
Named = tuple[str, str, tuple[str, ...]]

_modules: dict[tuple[str, str], ModuleType] = {}


def text_with_functions(
    body: Body, entry: str, device: str, stored: Callable[[str], str], layouts: Sequence[Layout | None],
    functions: Mapping[str, Named],
) -> str:
    """As `to_text.python_text`, with calls of these functions. Raises ModelError where the rest cannot be written."""
    names = {call: f"own_{k}" for k, call in enumerate(functions)}
    text = python_text(body, entry, device, stored, layouts, names)
    made = [
        f"{names[call]} = own_function({file!r}, {digest!r}, {words!r}, device, whole={not call})"
        for call, (file, digest, words) in functions.items()
    ]
    head, line, rest = text.partition(f"device = {device!r}\n")
    return "\n".join([f"{head}from tapml.operators.own_functions import own_function\n", line.rstrip(), *made, rest])


def own_function(file: str, digest: str, names: Sequence[str], device: str, whole: bool) -> Callable[..., Any]:
    """The first of these functions that the file has, guarded; with `whole` it always gives a tuple. Raises ImportError with what
    the file has instead."""
    module = _loaded(file, digest)
    function = next((found for name in names if callable(found := getattr(module, name, None))), None)
    if function is None:
        there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ImportError(f"{file} has no function {' or '.join(names)}. {nearest(names[0], there)}")

    def guarded(*args: Any, **kwargs: Any) -> Any:
        before = [(k, t, t.clone()) for k, t in enumerate(_tensors([args, kwargs]))]
        made = function(*args, **kwargs)
        for k, tensor, copy in before:
            if not bool(((tensor == copy) | ((tensor != tensor) & (copy != copy))).all()):
                raise RuntimeError(f"{names[0]} wrote to the tensor that is its argument {k}; others read it, too")
        several = isinstance(made, tuple | list)
        found = tuple(_tensor(one, device) for one in (made if several else [made]))
        return found if whole or several else found[0]

    return guarded


def _tensor(value: Any, device: str) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device=device)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def _loaded(file: str, digest: str) -> ModuleType:
    """The file as a module, with its folder on the path, so that it can import what lies beside it."""
    if (file, digest) not in _modules:
        path = Path(file)
        if digest_of(path.read_bytes()) != digest:
            raise ImportError(f"{file} was changed while it was being tested")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent))
        spec.loader.exec_module(module)
        _modules[file, digest] = module
    return _modules[file, digest]
