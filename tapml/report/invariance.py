"""What people see of `tapml test --repeat`: the operators whose bits differ, or that none do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from tapml.report.console import number
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.migrate.invariance import Invariance, Spread

ROWS = 20

HEADINGS = {"not_deterministic": "not deterministic", "depends_on_batch": "depends on the batch"}


def invariance_lines(found: Invariance | None) -> Iterator[Text | Padding]:
    """Nothing where it was not asked for."""
    if found is None:
        return
    for heading, spreads in ((HEADINGS[key], getattr(found, key)) for key in HEADINGS):
        for spread in sorted(spreads, key=lambda s: s.size, reverse=True)[:ROWS]:
            style = "yellow" if spread.within else "bold red"
            yield Text.assemble((heading, style), ": ", (spread.operator, "bold"))
            yield Padding(Text(difference_words(spread)), (0, 0, 0, 2))
        if len(spreads) > ROWS:
            yield Text(f"… and {len(spreads) - ROWS} more: {heading}", "dim")
    for operator, reason in found.not_run[:ROWS]:
        yield Text(f"not repeated: {operator}: {' '.join(reason.split())}", "dim")
    if len(found.not_run) > ROWS:
        yield Text(f"… and {len(found.not_run) - ROWS} more that were not repeated", "dim")
    yield Text(summary_of(found), "dim")


def summary_of(found: Invariance) -> str:
    """What was asked, and how often the bits were the same."""
    runs = _counted(found.not_deterministic, found.operators, f"in {found.repeat} runs of {plural(found.calls, 'recorded call')}")
    rows = _counted(found.depends_on_batch, found.with_rows, "for the same rows in other places and chunks")
    return f"{runs}; {rows if found.with_rows else 'no operator has rows that could be arranged otherwise'}"


def _counted(spreads: Sequence[Spread], operators: int, asked: str) -> str:
    same = operators - len(spreads)
    return f"the same bits from {same} of {plural(operators, 'operator')} {asked}"


def difference_words(spread: Spread) -> str:
    """One line of what differs, without the operator's name."""
    unit = "runs" if spread.relation == "runs" else "rows"
    beyond = "" if spread.within else ", so it fails"
    more = f"; {spread.copies} operators run these kernels" if spread.copies > 1 else ""
    return (
        f"{spread.what}: {spread.differing} of {spread.compared} {unit} differ, by up to {spread.difference:.2g} "
        f"({number(spread.of_bound)} of the tolerance{beyond}), {spread.case}{more}"
    )
