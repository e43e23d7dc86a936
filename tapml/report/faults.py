"""What people see of the fault catalogue: a table of all classes, or all about some of them; and the table of docs/faults.md.

    FaultTable(CATALOGUE, "cpu")          a renderable; with a target, what it cannot express says why
    blocks([find("16")])                  one block a class, with what it imitates and where it was seen
    markdown(CATALOGUE)                   the table for the documentation
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tapml.report.console import WIDE, command
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.diagnose.faults.fault import FaultClass

# Where issues of "owner/name#number" are. One that names no owner is left without a link.
_ISSUES = "https://github.com/{}/issues/{}"


class FaultTable:
    """A rich renderable: a line a class, more where its title needs them. Wide consoles get the reports too."""

    def __init__(self, faults: Sequence[FaultClass], target: str | None = None) -> None:
        self._faults = faults
        self._target = target

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        wide = options.max_width >= WIDE
        grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        grid.add_column("", justify="right", no_wrap=True, style="dim")
        grid.add_column("fault", no_wrap=True)
        grid.add_column("level", no_wrap=True, style="dim")
        grid.add_column("stage", no_wrap=True, style="dim")
        grid.add_column("what goes wrong", ratio=2)
        if wide:
            grid.add_column("seen in", ratio=1, style="dim", overflow="fold")
        for fault in self._faults:
            cells = [
                Text(str(fault.number)), Text(fault.name, style="bold"), Text(fault.level), Text(fault.stage),
                self._title(fault), Text(", ".join(_short(fault.seen_in))),
            ]  # fmt: skip
            grid.add_row(*cells[: 6 if wide else 5])
        yield grid

    def _title(self, fault: FaultClass) -> Text:
        if self._target is None:
            return Text(fault.title)
        why = fault.why_not(self._target)
        return Text(fault.title) if not why else Text.assemble((fault.title, "dim"), "\n", (f"not here: {why}", "yellow"))


def count_line(faults: Sequence[FaultClass], target: str | None) -> Text:
    """ "28 classes of faults; cpu can express 21 of them"."""
    text = Text(plural(len(faults), "class") if len(faults) == 1 else f"{len(faults)} classes", style="bold")
    text.append(" of faults", style="bold")
    if target is not None:
        text.append(f"; {target} can express {sum(not f.why_not(target) for f in faults)} of them", style="dim")
    return text


def next_line(fault: FaultClass) -> Text:
    """The command that tells more."""
    return command(f"tapml faults list {fault.name}")


def blocks(faults: Sequence[FaultClass]) -> Iterator[RenderableType]:
    """Everything about each class."""
    for index, fault in enumerate(faults):
        if index:
            yield Text("")
        yield Text.assemble(
            (f"{fault.number} {fault.name}", "bold"), (f" · injected at: {fault.level} · true stage: {fault.stage}", "dim")
        )
        yield Padding(Text(fault.title), (0, 0, 0, 2))
        yield Padding(Text.assemble(("imitates  ", "dim"), fault.imitates), (0, 0, 0, 2))
        yield Padding(Text.assemble(("seen in   ", "dim"), ", ".join(fault.seen_in)), (0, 0, 0, 2))
        for why, targets in _by_reason(fault).items():
            yield Padding(Text.assemble(("not on    ", "dim"), f"{', '.join(targets)}: {why}"), (0, 0, 0, 2))


def markdown(faults: Sequence[FaultClass]) -> str:
    """The table of all classes, and below it which targets cannot express which, and why."""
    lines = ["| # | fault | injected at | true stage | what it imitates | seen in |", "| --- | --- | --- | --- | --- | --- |"]
    for fault in faults:
        seen = ", ".join(_link(report) for report in fault.seen_in)
        what = _cell(f"**{fault.title}**<br>{fault.imitates}")
        lines.append(f"| {fault.number} | `{fault.name}` | {fault.level} | {fault.stage} | {what} | {seen} |")
    lines.append("")
    alike: dict[str, list[str]] = {}
    for fault in faults:
        for why, targets in _by_reason(fault).items():
            alike.setdefault(f"not on {', '.join(targets)}: {_cell(why)}", []).append(f"`{fault.name}`")
    lines += [f"- {', '.join(names)} {words}" for words, names in alike.items()]
    return "\n".join(lines).rstrip() + "\n"


def _by_reason(fault: FaultClass) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for target, why in fault.cannot.items():
        found.setdefault(why, []).append(target)
    return found


def _short(reports: Sequence[str]) -> list[str]:
    """Reports without the owner, which the name of a project of this field tells anyway."""
    return [report.rpartition("/")[2] for report in reports]


def _link(report: str) -> str:
    where, _, number = report.partition("#")
    return f"[{report}]({_ISSUES.format(where, number)})" if "/" in where and number.isdecimal() else report


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
