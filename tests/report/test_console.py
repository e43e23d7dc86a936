"""Tables, numbers and progress: what is shown, in which order, within which width."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from tapml.cli import main as cli
from tapml.cli.verb import Outcome
from tapml.devices.interface import DeviceInfo
from tapml.migrate.end_to_end import EndToEnd, PromptResult
from tapml.migrate.migrate import MigrationResult
from tapml.report import progress as progress_module
from tapml.report.console import (
    LEGEND,
    VerdictTable,
    amount,
    command,
    counts_line,
    excerpt,
    number,
    of_bound,
    off_by,
    shorten,
    side_by_side,
    worst_first,
)
from tapml.report.migration import end_to_end_lines
from tapml.report.progress import Progress, seconds
from tapml.runtime.module import Module
from tapml.verdicts import Status, Verdict
from tapml.words import plural


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
    assert lines[0].split() == ["ref"]
    assert lines[1].split() == ["operator", "copies", "kind", "status", "err/bound", "err/bound"]
    assert lines[2].split()[:4] == ["layers.39.q", "1", "linear", "pass"]
    shown = len(lines) - 4
    assert lines[-2] == f"… and {40 - shown} more that passed"
    assert lines[-1] == LEGEND
    wide = drawn(VerdictTable(passed), 120)[0]
    assert wide.split() == ["operator", "copies", "kind", "status", "err/bound", "ref", "err/bound", "bound"]


def test_equal_operators_share_a_row() -> None:
    lines = drawn(VerdictTable([verdict(f"layers.{k}.q", error=k * 1e-8, signature="same") for k in range(30)]))
    assert len(lines) == 4 and lines[2].split() == ["layers.29.q", "30", "linear", "pass", "0.29", "0.10"]


def test_elements_that_were_not_compared_are_told() -> None:
    table = [verdict(f"layers.{k}.q", signature="same") for k in range(3)]
    assert "not compared" not in " ".join(drawn(VerdictTable(table)))
    partly = [replace(v, excluded=12, elements=4096) for v in table]
    other = [replace(verdict(f"floor.{k}"), excluded=k + 1, elements=100) for k in range(7)]
    lines = drawn(VerdictTable([*partly, *other]), 120)
    told = [line for line in lines if "not compared" in line]
    assert told[0] == "7 of 100 elements of floor.6 were not compared: the reference cannot decide them" and len(told) == 5
    assert "… and elements of 3 more operators" in lines
    whole = drawn(VerdictTable(partly), 120)
    assert whole[-1].startswith("12 of 4,096 elements of layers.0.q (and of 2 more like it) were not compared: ")


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
    assert off_by(1.0, 2.0, 0.5) == "off by 0.50 of the tolerance 2.00; the reference itself by 0.25"
    assert [off_by(e, 0.0, 0.0) for e in (0.0, 1.0)] == ["equal", "not equal"], "of nothing that may differ there is no share"
    assert [amount(n) for n in (0, 1023, 1536, 5 * 2**20, 200 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "200 GiB"]
    assert [seconds(s) for s in (0.04, 41.4, 119.4, 125.0, 7300.0)] == ["0.0 s", "41 s", "119 s", "2 min 05 s", "2 h 01 min"]
    assert shorten("prefill/layers.21.mlp.gated_activation", 31) == "prefill/…1.mlp.gated_activation"
    assert shorten("encoder.layer.3.attention.output", 20) == "encod…tention.output"
    assert [len(shorten(name, 20)) for name in ("x" * 40, "a_long_graph_name/" + "x" * 40, "x" * 20)] == [20, 20, 20]


def test_counts_agree_with_their_nouns() -> None:
    found = [plural(n, noun) for n in (0, 1, 2) for noun in ("session", "launch", "class")]
    assert found[:3] == ["0 sessions", "0 launches", "0 classes"] and found[3:6] == ["1 session", "1 launch", "1 class"]
    assert found[6:] == ["2 sessions", "2 launches", "2 classes"]
    assert plural(12345, "call") == "12,345 calls"


def test_a_long_prompt_gives_way_in_the_middle() -> None:
    text = "One day a fox came by. " * 200 + "What did it say?"
    shown = excerpt(text, 850)
    assert len(shown) <= 2 * 80 and shown.startswith("One day a fox came by. One day") and " … " in shown
    assert shown.endswith("What did it say? (850 tokens)")
    assert excerpt("one\ntwo", 3) == "one\ntwo" and excerpt("one\ntwo\nthree\nfour", 7) == "one two three four (7 tokens)"


def test_a_command_is_one_line_to_copy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "tapml explain run decode/layers.13.mlp.down_proj --target opencl --inject fault.py:wrong"
    cli._show(Outcome(0, {}, (command(text), Text("word " * 20))), None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Next: {text}" and len(lines) > 2, "other texts are wrapped as before"


def end(top1: float | None, bound: float = 1e-4, error: float = 0.0, tokens: tuple[int, ...] = ()) -> list[str]:
    """The lines about the whole model, of a migration of one prompt or example."""
    prompt = PromptResult(0, tokens, tokens, error, bound, 0.0, top1)
    device = DeviceInfo("cpu", "a device", "", True)
    result = MigrationResult("cpu", device, (), ("a",), (), EndToEnd((prompt,)), 1.0, 1, 0, 0)
    assert result.end_to_end.to_json()["top1_agreement"] == top1
    return [line.plain for line in end_to_end_lines(result)]


def test_agreement_is_told_where_something_is_chosen() -> None:
    assert end(0.5, tokens=(1, 2))[0] == "2 of 2 tokens equal · top-1 agreement 50.0%"
    assert end(None)[0] == "1 of 1 example within the tolerance"
    assert end(None, bound=0.0)[1] == "outputs equal", "integers have no share of a tolerance"


def test_an_image_chooses_nothing() -> None:
    outputs = [("output", (1, 3, 8, 8)), ("last_hidden_state", (1, 5, 64)), ("output", (4, 1)), ("y", ())]
    scores = Module().scores
    assert not any(scores(key, np.zeros(shape, np.float32)) for key, shape in outputs)
    assert not scores("output", np.zeros((1, 10), np.int64))
    assert scores("output", np.zeros((1, 10), np.float32)) and scores("logits", np.zeros((1, 5, 99), np.float16))


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


def test_a_time_left_is_told_when_it_is_worth_something(clock: list[float]) -> None:
    """The first of 900 things take 2 s each, since processes start, all others 0.05 s."""
    stream = io.StringIO()
    told: dict[int, str] = {}
    with Progress("migrate", stream) as progress:
        for done in range(900):
            progress("test", done, 900)
            told[done] = progress._pace()
            clock[0] += 2.0 if done < 8 else 0.05
    assert "left" not in told[8] and "/s" in told[8], "16 s and less than a tenth: an hour would be told"
    assert "left" in told[120]
    rest = [float(text.split(", ")[2].split()[0]) for done, text in told.items() if done in (400, 600, 800)]
    true = [0.05 * (900 - done) for done in (400, 600, 800)]
    assert all(a < 2.0 * b for a, b in zip(rest, true, strict=True)), f"{rest} s told, {true} s true"


def test_progress_at_a_terminal_leaves_a_line_a_stage(clock: list[float]) -> None:
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
