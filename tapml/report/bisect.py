"""What people see of a bisection: each failing set with its culprits, how far off the model is with it, and what to type next.

Errors are shown as their share of the tolerance, as everywhere: 840 means 840 times what the model may be off by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tapml.report.console import command, facts, off_by
from tapml.report.progress import seconds
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.diagnose.bisect.result import BisectResult, FailingSet
    from tapml.migrate.end_to_end import Answer

COMMANDS_SHOWN = 3
UNSTEADY_SHOWN = 5
MISSING_SHOWN = 5


def set_views(result: BisectResult) -> Iterator[RenderableType]:
    """A block for each set."""
    for index, found in enumerate(result.sets):
        title = "" if len(result.sets) == 1 else f"{index + 1} of {len(result.sets)}: "
        yield Text.assemble((title, "dim"), (_headline(found), "bold red"))
        yield Padding(_culprits(found), (0, 0, 0, 2))
        yield Padding(facts(_numbers(result, found)), (0, 0, 0, 2))
        yield ""


def without_line(result: BisectResult) -> Iterator[Text]:
    """The model without all that was found, and what was noticed besides."""
    if result.without is not None:
        them = "it" if len(result.culprits) == 1 else "them"
        if result.more:
            wrong = _short(result.without)
            yield Text(f"Without {them} the model is still wrong ({wrong}): there are more culprits.", style="bold red")
        else:
            yield Text(f"Without {them} the model is right: {_short(result.without)}.", style="green")
    elif result.sets:
        yield Text("Nothing else is on the target.", style="yellow")
    if result.unsteady:
        yield Text(f"Different bits for the same inputs: {_listed(result.unsteady, UNSTEADY_SHOWN)}", style="magenta")
    for missing in result.not_compiled[:MISSING_SHOWN]:
        first = next(iter(missing.reason.strip().splitlines()), "")
        if missing.stage is None:
            yield Text(f"{missing.operator} {first}", style="yellow")
        else:
            yield Text(f"Stayed on the source: {missing.operator} does not compile ({missing.stage}): {first}", style="yellow")
    if len(result.not_compiled) > MISSING_SHOWN:
        yield Text(f"… and {len(result.not_compiled) - MISSING_SHOWN} more that are not on the target", style="yellow")


def outcome_line(result: BisectResult) -> Text:
    """The summary: culprits, runs, seconds."""
    if result.sets:
        head, style = plural(len(result.culprits), "culprit"), "bold red"
        if len(result.sets) > 1:
            head += f" in {len(result.sets)} sets"
    else:
        head, style = result.reason, "green" if result.passed else "bold red"
    text = Text.assemble((head, style))
    text.append(f" · {plural(result.runs, 'run')} of the model")
    if result.operators_without_memory:
        text.append(f", {result.operators_run:,} operators run instead of {result.operators_without_memory:,}")
    text.append(f" · {result.target} on {result.device.name} · {seconds(result.seconds)}", style="dim")
    return text


def next_steps(commands: Sequence[str], everything: str | None) -> Iterator[RenderableType]:
    """The commands to go on with: explain the culprits, find the others."""
    for text in commands[:COMMANDS_SHOWN]:
        yield command(text)
    if len(commands) > COMMANDS_SHOWN:
        yield Text(f"… and likewise for {len(commands) - COMMANDS_SHOWN} more", style="dim")
    if everything is not None:
        yield command(everything)


def _headline(found: FailingSet) -> str:
    count = len(found.culprits)
    if count == 1:
        return "This operator makes the model wrong"
    return f"These {count} operators together make the model wrong; with any of them in PyTorch it is right"


def _culprits(found: FailingSet) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    grid.add_column("operator", overflow="fold", style="bold")
    grid.add_column("kind", no_wrap=True)
    grid.add_column("where in the model", overflow="fold", style="dim")
    grid.add_column("schedule", no_wrap=True, style="dim")
    for c in found.culprits:
        where = f"{c.graph}: {c.module}" if c.module else c.graph
        grid.add_row(Text(c.operator), Text(c.kind), Text(where), Text(c.schedule))
    return grid


def _numbers(result: BisectResult, found: FailingSet) -> list[tuple[str, str]]:
    rows = []
    if result.answer is not None:
        rows.append(("all on target", _short(result.answer)))
    rows.append(("only this" if len(found.culprits) == 1 else "only these", _short(found.alone)))
    rows.append(("", found.answer.reason))
    if result.further is not None:
        rows.append(("checked", f"{result.further}; the shorter check of the run is right"))
    if found.first_wrong_call is not None:
        rows.append(("first wrong", f"call {found.first_wrong_call}"))
    if found.how == "together":
        stage = "state: " if found.stage == "state" else ""
        rows.append(("where", f"{stage}each operator is right with the inputs that it gets; what is passed between them is not"))
    elif found.alone.passed:
        rows.append(("note", "wrong operator by operator over poisoned memory, right as it ships"))
    for c in found.culprits:
        if c.alike:
            rows.append(("same kernels", f"{plural(len(c.alike), 'other operator')} run the kernels of {c.operator}"))
    if not found.steady and found.rate is not None:
        rows.append((
            "flaky",
            f"wrong in {found.rate.failures} of {found.rate.runs} runs; a set counted as right after {found.repeats} right runs "
            f"in a row, for a confidence of {result.confidence:g} in the answer",
        ))
    return rows


def _short(answer: Answer) -> str:
    if answer.error is None:
        return answer.reason
    assert answer.bound is not None
    return f"outputs {off_by(answer.error, 0.0)}" if answer.bound == 0 else off_by(answer.error, answer.bound)


def _listed(names: Sequence[str], most: int) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
