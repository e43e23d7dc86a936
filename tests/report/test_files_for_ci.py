"""The JUnit and Markdown files of a test: every status in its place, the circumstances beside it, and nothing that breaks out."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from tapml.devices.interface import DeviceInfo
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.invariance import Invariance, Spread
from tapml.migrate.tested import TestResult
from tapml.report.junit import junit
from tapml.report.markdown import markdown
from tapml.verdicts import STATUSES, Measure, Status, Verdict

DEVICE = DeviceInfo("opencl", "a | GPU <b>", "driver \x01 1.2", software=False)
HOSTILE = "wrong | in `x` </failure> ]]> <script> \x00\x1b[31m\ud800 @everyone"


def verdict(name: str, status: Status, error: float | None = 2e-6) -> Verdict:
    stage = None if status in ("pass", "skipped", "unchecked") else "numeric"
    return Verdict(name, "s", "linear", status, stage, error, 1e-6, 1e-7, f"{HOSTILE}\nsecond line", 0.5)


def result(
    *verdicts: Verdict, mode: str = "isolated", measures: tuple[Measure, ...] = (), fault: str | None = None
) -> TestResult:
    found = Circumstances("run-digest", fault, fault and 1, fault and 9, {"int64": "int32"}, ("int64 as such: stored as int32",))
    return TestResult("opencl", DEVICE, mode, verdicts, 1.5, measures, (), found)


def test_junit_has_every_status() -> None:
    root = ElementTree.fromstring(junit(result(*(verdict(f"op.{s}", s) for s in STATUSES), fault="f.py:g")).encode())
    suite = root[0]
    told = {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")}
    assert told == {"tests": "7", "failures": "3", "errors": "2", "skipped": "1"}
    marks = {case.get("name"): [child.tag for child in case if child.tag != "properties"] for case in suite.iter("testcase")}
    assert marks == {
        "op.pass": [], "op.fail": ["failure"], "op.flaky": ["failure"], "op.unchecked": ["failure"], "op.error": ["error"],
        "op.crash": ["error"], "op.skipped": ["skipped"],
    }  # fmt: skip
    properties = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
    assert properties["inject"] == "f.py:g" and properties["run_digest"] == "run-digest" and properties["mode"] == "isolated"
    assert properties["not_checked"] == "int64 as such: stored as int32" and properties["storage"] == "int64: int32"
    failure = suite.find(".//failure")
    assert failure is not None and "</failure> ]]> <script>" in (failure.text or "") and "second line" in (failure.text or "")
    assert "second line" not in (failure.get("message") or "")
    numbers = {p.get("name"): p.get("value") for p in suite.findall("testcase/properties/property")}
    assert numbers["error"] == "2e-06" and numbers["bound"] == "1e-06"


def test_markdown_says_what_did_not_pass() -> None:
    bad = verdict("op.bad", "fail"), verdict("op.none", "unchecked", None)
    text = markdown(result(verdict("op.good", "pass", 1e-7), *bad), "go on")
    text.encode()
    assert text.startswith("### TapML: opencl **failed**\n")
    assert "3 operators: 1 pass, 1 fail, 1 unchecked · isolated" in text and "> Not checked: int64 as such" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split(" | ")[0] for row in rows] == ["| `op.bad`", "| `op.none`"]
    assert rows[0].replace("\\|", "").count("|") == 7, "a bar in a reason begins no cell"
    assert "<script>" not in text.replace("\\<", "") and "second line" not in text
    assert "Next: `go on`" in text and "run run-digest" in text
    assert "passed\n" in markdown(result(verdict("op.good", "pass", 1e-7)))


def test_a_cumulative_result_is_in_the_order_of_the_calls() -> None:
    """The operator that is wrong in the first call leads, wherever it stands in the graph and however small its error is."""
    behind, first = verdict("a.late", "fail", 9e-6), verdict("b.early", "fail", 2e-6)
    measures = (
        Measure("a.late", None, 0, 0, "g", 1e-7, 1e-6, 1e-7, "pass"),
        Measure("a.late", None, 0, 1, "g", 9e-6, 1e-6, 1e-7, "fail"),
        Measure("b.early", None, 0, 0, "g", 2e-6, 1e-6, 1e-7, "fail"),
    )  # fmt: skip
    found = result(behind, first, verdict("c", "pass", 1e-7), mode="cumulative", measures=measures)
    assert found.in_order == (first, behind) and found.first_wrong == found.to_explain == "b.early"
    assert found.to_json()["first_wrong"] == "b.early" and "First wrong: `b.early`" in markdown(found)
    alone = result(behind, first, measures=measures)
    assert alone.in_order is None and alone.first_wrong is None and alone.to_explain == "a.late"
    broken = result(verdict("d", "error", None), verdict("e", "skipped", None), mode="cumulative")
    assert broken.first_wrong is None and broken.to_explain == "d"
    assert result(verdict("e", "skipped", None), verdict("f", "unchecked", None)).to_explain is None


def test_other_bits_beyond_the_tolerance_are_a_failure() -> None:
    spread = Spread("op.b", "s", "runs", "it differs from run to run", "case0", 4, 2, 0, 1e-7, 0.1)
    made = result(verdict("op.a", "pass"), verdict("op.b", "pass"))
    listed = replace(made, invariance=Invariance(5, 2, 2, 0, (spread,)))
    failing = replace(made, invariance=Invariance(5, 2, 2, 0, (replace(spread, of_bound=3.0),)))
    assert listed.passed and not failing.passed
    assert ElementTree.fromstring(junit(listed)).get("failures") == "0"
    root = ElementTree.fromstring(junit(failing))
    assert root.get("failures") == "1"
    assert [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None] == ["op.b"]
    text = markdown(failing)
    assert "**failed**" in text and "- not deterministic: `op.b`: it differs from run to run: 2 of 4 runs differ" in text
