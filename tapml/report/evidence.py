"""The evidence of a diagnosis in plain words: each probe and its outcome as one sentence, numbered.

    chain(evidence)                       a rich renderable

What each outcome says is said by the probe itself (`tapml.diagnose.probes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tapml.diagnose.probes.evidence import share
from tapml.report.console import number

if TYPE_CHECKING:
    from tapml.diagnose.probes.evidence import Evidence

MARK = {
    "right": ("✓", "green"), "wrong": ("✗", "bold red"), "refused": ("✗", "bold yellow"), "not run": ("–", "dim"),
    "open": ("·", "dim"),
}  # fmt: skip


def chain(evidence: Sequence[Evidence]) -> RenderableType:
    """Numbered sentences; what was fine from the start is one of them, what was not needed is counted in one line at the end."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold", ratio=1)
    made = [e for e in evidence if e.outcome != "not needed"]
    start = [e for e in made if e.asked.start and e.outcome == "right"]
    rest = [e for e in made if e not in start]
    if start:
        details = "".join(f" {e.detail}" for e in start if e.detail)
        words = Text.assemble(f"{', '.join(e.asked.start for e in start)}.", (details, "dim"))
        grid.add_row("1.", Text("✓", style="green"), words)
    for count, e in enumerate(rest, 2 if start else 1):
        mark, style = MARK[e.tone]
        error = "" if e.error is None or not e.bound else f"  {times_of(e.error / e.bound)} the tolerance"
        words = Text.assemble(e.said, (f"  {e.where}" if e.where else "", "dim"), (error, style))
        grid.add_row(f"{count}.", Text(mark, style=style), words)
        if detail := more(e.tone, e.detail, e.error, e.bound):
            grid.add_row("", "", Text(detail, style="dim"))
    spared = [e.probe for e in evidence if e.outcome == "not needed"]
    if spared:
        grid.add_row("", "", Text(f"Not needed any more: {', '.join(spared)}.", style="dim"))
    return grid


def more(tone: str, detail: str, error: float | None, bound: float | None) -> str:
    """What the detail adds to what was said and to the error, which is shown already; "" for nothing."""
    said = error is not None and bound and detail == share(error, bound)
    return "" if tone == "open" or said else _short(detail)


def times_of(value: float) -> str:
    """A multiple: "0.04 ×", "1,240 ×"."""
    return f"{value:,.0f} ×" if 99.95 <= value < 1e7 else f"{number(value)} ×"


def _short(text: str, lines: int = 6) -> str:
    kept = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return "\n".join(kept[:lines] + ([f"… {len(kept) - lines} more lines"] if len(kept) > lines else []))
