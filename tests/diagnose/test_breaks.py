"""Diagnosing over a connection that breaks: the answer is what it is without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tapml.backends.kernels import Kernels
from tapml.carving.folder import RunFolder
from tapml.devices.faulty import Call, Fault, FaultyDevice
from tapml.devices.interface import Device
from tapml.diagnose.explain.stage import explain
from tapml.diagnose.health.stage import health
from tapml.errors import ConnectionLost
from tapml.targets.parse import parse
from tests.conftest import MakeRun

Need = Callable[[str], str]

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


class Breaking(Kernels):
    """The connection to the first device that is opened breaks at the `nth` call of one kind. `opened` are the devices."""

    def __init__(self, target: str, call: Call, nth: int) -> None:
        self.fault = Fault("away", call, nth)
        self.opened: list[FaultyDevice] = []
        super().__init__(parse(target))

    def _opened(self) -> Device:
        self.opened.append(FaultyDevice(super()._opened(), [] if self.opened else [self.fault]))
        return self.opened[-1]


def timeless(data: Any) -> Any:
    """Without seconds, and without what a driver's log says of its own temporary files."""
    if isinstance(data, dict):
        return {k: list(v) if k == "on_source" else timeless(v) for k, v in data.items() if k not in ("seconds", "date", "runs")}
    return [timeless(v) for v in data] if isinstance(data, list | tuple) else data


def test_health(run: RunFolder, need: Need, tmp_path: Path) -> None:
    inject = f"{tmp_path / 'faults.py'}:refused"
    expected = health(run, need("cpu"), inject=inject).to_json()
    assert list(expected["target"]["on_source"]) == [NORM]
    with closing(Breaking("cpu", "run", 40)) as backend:
        assert timeless(health(run, backend, inject=inject).to_json()) == timeless(expected)
    assert len(backend.opened) == 2


def test_explain(run: RunFolder, need: Need, tmp_path: Path) -> None:
    inject, out = f"{tmp_path / 'faults.py'}:broken", tmp_path / "out"
    expected = explain(run, NORM, need("opencl"), inject=inject, out=out)
    assert expected.triage.stage == "codegen"
    calls: tuple[tuple[Call, int], ...] = (("run", 2), ("read", 60))
    for call, nth in calls:
        with closing(Breaking("opencl", call, nth)) as backend:
            found = explain(run, NORM, backend, inject=inject, out=out)
        assert backend.opened[0].calls[call] == nth, "it broke"
        assert timeless(found.to_json()) == timeless(expected.to_json())


def test_a_connection_that_is_gone_ends_an_explanation(run: RunFolder, need: Need, tmp_path: Path) -> None:
    need("opencl")

    class Gone(Breaking):
        def _opened(self) -> Device:
            if self.opened:
                raise ConnectionLost("nobody is there", final=True)
            return super()._opened()

    with closing(Gone("opencl", "read", 60)) as backend, pytest.raises(ConnectionLost, match="nobody is there"):
        explain(run, NORM, backend, inject=f"{tmp_path / 'faults.py'}:broken", out=tmp_path / "out")
