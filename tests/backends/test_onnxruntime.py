"""ONNX Runtime as a target: operators as ONNX models, on its provider for the processor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tapml
from tapml.backends.open import open_backend
from tapml.cli import doctor
from tapml.devices.known import PLATFORMS
from tapml.devices.onnxruntime_device import OnnxRuntimeDevice
from tapml.devices.open import open_here
from tapml.devices.trial import try_target
from tapml.diagnose.bisect.stage import bisect
from tapml.diagnose.explain.stage import explain
from tapml.diagnose.faults.catalogue import CATALOGUE, sites
from tapml.errors import DeviceError, DeviceLost, TargetError, UnavailableError, UsageError
from tapml.kernels import Kernel
from tapml.languages.onnx import LANGUAGE, packed
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Body, Node
from tapml.operators.onnx.to_onnx import NoConversion, onnx_text
from tapml.remote.agent.offers import parse_offered
from tapml.remote.open import open_device
from tapml.targets.parse import parse
from tapml.tensors import TensorSpec
from tests.backends.here import Here
from tests.compile.bodies import call
from tests.compile.test_conversions import floats, ints
from tests.conftest import MakeRun

TARGET = "ort:provider=cpu"


@pytest.mark.parametrize("model", ["llama", "conv_net", "encoder"])
def test_a_whole_model_moves(make_run: MakeRun, model: str) -> None:
    result = tapml.Run.open(make_run(model).path).migrate(TARGET, fresh=True)
    assert result.kept_on_source == () and result.end_to_end.passed
    assert {v.status for v in result.verdicts} == {"pass"} and {v.schedule for v in result.verdicts} == {"ORT_ENABLE_ALL"}
    assert "CPUExecutionProvider" in result.device.driver


def test_equal_bodies_have_equal_texts_and_files() -> None:
    made = call("aten.layer_norm.default", floats(3, 8), [8], floats(8), None, 1e-6)
    one, other = (onnx_text(Body.from_json(made.body.to_json()), "layer_norm_0") for _ in range(2))
    assert one == other and packed(one) == packed(other)
    assert "epsilon = 1e-06" in one and "# aten.layer_norm.default" in one


def test_an_output_that_is_an_input_or_asked_for_twice() -> None:
    spec = TensorSpec((2, 3), "float32")
    node = Node("n0", "aten.neg.default", ({"ref": "i0"},), {}, (spec,))
    body = Body("both", (spec,), ("value",), (node,), ("i0", "n0", "n0"))
    backend = Here(parse("ort"))
    program = backend.prepare({"s": body})["s"].compiled
    assert program is not None and program.forwards == ((0, 0),)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    one, other, again = backend.run_once(program, [x])
    np.testing.assert_array_equal(one, x)
    np.testing.assert_array_equal(other, -x)
    np.testing.assert_array_equal(again, -x)
    backend.close()


@pytest.fixture(scope="module")
def here() -> Iterator[Here]:
    backend = Here(parse("ort"))
    yield backend
    backend.close()


def test_what_cannot_be_written_is_an_error_of_converting(here: Here) -> None:
    square = TensorSpec((4, 4), "float32")
    for target in ("aten.cholesky.default", "os.system.default", "aten.from_file.default"):
        node = Node("n0", target, ({"ref": "i0"},), {}, (square,))
        prepared = here.prepare({"s": Body("bad", (square,), ("value",), (node,), ("n0",))})["s"]
        assert (prepared.compiled, prepared.status, prepared.stage) == (None, "error", "convert")
        assert target in prepared.message, prepared.message


def test_a_shape_that_differs_from_pytorchs_is_refused() -> None:
    made = call("aten.cat.default", [floats(2, 3), floats(2, 3)], 1)
    node = made.body.nodes[0]
    wrong = Node(node.name, node.target, node.args, node.kwargs, (TensorSpec((2, 5), "float32"),))
    with pytest.raises(NoConversion, match=r"shape \[2, 6\], PyTorch \[2, 5\]"):
        onnx_text(Body("cat", made.body.inputs, made.body.roles, (wrong,), made.body.outputs), "cat")


def test_a_dtype_that_it_does_not_compute_in_is_an_error_of_the_backend(here: Here) -> None:
    import torch

    made = call("aten.exp.default", floats(3, 8, dtype=torch.bfloat16))
    program = here.prepare({"s": made.body})["s"].compiled
    assert program is not None
    with pytest.raises(DeviceError, match="Could not find an implementation for Exp") as caught:
        here.load(program)
    assert caught.value.stage == "backend"


def test_what_onnx_runtime_refuses_is_an_error_of_the_backend() -> None:
    device = open_here("ort", None)
    head = '<ir_version: 10, opset_import: ["" : 21]>\nf (float[2] i0) => (float[3] o0) '
    for text, words in (
        ("f(", "the text is no model"),
        (head + "{ o0 = Wish (i0) }", "does not take it.*Wish"),
        (head + "{ o0 = Exp (i1) }", "does not take it"),
        (head.replace("(float[2] i0) => (float[3] o0)", "(float[2] i0, float[2] i1) => (float[2] o0)") + "{ o0 = Exp (i0) }",
         "2 inputs"),
        (head.replace("2", "n").replace("n1", "21").replace("3", "n") + "{ o0 = Exp (i0) }", "no size of its own"),
    ):
        with pytest.raises(DeviceError, match=words) as caught:
            device.load(Kernel("onnx", "f", text, ("read", "read_write"), (1, 1, 1), (1, 1, 1)))
        assert caught.value.stage == "backend" and "\n" not in str(caught.value)
    with pytest.raises(DeviceError, match="takes onnx, and kernel f is c"):
        device.load(Kernel("c", "f", "", (), (1, 1, 1), (1, 1, 1)))
    device.close()


def test_what_is_not_there_is_said() -> None:
    for target, error, words in (
        ("ort:provider=cpuu", TargetError, "no provider 'cpuu'. Did you mean cpu"),
        ("ort:optimise=7", TargetError, "no optimise '7'. Known: 0, 1, 2, 3, 99"),
        ("ort:schedule=simple", TargetError, "no option 'schedule'.*device, optimise, provider, threads"),
        ("ort:threads=many", TargetError, "threads='many' is no number"),
        ("opencl:provider=cpu", TargetError, "no option 'provider'"),
        ("ort:provider=qnn", UnavailableError, "provider=qnn is not available: ONNX Runtime .* pip install onnxruntime-qnn"),
    ):
        with pytest.raises(error, match=words):
            open_backend(target)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match=r"ort is not available: .*onnxruntime.* pip install 'tapml\[ort\]'"):
        open_here("ort", None)


class Node_:
    def __init__(self, op_type: str) -> None:
        self.op_type = op_type


class Part:
    def __init__(self, ep_name: str, *op_types: str) -> None:
        self.ep_name, self._nodes = ep_name, [Node_(o) for o in op_types]

    def get_nodes(self) -> list[Node_]:
        return self._nodes


class Placed:
    """What a session says of where it computes; a provider that is partly there cannot be had otherwise."""

    def __init__(self, providers: list[str], *parts: Part) -> None:
        self._providers, self._parts = providers, parts

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> tuple[Part, ...]:
        return self._parts


def test_what_falls_back_to_the_processor_is_refused() -> None:
    device: Any = open_here("ort", None)
    assert isinstance(device, OnnxRuntimeDevice)
    device._provider = "WebGpuExecutionProvider"
    both = ["WebGpuExecutionProvider", "CPUExecutionProvider"]
    device._check_placed(Placed(both, Part("WebGpuExecutionProvider", "Mul", "Add")), True)
    with pytest.raises(DeviceError, match="does not take all of it; ONNX Runtime would compute TopK on CPUExecutionProvider"):
        device._check_placed(Placed(both, Part("WebGpuExecutionProvider", "Mul"), Part("CPUExecutionProvider", "TopK")), True)
    with pytest.raises(DeviceError, match="would compute on CPUExecutionProvider, and not on WebGpu"):
        device._check_placed(Placed(["CPUExecutionProvider"]), True)
    device.close()


def test_placement_is_what_onnx_runtime_says_it_is() -> None:
    """The provider of this wheel that computes nothing: asked for, all would silently be on the processor."""
    device: Any = open_here("ort", None)
    device._word, device._provider = "azure", "AzureExecutionProvider"
    device._given = [(device._provider, {})]
    with pytest.raises(DeviceError, match="would compute Mul on CPUExecutionProvider, Add on CPUExecutionProvider"):
        device._session(device._packed(LANGUAGE.trial)[0])
    device.close()


def test_nobody_else_may_have_models_run() -> None:
    assert "ort" not in PLATFORMS
    with pytest.raises(UsageError, match="an agent runs nobody else's"):
        parse_offered(["ort"])
    with pytest.raises(TargetError, match="runs on this machine only"):
        open_device("ort", "any@http://localhost:1/?token=x")


def test_levels_of_optimisation_and_threads_reach_it() -> None:
    trial = try_target("ort:optimise=0,threads=1")
    assert trial.ready and trial.info is not None and "ORT_DISABLE_ALL" in trial.info.driver
    backend = open_backend("ort:optimise=0")
    made = call("aten.add.Tensor", ints(4), 1)
    program = backend.prepare({"s": made.body})["s"].compiled
    assert program is not None and program.schedule == "ORT_DISABLE_ALL"
    np.testing.assert_array_equal(backend.run_once(program, made.inputs)[0], made.outputs[0])
    backend.close()


def test_doctor_says_which_version_and_providers_are_there() -> None:
    data = doctor.examine(["ort"])
    (target,) = data["targets"]
    assert target["ready"] and data["versions"]["onnxruntime"] in target["info"]["driver"]
    assert data["versions"]["onnx"]


WRONG_AXIS = """
def broken(operator, target, source):
    return source.replace("axis = -1", "axis = -2") if operator == "prefill/layers.0.self_attn.attention" else source
"""
WRONG_EPSILON = """
def broken(operator, target, source):
    return source.replace("epsilon = 1e-12", "epsilon = 0.1") if operator == "encoder.layer.0.output.LayerNorm" else source
"""


def fault_in(folder: Path, text: str) -> str:
    (folder / "fault.py").write_text(text)
    return f"{folder / 'fault.py'}:broken"


def run_script(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("model", "text", "culprit"),
    [
        ("llama", WRONG_AXIS, "prefill/layers.0.self_attn.attention"),
        ("encoder", WRONG_EPSILON, "encoder.layer.0.output.LayerNorm"),
    ],
    ids=["axis", "epsilon"],
)
def test_a_fault_in_a_model_is_found_and_explained(
    make_run: MakeRun, tmp_path: Path, model: str, text: str, culprit: str
) -> None:
    run, fault = make_run(model), fault_in(tmp_path, text)
    assert bisect(run, TARGET, inject=fault).culprits == (culprit,)
    told = explain(run, culprit, TARGET, inject=fault, out=tmp_path / "out")
    assert (told.triage.status, told.triage.stage) == ("fail", "backend")
    assert {e.probe for e in told.triage.evidence if e.outcome == "not needed"} >= {"text", "grid", "other schedule"}
    assert told.reproducer is not None and (told.reproducer / "kernel_0.onnx").is_file()
    done = run_script(told.reproducer)
    assert done.returncode == 1 and "the fault shows" in done.stdout, done.stdout + done.stderr
    other = ("CPUExecutionProvider", "ORT_DISABLE_ALL")
    assert ", ".join(other) in run_script(told.reproducer, *other).stdout
    text = (told.reproducer / "kernel_0.onnxtxt").read_text()
    mended = text.replace("epsilon = 0.1", "epsilon = 1e-12").replace("axis = -2", "axis = -1")
    assert mended != text
    (told.reproducer / "kernel_0.onnx").write_bytes(packed(mended))
    done = run_script(told.reproducer)
    assert done.returncode == 0 and "does not show" in done.stdout, done.stdout + done.stderr


def test_a_process_that_dies_costs_one_error_and_is_opened_again() -> None:
    backend = open_backend(TARGET)
    made = call("aten.add.Tensor", ints(4), 1)
    program = backend.prepare({"s": made.body})["s"].compiled
    assert program is not None
    child: Any = backend.device  # type: ignore[attr-defined]
    os.kill(child.pid, signal.SIGSEGV)
    with pytest.raises(DeviceLost, match="SIGSEGV"):
        backend.run_once(program, made.inputs)
    backend.reopen()
    np.testing.assert_array_equal(backend.run_once(program, made.inputs)[0], made.outputs[0])
    backend.close()


def test_faults_of_kernels_are_not_put_into_what_has_none(make_run: MakeRun) -> None:
    run = make_run("encoder")
    with Workbench.on(run, TARGET) as bench:
        placed: dict[str, list[object]] = {}
        for fault in CATALOGUE:
            placed.setdefault(fault.level, []).extend(sites(fault, bench))
    assert not any(placed[level] for level in ("kernel text", "schedule", "lowering", "launch"))
    assert placed["graph"], "those of the graph are"


def test_weights_are_constants_of_the_model(here: Here) -> None:
    """As in the files that people ship, so that what is made of constants alone is computed once; what is in a buffer anew is a
    new constant."""
    spec = TensorSpec((2, 3), "float32")
    turned = Node("n0", "aten.neg.default", ({"ref": "i1"},), {}, (spec,))
    added = Node("n1", "aten.add.Tensor", ({"ref": "i0"}, {"ref": "n0"}), {}, (spec,))
    body = Body("sub", (spec, spec), ("value", "weight"), (turned, added), ("n1",))
    program: Any = here.prepare({"s": body})["s"].compiled
    assert 'float[2, 3] i1 = ["location": "i1"]' in program.kernels[0].source
    x, w = (np.arange(6, dtype=np.float32).reshape(2, 3) * k for k in (3, 2))
    buffer = here.pool.allocate(24)
    for weight in (w, w + 1):
        here.write(buffer, weight.tobytes())
        for _ in range(2):
            np.testing.assert_array_equal(here.run_once(program, [x, buffer])[0], x - weight)
    np.testing.assert_array_equal(here.run_once(program, [x, 5 * w])[0], x - 5 * w)
    here.pool.release(buffer)
    backend = Here(parse("ort:weights=input"))
    given: Any = backend.prepare({"s": body})["s"].compiled
    assert "location" not in given.kernels[0].source
    np.testing.assert_array_equal(backend.run_once(given, [x, w])[0], x - w)
    backend.close()


def test_a_constant_that_stands_for_no_buffer_is_refused() -> None:
    device = open_here("ort", None)
    head = '<ir_version: 10, opset_import: ["" : 21]>\nf (float[2] i0) => (float[2] o0) <float[2] NAME = ["location": "x"]> '
    for name in ("i9", "w"):
        with pytest.raises(DeviceError, match=f"the constant {name} stands for none of the 3 buffers"):
            source = head.replace("NAME", name) + f"{{ o0 = Add (i0, {name}) }}"
            device.load(Kernel("onnx", "f", source, ("read", "read", "read_write"), (1, 1, 1), (1, 1, 1)))
    device.close()
