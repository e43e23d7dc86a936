"""A body as the text of a Python module that PyTorch runs: for the backend whose operators PyTorch executes, and for people.

    print(python_text(body, "gelu_0", "cpu"))

    import torch

    device = "cpu"
    inputs = [((8, 64), torch.float32, None, 0)]         shape, dtype, strides (None: contiguous), offset in elements
    outputs = [((8, 64), torch.float32)]


    def gelu_0(i0):
        n0 = torch.ops.aten.gelu.default(i0)  # float32[8, 64]
        return (n0,)

Nothing of a run becomes code but what a body may hold: operators found by their exact names, numbers, and constants of PyTorch
(`tapml.operators.overload`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tapml.errors import ModelError
from tapml.operators.graph import Body, Node
from tapml.operators.loops import loop
from tapml.operators.overload import literal, marked, named_dtype, overload, without_strides
from tapml.operators.stays import SIZED, is_random, word_of_target
from tapml.tensors import Layout, TensorSpec

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def python_text(
    body: Body, entry: str, device: str, stored: Callable[[str], str] = lambda dtype: dtype,
    layouts: Sequence[Layout | None] = (), own: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """`entry` names the function, `device` is what PyTorch calls the place. `stored` gives the dtype that one of the graph is
    computed in; `layouts`, where given, how each input lies in memory (None: contiguous). `own` are names of functions that stand
    for calls of these targets, or, under "", for the whole body: that one gives a tuple. Raises ModelError for a body that cannot
    be written so: it draws random numbers, repeats a part, or has sizes that depend on data."""
    if not _NAME.fullmatch(entry):
        raise ValueError(f"{entry!r} is not the name of a function")
    names = {f"i{k}": f"i{k}" for k in range(len(body.inputs))}
    lines: list[str] = []
    for k, node in enumerate(body.nodes if "" not in own else ()):
        lines.append(f"    n{k} = {_call(node, names, stored, own)}  # {', '.join(map(str, node.outputs))}")
        names[node.name] = f"n{k}"
    made = {node.name for node in body.nodes}
    computed = [(name, spec) for name, spec in zip(body.outputs, body.output_specs, strict=True) if name in made]
    inputs = [_input(s, stored, layout) for s, layout in zip(body.inputs, layouts or [None] * len(body.inputs), strict=True)]
    outputs = [f"({spec.shape!r}, torch.{stored(spec.dtype)})" for _, spec in computed]
    if "" in own:
        returned = f"*{own['']}({', '.join(names.values())}),"
    else:
        returned = "".join(f"{names[name]}, " for name, _ in computed).strip()
    return "\n".join([
        "import torch",
        "",
        f"device = {device!r}",
        f"inputs = [{', '.join(inputs)}]",
        f"outputs = [{', '.join(outputs)}]",
        "",
        "",
        f"def {entry}({', '.join(f'i{k}' for k in range(len(body.inputs)))}):",
        *lines,
        f"    return ({returned})",
        "",
    ])  # fmt: skip


def _input(spec: TensorSpec, stored: Callable[[str], str], layout: Layout | None) -> str:
    strides, offset = (None, 0) if layout is None else (layout.strides, layout.offset)
    return f"({spec.shape!r}, torch.{stored(spec.dtype)}, {strides!r}, {offset})"


def _call(node: Node, names: dict[str, str], stored: Callable[[str], str], own: Mapping[str, str]) -> str:
    args = [_argument(argument, names, stored) for argument in node.args]
    if node.target == "getitem":
        return f"{args[0]}[{args[1]}]"
    if is_random(node) or loop(node.target) is not None or word_of_target(node.target) in SIZED:
        raise ModelError(f"{node.target} cannot be written as one call with fixed sizes and no chance in it")
    known = {argument.name for argument in overload(node.target)._schema.arguments}
    if unknown := node.kwargs.keys() - known:
        raise ModelError(f"{node.target} has no argument {min(unknown)!r:.80}")
    kwargs = {key: _argument(value, names, stored) for key, value in node.kwargs.items()}
    if not node.reads or "device" in kwargs:
        kwargs["device"] = "device"
    function = own.get(node.target) or f"torch.ops.{without_strides(node.target)}"
    return f"{function}({', '.join([*args, *(f'{key}={value}' for key, value in kwargs.items())])})"


def _argument(value: Any, names: dict[str, str], stored: Callable[[str], str]) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_argument(item, names, stored) for item in value)}]"
    if not isinstance(value, dict):
        assert value is None or isinstance(value, bool | int | float | str), value
        return repr(value)
    what, word = marked(value)
    if what == "ref":
        return names[word]
    if what == "body":
        raise ModelError("a body with a part that is repeated cannot be written as one function")
    found = literal(what, word)
    if what == "dtype":
        named_dtype(stored(word))
        return f"torch.{stored(word)}"
    if what == "device":
        return "device"
    if what in ("float", "complex"):
        return f"{what}({word!r})"
    return str(found)
