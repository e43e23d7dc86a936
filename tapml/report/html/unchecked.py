"""What a report does not know, said as plainly as what it does: targets that were never run, operators that were not compared.

    for line in unchecked(run, sides, other): ...       {"what": …, "why": …, "command": … or None}

A reader takes a page without red for a model without faults. So everything that was not checked stands on the first screen.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tapml.carving.folder import RunFolder
from tapml.carving.late import positions_words
from tapml.devices.known import WITHOUT_RUNTIME
from tapml.migrate.programs import there
from tapml.migrate.records import Sheet
from tapml.report.html.sides import Side
from tapml.targets.known import TARGETS
from tapml.words import plural


def unchecked(run: RunFolder, sides: Sequence[Side], left_out: Sequence[str]) -> list[dict[str, Any]]:
    """Sentences in order of weight. `left_out` are phrases on files that could not be used."""
    found = [_line(f"Results left out: {phrase}.", "They do not belong to this run as it is now.") for phrase in left_out]
    here = shlex.quote(str(run.path))
    for side in sides:
        target = shlex.quote(side.records.target)
        name = _name(side)
        if side.injected:
            why = "They show the effect of a fault, not the state of this target."
            found.append(_line(f"{name}: results of a fault, on purpose.", why))
        for sentence in side.header.get("not_checked", ()):
            why = "A wider type hides what the narrower would round or overflow."
            found.append(_line(f"{name}: not checked: {sentence}.", why))
        for mode, sheet in side.sheets.items():
            found += _sheet(side, sheet, f"{name}, {mode}")
        if "cumulative" not in side.sheets:
            found.append(_line(
                f"{name}: operators were not tested cumulatively.",
                "Each was given the source's own inputs, so errors that add up from operator to operator do not show in the map.",
                f"tapml test {shlex.quote(str(side.run.path))} --target {target} --mode cumulative",
            ))  # fmt: skip
        migration = side.records.migration
        if migration is None:
            found.append(_line(
                f"{name}: the model was not migrated.", "Its answers were not compared with the source's.",
                f"tapml migrate {shlex.quote(str(side.run.path))} --target {target}",
            ))  # fmt: skip
        elif migration.records[-1]["record"] != "done":
            found.append(_line(
                f"{name}: the migration has not ended.", "The results end where it stopped.",
                f"tapml migrate {shlex.quote(str(side.run.path))} --target {target} --resume",
            ))  # fmt: skip
    found += _run(run) if sides else []
    if not sides:
        found.append(_line("No operator was run on any target.", "The page shows the source's own error."))
    ran = {side.header["target"].partition(":")[0] for side in sides}
    never = [name for name in TARGETS if name not in ran]
    can = [name for name in never if name not in WITHOUT_RUNTIME]
    cannot = [name for name in never if name in WITHOUT_RUNTIME]
    if can:
        found.append(_line(
            f"Never run: {', '.join(can)}.", "There are no results of these targets in the run.",
            f"tapml migrate {here} --target {can[0]}",
        ))  # fmt: skip
    if cannot:
        found.append(_line(f"Cannot be run by this version: {', '.join(cannot)}.", "Kernels can be generated, not run."))
    return found


def _sheet(side: Side, sheet: Sheet, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    total = len(side.run.operators)
    absent = total - len(sheet.verdicts)
    if absent:
        found.append(_line(f"{name}: {plural(absent, 'operator')} of {total} not tested.", "There is no verdict on them."))
    skipped = Counter(v.reason for v in sheet.verdicts.values() if v.status == "skipped")
    for reason, count in skipped.items():
        found.append(_line(f"{name}: {plural(count, 'operator')} skipped.", reason))
    partly = [v for v in sheet.verdicts.values() if v.excluded]
    if partly:
        elements = sum(v.excluded for v in partly)
        found.append(_line(
            f"{name}: {plural(elements, 'element')} of {plural(len(partly), 'operator')} not compared.",
            "The reference cannot decide them: it overflows or is NaN where float64 is not, or the element stands at a jump.",
        ))  # fmt: skip
    without = {v.kernel for v in sheet.verdicts.values() if v.kernel is not None}
    gone = sum(not there(side.records.folder, digest) for digest in without)
    if gone:
        why = "The verdicts were written without it."
        found.append(_line(f"{name}: the text of {plural(gone, 'program')} is not in the run.", why))
    return found


def _run(run: RunFolder) -> list[dict[str, Any]]:
    own = {case.operator for case in run.cases}
    recorded = {case.signature for case in run.cases}
    borrowed = sum(o.name not in own and o.signature in recorded for o in run.operators)
    found: list[dict[str, Any]] = []
    if borrowed:
        found.append(_line(
            f"{plural(borrowed, 'operator')} of {len(run.operators)} tested on inputs recorded elsewhere.",
            "Cases are kept for each signature: equal operators of other layers get those inputs, with their own weights.",
        ))  # fmt: skip
    if run.kind == "decoder":
        count = len(run.prompts)
        why = "Other prompts may take other paths through the model."
        if run.positions is not None:
            words = positions_words(run.positions)
            found.append(_line(f"{words[0].upper()}{words[1:]}.", "Nothing is known of texts longer than the cache of this run."))
        found.append(_line(f"Answers compared on {plural(count, 'prompt')}.", why))
    return found


def _name(side: Side) -> str:
    fault = f"fault {side.header['fault']}" if side.header.get("fault") else "a fault"
    name = f"{side.header['target']}{f' with {fault}' if side.injected else ''}"
    return f"{name} (second run)" if side.number else name


def _line(what: str, why: str, command: str | None = None) -> dict[str, Any]:
    return {"what": what, "why": why, "command": command}
