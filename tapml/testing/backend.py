"""`check_backend`: whether something that executes operators keeps all rules that the rest of TapML relies on.

The rules are functions in `rules.py`, checked in order, each on the same open backend. The first that is broken raises
`BrokenRule`, whose text begins with the rule's name and says what was asked, what came and what should have come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from tapml.backends.interface import Backend
from tapml.backends.open import open_backend
from tapml.operators.engine import OperatorEngine
from tapml.testing.checking import Checking, told
from tapml.testing.rules import RULES


@dataclass(frozen=True)
class Checked:
    """What was checked. `rules` are all names; `ran` the operators whose values were right; `refused` those that the backend does
    not have, with what it says of each: it may refuse any but aten.mul.Tensor and aten.add.Tensor of float32."""

    rules: tuple[str, ...]
    ran: tuple[str, ...]
    refused: dict[str, str]


def check_backend(backend: str | Backend | OperatorEngine) -> Checked:
    """Checks the rules that are listed in docs/new-backend.md, on what the text of `--target` names, an engine of whole
    operators, or an opened backend, which is closed at the end. Takes seconds, and needs PyTorch, which says what the right
    values are. Raises BrokenRule, an AssertionError, for the first rule that is broken; TargetError and UnavailableError when
    there is nothing to check."""
    given = not isinstance(backend, str) and hasattr(backend, "prepare")
    opened = cast(Backend, backend) if given else open_backend(backend)
    checking = Checking(opened)
    try:
        for name, rule in RULES.items():
            with told(name, "it"):
                rule(checking)
    finally:
        with told("close", "close, called twice,"):
            opened.close()
            opened.close()
    return Checked((*RULES, "close"), tuple(checking.ran), checking.refused)
