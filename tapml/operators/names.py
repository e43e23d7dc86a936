"""Names of operators, from the module paths of the nodes that they are built around.

An operator that is a whole module bears the module's path ("layers.3.self_attn.q_proj"); others bear the path with what
they are behind it ("layers.3.self_attn.rotary", "layers.3.self_attn.rotary.2"). Names are unique within a graph, and
depend on the graph alone, so the same model gets the same names each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tapml.operators.patterns import WHOLE_MODULE


@dataclass(frozen=True)
class Unnamed:
    """What a name is made of: the operator's kind and module path, and a `detail` that tells it from others of its
    kind in the module (the key of the state that a cache update writes), or ""."""

    kind: str
    module: str
    detail: str = ""


def names_for(operators: Sequence[Unnamed], prefix: str = "") -> list[str]:
    """A name for each operator, in order. `prefix` is the graph's name where a model has several ("decode")."""
    paths = short_paths([o.module for o in operators])
    whole = Counter(path for path, o in zip(paths, operators, strict=True) if o.kind in WHOLE_MODULE)
    inner = {path[:k] for path in paths for k, c in enumerate(path) if c == "."}
    front = prefix.rstrip("/") + "/" if prefix else ""
    taken: Counter[str] = Counter()
    names: list[str] = []
    for path, operator in zip(paths, operators, strict=True):
        leaf = path and operator.kind in WHOLE_MODULE and whole[path] == 1 and path not in inner
        name = path if leaf else ".".join(part for part in (path, operator.kind, operator.detail) if part)
        taken[name] += 1
        while taken[name] > 1 and f"{name}.{taken[name]}" in taken:
            taken[name] += 1
        number = taken[name]
        name = name if number == 1 else f"{name}.{number}"
        if number > 1:
            taken[name] += 1
        names.append(front + name)
    return names


def short_paths(paths: Sequence[str]) -> list[str]:
    """The paths without a leading "model", unless two different paths would then be one."""
    def shorten(path: str) -> str:
        return "" if path == "model" else path.removeprefix("model.")

    short = {path: shorten(path) for path in set(paths) | {""}}
    merged = Counter(short[path] for path in short if path not in ("", "model"))
    return [path if any(count > 1 for count in merged.values()) else short[path] for path in paths]
