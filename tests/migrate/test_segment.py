"""Segments: neighbouring operators as one, and the smallest that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tapml.api import Run
from tapml.cli.main import main
from tapml.errors import UsageError
from tapml.migrate.model import Model
from tapml.migrate.segment import parse_segment
from tapml.migrate.tested import TestResult
from tapml.targets.parse import parse
from tests.backends.here import Here
from tests.conftest import MakeRun

LAYER = "encoder.layer.0"
DENSE = f"{LAYER}.intermediate.dense"

# What a wrong fusion is like: the norm's epsilon is lost only where the norm's text goes on with the next layer.
FUSED = """
def wrong(operator, target, source):
    before, norm, after = source.partition("LayerNormalization <axis = 2, epsilon = 1e-12>")
    return before + "LayerNormalization <axis = 2, epsilon = 0.9>" + after if norm and "aten.linear" in after else source
"""
ALONE = """
def wrong(operator, target, source):
    return source.replace("epsilon = 1e-12", "epsilon = 0.9")
"""


def outcome(make_run: MakeRun, model: str, segment: str, inject: str | None = None) -> TestResult:
    backend = Here(parse("ort"))
    try:
        return Run.open(make_run(model).path).test(backend, segment=segment, inject=inject)
    finally:
        backend.close()


def fault(tmp_path: Path, code: str) -> str:
    (tmp_path / "fault.py").write_text(code)
    return f"{tmp_path / 'fault.py'}:wrong"


@pytest.mark.parametrize("model, segment, operators", [
    ("llama", "decode/layers.0", 16), ("llama", "prefill/mask..lm_head", 36),
    ("encoder", LAYER, 9), ("conv_net", "conv1..head", 6),
])  # fmt: skip
def test_what_is_right_passes_whole(make_run: MakeRun, model: str, segment: str, operators: int) -> None:
    result = outcome(make_run, model, segment)
    (verdict,) = result.verdicts
    assert result.passed and result.segment is not None and result.segment.smallest is None, verdict.reason
    assert len(result.segment.segment.operators) == operators and verdict.op == "segment"
    assert verdict.error is not None and verdict.bound is not None and verdict.error <= verdict.bound


def test_a_fault_between_two_is_found_in_the_smallest_segment(make_run: MakeRun, tmp_path: Path) -> None:
    inject = fault(tmp_path, FUSED)
    result = outcome(make_run, "encoder", LAYER, inject)
    assert not result.passed and result.segment is not None and result.segment.smallest is not None
    smallest, verdict = result.segment.smallest
    assert verdict.status == "fail" and smallest.operators[-1].name == DENSE
    assert [o.kind for o in smallest.operators] == ["layer_norm", "linear"]
    assert result.segment.alone is None and result.to_explain is None
    for operator in smallest.operators:
        assert outcome(make_run, "encoder", operator.name).passed


def test_an_operator_that_fails_alone_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    result = outcome(make_run, "encoder", LAYER, fault(tmp_path, ALONE))
    assert result.segment is not None and result.segment.smallest is not None
    (operator,) = result.segment.smallest[0].operators
    assert operator.kind == "layer_norm" and result.to_explain == operator.name == result.segment.alone


def test_what_is_no_segment_is_said(make_run: MakeRun, tmp_path: Path) -> None:
    model = Model.of(make_run("llama"))
    for text, words in (
        ("..", "no operator or module ''. Give two operators, such as prefill/mask..B"),
        ("decode/layers.0.mlp..", "no operator or module ''"),
        ("decode/layer.0", "Did you mean decode/"),
        ("prefill/mask..decode/lm_head", "is in the graph prefill, decode/lm_head in decode"),
        ("decode/lm_head..decode/mask", "runs before decode/lm_head. Try: --segment decode/mask..decode/lm_head"),
    ):
        with pytest.raises(UsageError, match=words):
            parse_segment(model, text)
    run = Run.open(make_run("encoder").path)
    with pytest.raises(UsageError, match="without --operator"):
        run.test("ort", segment=LAYER, mode="cumulative")
    with pytest.raises(UsageError, match="changed none of 1 kernels"):
        outcome(make_run, "encoder", LAYER, fault(tmp_path, "def wrong(o, t, s): return s"))


def test_the_command_line_says_which(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_run("encoder").path
    assert main(["test", str(path), "--target", "ort", "--segment", LAYER, "--inject", fault(tmp_path, FUSED)]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "9 operators as one segment" in out
    assert "smallest segment that fails: " in out and f"..{DENSE} (2 operators)" in out
