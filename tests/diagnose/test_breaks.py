"""Diagnosing over a connection that breaks: the answer is what it is without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapml.backends import on_device
from tapml.carving.folder import RunFolder
from tapml.devices.faulty import Call, Fault, FaultyDevice
from tapml.diagnose.explain.stage import explain
from tapml.diagnose.health.stage import health
from tapml.errors import ConnectionLost
from tapml.remote.open import open_device
from tests.conftest import MakeRun

Need = Callable[[str], str]
Breaking = Callable[..., list[FaultyDevice]]

NORM = "prefill/layers.0.input_layernorm"
FAULT = """
def broken(operator, target, source):
    return source.replace("sqrt(", "1.01f * sqrt(") if operator == "prefill/layers.0.input_layernorm" else source

def refused(operator, target, source):
    return source.replace("sqrt(", "no_such_function(") if operator == "prefill/layers.0.input_layernorm" else source
"""


@pytest.fixture
def run(make_run: MakeRun, tmp_path: Path) -> RunFolder:
    shutil.copytree(make_run("llama").path, tmp_path / "llama")
    (tmp_path / "faults.py").write_text(FAULT)
    return RunFolder.open(tmp_path / "llama")


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Breaking:
    """`breaking("read", 3)`: the connection to the first device that is opened breaks at its third read. Gives the devices."""

    def set_fault(call: Call, nth: int, kind: Any = "away") -> list[FaultyDevice]:
        opened: list[FaultyDevice] = []

        def open_faulty(choice: Any, device: str, deadline: float) -> FaultyDevice:
            faults = [] if opened else [Fault(kind, call, nth)]
            opened.append(FaultyDevice(open_device(choice, device, deadline=deadline), faults))
            return opened[-1]

        monkeypatch.setattr(on_device, "open_device", open_faulty)
        return opened

    return set_fault


def timeless(data: Any) -> Any:
    """Without seconds, and without what a driver's log says of its own temporary files."""
    if isinstance(data, dict):
        return {k: list(v) if k == "on_source" else timeless(v) for k, v in data.items() if k not in ("seconds", "date", "runs")}
    return [timeless(v) for v in data] if isinstance(data, list | tuple) else data


def test_health(run: RunFolder, need: Need, breaking: Breaking, tmp_path: Path) -> None:
    inject = f"{tmp_path / 'faults.py'}:refused"
    expected = health(run, need("cpu"), inject=inject).to_json()
    assert list(expected["target"]["on_source"]) == [NORM]
    opened = breaking("run", 40)
    assert timeless(health(run, "cpu", inject=inject).to_json()) == timeless(expected)
    assert len(opened) == 2


def test_explain(run: RunFolder, need: Need, breaking: Breaking, tmp_path: Path) -> None:
    inject, out = f"{tmp_path / 'faults.py'}:broken", tmp_path / "out"
    expected = explain(run, NORM, need("opencl"), inject=inject, out=out)
    assert expected.triage.stage == "codegen"
    for call, nth in (("run", 2), ("read", 60)):
        opened = breaking(call, nth)
        found = explain(run, NORM, "opencl", inject=inject, out=out)
        assert opened[0].calls[call] == nth, "it broke"
        assert timeless(found.to_json()) == timeless(expected.to_json())


def test_a_connection_that_is_gone_ends_an_explanation(
    run: RunFolder, need: Need, breaking: Breaking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("opencl")
    opened = breaking("read", 60)
    open_faulty = on_device.open_device

    def gone(choice: Any, device: str, deadline: float) -> Any:
        if opened and choice.name == "opencl":
            raise ConnectionLost("nobody is there", final=True)
        return open_faulty(choice, device, deadline=deadline)

    monkeypatch.setattr(on_device, "open_device", gone)
    with pytest.raises(ConnectionLost, match="nobody is there"):
        explain(run, NORM, "opencl", inject=f"{tmp_path / 'faults.py'}:broken", out=tmp_path / "out")
