"""What `import tapml` offers, and nothing else: scripts rely on it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import tapml
from tests.models import conv_net


def test_what_is_public() -> None:
    assert dir(tapml) == ["Bundle", "MigrationResult", "Run", "TapmlError", "TestResult", "Verdict", "__version__", "carve"]
    assert [name for name in vars(tapml.Run) if not name.startswith("_")] == [
        "open", "path", "operators", "cases", "facts", "test", "migrate", "bisect", "explain", "health", "check", "export_cases",
        "report", "prompt_text", "text",
    ]  # fmt: skip
    assert [name for name in vars(tapml.Bundle) if not name.startswith("_")] == [
        "open", "close", "path", "name", "target", "licence", "inputs", "session", "run", "generate", "stream",
    ]  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'curve'"):
        _ = tapml.curve


def test_signatures() -> None:
    from tapml import api

    assert list(inspect.signature(api.carve).parameters) == [
        "model", "inputs", "out", "prompts", "decode_steps", "dtype", "max_len", "chunk", "cases", "device", "tokenizer", "fresh",
        "progress",
    ]  # fmt: skip
    assert list(inspect.signature(tapml.Run.test).parameters)[1:] == [
        "target",
        "device",
        "operator",
        "segment",
        "mode",
        "inject",
        "repeat",
        "kernels",
        "progress",
    ]
    assert list(inspect.signature(tapml.Run.migrate).parameters)[1:] == [
        "target", "device", "resume", "fresh", "order", "tokens", "inject", "progress",
    ]  # fmt: skip


def test_carve_is_a_function_and_a_package(tmp_path: Path) -> None:
    """`tapml.carve(…)` works whether or not the stage of that name was imported before."""
    import tapml.carving.case

    module, inputs = conv_net()
    stages: list[str] = []
    run = tapml.carve(module, inputs, out=tmp_path / "run", progress=lambda stage, done, total: stages.append(stage))
    assert repr(run) == f"Run({str(tmp_path / 'run')!r})"
    assert stages[0] == "load" and {"export", "record"} <= set(stages)
    assert {c.operator for c in run.cases} <= {o.name for o in run.operators}
    assert tapml.carving.case.Case is type(run.cases[0])
    with pytest.raises(tapml.TapmlError, match="already holds a run"):
        tapml.carve(module, inputs, out=tmp_path / "run")
