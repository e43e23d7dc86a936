"""A test's result as Markdown, for the summary of a build or a comment on a pull request.

    text = markdown(result, next_command)

The outcome comes first, then what was not checked, then the operators that did not pass, in the order of the console.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tapml.printable import cut, printable
from tapml.report.circumstances import sentences
from tapml.report.console import not_tested, number, of_bound, worst_first
from tapml.report.invariance import HEADINGS, difference_words, summary_of
from tapml.verdicts import STATUSES, Verdict, summary
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.migrate.tested import TestResult

ROWS = 50
REASON = 300
# Characters of a name.
LONGEST = 500


def markdown(result: TestResult, next_command: str | None = None) -> str:
    """The whole file."""
    counts = summary(result.verdicts)
    told = ", ".join(f"{counts[s]} {s}" for s in STATUSES if counts[s]) or "none tested"
    state = "passed" if result.passed else "**failed**"
    lines = [f"### TapML: {_text(result.target)} {state}", ""]
    lines.append(f"{plural(len(result.verdicts), 'operator')}: {told} · {result.mode} · {_text(result.device.name)}")
    lines += [f"\n> {_text(sentence)}" for sentence in sentences(result.circumstances)]
    if result.first_wrong is not None:
        lines += ["", f"First wrong: {_code(result.first_wrong)}"]
    if result.without:
        lines += ["", _text(not_tested(result))]
    bad = result.in_order or [v for v in worst_first(result.tested) if v.status != "pass"]
    if bad:
        lines += ["", "| operator | status | stage | err/bound | bound | reason |", "| --- | --- | --- | --- | --- | --- |"]
        lines += [_row(v) for v in bad[:ROWS]]
        if len(bad) > ROWS:
            lines += ["", f"… and {len(bad) - ROWS} more that did not pass."]
    if result.invariance is not None:
        lines += ["", _text(summary_of(result.invariance))]
        for key, heading in HEADINGS.items():
            spreads = sorted(getattr(result.invariance, key), key=lambda s: s.size, reverse=True)
            rows = [f"- {heading}: {_code(s.operator)}: {_text(difference_words(s))}" for s in spreads[:ROWS]]
            lines += ["", *rows] if rows else []
    if next_command is not None:
        lines += ["", f"Next: {_code(next_command)}"]
    found = result.circumstances
    lines += ["", f"<sub>TapML {found.to_json()['version']} · run {found.run_digest} · {found.date}</sub>"]
    return "\n".join(lines) + "\n"


def _row(v: Verdict) -> str:
    first = next(iter(v.reason.strip().splitlines()), "")
    reason = first if len(first) <= REASON else f"{first[: REASON - 1]}…"
    cells = (_code(v.operator), v.status, v.stage or "", of_bound(v.error, v.bound), number(v.bound), _text(reason))
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """A code span in which nothing is markup, also within a table."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{_line(text)}{pad}{fence}".replace("|", "\\|")


def _text(text: str) -> str:
    """Plain text: what has a meaning in Markdown or HTML is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>|#~@])", r"\\\1", _line(text))


def _line(text: str) -> str:
    """One line, not endless, in which every character can be seen, whatever a driver's message holds."""
    return cut(printable(" ".join(text.split())), LONGEST)
