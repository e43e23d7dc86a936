"""Models that want code of their own to be run: it is not, and nobody is asked.

    wants = own_code(folder)                 "modeling_odd.py", or "" where the files want none
    raise refused(folder, wants)

transformers would ask on the terminal whether to run what `auto_map` of config.json or tokenizer_config.json names, unless each
call says `trust_remote_code=False`; then it takes the class of its own, where it has one, and fails where it has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tapml.errors import ModelError

_CONFIGS = ("config.json", "tokenizer_config.json")


def own_code(folder: Path, configs: tuple[str, ...] = _CONFIGS) -> str:
    """The files that `auto_map` names, as they lie beside it; with another repository's name in front where it is one's."""
    found: dict[str, None] = {}
    for name in configs:
        for reference in _texts(_read(folder / name).get("auto_map")):
            repository, _, place = reference.rpartition("--")
            file = f"{place.partition('.')[0]}.py"
            found[f"{repository}/{file}" if repository else file] = None
    return ", ".join(list(found)[:3])


def refused(place: Path, files: str) -> ModelError:
    """`place` is what cannot be loaded without `files`."""
    return ModelError(
        f"{place} needs code of its own ({files}), which TapML does not run. Read that code; if you trust it, write "
        "FILE.py:FUNCTION that makes the model with it and returns (module, example_inputs), and carve that."
    )


def tokenizer_beside(path: Path) -> str:
    """The files of code that a tokenizer beside a model's file cannot do without, "" where there is none such."""
    import transformers

    files = own_code(path.parent, ("tokenizer_config.json",))
    named = _read(path.parent / "tokenizer_config.json").get("tokenizer_class")
    return "" if isinstance(named, str) and hasattr(transformers, named) else files


def _read(path: Path) -> dict[str, Any]:
    """An empty one where there is no such file, or what is in it is not JSON object: whoever reads it all says so."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, str):
                yield one
    elif isinstance(value, dict):
        for one in value.values():
            yield from (one for one in (one if isinstance(one, list) else [one]) if isinstance(one, str))
