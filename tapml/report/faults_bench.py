"""What people get of a fault bench: a table on the console, and a folder with Markdown, JSON and a picture.

    console_view(result)                 rich renderables: classes by methods, then the totals
    write_report(result, folder)         faults.md, faults.json, faults.svg; returns their paths
    markdown(result)                     the text alone

"3/3" means in all of three operators that the class was put into. "–" stands for what a method does not offer, or cannot be
applied to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tapml.diagnose.bench.result import (
    METHODS,
    RULES,
    BenchResult,
    Found,
    Method,
    Row,
    Totals,
    is_detected,
    operator_right,
    stage_right,
)
from tapml.inside import path_in
from tapml.report.faults_picture import draw
from tapml.report.progress import seconds
from tapml.words import plural

NOTHING = "–"

# Titles of narrow columns.
SHORT: dict[Method, str] = {
    "tapml": "TapML", "random": "N(0,1)", "backendbench": "BB", "flashinfer_bench": "FIB", "test_backend_ops": "NMSE",
    "debug_compare": "debug", "prefix": "prefix", "end_to_end": "e2e",
}  # fmt: skip


def write_report(result: BenchResult, folder: Path) -> tuple[Path, ...]:
    """Writes the three files into `folder`, which is made if need be; older ones are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    text, data, picture = (path_in(folder, f"faults.{ending}") for ending in ("md", "json", "svg"))
    data.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    draw(result.rows, result.totals(), f"{result.model} on {result.target}", picture)
    text.write_text(markdown(result), encoding="utf-8")
    return text, data, picture


def console_view(result: BenchResult) -> tuple[RenderableType, ...]:
    """Classes by methods, totals, and what could not be injected."""
    tried = [row for row in result.rows if row.faults]
    left_out = [row for row in result.rows if not row.faults]
    legend = " · ".join(f"{short}: {METHODS[m]}" for m, short in SHORT.items() if short != METHODS[m])
    parts: list[RenderableType] = [_class_table(tried), Text(legend, style="dim"), "", _total_table(result.totals())]
    if left_out:
        parts.append("")
        for why in dict.fromkeys(row.why for row in left_out):
            names = ", ".join(row.label for row in left_out if row.why == why)
            parts.append(Text.assemble(names, (f": {why}", "dim")))
    count = sum(len(row.faults) for row in tried)
    words = f"{plural(count, 'fault')} of {len(tried)} of {len(result.rows)} classes"
    parts.append(Text.assemble((words, "bold"), (f" · {result.target} on {result.device['name']} · ", "dim"),
                               (seconds(result.seconds), "dim")))  # fmt: skip
    return tuple(parts)


def _class_table(rows: Sequence[Row]) -> Table:
    grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for title in ("class", "stage", *SHORT.values()):
        grid.add_column(title, no_wrap=True)
    for row in rows:
        cells = [Text(row.label), Text(str(row.fault["stage"]), style="dim")]
        for method in METHODS:
            n, total = row.count(method, is_detected)
            style = "dim" if not total else "green" if n == total else "red" if n == 0 else "yellow"
            cells.append(Text(of((n, total)), style=style))
        grid.add_row(*cells)
    return grid


def _total_table(totals: Mapping[Method, Totals]) -> Table:
    grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for title in _TOTAL_TITLES:
        grid.add_column(title, no_wrap=True, justify="left" if title == "method" else "right")
    for method, total in totals.items():
        grid.add_row(METHODS[method], *total_cells(total))
    return grid


_TOTAL_TITLES = ("method", "detected", "classes", "operator", "stage", "elements", "runs", "alarms", "seconds")


def total_cells(total: Totals) -> tuple[str, ...]:
    """A method's totals in the order of the table, its name left out."""
    return (
        of(total.detected), of(total.classes), of(total.operators), NOTHING if total.stages is None else of(total.stages),
        _median(total.elements), _median(total.executions), of(total.false_alarms), _tenths(total.seconds),
    )  # fmt: skip


def _median(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _tenths(value: float) -> str:
    """Seconds as "0.1" or "1,204.5"."""
    return f"{value:,.1f}"


def of(pair: tuple[int, int]) -> str:
    """ "7/9", or a dash where nothing could be counted."""
    return f"{pair[0]}/{pair[1]}" if pair[1] else NOTHING


def markdown(result: BenchResult) -> str:
    """The whole report as GitHub's Markdown."""
    return "\n".join(_markdown(result)) + "\n"


def _markdown(result: BenchResult) -> Iterator[str]:
    tried = [row for row in result.rows if row.faults]
    faults = sum(len(row.faults) for row in tried)
    yield f"# Faults put into {result.model}, on {result.target}"
    yield ""
    yield (
        f"{plural(faults, 'fault')} of {plural(len(tried), 'class')}, each class in up to {plural(result.operators, 'operator')} "
        f"(drawn with seed {result.seed}), on {result.device['name']} ({result.device['driver']}). {len(METHODS)} methods "
        "looked at the same kernels on the same device."
    )
    latent = sum(fault.latent is True for row in tried for fault in row.faults)
    if latent:
        words = "changes no bit" if latent == 1 else "change no bit"
        yield ""
        yield f"{latent} of them {words} of what was recorded of their operators, and nobody detects them; they count as missed."
    yield ""
    yield "![Which method detects which class](faults.svg)"
    yield ""
    yield from totals_markdown(result.totals(), {m: c.seconds for m, c in result.clean.items()})
    yield ""
    yield from methods_markdown()
    yield ""
    yield "## By class"
    yield ""
    yield from classes_markdown(tried)
    left_out = [row for row in result.rows if not row.faults]
    if left_out:
        yield ""
        yield "## Not injected"
        yield ""
        yield from table(("class", "why"), [(row.label, row.why) for row in left_out])
    yield ""
    yield "## By fault"
    yield ""
    yield from table(
        ("class", "put into", "true stage", "method", "detected", "operator named", "stage named", "elements", "seconds"),
        list(_fault_lines(tried)),
    )
    alarms = [(METHODS[m], name) for m, clean in result.clean.items() for name in clean.alarms]
    if alarms:
        yield ""
        yield "## False alarms on the clean model"
        yield ""
        yield from table(("method", "complains of"), alarms)


def totals_markdown(totals: Mapping[Method, Totals], clean_seconds: Mapping[Method, float] | None = None) -> Iterator[str]:
    """The totals as a table."""
    titles = list(_TOTAL_TITLES) + (["seconds on the clean model"] if clean_seconds else [])
    rows = [
        [METHODS[m], *total_cells(t), *([_tenths(clean_seconds.get(m, 0.0))] if clean_seconds else [])] for m, t in totals.items()
    ]
    yield from table(titles, rows)


def methods_markdown() -> Iterator[str]:
    """What the methods do, and what the columns count."""
    for method, rule in RULES.items():
        yield f"- **{METHODS[method]}**: {rule}."
    yield ""
    yield (
        "*Detected*: complains, and not of the same on the clean model. *Classes*: those of which every fault was detected. "
        "*Operator*: names one that the fault was put into; faults that are in no operator are not counted. *Stage*: names the "
        "true stage, which only TapML tries. A fault to which a rule cannot be applied counts neither as detected nor as missed. "
        "*Elements*: of all inputs of the failing call as it would be handed on, weights "
        "included, in the median (TapML: after minimising; faults of weights and states have no failing input of a kernel). "
        "*Runs*: of prefixes on the target for one fault, in the median. "
        "*Alarms*: things that it complains of on the clean model, all false, of those that it checks there. *Seconds*: for all "
        "faults, when the clean model was checked before."
    )


def classes_markdown(rows: Sequence[Row]) -> Iterator[str]:
    """A line a class: what each method detects, whether it names the operator, and TapML's stages."""
    titles = ["class", "level", "stage", "sites"]
    titles += [f"{title}: {what}" for m, title in METHODS.items() for what in (("detected", "operator", "stage") if m == "tapml"
               else ("detected",) if m == "end_to_end" else ("detected", "operator"))]  # fmt: skip
    lines = []
    for row in rows:
        cells = [row.label, str(row.fault["level"]), str(row.fault["stage"]), str(row.sites)]
        for method in METHODS:
            cells.append(of(row.count(method, is_detected)))
            if method != "end_to_end":
                cells.append(of(row.count(method, operator_right)))
            if method == "tapml":
                cells.append(of(row.count(method, stage_right)))
        lines.append(cells)
    yield from table(titles, lines)


def _fault_lines(rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    for row in rows:
        for fault in row.faults:
            if fault.note:
                yield row.label, fault.operator, str(row.fault["stage"]), NOTHING, fault.note, "", "", "", ""
            for method, found in fault.findings.items():
                missed = "no: nothing that was recorded changes by a bit" if fault.latent else "no"
                yield (
                    row.label, fault.operator, str(row.fault["stage"]), METHODS[method],
                    "yes" if found.detected else missed if found.applies else f"not applicable: {found.reason}",
                    _named(found), _stage(method, found), _elements(method, found), _tenths(found.seconds),
                )  # fmt: skip


def _named(found: Found) -> str:
    if not found.applies:
        return NOTHING
    if not found.detected or found.operator is None:
        return NOTHING
    if found.operator_right is None:
        return f"{found.operator} (the fault is in no operator)"
    return "right" if found.operator_right else f"wrong: {found.operator}"


def _stage(method: Method, found: Found) -> str:
    if method != "tapml" or not found.detected:
        return NOTHING
    return "right" if found.stage_right else f"wrong: {found.stage or 'none'}"


def _elements(method: Method, found: Found) -> str:
    if not found.detected:
        return NOTHING
    if found.elements is None:
        return "whole model" if method == "end_to_end" else NOTHING
    return f"{found.elements:,}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    yield f"| {' | '.join(titles)} |"
    yield f"|{' --- |' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
