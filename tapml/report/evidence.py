"""The evidence of a diagnosis in plain words: each probe and its outcome as one sentence, numbered.

    chain(evidence)                       a rich renderable
    tone(evidence)                        "right", "wrong", "refused", "open" or "not run": how it is to be shown
    sentence(evidence)                    "The lowered function is right: plain C in one thread gives the expected numbers."
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tapml.report.console import number
from tapml.targets.known import REFERENCE

if TYPE_CHECKING:
    from tapml.diagnose.probes.evidence import Evidence

CPU = REFERENCE.name
MARK = {
    "right": ("✓", "green"), "wrong": ("✗", "bold red"), "refused": ("✗", "bold yellow"), "not run": ("–", "dim"),
    "open": ("·", "dim"),
}  # fmt: skip

_START = {"compile": "It compiles", "limits": "its launches fit the device", "load": "the driver accepts it"}

# "No" here is no fault of anything: it only leaves a question open.
NEUTRAL = {("float64", "wrong"), ("grid", "wrong"), ("uploads", "wrong")}

# The error is shown already, or the sentence has said it.
_SAYS_NOTHING = re.compile(r"error [\d.e+-]+ of the tolerance|equal to the reference|none was found|it does|all of them")

# What each outcome says, as a step of the argument.
_SAID: dict[tuple[str, str], str] = {
    ("compile", "right"): "It compiles.",
    ("limits", "right"): "Its launches fit the device.",
    ("load", "right"): "The driver accepts it.",
    ("compile", "refused"): "The compiler makes no kernels of it.",
    ("limits", "wrong"): "It asks for more than the device has.",
    ("load", "refused"): "The driver refuses the kernels.",
    ("run", "right"): "It is right on the target, whatever memory held before.",
    ("run", "wrong"): "It is wrong on the target.",
    ("run", "refused"): "The device refuses to run it.",
    ("float64", "right"): "Against float64 the target is right: the reference is what is off.",
    ("float64", "wrong"): "The reference is not what is off: it is the nearer to float64.",
    ("graph", "right"): "The graph that was compiled is right: PyTorch computes the recorded outputs with it.",
    ("graph", "wrong"): "The graph that was compiled is wrong: PyTorch computes something else with it.",
    ("uploads", "right"): "The same kernels are right once the weights are uploaded anew: those on the device are wrong.",
    ("uploads", "wrong"): "The weights on the device are not it: with them uploaded anew it is as wrong.",
    ("memory", "right"): "It reads and writes nothing but its own memory, and none of it before writing it.",
    ("memory", "wrong"): "It does something with memory that it should not.",
    ("memory", "refused"): "Runs with watched memory broke off.",
    ("text", "right"): "The text has no hazard: no read before a write, no missing barrier.",
    ("text", "wrong"): "The text has a hazard.",
    ("grid", "right"): "The same text is right with more workgroups: too few were launched.",
    ("grid", "wrong"): "More workgroups do not help: the launch is large enough.",
    (CPU, "right"): "The lowered function is right: plain C in one thread gives the expected numbers.",
    (CPU, "wrong"): "The lowered function is wrong: plain C in one thread is wrong too.",
    (CPU, "refused"): "Plain C in one thread could not be run.",
    ("converted", "right"): "What it was converted to is right, before anything is lowered.",
    ("converted", "wrong"): "What it was converted to is wrong already, before anything is lowered.",
    ("other schedule", "right"): "Another schedule of the same function is right on this target.",
    ("other schedule", "wrong"): "Other schedules are wrong on this target too.",
    ("text elsewhere", "right"): "The same schedule's text for another target has no such hazard.",
    ("text elsewhere", "wrong"): "The same schedule's text for another target has the same hazard.",
    ("same schedule elsewhere", "right"): "The same schedule is right on another target.",
    ("same schedule elsewhere", "wrong"): "The same schedule is wrong on another target too.",
    ("other schedule elsewhere", "right"): "Another schedule is right on that other target.",
    ("other schedule elsewhere", "wrong"): "Other schedules are wrong on that other target too.",
    ("other driver", "right"): "Another driver runs the very same text rightly.",
    ("other driver", "wrong"): "Another driver runs the very same text as wrongly.",
    ("other driver", "refused"): "Another driver refuses the text too.",
    ("model", "right"): "The whole model is right with every operator on the target.",
    ("model", "wrong"): "The whole model is wrong with every operator on the target.",
    ("model without", "right"): "Without this operator on the target, the model is right.",
    ("model without", "wrong"): "Without this operator on the target, the model is wrong too.",
    ("model with only", "right"): "With this operator alone on the target, the model is right.",
    ("model with only", "wrong"): "With this operator alone on the target, the model is wrong.",
    ("met", "right"): "On every input that it meets in the model, the operator itself is right.",
    ("met", "wrong"): "On an input that it meets in the model, the operator is wrong.",
}


def chain(evidence: Sequence[Evidence]) -> RenderableType:
    """Numbered sentences; what was fine from the start is one of them, what was not needed is counted in one line at the end."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(justify="right", style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold", ratio=1)
    made = [e for e in evidence if e.outcome != "not needed"]
    start = [e for e in made if e.probe in _START and e.outcome == "right"]
    rest = [e for e in made if e not in start]
    if start:
        kernels = next((e.detail for e in start if e.probe == "compile"), "")
        words = Text.assemble(f"{', '.join(_START[e.probe] for e in start)}.", (f" {kernels}" if kernels else "", "dim"))
        grid.add_row("1.", Text("✓", style="green"), words)
    for count, e in enumerate(rest, 2 if start else 1):
        mark, style = MARK[tone(e)]
        error = "" if e.error is None or not e.bound else f"  {times_of(e.error / e.bound)} the tolerance"
        words = Text.assemble(sentence(e), (f"  {e.where}" if e.where else "", "dim"), (error, style))
        grid.add_row(f"{count}.", Text(mark, style=style), words)
        if detail := more(e):
            grid.add_row("", "", Text(detail, style="dim"))
    spared = [e.probe for e in evidence if e.outcome == "not needed"]
    if spared:
        grid.add_row("", "", Text(f"Not needed any more: {', '.join(spared)}.", style="dim"))
    return grid


def tone(e: Evidence) -> str:
    """What the outcome means for the operator: a "no" that is no fault of anything is "open"."""
    return "open" if (e.probe, e.outcome) in NEUTRAL else e.outcome


def more(e: Evidence) -> str:
    """What the detail adds to the sentence and the error; "" for nothing."""
    return "" if tone(e) == "open" or _SAYS_NOTHING.fullmatch(e.detail) else _short(e.detail)


def sentence(e: Evidence) -> str:
    if e.outcome == "not run":
        return f"Not run: {e.question[0].lower()}{e.question[1:]}"
    return _SAID.get((e.probe, e.outcome), f"{e.question} {e.outcome}")


def times_of(value: float) -> str:
    """A multiple: "0.04 ×", "1,240 ×"."""
    return f"{value:,.0f} ×" if 99.95 <= value < 1e7 else f"{number(value)} ×"


def _short(text: str, lines: int = 6) -> str:
    kept = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return "\n".join(kept[:lines] + ([f"… {len(kept) - lines} more lines"] if len(kept) > lines else []))
