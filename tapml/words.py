"""Counts and places as people write them, for every text that people read.

    plural(1, "session"), plural(1200, "launch")        "1 session", "1,200 launches"
    place(Path.cwd() / "run")                           "run"
"""

from __future__ import annotations

from pathlib import Path

_HISSING = ("s", "x", "ch", "sh")


def plural(count: int, noun: str) -> str:
    """The count with its noun, which is given in the singular: "1 case", "2 cases", "1,200 launches"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith(_HISSING) else 's'}"


def place(path: Path) -> str:
    """A path as one types it here: from the current folder where it lies in it, else whole."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
