"""What people see of a check: how many operators the deployment shows, which of its values are wrong, and which is the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tapml.report.console import off_by
from tapml.report.progress import seconds
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.diagnose.check.follow import Found
    from tapml.diagnose.check.result import CheckResult, Look

WRONG_SHOWN = 10
UNSEEN_SHOWN = 8

_HOW = {
    "value": "its values", "name": "its name", "what follows": "what follows from it", "output": "its place as an output",
    "likeness": "what it is like", "order": "its place in the order",
}  # fmt: skip


def view(result: CheckResult) -> Iterator[RenderableType]:
    """Top to bottom."""
    for look in result.looks:
        yield _headline(look)
        if look.wrong:
            yield Padding(_table(look.wrong[:WRONG_SHOWN], len({question for question, _ in look.found}) > 1), (0, 0, 0, 2))
            if len(look.wrong) > WRONG_SHOWN:
                yield Text(f"  … and {len(look.wrong) - WRONG_SHOWN} more", style="dim")
        if look.first is not None:
            yield _first(look.first)
        if look.probing:
            yield Text(f"  The verdicts may depend on looking: {look.probing}", style="bold red")
        if partly := [f for _, f in look.found if f.parts is not None]:
            yield _partly(partly)
        if look.unseen:
            yield Text(f"  not shown: {_listed(look.unseen)}", style="dim")
    for text in list(result.weights.values())[:WRONG_SHOWN]:
        yield Text.assemble("  wrong weight: ", (text, "bold red"))
    if len(result.weights) > WRONG_SHOWN:
        yield Text(f"  … and {len(result.weights) - WRONG_SHOWN} more", style="dim")
    if result.unknown_weights:
        yield Text(
            f"  {plural(len(result.unknown_weights), 'quantized weight')} of the file could not be found in the model, and "
            f"compared with nothing: {_listed(result.unknown_weights)}", style="yellow",
        )  # fmt: skip
    yield Text.assemble(
        ("passed", "green") if result.passed else ("failed", "bold red"),
        (f" · {result.engine} · {seconds(result.seconds)}", "dim"),
    )


def _headline(look: Look) -> Text:
    total = len(look.seen) + len(look.unseen)
    if not look.seen:
        return Text(
            f"{look.label}: none of {plural(total, 'operator')} was recognised. Is this the model that was carved, with the same "
            "inputs?", style="bold red",
        )  # fmt: skip
    right = "all right" if not look.wrong else f"{plural(len(look.wrong), 'value')} wrong"
    return Text.assemble(
        f"{look.label}: {len(look.seen)} of {plural(total, 'operator')} recognised, ",
        (right, "green" if not look.wrong else "bold red"),
    )


def _first(found: Found) -> Text:
    text = Text.assemble("  first wrong: ", (found.operator.name, "bold"))
    if found.among:
        text.append(f", or an operator before it whose value is not shown: {_listed(found.among)}")
    if found.exchanged:
        text.append(f", which has the value of {found.exchanged}, and that has its: their weights may be exchanged")
    if found.weight:
        text.append(", by a weight of its own" + ("" if found.status == "fail" else "; its value is right for these inputs"))
    return text


def _partly(found: Sequence[Found]) -> Text:
    shown = sorted(f.parts[0] for f in found if f.parts is not None)
    summed = sum(f.summed for f in found)
    values = plural(len(found), "value")
    text = f"  seen: {shown[0]:,} to {shown[-1]:,} elements of each value, and the sum of {summed:,} of {values}"
    if summed < len(found):
        text += "; those without it are unchecked"
    if any(f.status == "fail" for f in found):
        text += ". Values after the first wrong one are made of it, and may be wrong for that"
    return Text(text, style="yellow")


def _table(wrong: Sequence[tuple[str, Found]], several_calls: bool) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    grid.add_column("operator", overflow="fold", style="bold")
    grid.add_column("kind", no_wrap=True)
    grid.add_column("value in the deployment", overflow="fold")
    grid.add_column("recognised by", overflow="fold", style="dim")
    grid.add_column("off by", overflow="fold")
    if several_calls:
        grid.add_column("call", overflow="fold", style="dim")
    for question, found in wrong:
        comparison = found.comparison
        assert comparison is not None
        off = off_by(comparison.error, comparison.bound) if comparison.bound else "not equal"
        cells = [found.operator.name, found.operator.kind, found.name, _HOW[found.how], off]
        grid.add_row(*map(Text, [*cells, question] if several_calls else cells))
    return grid


def _listed(names: Sequence[str]) -> str:
    more = len(names) - UNSEEN_SHOWN
    return ", ".join(names[:UNSEEN_SHOWN]) + (f" and {more} more" if more > 0 else "")
