"""What people see of numeric health: who made the first bad number of each kind, the rest counted, and the tight operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tapml.report.circumstances import circumstance_lines
from tapml.report.console import number, shorten
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.diagnose.health.result import Headroom, Health, Made, Side

ROWS = 12
INPUTS_SHOWN = 4
KINDS = ("overflow", "nan", "inf", "underflow")
_WORDS = {"overflow": "overflow", "nan": "NaN", "inf": "Inf", "underflow": "underflow to zero"}


def view(health: Health) -> tuple[RenderableType, ...]:
    """Top to bottom: the source, the target, headroom."""
    parts: list[RenderableType] = list(_side("source", health.source))
    if health.target is not None:
        parts += ["", *_side(f"target {health.facts['target']} on {health.facts['device_info']['name']}", health.target)]
    parts += ["", *_headroom(health), *circumstance_lines(health.circumstances)]
    return tuple(parts)


def _side(name: str, side: Side) -> Iterator[RenderableType]:
    yield Text.assemble(
        (name, "bold"), f": {plural(side.operators, 'operator')} in {plural(side.calls, 'call')}, ",
        ("outputs finite", "green") if side.outputs_finite else ("outputs hold NaN or Inf", "bold red"),
    )  # fmt: skip
    for value in side.given:
        yield Padding(Text(f"{value.name} came with {plural(value.nonfinite, 'NaN or Inf element')}", "yellow"), (0, 0, 0, 2))
    for kind in KINDS:
        made = [m for m in side.made if m.kind == kind]
        if made:
            yield from _first(made)
    if not side.made:
        yield Padding(Text("no overflow, NaN, Inf or underflow was made", "green"), (0, 0, 0, 2))
    for what, reasons in (("not checked", side.not_checked), ("run on the source instead", side.on_source)):
        for operator, reason in list(reasons.items())[:ROWS]:
            yield Padding(Text(f"{what}: {operator}: {reason}", "yellow"), (0, 0, 0, 2))
        if len(reasons) > ROWS:
            yield Padding(Text(f"… and {len(reasons) - ROWS} more {what}", "dim"), (0, 0, 0, 2))


def _first(made: Sequence[Made]) -> Iterator[RenderableType]:
    """The first of a kind, what it was given, and how many operators more."""
    first = made[0]
    style = "dim" if first.kind == "underflow" else "bold red"
    more = f"; {plural(len(made) - 1, 'operator')} more" if len(made) > 1 else ""
    yield Padding(Text.assemble(("first " + _WORDS[first.kind], style), ": ", (first.operator, "bold"), more), (0, 0, 0, 2))
    at = f" at {first.node}" if first.node else f" in output {first.output}"
    line = f" ({first.line})" if first.line else ""
    where = f"{first.graph}, call {first.step}"
    told = f"{at.strip()}{line}, {where}: {first.elements} of {plural(first.of, 'element')}; "
    told += f"element {list(first.index)} is {first.value}, float64 gives {first.exact:.6g}"
    yield Padding(Text(told), (0, 0, 0, 4))
    for value in first.inputs[:INPUTS_SHOWN]:
        bad = f", {value.nonfinite} not finite" if value.nonfinite else ""
        low_high = f"{value.low:.6g} … {value.high:.6g}" if value.low is not None else "no finite element"
        yield Padding(Text(f"given {value.name}: {low_high}{bad}", "dim"), (0, 0, 0, 4))
    if first.source_too:
        yield Padding(Text("the source makes the same of these inputs", "dim"), (0, 0, 0, 4))


def _headroom(health: Health) -> Iterator[RenderableType]:
    tight = health.tight
    if not health.headroom:
        return
    worst = health.headroom[0]
    if not tight:
        yield Text.assemble(
            "float16 would leave every operator at least ", (f"{worst.float16_bits or 0:.1f} bits", "green"), " of headroom; "
            f"the tightest is {worst.operator}: {number(worst.magnitude)} in {worst.where}",
        )  # fmt: skip
        return
    over = sum((h.float16_bits or 0) < 0 for h in tight)
    yield Text.assemble(
        ("headroom", "bold"), f": {plural(len(tight), 'operator')} under 2 bits in float16, ",
        (f"{over} of them would overflow", "bold red" if over else "green"),
    )  # fmt: skip
    yield _Table(tight[:ROWS])
    if len(tight) > ROWS:
        yield Text(f"… and {len(tight) - ROWS} more", style="dim")


class _Table:
    """A rich renderable that takes the width it gets."""

    def __init__(self, rows: Sequence[Headroom]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        place = min(max(len(h.where) for h in self._rows), max(options.max_width // 3, 12))
        room = max(min(max(len(h.operator) for h in self._rows), options.max_width - place - 40), len("operator"))
        grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        grid.add_column("operator", no_wrap=True, width=room)
        grid.add_column("largest", no_wrap=True, justify="right")
        grid.add_column("in", no_wrap=True, width=place)
        grid.add_column("float16", no_wrap=True, justify="right")
        grid.add_column("stored", no_wrap=True, justify="right")
        grid.add_column("bfloat16", no_wrap=True, justify="right", style="dim")
        for h in self._rows:
            style = "bold red" if (h.float16_bits or 0) < 0 else "yellow"
            given = (h.float16_bits, h.stored_float16_bits, h.bfloat16_bits)
            half, stored, brain = (f"{b:.1f}" if b is not None else "" for b in given)
            name, where = shorten(h.operator, room), Text(shorten(h.where, place), "dim")
            grid.add_row(name, number(h.magnitude), where, Text(half, style), stored, brain)
        yield grid
