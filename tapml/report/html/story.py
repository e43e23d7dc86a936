"""The migration as it happened, from its journal: what was tested, each check of the whole model, what moved and what stays.

    story(run, sheet, operators, text)    None for a journal that has nothing but tests

Operators are ranges of places in the run: [[0, 412], [414, 910]], ends included. `text` turns tokens into text, or gives None.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tapml.carving.detokenizer import Decode
from tapml.carving.folder import RunFolder
from tapml.migrate.end_to_end import PromptResult
from tapml.migrate.records import Sheet
from tapml.report.html.numbers import short


def story(run: RunFolder, sheet: Sheet, operators: dict[str, int], text: Decode) -> dict[str, Any]:
    """`finished`, `tested` and `moved_count` (how many operators), `events` in order, `moved` (ranges) and `kept` (places) as
    they stand at the end, `prompts` with both answers. Operators without a place, of a run beside the first, are only counted."""
    moved: set[str] = set()
    events: list[dict[str, Any]] = []
    prompts: list[dict[str, Any]] = []
    tested: set[str] = set()
    for record in sheet.records:
        kind = record["record"]
        if kind == "verdict":
            tested.add(record["verdict"]["operator"])
        elif kind == "check":
            events.append({"kind": "check", "size": record["size"], **_answer(record["answer"])})
        elif kind == "moved":
            places = [operators[name] for name in record["operators"] if name in operators]
            moved |= set(record["operators"])
            events.append({"kind": "moved", "operators": ranges(places), "count": len(record["operators"])})
        elif kind == "kept":
            place = operators.get(record["verdict"]["operator"])
            events.append({"kind": "kept", "operator": place, **_answer(record["verdict"])})
        elif kind == "prompt":
            prompts.append(_prompt(run, PromptResult.from_json(record["result"]), text))
    finished = sheet.records[-1]["record"] == "done"

    def known(names: set[str]) -> list[int]:
        return sorted(operators[name] for name in names if name in operators)

    return {
        "finished": finished, "tested": len(tested), "events": events, "moved": ranges(known(moved)),
        "moved_count": len(moved), "kept": known(tested - moved) if finished else [], "prompts": prompts,
    }


def ranges(places: Iterable[int]) -> list[list[int]]:
    """Ascending runs of neighbours, in the order given."""
    found: list[list[int]] = []
    for place in places:
        if found and place == found[-1][1] + 1:
            found[-1][1] = place
        else:
            found.append([place, place])
    return found


def _answer(answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": answer["status"], "stage": answer["stage"], "error": short(answer["error"]), "bound": short(answer["bound"]),
        "reason": answer["reason"],
    }


def _prompt(run: RunFolder, found: PromptResult, text: Decode) -> dict[str, Any]:
    return {
        "text": run.prompts[found.index].text if run.prompts else "",
        "tokens": len(run.prompts[found.index].tokens) if run.prompts else 0,
        "source": list(found.tokens_source), "target": list(found.tokens_target),
        "source_text": text(found.tokens_source), "target_text": text(found.tokens_target),
        "error": short(found.error), "bound": short(found.bound), "source_error": short(found.source_error),
        "agreement": short(found.top1_agreement), "differs_at": found.differs_at, "margin": short(found.margin),
        "passed": found.passed, "match": found.tokens_match, "reason": found.reason,
    }
