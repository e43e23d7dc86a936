"""The licence of a model's weights, as its files state it.

    licence = stated(folder)            "apache-2.0"; "" where they state none

A Hugging Face directory says it at the head of its model card (README.md), in the words of the hub: an SPDX identifier in small
letters, a name of its own with `license_name`, or "other". Nothing is concluded from what is not written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CARD = "README.md"

_LONGEST = 200


def stated(folder: Path) -> str:
    """ "" also for a card that cannot be read."""
    from huggingface_hub.repocard import metadata_load

    try:
        facts: dict[str, Any] | None = metadata_load(folder / CARD)
    except Exception:  # whatever YAML makes of a stranger's file
        return ""
    facts = facts or {}
    found = facts.get("license_name") or facts.get("license") or ""
    if isinstance(found, list):
        found = ", ".join(map(str, found))
    return str(found)[:_LONGEST] if isinstance(found, str) else ""


def card(licence: str) -> str:
    """A model card that states it and nothing else."""
    return f"---\nlicense: {json.dumps(licence)}\n---\n"
