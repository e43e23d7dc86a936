"""What people see of a bundle wherever it is built or run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

LISTED = 5


def unproven(allowed: Sequence[str]) -> Iterator[str]:
    """A line about the operators that ship without having passed; none where there are none."""
    if not allowed:
        return
    more = f" and {len(allowed) - LISTED} more" if len(allowed) > LISTED else ""
    verb = "operator ships" if len(allowed) == 1 else "operators ship"
    yield f"Not proven: {len(allowed)} {verb} without having passed: {', '.join(allowed[:LISTED])}{more}"
