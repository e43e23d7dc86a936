"""Which functions a body may call: operators of PyTorch that compute tensors from tensors, found by their exact names.

    function = overload("aten.linear.default")        a `torch._ops.OpOverload`

A body's targets are texts of a run, and a run may come from anybody: a text must never become any other function. So a target is
three names with dots between; the dispatcher must know that operator and that overload (TorchScript's own, such as aten.save,
are not in it); nothing is looked up as an attribute before. An operator is refused that returns anything but tensors, writes to
what it is given, takes objects that are no tensors, numbers or words, or whose words name files; and so are the namespaces in
which PyTorch keeps communication, profiling and tests. Operators of other packages are there when the user imported the package
that registers them.

`values_of`, `literal` and `named_dtype` are the same for the rest of a node: what `getitem` may be applied to, and which
constants a text may stand for.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from tapml.errors import ModelError

_TARGET = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)\.([A-Za-z_][A-Za-z0-9_]*)")
_LONGEST = 200

# PyTorch's own namespaces other than aten and prims: communication, profiling, tests, and packed objects that stand in tensors.
_NOT_COMPUTATION = frozenset((
    "symm_mem", "c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "rpc", "fsdp", "_dtensor", "profiler",
    "static_runtime", "inductor", "inductor_prims", "_inductor_test", "debugprims", "debug_mode_ops", "rngprims", "export",
    "_native", "_test", "streams", "cuda", "higher_order", "prim", "tensorexpr", "caffe2",
    "quantized", "_quantized", "quantization", "sparse", "onednn", "mkldnn", "mkldnn_prepacked", "mkl", "prepacked", "xnnpack",
))  # fmt: skip
# Of aten, what makes or reads packed, sparse and nested tensors: they trust the contents of tensors as indices and pointers.
_PACKED = re.compile(r"fbgemm_|_?sparse_|_?nested_|_cslt_|_test_|_make_per_|_mkldnn|mkldnn_|_cufft_")

_RETURNED = frozenset(("Tensor", "Optional[Tensor]", "List[Tensor]"))
_TAKEN = frozenset((
    "Tensor", "int", "SymInt", "float", "bool", "number", "str", "Device", "Layout", "MemoryFormat", "ScalarType", "Generator",
))  # fmt: skip
_CONTAINER = re.compile(r"(?:List|Optional)\[(.*)\]")

# Words that say that a text is a place or code, as in aten.from_file(filename), which reads files and makes them.
_PLACE = re.compile(r"file|path|dir|librar|url|uri|module|code|script|command|socket|host", re.IGNORECASE)
_REFUSED = frozenset(("from_file", "pin_memory", "_pin_memory"))


@cache
def overload(target: str) -> torch._ops.OpOverload:
    """The operator with exactly this name ("aten.add.Tensor"). Raises ModelError for one that this PyTorch does not have, and for
    one that a body may not call."""
    found = _found(target)
    if found is None:
        raise ModelError(
            f"PyTorch {torch.__version__} has no operator {target[:_LONGEST]!r}. If it is a custom operator, import the package "
            "that registers it first; otherwise carve the model again with this version of PyTorch."
        )
    if why := refused(found):
        raise ModelError(f"The operator {target} {why}, so no run may call it. Do not use a run that you do not trust.")
    return found


def _found(target: str) -> torch._ops.OpOverload | None:
    parts = _TARGET.fullmatch(target) if len(target) <= _LONGEST else None
    if parts is None:
        return None
    namespace, name, which = parts.groups()
    try:
        torch._C._dispatch_find_schema_or_throw(f"{namespace}::{name}", "" if which == "default" else which)
        found = getattr(getattr(getattr(torch.ops, namespace), name), which)
    except (RuntimeError, AttributeError):
        return None
    return found if isinstance(found, torch._ops.OpOverload) and str(found) == target else None


def refused(found: torch._ops.OpOverload) -> str:
    """Why a body may not call this operator; "" when it may."""
    schema = found._schema
    if found.namespace in _NOT_COMPUTATION:
        return "is in a namespace of PyTorch that is not for computing"
    if schema.is_mutable:
        return "writes to its inputs"
    if not schema.returns or not all(str(r.type) in _RETURNED for r in schema.returns):
        return "returns something else than tensors"
    for argument in schema.arguments:
        kind = str(argument.type)
        while (inner := _CONTAINER.fullmatch(kind)) is not None:
            kind = inner[1]
        if kind not in _TAKEN:
            return f"takes a {kind}"
        if kind == "str" and _PLACE.search(argument.name):
            return f"takes the name of something outside of the model ({argument.name})"
    name = schema.name.partition("::")[2]
    if found.namespace == "aten" and _PACKED.match(name):
        return "is for packed, sparse or nested tensors, which no graph has"
    return "reaches outside of the model" if name in _REFUSED else ""


def without_strides(target: str) -> str:
    """The target, or reshape for a view: one that was legal for the strides at export may not be for those of another device or
    dtype, and reshape gives the same values."""
    return "aten.reshape.default" if target in ("aten.view.default", "aten._unsafe_view.default") else target


def values_of(values: Any, index: Any) -> torch.Tensor:
    """One of several tensors that an operator gave: all that `getitem` does. Raises ModelError for anything else."""
    several = isinstance(values, tuple | list) and all(v is None or isinstance(v, torch.Tensor) for v in values)
    if several and type(index) is int and 0 <= index < len(values) and isinstance(found := values[index], torch.Tensor):
        return found
    raise ModelError("A getitem of the graph is not applied to the tensors of an operator and the number of one of them.")


def marked(argument: dict[str, Any]) -> tuple[str, Any]:
    """What an argument that is written as {"what": word} is, and its word. Raises ModelError for one that is not."""
    if len(argument) != 1:
        raise _unknown(argument)
    return next(iter(argument.items()))


def literal(what: str, word: Any) -> Any:
    """The constant that {"what": word} stands for in an argument: a dtype, memory format, layout, device, float, complex
    number or seed. Raises ModelError when there is no such constant."""
    if what == "dtype":
        return named_dtype(word)
    if what == "float" and word in ("inf", "-inf", "nan"):
        return float(word)
    if what == "complex" and isinstance(word, str):
        with suppress(ValueError):
            return complex(word)
    if what == "seed" and isinstance(word, str) and word.isdecimal() and len(word) < 16:
        return int(word)
    if what == "memory_format":
        return _named(what, word, torch.memory_format)
    if what == "layout":
        return _named(what, word, torch.layout)
    if what == "device" and isinstance(word, str):
        try:
            return torch.device(word)
        except RuntimeError as error:
            raise ModelError(f"A device of the graph is written as {word!r:.80}, which this PyTorch does not know.") from error
    raise _unknown({what: word})


def _unknown(argument: dict[str, Any]) -> ModelError:
    return ModelError(f"An argument of the graph is written as {argument!r:.200}, which this version of TapML does not know.")


def named_dtype(name: Any) -> torch.dtype:
    """The torch dtype of a TapML dtype name. Raises ModelError when there is none."""
    found = _named("dtype", name, torch.dtype)
    assert isinstance(found, torch.dtype)
    return found


def _named(what: str, name: Any, kind: type) -> Any:
    """What torch calls `name`, if it is exactly of this kind: never a module, a function or a class."""
    found = vars(torch).get(name) if isinstance(name, str) else None
    if type(found) is not kind:
        raise ModelError(f"A {what} of the graph is written as {name!r:.80}, which this PyTorch does not know.")
    return found
