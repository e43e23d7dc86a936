"""Which operators a pattern means: `--operator GLOB` of every verb."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from tapml.errors import UsageError, nearest
from tapml.operators.graph import Operator


def matching(operators: Sequence[Operator], glob: str) -> list[Operator]:
    """Those whose name matches, in their order; none of a model that has none. Raises UsageError when none matches."""
    found = [o for o in operators if fnmatch.fnmatchcase(o.name, glob)]
    if not found and operators:
        parts = {_last_part(o.name) for o in operators}
        raise UsageError(
            f"No operator matches {glob!r}. A name looks like {operators[0].name}; give the whole, or a pattern such as "
            f"'*q_proj'. By the last part of their names: {nearest(_last_part(glob), parts)}"
        )
    return found


def _last_part(name: str) -> str:
    """What an operator is called within its module: "q_proj" of "decode/layers.3.self_attn.q_proj", or of the glob "*q_proj"."""
    return name.rpartition("/")[2].rpartition(".")[2].strip("*")
