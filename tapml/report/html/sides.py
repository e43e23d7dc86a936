"""The sides of a report: what each target found, and the source's own error, in columns over the run's operators.

    sides = read_sides(run, targets)          a `Side` for each target with results; an injected fault is a side of its own
    data = side_data(side, shared)            what the page gets

A sheet has one item an operator in each column (None where there is nothing), and the measured calls in columns of their own. The
source's side says how far the source is from float64, against the bound that its error gives a target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tapml.carving.folder import RunFolder
from tapml.carving.layout import TARGET_FOLDER
from tapml.carving.tolerance import Accuracy, compound_bound
from tapml.inside import path_in
from tapml.migrate.picture import kept_picture
from tapml.migrate.programs import kept
from tapml.migrate.records import Records, Sheet
from tapml.report.html.kernels import KernelTable
from tapml.report.html.numbers import Strings, short
from tapml.verdicts import STATUSES, Measure, Verdict, summary

# A letter a status: the first of its word where that tells them apart. "." is no verdict, "r" the source's own recording.
LETTERS = dict(zip(STATUSES, "pflecus", strict=True))

# How many cells all error maps of a side may have together.
MOST_CELLS = 800_000


@dataclass(frozen=True)
class Side:
    """The results of one target of one run. `number` is 0 for the report's run, 1 for the run that it is compared with."""

    run: RunFolder
    number: int
    records: Records
    injected: bool

    @property
    def sheets(self) -> dict[str, Sheet]:
        """By mode, those that are there."""
        found = {"isolated": self.records.isolated, "cumulative": self.records.cumulative}
        return {mode: sheet for mode, sheet in found.items() if sheet is not None}

    @property
    def header(self) -> dict[str, Any]:
        """Of the newest file."""
        headers = [sheet.header for sheet in (*self.sheets.values(), self.records.migration) if sheet is not None]
        return max(headers, key=lambda h: h.get("time") or 0.0)


@dataclass(frozen=True)
class Shared:
    """What all sides of a report write into: the place of each operator, of each case, strings and kernels."""

    operators: dict[str, int]
    cases: dict[str, int]
    strings: Strings
    kernels: KernelTable


def targets_of(run: RunFolder) -> list[str]:
    """Names of the folders with results of testing or migrating."""
    return sorted({p.parent.name for p in path_in(run.path, TARGET_FOLDER).glob("*/*.jsonl")})


def read_sides(run: RunFolder, targets: Sequence[str], number: int = 0) -> tuple[list[Side], list[str]]:
    """The sides of these targets, and a phrase on each file that was left out. A target without results gives no side. Raises
    RunError for damaged files."""
    sides: list[Side] = []
    left_out: list[str] = []
    for target in targets:
        found = [Side(run, number, Records.of(run, target, injected), injected) for injected in (False, True)]
        here = [s for s in found if s.sheets]
        sides += here
        # What the clean reading leaves out because of its fault is read by the other, and the other way round.
        both = set(found[0].records.outdated) & set(found[1].records.outdated)
        left_out += [f"{target}: {phrase}" for phrase in sorted(both)]
    return sides, left_out


def side_data(side: Side, shared: Shared) -> dict[str, Any]:
    """Everything about a side except its migration's story, its evidence and its health."""
    header = side.header
    device = header.get("device_info")
    migration = side.records.migration
    return {
        "run": side.number,
        "target": header["target"],
        "injected": side.injected,
        "fault": header.get("fault"),
        "device": None if device is None else {k: device[k] for k in ("platform", "name", "driver", "software")},
        "time": header.get("time"),
        "compiler": header["compiler"],
        "version": header["version"],
        "modes": {mode: _sheet(side, sheet, shared) for mode, sheet in side.sheets.items()},
        "summary": {mode: summary(sheet.verdicts.values()) for mode, sheet in side.sheets.items()},
        "from": {mode: "migration" if sheet is migration else "test" for mode, sheet in side.sheets.items()},
    }


def _sheet(side: Side, sheet: Sheet, shared: Shared) -> dict[str, Any]:
    names = list(shared.operators)
    verdicts = [sheet.verdicts.get(name) for name in names]
    measures = [m for m in sheet.measures if m.operator in shared.operators]

    def column(read: Callable[[Verdict], Any]) -> list[Any]:
        return [None if v is None else read(v) for v in verdicts]

    return {
        "status": "".join("." if v is None else LETTERS[v.status] for v in verdicts),
        "stage": column(lambda v: None if v.stage is None else shared.strings[v.stage]),
        "error": column(lambda v: short(v.error)),
        "bound": column(lambda v: short(v.bound)),
        "source": column(lambda v: short(v.source_error)),
        "reason": column(lambda v: shared.strings[v.reason]),
        "program": column(lambda v: _program(side, v, shared)),
        "cases": column(lambda v: v.cases),
        "same_as": column(lambda v: None if v.same_as is None else shared.operators.get(v.same_as)),
        **_excluded([(0, 0) if v is None else (v.excluded, v.elements) for v in verdicts]),
        "measures": _columns(measures, shared if side.number == 0 else None, shared.operators),
    }


def pictures(side: Side, shared: Shared) -> dict[str, Any]:
    """What the outputs of operators look like that failed alone, by the operator's place; worst first, as far as `MOST_CELLS`
    go."""
    sheet, left = side.sheets.get("isolated"), MOST_CELLS
    failed = [] if sheet is None else [v for v in sheet.verdicts.values() if v.status != "pass"]
    failed.sort(key=lambda v: -v.badness)
    found: dict[str, Any] = {}
    for verdict in failed:
        drawn = kept_picture(side.records.folder, verdict.operator, verdict.kernel, side.injected)
        size = 0 if drawn is None else sum(len(m["cells"]) for m in drawn["maps"])
        if drawn is not None and verdict.operator in shared.operators and size <= left:
            found[str(shared.operators[verdict.operator])] = {k: v for k, v in drawn.items() if k not in ("operator", "kernel")}
            left -= size
    return found


def _program(side: Side, verdict: Verdict, shared: Shared) -> int | None:
    program = None if verdict.kernel is None else kept(side.records.folder, verdict.kernel)
    return None if program is None else shared.kernels.add(program)


def _columns(measures: Sequence[Measure], shared: Shared | None, operators: dict[str, int]) -> dict[str, Any]:
    return {
        "operator": [operators[m.operator] for m in measures],
        "step": [m.step for m in measures],
        "prompt": [m.prompt for m in measures],
        "error": [short(m.error) for m in measures],
        "bound": [short(m.bound) for m in measures],
        "source": [short(m.source_error, 3) for m in measures],
        "status": "".join("r" if m.status == "skipped" else LETTERS[m.status] for m in measures),
        "case": [None if shared is None or m.case is None else shared.cases.get(m.case) for m in measures],
        **_excluded([(m.excluded, m.elements) for m in measures]),
    }


def _excluded(counts: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """Columns of how many elements were not compared, of how many; none where all were."""
    if not any(excluded for excluded, _ in counts):
        return {}
    return {"excluded": [excluded for excluded, _ in counts], "elements": [elements for _, elements in counts]}


def source_data(run: RunFolder, shared: Shared) -> dict[str, Any]:
    """The source as a side: isolated from its recorded cases, cumulative from the first steps of the first prompt."""
    dtypes = {o.name: [spec.dtype for spec in run.bodies[o.signature].output_specs] for o in run.operators}
    isolated = [_own(c.operator, c.id, c.prompt, c.step, c.graph, _limits(c.accuracy, dtypes[c.operator])) for c in run.cases]
    compound = [
        _own(o.name, None, 0, step, o.graph, [(e, compound_bound(e, d)) for e, d in zip(errors, dtypes[o.name], strict=True)])
        for o in run.operators for step, errors in sorted(run.compound_error(o.name).items())
    ]
    modes = {"isolated": isolated, "cumulative": compound}
    return {
        "run": 0, "target": "source", "dtype": run.manifest["dtype"],
        "modes": {mode: _own_sheet(measures, shared) for mode, measures in modes.items() if measures},
    }


def _limits(accuracy: Sequence[Accuracy], dtypes: Sequence[str]) -> list[tuple[float, float]]:
    """For each output the source's own error, and what it gives a target."""
    return [(a.beyond, a.bound(dtype)) for a, dtype in zip(accuracy, dtypes, strict=True)]


def _own(
    operator: str, case: str | None, prompt: int, step: int, graph: str, limits: Sequence[tuple[float, float]]
) -> Measure:
    """A recorded call of the source as a measure of its worst output. Its status is "skipped": nothing judges the source."""
    error, bound = max(limits, key=lambda limit: limit[0] / limit[1] if limit[1] else 0.0)
    return Measure(operator, case, prompt, step, graph, error, bound, error, "skipped")


def _own_sheet(measures: Sequence[Measure], shared: Shared) -> dict[str, Any]:
    worst: dict[str, Measure] = {}
    for measure in measures:
        known = worst.get(measure.operator)
        if known is None or (measure.ratio or 0.0) > (known.ratio or 0.0):
            worst[measure.operator] = measure
    found = [worst.get(name) for name in shared.operators]
    empty: list[None] = [None] * len(found)
    return {
        "status": "".join("." if m is None else "r" for m in found),
        "error": [None if m is None else short(m.error) for m in found],
        "bound": [None if m is None else short(m.bound) for m in found],
        "source": [None if m is None else short(m.source_error) for m in found],
        "stage": empty, "reason": empty, "program": empty, "cases": empty, "same_as": empty,
        "measures": _columns(measures, shared, shared.operators),
    }
