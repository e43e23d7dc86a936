"""A test's result as a JUnit file, which build servers read: one test case an operator.

    text = junit(result)

What passed has no mark, wrong numbers are failures, what could not be compiled or run is an error, and what nothing was recorded
of is skipped. The circumstances (version, run, device, fault, what was not checked) and each verdict's numbers are properties.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

from tapml.printable import cut, printable
from tapml.report.circumstances import sentences
from tapml.report.invariance import difference_words
from tapml.verdicts import Status, Verdict

if TYPE_CHECKING:
    from tapml.migrate.tested import TestResult

# Characters of one text.
LONGEST = 20_000

_MARKS: dict[Status, str] = {
    "fail": "failure", "flaky": "failure", "unchecked": "failure", "error": "error", "crash": "error", "skipped": "skipped",
}  # fmt: skip

# What XML 1.0 cannot hold and `printable` leaves.
_NO_XML = re.compile("[\ufffe\uffff]")


def junit(result: TestResult) -> str:
    """The whole file."""
    name = f"tapml test {result.target}"
    beyond = {} if result.invariance is None else result.invariance.beyond
    marks = [_MARKS.get(v.status) or ("failure" if v.operator in beyond else None) for v in result.verdicts]
    counts = {
        "tests": len(marks), "failures": marks.count("failure"), "errors": marks.count("error"),
        "skipped": marks.count("skipped"), "time": f"{result.seconds:.3f}",
    }  # fmt: skip
    root = _element(None, "testsuites", name=name, **counts)
    suite = _element(root, "testsuite", name=name, timestamp=result.circumstances.date.partition("+")[0], **counts)
    facts = {
        "target": result.target, "device": result.device.name, "driver": result.device.driver, "mode": result.mode,
        **result.circumstances.to_json(), "first_wrong": result.first_wrong,
    }  # fmt: skip
    _properties(suite, facts)
    for verdict in result.verdicts:
        case = _case(suite, name, verdict)
        if verdict.status == "pass" and verdict.operator in beyond:
            words = f"other bits beyond the tolerance: {difference_words(beyond[verdict.operator])}"
            _element(case, "failure", type="invariance", message=words).text = _clean(words)
    _element(suite, "system-out").text = _clean("\n".join(sentences(result.circumstances)))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, target: str, verdict: Verdict) -> ElementTree.Element:
    case = _element(suite, "testcase", classname=target, name=verdict.operator, time=f"{verdict.seconds:.3f}")
    facts = {k: v for k, v in verdict.to_json().items() if k not in ("operator", "reason", "seconds")}
    _properties(case, facts)
    mark = _MARKS.get(verdict.status)
    if mark is not None:
        stage = "" if verdict.stage is None else f" at {verdict.stage}"
        first = next(iter(verdict.reason.strip().splitlines()), "")
        _element(case, mark, type=verdict.status, message=f"{verdict.status}{stage}: {first}").text = _clean(verdict.reason)
    return case


def _properties(parent: ElementTree.Element, facts: dict[str, Any]) -> None:
    properties = _element(parent, "properties")
    for name, value in facts.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict):
                one = ", ".join(f"{k}: {v}" for k, v in one.items())
            if one not in (None, ""):
                _element(properties, "property", name=name, value=one)


def _element(parent: ElementTree.Element | None, tag: str, **attributes: Any) -> ElementTree.Element:
    given = {name: _clean(str(value)) for name, value in attributes.items()}
    return ElementTree.Element(tag, given) if parent is None else ElementTree.SubElement(parent, tag, given)


def _clean(text: str) -> str:
    """As `printable`, and not endless: what XML cannot hold, and what hides, is a visible escape."""
    return _NO_XML.sub("\ufffd", cut(printable(text), LONGEST))
