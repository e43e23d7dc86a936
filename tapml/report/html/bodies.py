"""What an operator computes, in lines that people can read, and where in the model's code it comes from.

    lines(body)              [("n0", "i0 ** 2", "float32[1, 32, 576]"), ("n1", "mean(n0, [-1], True)", …), …]
    source_lines(nodes)      ["modeling_llama.py:64–66"]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tapml.operators.graph import Body, Node

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "pow": "**", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==",
          "ne": "!=", "bitwise_and": "&", "bitwise_or": "|", "logical_and": "and", "logical_or": "or"}  # fmt: skip


def lines(body: Body) -> list[tuple[str, str, str]]:
    """(name, expression, shape and dtype) for each node, in order."""
    return [(node.name, _expression(node), ", ".join(str(spec) for spec in node.outputs)) for node in body.nodes]


def source_lines(nodes: Iterable[Node]) -> list[str]:
    """The lines of the model's code, each file once with its lines as ranges; empty when unknown."""
    files: dict[str, set[int]] = {}
    for node in nodes:
        file, colon, line = node.source.rpartition(":")
        if colon and line.isdecimal() and len(line) < 10:
            files.setdefault(file, set()).add(int(line))
    return [f"{file}:{', '.join(_ranges(sorted(found)))}" for file, found in files.items()]


def _ranges(numbers: list[int]) -> list[str]:
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return [str(a) if a == b else f"{a}–{b}" for a, b in parts]


def _expression(node: Node) -> str:
    name = node.target.removeprefix("aten.").partition(".")[0]
    args = [_text(argument) for argument in node.args]
    named = [f"{key}={_text(value)}" for key, value in node.kwargs.items()]
    if name in _INFIX and len(args) == 2 and not named:
        return f"{args[0]} {_INFIX[name]} {args[1]}"
    if name == "neg" and len(args) == 1:
        return f"-{args[0]}"
    if name == "getitem" and len(args) == 2:
        return f"{args[0]}[{args[1]}]"
    return f"{name}({', '.join([*args, *named])})"


def _text(argument: Any) -> str:
    """An argument as one would write it. Numbers are those of the graph, rounded to seven digits to be read."""
    if isinstance(argument, dict):
        return str(next(iter(argument.values()), "{}"))
    if isinstance(argument, list | tuple):
        return f"[{', '.join(_text(item) for item in argument)}]"
    if isinstance(argument, bool) or argument is None:
        return str(argument)
    return f"{argument:.7g}" if isinstance(argument, float) else str(argument)
