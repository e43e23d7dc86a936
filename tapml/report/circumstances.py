"""What people see of the circumstances of a result: a fault that was put in, and what the target did not show of the model.

A line each, beside the summary of `test`, `migrate`, `bisect`, `explain` and `health`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from tapml.migrate.circumstances import Circumstances


def circumstance_lines(found: Circumstances) -> Iterator[Text]:
    """None for a result without a fault, of a target that has all dtypes of the model."""
    yield from (Text(line, style="bold yellow") for line in _fault(found))
    yield from (Text(line, style="yellow") for line in _not_checked(found))


def sentences(found: Circumstances) -> Iterator[str]:
    """The same as plain text."""
    yield from _fault(found)
    yield from _not_checked(found)


def _fault(found: Circumstances) -> Iterator[str]:
    if found.inject is not None:
        changed = "" if found.kernels_changed is None else f": {found.kernels_changed} of {found.kernels} kernels changed"
        yield f"With fault {found.inject} injected{changed}"


def _not_checked(found: Circumstances) -> Iterator[str]:
    yield from (f"Not checked: {sentence}" for sentence in found.not_checked)
