"""Tables, numbers and progress: what is shown, in which order, within which width."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator

import pytest
from rich.console import Console, RenderableType

from tapml.report import progress as progress_module
from tapml.report.console import VerdictTable, amount, counts_line, number, of_bound, shorten, side_by_side, worst_first
from tapml.report.progress import Progress, seconds
from tapml.verdicts import Status, Verdict


def verdict(name: str, status: Status = "pass", error: float | None = 1e-7, signature: str = "", reason: str = "") -> Verdict:
    stage = "numeric" if status == "fail" else None
    return Verdict(name, signature or name, "linear", status, stage, error, 1e-6, 1e-7, reason, 0.1)


def drawn(part: RenderableType, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(part)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_worst_comes_first() -> None:
    names = ["fine", "wrong", "broken", "nan", "close"]
    found = worst_first([
        verdict("fine"), verdict("wrong", "fail", 5e-6), verdict("broken", "error", None), verdict("nan", "fail", math.nan),
        verdict("close", error=9e-7),
    ])  # fmt: skip
    assert [v.operator for v in found] == ["nan", "wrong", "broken", "close", "fine"]
    assert sorted(names) == sorted(v.operator for v in found)


def test_the_table_counts_what_it_leaves_out() -> None:
    passed = [verdict(f"layers.{k}.q", error=k * 1e-8) for k in range(40)]
    lines = drawn(VerdictTable(passed))
    assert lines[0].split() == ["operator", "alike", "kind", "status", "of", "bound", "source"]
    assert lines[1].split()[:4] == ["layers.39.q", "1", "linear", "pass"]
    shown = len(lines) - 2
    assert lines[-1] == f"… and {40 - shown} more that passed"


def test_equal_operators_share_a_row() -> None:
    lines = drawn(VerdictTable([verdict(f"layers.{k}.q", error=k * 1e-8, signature="same") for k in range(30)]))
    assert len(lines) == 2 and lines[1].split() == ["layers.29.q", "30", "linear", "pass", "0.29", "0.10"]


def test_every_failure_tells_its_reason() -> None:
    bad = [verdict(f"layers.{k}.q", "fail", 1e-3, reason=f"reason number {k} [0, 1]") for k in range(20)]
    text = "\n".join(drawn(VerdictTable([*bad, *(verdict(f"fine.{k}") for k in range(9))])))
    for k in range(20):
        assert f"layers.{k}.q: fail at numeric\n  reason number {k} [0, 1]" in text
    assert "… and 1 more that passed" in text


@pytest.mark.parametrize("width", [60, 80, 132])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    name = "decode/model.language_model.layers.29.self_attn.rotary_embedding.apply"
    for line in drawn(VerdictTable([verdict(name, "fail", 123.0, reason="x" * 300), verdict(name + "2")]), width):
        assert len(line) <= width


def test_the_summary_line() -> None:
    line = counts_line([verdict("a"), verdict("b", "fail"), verdict("c", "skipped", None)], "opencl on PoCL", 41.2)
    assert line.plain == "3 operators: 1 pass, 1 fail, 1 skipped · opencl on PoCL · 41 s"


def test_answers_stand_side_by_side() -> None:
    lines = drawn(side_by_side(("source", "[red] " + "word " * 12), ("migrated", "other"), same=False))
    assert re.fullmatch(r"source {30,}migrated", lines[0])
    assert re.fullmatch(r"\[red\] word.* {2,}other", lines[1])
    assert max(map(len, lines)) <= 80


def test_numbers() -> None:
    values = (None, 0.0, 0.004, 0.3149, 12.34, 99.96, 8123.0, math.inf)
    assert [number(x) for x in values] == ["", "0", "4.0e-03", "0.31", "12.3", "1.0e+02", "8.1e+03", "inf"]
    assert [of_bound(e, b) for e, b in ((1.0, 2.0), (0.0, 0.0), (1.0, 0.0), (None, 1.0))] == ["0.50", "equal", "not equal", ""]
    assert [amount(n) for n in (0, 1023, 1536, 5 * 2**20, 200 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "200 GiB"]
    assert [seconds(s) for s in (0.04, 41.4, 119.4, 125.0, 7300.0)] == ["0.0 s", "41 s", "119 s", "2 min 05 s", "2 h 01 min"]
    assert shorten("prefill/layers.21.mlp.gated_activation", 31) == "prefill/…1.mlp.gated_activation"
    assert shorten("encoder.layer.3.attention.output", 20) == "encod…tention.output"
    assert [len(shorten(name, 20)) for name in ("x" * 40, "a_long_graph_name/" + "x" * 40, "x" * 20)] == [20, 20, 20]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    yield now


def test_progress_is_quiet_where_nobody_watches(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress("carve", stream) as progress:
        for done in range(50):
            progress("record", done, 50)
            clock[0] += 0.1
    assert stream.getvalue() == ""


def test_progress_is_sparse_in_a_log(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress("carve", stream) as progress:
        for done in range(300):
            progress("record", done, 300)
            clock[0] += 0.1
    lines = stream.getvalue().splitlines()
    assert lines[0] == "carve: record (101/300, 10.0/s, 20 s left)" and len(lines) == 2


def test_progress_at_a_terminal_leaves_a_line_a_stage() -> None:
    stream = Terminal()
    with Progress("carve", stream) as progress:
        progress("export")
        for done in range(3):
            progress("record", done, 3)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"✓ record +\d\.\d s", text) and "✓ export" not in text, "a stage of no time leaves nothing"


def test_progress_ends_without_a_line_when_a_stage_fails() -> None:
    stream = Terminal()
    with pytest.raises(RuntimeError), Progress("carve", stream) as progress:
        progress("record", 1, 3)
        raise RuntimeError("no")
    assert "✓" not in stream.getvalue()
