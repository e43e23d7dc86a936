"""No text of a compiler, but the operator itself: a `tapml.operators.graph.Body` as JSON, for engines that take whole operators.

It is data, so a fault is put into it as into any other text, and it runs alone.
"""

from __future__ import annotations

import json

from tapml.languages.language import TRIAL, TRIAL_COUNT, Language, Reproducer

_SPEC = [[TRIAL_COUNT], "float32"]


def _node(name: str, target: str, value: str, number: float) -> dict[str, object]:
    arguments = [{"ref": value}, number]
    return {"name": name, "target": target, "args": arguments, "kwargs": {}, "outputs": [_SPEC], "module": "", "source": ""}


LANGUAGE = Language(
    name="tapml-body",
    title="operator",
    suffix="json",
    lexer="json",
    generated=False,
    native=False,
    threads=False,
    trial=json.dumps({
        "kind": TRIAL, "inputs": [_SPEC], "roles": ["value"],
        "nodes": [_node("n0", "aten.mul.Tensor", "i0", 2.0), _node("n1", "aten.add.Tensor", "n0", 1.0)], "outputs": ["n1"],
    }),
    reproducer=Reproducer("run_engine.py", "tapml"),
)
