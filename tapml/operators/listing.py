"""A body as people read it: PyTorch calls, one a line.

    n0 = aten.linear(i0, i1)    # float32[1, 8, 64]
"""

from __future__ import annotations

from tapml.operators.graph import Body, Node


def calls(body: Body) -> list[str]:
    return [f"{n.name} = {_call(n)}    # {', '.join(map(str, n.outputs))}" for n in body.nodes]


def _call(node: Node) -> str:
    def text(item: object) -> str:
        if isinstance(item, dict):
            return str(next(iter(item.values())))
        if isinstance(item, list | tuple):
            return f"[{', '.join(map(text, item))}]"
        return repr(item)

    named = [f"{key}={text(value)}" for key, value in node.kwargs.items()]
    return f"{node.target.removesuffix('.default')}({', '.join([*map(text, node.args), *named])})"
