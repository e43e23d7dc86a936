"""What people see at the end of a verb: tables, one summary line, two answers side by side.

Everything here returns rich renderables for `Outcome.view`; nothing prints. The words are those of the field: the reference is
what PyTorch gave, the tolerance is the bound, a mismatch is a difference beyond it, an operator is offloaded to the target.
Errors are shown as their share of the tolerance: `err/bound` 0.31 means that the operator's error is 0.31 times what it may be;
`ref err/bound` is how wrong the reference itself was, in the same unit. A row stands for all operators that share kernels and
status (`copies` counts them) and shows the worst of them. Rows are worst first: those that did not pass, up to `ROWS_FAILED`,
then the worst that did; what is left out is counted. All of it fits 80 columns; names give way in their middle. rich honours
NO_COLOR.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tapml.carving.late import positions_words
from tapml.printable import cut
from tapml.report.progress import seconds
from tapml.report.terminal import Terminal
from tapml.verdicts import STATUSES, Status, Verdict, summary
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.migrate.segment import SegmentResult
    from tapml.migrate.tested import TestResult

ROWS_FAILED = 40
ROWS_BESIDE = 8
ROWS_EXCLUDED = 5
REASON_LINES = 8
NOT_TESTED = 8
LONGEST_LINE = 2000
WIDE = 100
EXCERPT = 150
LEGEND = "copies share kernels · err/bound above 1: mismatch · ref: PyTorch's own error"
WIDTH_OF_A_FILE = 120

STYLE: dict[Status, str] = {
    "pass": "green",
    "fail": "bold red",
    "flaky": "bold magenta",
    "error": "bold yellow",
    "crash": "bold red",
    "unchecked": "bold yellow",
    "skipped": "dim",
}


def stdout() -> Terminal:
    """The console for results. Where stdout is no terminal, lines may be wider, so that names stay whole for `grep`."""
    fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Terminal(width=None if fixed else WIDTH_OF_A_FILE)


def amount(nbytes: float) -> str:
    """Bytes as people write them: "512 B", "1.4 MiB"."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"


def number(value: float | None) -> str:
    """A short number: "0", "0.31", "8.1e+03", "inf"; "" for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 0.005 <= abs(value) < 99.95:
        return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}"
    return f"{value:.1e}"


def positions_line(positions: dict[str, Any] | None) -> Iterator[Text]:
    """How much of the cache the evidence is about; nothing for a module that is not a decoder."""
    if positions:
        yield Text(positions_words(positions), style="dim")


def of_bound(value: float | None, bound: float | None) -> str:
    """An error as its share of the tolerance. A tolerance of 0 allows no difference: then "equal" or "not equal"."""
    if value is None or bound is None:
        return ""
    if bound == 0:
        return "equal" if value == 0 else "not equal"
    return number(value / bound)


def excerpt(text: str, tokens: int) -> str:
    """A prompt in two lines at most: the middle of a longer one gives way, and its length is told."""
    if len(text) <= EXCERPT and text.count("\n") < 2:
        return text
    words = " ".join(text.split())
    if len(words) > EXCERPT:
        half = EXCERPT // 2
        words = f"{words[: half + 10].rstrip()} … {words[len(words) - half + 30 :].lstrip()}"
    return f"{words} ({plural(tokens, 'token')})"


def off_by(error: float, bound: float, source_error: float | None = None) -> str:
    """ "off by 0.13 of the tolerance 7.4e-05; the reference itself by 0.12"; "equal" or "not equal" where nothing may differ."""
    if bound == 0:
        return of_bound(error, bound)
    own = "" if source_error is None else f"; the reference itself by {of_bound(source_error, bound)}"
    return f"off by {of_bound(error, bound)} of the tolerance {number(bound)}{own}"


def shorten(name: str, width: int) -> str:
    """An operator's name with its middle left out. The graph stays and so does the end, where the layer is:
    "prefill/….21.mlp.gated_activation"."""
    if len(name) <= width:
        return name
    graph, slash, _ = name.partition("/")
    front = len(graph) + 1 if slash and len(graph) < width // 3 else width // 4
    return f"{name[:front]}…{name[len(name) - (width - 1 - front) :]}"


def worst_first(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Everything that did not pass, then what passed, each by error over bound; equal ones in the order given."""
    return sorted(verdicts, key=lambda v: -v.badness if not math.isnan(v.badness) else -math.inf)


@dataclass(frozen=True)
class _Row:
    """Operators of one signature and status; `worst` is the first of them, worst first."""

    worst: Verdict
    copies: int


def _rows(ordered: Sequence[Verdict]) -> list[_Row]:
    groups: dict[tuple[str, Status, str | None], list[Verdict]] = {}
    for v in ordered:
        groups.setdefault((v.signature, v.status, v.stage), []).append(v)
    return [_Row(group[0], len(group)) for group in groups.values()]


class VerdictTable:
    """A rich renderable: the verdicts, worst first, then the reasons of those that did not pass. Takes the width that it gets.
    `in_order` are those that did not pass, where their order says more than how wrong they are."""

    def __init__(self, verdicts: Sequence[Verdict], in_order: Sequence[Verdict] | None = None) -> None:
        ordered = worst_first(verdicts)
        if in_order is not None:
            ordered = [*in_order, *(v for v in ordered if v.status == "pass")]
        rows = _rows(ordered)
        bad = sum(row.worst.status != "pass" for row in rows)
        count = ROWS_FAILED if bad > ROWS_FAILED else bad + ROWS_BESIDE
        self._shown, self._hidden = rows[:count], rows[count:]
        self._verdicts = verdicts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._shown:
            yield self._grid(options.max_width)
        if self._hidden:
            yield Text(_left_out(self._hidden), style="dim")
        if self._shown:
            yield Text(LEGEND, style="dim")
        yield from _not_compared(self._verdicts)
        yield from _reasons(self._shown)

    def _grid(self, width: int) -> Table:
        wide = width >= WIDE
        kind_room = min(max(len(row.worst.op) for row in self._shown), 16 if wide else 10)
        longest = max(len(row.worst.operator) for row in self._shown)
        status_room = max(len("status"), *(len(row.worst.status) for row in self._shown))
        # The other columns, each with the two columns of space in front of it.
        rest = [len("copies"), kind_room, status_room, len("err/bound")]
        rest += [len("ref err/bound"), len("0.0e-00")] if wide else [len("err/bound")]
        room = max(min(longest, width - sum(rest) - 2 * len(rest)), len("operator"))
        grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        grid.add_column("operator", no_wrap=True, width=room, vertical="bottom")
        grid.add_column("copies", no_wrap=True, justify="right", style="dim", vertical="bottom")
        grid.add_column("kind", no_wrap=True, style="dim", vertical="bottom")
        grid.add_column("status", no_wrap=True, vertical="bottom")
        grid.add_column("err/bound", no_wrap=True, justify="right", vertical="bottom")
        grid.add_column("ref err/bound" if wide else "ref\nerr/bound", no_wrap=True, justify="right", style="dim")
        if wide:
            grid.add_column("bound", no_wrap=True, justify="right", style="dim")
        for row in self._shown:
            v = row.worst
            cells = [
                Text(shorten(v.operator, room)),
                Text(str(row.copies)),
                Text(v.op if len(v.op) <= kind_room else f"{v.op[: kind_room - 1]}…"),
                Text(v.status, style=STYLE[v.status]),
                Text(of_bound(v.error, v.bound), style="" if v.status == "pass" else STYLE[v.status]),
                Text(of_bound(v.source_error, v.bound)),
                Text(number(v.bound)),
            ]
            grid.add_row(*cells[: 7 if wide else 6])
        return grid


def _not_compared(verdicts: Sequence[Verdict]) -> Iterator[Text]:
    """Whose elements were left out of the comparison, and how many: one line for operators that share kernels, the largest share
    first."""
    found: dict[str, list[Verdict]] = {}
    for v in sorted((v for v in verdicts if v.excluded), key=lambda v: -v.excluded / max(v.elements, 1)):
        found.setdefault(v.signature, []).append(v)
    for first, *others in list(found.values())[:ROWS_EXCLUDED]:
        more = f" (and of {len(others)} more like it)" if others else ""
        yield Text(
            f"{first.excluded:,} of {plural(first.elements, 'element')} of {first.operator}{more} were not compared: the "
            "reference cannot decide them", style="yellow",
        )  # fmt: skip
    if len(found) > ROWS_EXCLUDED:
        yield Text(f"… and elements of {plural(len(found) - ROWS_EXCLUDED, 'more operator')}", style="dim")


def _reasons(shown: Sequence[_Row]) -> Iterator[RenderableType]:
    """The reason of each row that did not pass, the tool's own message included."""
    for row in shown:
        v = row.worst
        if v.status == "pass":
            continue
        more = f" and {row.copies - 1} more like it" if row.copies > 1 else ""
        yield Text("")
        yield Text.assemble((v.operator, "bold"), more, ": ", (v.status, STYLE[v.status]), f" at {v.stage}" if v.stage else "")
        for line in v.reason.strip().splitlines()[:REASON_LINES] or ["(no reason was given)"]:
            yield Padding(Text(cut(line, LONGEST_LINE)), (0, 0, 0, 2))


def _left_out(hidden: Sequence[_Row]) -> str:
    counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
    for row in hidden:
        counts[row.worst.status] += row.copies
    words = [f"{count} more that {_DID[status]}" for status, count in counts.items() if count]
    return f"… and {', '.join(words)}"


_DID: dict[Status, str] = {
    "pass": "passed",
    "fail": "failed",
    "flaky": "were flaky",
    "error": "ended in an error",
    "crash": "crashed",
    "unchecked": "could not be checked",
    "skipped": "were skipped",
}


def counts_line(verdicts: Sequence[Verdict], where: str, spent: float) -> Text:
    """The summary line: "385 operators: 383 pass, 2 fail · opencl on PoCL · 41 s"."""
    text = Text()
    text.append(f"{plural(len(verdicts), 'operator')}: ", style="bold")
    counts = summary(verdicts)
    shown = [s for s in STATUSES if counts[s]]
    for k, status in enumerate(shown):
        text.append(", " if k else "")
        text.append(f"{counts[status]} {status}", style=STYLE[status])
    if not shown:
        text.append("none tested")
    text.append(f" · {where} · {seconds(spent)}", style="dim")
    return text


def first_wrong_line(name: str | None) -> Iterator[Text]:
    """Where the error comes from that the operators behind it were handed."""
    if name is not None:
        yield Text.assemble("first wrong: ", (name, "bold red"))


def segment_lines(result: SegmentResult | None) -> Iterator[Text]:
    """How long a segment is, and which part of it is enough for it to fail."""
    if result is None:
        return
    yield Text(f"{plural(len(result.segment.operators), 'operator')} as one segment", style="dim")
    if result.smallest is None:
        return
    found, verdict = result.smallest
    count = len(found.operators)
    if count == 1:
        yield Text.assemble((found.name, "bold red"), " fails without its neighbours too")
        return
    yield Text.assemble("smallest segment that fails: ", (found.name, "bold red"), f" ({count} operators)")
    if verdict is not result.verdict:
        yield Text(f"there: {verdict.reason}", style="dim")


def not_tested(result: TestResult) -> str:
    """What a folder of kernels has none for, in a sentence; "" for nothing."""
    names = [v.operator for v in result.verdicts if v.operator in result.without]
    if not names:
        return ""
    more = f" and {len(names) - NOT_TESTED} more" if len(names) > NOT_TESTED else ""
    return (
        f"Not tested, since {result.kernels} has no kernel for this target: {plural(len(names), 'operator')}, "
        f"{', '.join(names[:NOT_TESTED])}{more}"
    )


def side_by_side(left: tuple[str, str], right: tuple[str, str], same: bool) -> RenderableType:
    """Two answers, each as (title, text), in two columns."""
    grid = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    grid.add_column(Text(left[0]), ratio=1, overflow="fold")
    grid.add_column(Text(right[0]), ratio=1, overflow="fold")
    grid.add_row(Text(left[1]), Text(right[1], style="" if same else "red"))
    return grid


def facts(rows: Sequence[tuple[str, str]]) -> RenderableType:
    """Aligned "name  value" lines."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    return grid


def command(text: str) -> Text:
    """The next command to type: one line, however long, so that it can be copied."""
    return Text.assemble(("Next: ", "dim"), (text, "cyan"), no_wrap=True, overflow="ignore")
