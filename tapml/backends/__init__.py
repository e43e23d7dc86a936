"""What executes operators: `interface.py` says what a backend is, `open.py` opens one by its target's name.

What is public here is for engines in packages of their own (docs/new-backend.md):

    OperatorEngine     what such an engine is; `INTERFACE` is the number that it states, `Function` what its `compile` gives
    NotSupported       what `compile` raises for an operator that the engine does not have
    Body, Node, TensorSpec        an operator, a call in it, the shape and dtype of a value
    arguments, simpler            what a node is called with; a body written with the calls that the engine has
    json_text, body_of            a body as text, and back
    open_backend                  what runs operators, by the text of --target or from an engine that is there
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tapml.errors import NotSupported
from tapml.operators.engine import Function, OperatorEngine, arguments, simpler
from tapml.operators.graph import Body, Node
from tapml.operators.to_json import body_of, json_text
from tapml.targets.packaged import INTERFACE
from tapml.tensors import TensorSpec

if TYPE_CHECKING:
    from tapml.backends.open import open_backend

__all__ = [
    "INTERFACE", "Body", "Function", "Node", "NotSupported", "OperatorEngine", "TensorSpec", "arguments", "body_of", "json_text",
    "open_backend", "simpler",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "open_backend":
        from tapml.backends.open import open_backend

        return open_backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
