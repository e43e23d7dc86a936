"""What people see of an explanation: the verdict, the chain of evidence, the smallest input, the kernel, what to try.

    for part in view(explanation): console.print(part)

Errors are multiples of the tolerance: 1 is the most that passes. The kernel shown is that of the minimised case where there is
one, since it is the shortest with the same fault; lines that differ in numbers only are folded, and the whole text lies in a
file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tapml.backends.on_device import kernels_of
from tapml.report.circumstances import circumstance_lines
from tapml.report.console import STYLE, command, facts
from tapml.report.evidence import chain, times_of
from tapml.report.kernel_text import kernels_view
from tapml.report.progress import seconds
from tapml.words import place, plural

if TYPE_CHECKING:
    from tapml.diagnose.explain.result import Explanation
    from tapml.tensors import HostArray

ELEMENTS = 8
EXCEPTIONS = 3

MEANING = {
    "precision": "the reference's own precision",
    "convert": "the operator's graph, or how the compiler converts it",
    "weights": "the weights on the device",
    "lower": "the lowered function, before any schedule",
    "launch": "the launch: its size, limits or bindings",
    "schedule": "how the loops are spread over threads",
    "codegen": "the text that is generated for this target",
    "driver": "the platform's own compiler or runtime",
    "backend": "the engine that runs it, whose stages cannot be told apart",
    "state": "what is passed between calls",
    "plan": "how a bundle puts operators together",
}


def view(found: Explanation) -> tuple[RenderableType, ...]:
    """Everything, top to bottom."""
    return tuple(_parts(found))


def _parts(found: Explanation) -> Iterator[RenderableType]:
    yield _verdict(found)
    yield Text("\nWhat was tried", style="bold")
    yield chain(found.evidence)
    if found.triage.findings:
        yield Text("\nOther findings", style="bold")
        for finding in found.triage.findings:
            yield _hanging("•", Text.assemble((finding.kind, "bold"), f": {finding.text}"))
    if not found.passed:
        yield from _smallest(found)
        yield from _kernels(found)
    yield Text("\nWhat to try", style="bold")
    for count, line in enumerate(found.advice, 1):
        yield _hanging(f"{count}.", Text(line))
    yield Text("")
    yield from circumstance_lines(found.circumstances)
    yield from _end(found)


def _verdict(found: Explanation) -> RenderableType:
    style = STYLE[found.status]
    head = Text.assemble((found.operator.name, "bold"), "  ")
    if found.passed:
        head.append("nothing is wrong", style="bold green")
    else:
        head.append(found.status, style=style)
        head.append(" at ")
        head.append(found.stage or "a stage that is not known", style=style)
        if found.stage is not None:
            head.append(f": {MEANING[found.stage]}")
    rows = [("because", found.because), ("computes", _computes(found)), ("on", f"{found.target} · {found.device.name}")]
    worst = found.triage.comparison
    if worst is not None:
        words = "not equal" if worst.error else "equal"
        if worst.bound:
            own = f" (the reference itself {times_of(worst.source_error / worst.bound)})"
            words = f"{times_of(worst.error / worst.bound)} the tolerance{own}"
        if worst.index is not None and not found.passed:
            words += (
                f"; worst at {list(worst.index)}: {worst.actual:.6g} instead of {worst.expected:.6g}, {worst.over:,} of "
                f"{worst.elements:,} mismatched"
            )
        rows.append(("error", f"{words}, in {found.triage.trial}"))
    return Panel(Group(head, Text(""), facts(rows)), border_style=style.replace("bold ", ""), padding=(0, 1))


def _computes(found: Explanation) -> str:
    lines = f", from {', '.join(found.module_lines[:3])}" if found.module_lines else ""
    return f"{found.operator.kind} in {found.operator.module or 'the model itself'}{lines}"


def _smallest(found: Explanation) -> Iterator[RenderableType]:
    small = found.minimised
    yield Text("\nThe smallest input", style="bold")
    if small is None:
        yield _hanging("•", Text(found.not_minimised))
        return
    yield Text(f"{plural(small.elements_after, 'element')} of {small.elements_before:,} recorded", style="dim")
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title in ("", "shape", "values"):
        grid.add_column(title, overflow="fold", no_wrap=title == "")
    for k, array in enumerate(small.inputs):
        grid.add_row(f"input {k}", _shape(array), _values(array))
    for k, expected in enumerate(small.expected):
        tag = f" {k}" if len(small.expected) > 1 else ""
        grid.add_row(Text(f"expected{tag}", style="green"), _shape(expected), _values(expected))
        if k < len(found.actual):
            grid.add_row(Text(f"actual{tag}", style="red"), _shape(found.actual[k]), _values(found.actual[k], expected))
    yield grid


def _shape(array: HostArray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _values(array: HostArray, beside: HostArray | None = None) -> Text:
    """The first values; those that differ from `beside` by more than printing shows are red."""
    flat = np.ma.getdata(array).reshape(-1)
    if beside is None and (few := _almost_all(array)):
        return Text(few)
    other = None if beside is None else np.ma.getdata(beside).reshape(-1)
    start = 0
    if other is not None and flat.size > ELEMENTS:
        differs = np.nonzero(flat != other)[0]
        start = max(0, min(int(differs[0]) if differs.size else 0, flat.size - ELEMENTS))
    text = Text("… " if start else "")
    for k in range(start, min(start + ELEMENTS, flat.size)):
        shown = _number(flat[k])
        text.append(shown, style="bold red" if other is not None and shown != _number(other[k]) else "")
        text.append("  ")
    if flat.size > start + ELEMENTS:
        text.append(f"… {flat.size - start - ELEMENTS} more", style="dim")
    return text


def _almost_all(array: HostArray) -> str:
    """ "0 everywhere, but 2 at [0, 575]", for an array that is too large to show and has few values that differ from the rest."""
    if array.size <= ELEMENTS:
        return ""
    values, counts = np.unique(np.ma.getdata(array).reshape(-1), return_counts=True)
    if array.size - int(counts.max()) > EXCEPTIONS:
        return ""
    common = values[int(counts.argmax())]
    others = np.argwhere(np.ma.getdata(array) != common)
    words = ", ".join(f"{_number(array[tuple(at)])} at {[int(n) for n in at]}" for at in others)
    return f"{_number(common)} everywhere" + (f", but {words}" if words else "")


def _number(value: object) -> str:
    return str(value) if isinstance(value, bool | np.bool_) or np.issubdtype(type(value), np.integer) else f"{float(value):.6g}"  # type: ignore[arg-type]


def _kernels(found: Explanation) -> Iterator[RenderableType]:
    program = found.program if found.minimised is None else found.minimised.program or found.program
    kernels = kernels_of(program)
    if program is None or not kernels:
        return
    whose = "" if found.minimised is None else " for the smallest input"
    yield Text(f"\nThe {'kernel' if len(kernels) == 1 else 'kernels'}{whose}", style="bold")
    yield from kernels_view(kernels, program.schedule)
    yield Text.assemble(("whole text: ", "dim"), ", ".join(place(p) for p in found.kernels_at))


def _hanging(mark: str, text: Text) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(mark, text)
    return grid


def _whole_line(name: str, value: str) -> Text:
    """A fact in one line, however long, so that it can be copied."""
    return Text.assemble((f"{name:<12}", "dim"), value, no_wrap=True, overflow="ignore")


def _end(found: Explanation) -> Iterator[RenderableType]:
    if found.reproducer is not None:
        yield _whole_line("reproducer", f"python {place(found.reproducer / 'run.py')}")
    yield _whole_line("all of it", place(found.folder / "evidence.json"))
    calls = plural(found.cases, "recorded call")
    yield Text(f"{calls} · {seconds(found.seconds)}", style="dim")
    if found.passed:
        yield command(f"tapml bisect {place(found.folder.parents[3])} --target {found.target}")
