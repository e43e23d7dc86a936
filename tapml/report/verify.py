"""What people see of a verified bundle: each demand, and where its composition goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tapml.report.progress import seconds
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.deploy.composition import Found
    from tapml.deploy.verify import Verified


def view(verified: Verified, where: str, spent: float) -> Iterator[RenderableType]:
    """Top to bottom. `where` names bundle, target and device."""
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for style in ("", "", "dim"):
        grid.add_column(style=style, overflow="fold")
    for check in verified.checks:
        yes = Text("yes", style="green") if check.passed else Text("no", style="bold red")
        grid.add_row(yes, Text(check.question), Text(check.detail))
    yield grid
    if verified.found is not None:
        yield Text("")
        yield from _found(verified.found)
    elif not verified.passed:
        yield Text("")
        yield Text(_advice(verified))
    outcome = ("passed", "green") if verified.passed else ("failed", "bold red")
    yield Text.assemble(outcome, (f" · {where} · {seconds(spent)}", "dim"))


def _found(found: Found) -> Iterator[RenderableType]:
    from tapml.deploy.composition import QUESTIONS

    yield Text.assemble("first wrong: ", (found.operator, "bold"), f", at stage {found.stage}: {found.cause}")
    for row in (found.because, *_circumstances(found)):
        yield Padding(Text(row), (0, 0, 0, 2))
    if found.stage != "plan":
        return
    for question in QUESTIONS:
        right = found.answers[question.name]
        yield Padding(Text.assemble("right " if right else "wrong ", (question.name, "dim")), (0, 0, 0, 2))


def _circumstances(found: Found) -> Iterator[str]:
    from tapml.deploy.composition import TRIES

    seen = f"seen in call {found.call} ({found.graph})"
    if found.stage != "plan":
        yield seen
        yield f"its kernel on the recorded calls: tapml test RUN --target T --repeat 20 --operator {found.operator}"
        return
    often = f"{found.wrong} of {TRIES} runs are wrong as it ships"
    if not found.wrong:
        often += ": it reads what an earlier run left, which was right by chance"
    yield f"{seen}; {often}"
    if found.other is not None:
        yield {
            "early-reuse": f"{found.other} writes over what it reads",
            "unsafe-reorder": f"{found.other} should have written before it",
        }.get(found.cause, f"it takes {plural(found.span or 1, 'launch')} submitted together, from {found.other} on")
    if found.probe:
        yield "the operators before it are right when they are looked at, so this one is named by what repairs it"


def _advice(verified: Verified) -> str:
    wrong = {check.name for check in verified.checks if not check.passed}
    if wrong == {"chunks"}:
        return "The plan is right. A token's bits depend on where in a call it stands: compare only prompts that are cut alike."
    return (
        "The plan is right: its operators give these bits alone, too. It is the kernels that give other values than the source "
        "here. Test the run on this device: tapml test RUN --target T"
    )
