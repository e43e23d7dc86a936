"""`tapml explain` from an operator's name to what is on the console and on disk."""

from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console, RenderableType

import tapml
from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.cli import explain as verb
from tapml.diagnose.explain.result import Explanation
from tapml.diagnose.explain.stage import explain, resolve_operator
from tapml.errors import UsageError
from tapml.report.explain import view
from tapml.report.kernel_text import folded
from tapml.tensors import HostArray
from tests.conftest import MakeRun
from tests.remote.processes import Agent, Hub

NORM, LINEAR = "prefill/layers.0.input_layernorm", "prefill/layers.0.self_attn.q_proj"
FAULT = """
def broken(operator, target, source):
    return source.replace("sqrt(", "1.01f * sqrt(") if operator == "prefill/layers.0.input_layernorm" else source

def refused(operator, target, source):
    return source.replace("sqrt(", "no_such_function(") if operator == "prefill/layers.0.input_layernorm" else source
"""


@pytest.fixture(scope="module")
def run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A copy, since explaining writes into the run."""
    copy = tmp_path_factory.mktemp("explain") / "llama"
    shutil.copytree(make_run("llama").path, copy)
    return RunFolder.open(copy)


def printed(found: Explanation, width: int = 110) -> str:
    return shown(view(found), width)


def shown(parts: Sequence[RenderableType], width: int = 110) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def test_names(run: RunFolder) -> None:
    assert resolve_operator(run, NORM).name == NORM
    assert resolve_operator(run, "decode/layers.1.mlp.up").name == "decode/layers.1.mlp.up_proj"
    assert resolve_operator(run, "prefill/*0*q_proj").name == LINEAR
    with pytest.raises(UsageError, match=r"'q_proj' fits 4 operators: prefill/layers.0.self_attn.q_proj, "):
        resolve_operator(run, "q_proj")
    with pytest.raises(UsageError, match="Did you mean prefill/lm_head"):
        resolve_operator(run, "prefill/lm_haed")


def test_a_clean_operator(run: RunFolder, need: Callable[[str], str]) -> None:
    found = explain(run, NORM, need("opencl"))
    assert (found.status, found.stage, found.reproducer) == ("pass", None, None)
    assert [e.probe for e in found.evidence if e.outcome == "right"][-1] == "model"
    assert found.advice[0].endswith(f"tapml bisect {run.path} --target opencl")
    assert "nothing is wrong" in printed(found) and "tapml bisect" in printed(found)


def test_a_faulty_operator_on_the_command_line(run: RunFolder, need: Callable[[str], str], tmp_path: Path) -> None:
    need("opencl")
    (tmp_path / "faults.py").write_text(FAULT)
    args = argparse.Namespace(
        run=str(run.path), operator=NORM, target="opencl", device="local", inject=f"{tmp_path / 'faults.py'}:broken", out=None
    )
    outcome = verb.run(args)
    data = outcome.data
    assert outcome.code == 1 and data["operator"] == NORM and data["status"] == "fail" and data["error"] > data["bound"]
    assert data["elements_after"] < data["elements_before"] and data["minimised"]["inputs"]
    assert all("1.01f" in k["source"] or "sqrt" not in k["source"] for k in data["kernels"])
    folder = run.path / "targets" / "opencl" / "explain" / NORM.replace("/", "__")
    assert Path(data["reproducer"]) == folder / "reproducer" and (folder / "reproducer" / "run.py").is_file()
    kept = json.loads((folder / "evidence.json").read_text())
    assert (kept["stage"], kept["evidence"]) == (data["stage"], data["evidence"])
    assert "1.01f" in (folder / "kernels" / "rms_norm_1.cl").read_text()
    text = shown(outcome.view)
    for words in ("fail at", "The graph that was compiled is right", "The smallest input", "expected", "1.01f * sqrt", "run.py"):
        assert words in text


def test_a_kernel_that_the_driver_refuses(run: RunFolder, need: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "faults.py").write_text(FAULT)
    out = tmp_path / "out"
    found = explain(run, NORM, need("opencl"), inject=f"{tmp_path / 'faults.py'}:refused", out=out)
    assert (found.status, found.stage) == ("error", "driver")
    assert "no_such_function" in printed(found) and (out / "evidence.json").is_file()


class SwappedWeights(Rewrite):
    def __init__(self) -> None:
        super().__init__("swapped weights", "swapped weights")

    def weight(self, operator: str, key: str, array: HostArray) -> HostArray:
        return np.flip(array, 0) if operator == LINEAR else array


def test_wrong_weights_have_no_input_of_their_own(run: RunFolder, need: Callable[[str], str], tmp_path: Path) -> None:
    found = explain(run, LINEAR, need("cpu"), inject=SwappedWeights(), out=tmp_path / "out")
    assert (found.stage, found.minimised, found.reproducer) == ("weights", None, None)
    assert "not in the kernel" in found.not_minimised and "q_proj.weight" in printed(found)


class LatePosition(Rewrite):
    """The position that is uploaded for decoding is one too high: every operator is right with what it is given."""

    def __init__(self) -> None:
        super().__init__("late position", "late position")

    def value(self, graph: str, name: str, array: HostArray) -> HostArray:
        return array + 1 if graph == "decode" and name == self.key else array

    key = ""


def test_what_is_handed_over_wrongly_between_calls(run: RunFolder, need: Callable[[str], str], tmp_path: Path) -> None:
    decode = next(g for g in run.graphs if g.name == "decode")
    fault = LatePosition()
    fault.key = next(p.key for p in decode.inputs if "position" in p.key)
    placeholder = next(p.name for p in decode.inputs if p.key == fault.key)
    reader = next(o for o in run.operators if o.graph == "decode" and placeholder in o.inputs and "rotary" in o.name)
    found = explain(run, reader.name, need("cpu"), inject=fault, out=tmp_path / "out")
    assert found.triage.passed and (found.status, found.stage) == ("fail", "state")
    made = {e.probe: e.outcome for e in found.evidence}
    assert made["model"] == "wrong" and made["met"] == "right"
    assert "tapml bisect" in found.advice[0] and "fail at state" in printed(found)


def test_an_operator_that_others_make_wrong_is_not_blamed(run: RunFolder, need: Callable[[str], str], tmp_path: Path) -> None:
    found = explain(run, NORM, need("cpu"), inject=SwappedWeights(), out=tmp_path / "out")
    assert found.passed and "another one is at fault" in found.because
    assert "The model is still wrong" in found.advice[0]


class Root(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x)


@pytest.mark.parametrize("where", ["here", "at a hub"])
def test_what_float16_alone_gets_wrong_is_computed_in_float32(
    need: Callable[[str], str], served: tuple[Hub, Agent], tmp_path: Path, where: str
) -> None:
    """Also at a hub, where a device is lent to one at a time: both run on the same."""
    x = torch.linspace(0.1, 9.0, 24, dtype=torch.float16)
    run = tapml.carve(Root(), {"x": x}, out=tmp_path / "run", dtype="float16").folder
    (tmp_path / "faults.py").write_text("""
def half(operator, target, source):
    return source.replace("sqrt(", "1.25 * sqrt(") if "enable f16;" in source else source
""")
    device = "local"
    if where == "at a hub":
        served[1].wait_ready(need("vulkan"))
        device = f"any@{served[0].url}"
    (operator,) = run.operators
    found = explain(run, operator.name, need("vulkan"), device, f"{tmp_path / 'faults.py'}:half")
    assert found.status == "fail"
    (line,) = (text for text in found.advice if text.startswith("Accumulate in float32"))
    assert line.endswith("Use --target vulkan:f16=0.")


def test_an_operator_that_was_never_called(run: RunFolder, need: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    need("cpu")
    monkeypatch.setattr("tapml.diagnose.explain.stage.recorded", lambda *_: iter(()))
    monkeypatch.setattr("tapml.diagnose.explain.stage.met", lambda *_: iter(()))
    with pytest.raises(UsageError, match="was never called while"):
        explain(run, NORM, "cpu")


def test_a_folder_with_other_things_is_left_alone(run: RunFolder, need: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "reproducer").mkdir()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        explain(run, NORM, need("cpu"), out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"reproducer", "thesis.txt"}


def test_lines_that_differ_in_numbers_only_are_folded() -> None:
    source = "void f() {\n" + "".join(f"  a[{k}] = {k}.0f;\n" for k in range(9)) + "  b = 1;\n  c = 2;\n}\n"
    assert folded(source) == ["void f() {", "  a[0] = 0.0f;", "  // … 8 more lines like it", "  b = 1;", "  c = 2;", "}"]
    long = "\n".join(f"x{'y' * k};" for k in range(50))
    assert len(folded(long, 20)) == 21 and "30 more lines" in "\n".join(folded(long, 20))


def test_hazards() -> None:
    from tapml.diagnose.probes.hazards import hazards
    from tapml.kernels import Kernel

    def found(*lines: str) -> list[str]:
        body = "\n".join(["__kernel void k(__global float* restrict in0_ptr) {", *(f"  {line}" for line in lines), "}"])
        return [h.kind for h in hazards(Kernel("opencl-c", "k", body, ("read",), (1, 1, 1), (1, 1, 1)))]

    barrier = "barrier(CLK_LOCAL_MEM_FENCE);"
    shared = ["__local float s[64];", "s[get_local_id(0)] = in0_ptr[0];"]
    add = "s[get_local_id(0)] = (s[get_local_id(0)] + s[(get_local_id(0) + 32)]);"
    assert found(*shared, barrier, add) == []
    assert found(*shared, add) == ["no barrier"]
    assert found("float a[1];", "a[0] = 0.0e+00f;", "a[0] = (a[0] + in0_ptr[0]);") == []
    assert found("float a[1];", "a[0] = (a[0] + in0_ptr[0]);") == ["uninitialised"]
    assert found("if (get_local_id(0) > 3) { return; }", *shared, barrier) == ["early return"]
    assert found("if (get_group_id(0) > 3) { return; }", *shared, barrier) == []
