"""PyTorch as a target: operators as texts that it runs, as they are and compiled."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import tapml
from tapml.backends.open import open_backend
from tapml.backends.pytorch import PyTorch
from tapml.devices.interface import Device, Launch
from tapml.devices.known import PLATFORMS
from tapml.devices.open import open_here
from tapml.diagnose.bisect.stage import bisect
from tapml.diagnose.explain.stage import explain
from tapml.diagnose.faults.catalogue import CATALOGUE, sites
from tapml.errors import DeviceError, ModelError, TargetError, UnavailableError, UsageError
from tapml.kernels import Kernel
from tapml.migrate.operator_test import OperatorTester
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Body, Node
from tapml.operators.to_text import Layout, python_text
from tapml.remote.agent.offers import parse_offered
from tapml.remote.open import open_device
from tapml.targets.parse import parse
from tapml.tensors import HostArray, TensorSpec
from tests.compile.bodies import Made, Result, call, chain
from tests.compile.test_conversions import bools, floats, ints
from tests.conftest import MakeRun

CALLS: dict[str, Callable[[], Made]] = {
    "linear and gelu": lambda: chain([
        ("aten.linear.default", (floats(4, 16), floats(8, 16), floats(8)), {}),
        ("aten.gelu.default", (Result(0),), {"approximate": "tanh"}),
    ]),
    "a view": lambda: chain([
        ("aten.neg.default", (floats(3, 8),), {}), ("aten.view.default", (Result(0), [24]), {}),
    ]),
    "several outputs": lambda: call("aten.topk.default", floats(2, 9), 3),
    "booleans": lambda: call("aten.logical_and.default", bools(3, 8), bools(8)),
    "long integers": lambda: call("aten.mul.Tensor", ints(5, low=2**40, high=2**41), 3),
    "half precision": lambda: call("aten.softmax.int", floats(2, 30, dtype=torch.float16), -1),
    "bfloat16": lambda: call("aten.linear.default", floats(4, 16, dtype=torch.bfloat16), floats(8, 16, dtype=torch.bfloat16)),
    "to another dtype": lambda: call("aten._to_copy.default", floats(3), dtype=torch.float64),
    "from nothing": lambda: call("aten.arange.default", 7, dtype=torch.int64),
    "infinity": lambda: call("aten.masked_fill.Scalar", floats(3, 8), bools(8), float("-inf")),
    "one number": lambda: call("aten.mul.Tensor", torch.tensor(3.0), floats(2)),
    "nothing": lambda: call("aten.relu.default", torch.zeros(0, 3)),
    "several inputs in a list": lambda: call("aten.cat.default", [floats(2, 3), floats(4, 3)]),
}  # fmt: skip


class Here(PyTorch):
    """With its device in this process, without a pipe to a child."""

    def _opened(self) -> Device:
        return open_here(self.choice.name, self.choice.opened_with)


@pytest.fixture(scope="module")
def here() -> Iterator[Here]:
    backend = Here(parse("torch"))
    yield backend
    backend.close()


def outputs_of(backend: PyTorch, made: Made) -> list[HostArray]:
    prepared = backend.prepare({"s": made.body})["s"]
    assert prepared.compiled is not None, prepared.message
    return backend.run_once(prepared.compiled, made.inputs, poison=True)


@pytest.mark.parametrize("name", CALLS)
def test_a_text_gives_what_the_call_gives(here: Here, name: str) -> None:
    made = CALLS[name]()
    for got, want in zip(outputs_of(here, made), made.outputs, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_array_equal(got, want)


def test_an_output_that_is_an_input_has_no_text(here: Here) -> None:
    spec = TensorSpec((2, 3), "float32")
    node = Node("n0", "aten.neg.default", ({"ref": "i0"},), {}, (spec,))
    body = Body("both", (spec,), ("value",), (node,), ("i0", "n0"))
    program = here.prepare({"s": body})["s"].compiled
    assert program is not None and program.forwards == ((0, 0),)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    one, other = here.run_once(program, [x])
    np.testing.assert_array_equal(one, x)
    np.testing.assert_array_equal(other, -x)


def test_every_float_is_computed_in_the_dtype_that_is_asked_for() -> None:
    backend = Here(parse("torch:dtype=bfloat16"))
    made = CALLS["to another dtype"]()
    program = backend.prepare({"s": made.body})["s"].compiled
    assert program is not None and {s.dtype for s in (*program.inputs, *program.outputs)} == {"bfloat16"}
    (got,) = backend.run_once(program, made.inputs)
    np.testing.assert_array_equal(got, made.inputs[0].astype(got.dtype))
    backend.close()


def test_inputs_lie_in_memory_as_the_text_says(here: Here) -> None:
    made = call("aten.mul.Tensor", floats(3, 4), 2.0)
    layout = Layout((1, 5), 2)
    assert layout.elements((3, 4)) == 20
    text = python_text(made.body, "twice", "cpu", layouts=[layout])
    assert "i0.stride()" not in text and "((3, 4), torch.float32, (1, 5), 2)" in text
    seen = text.replace("return (n0,)", "return (n0 * 0 + i0.stride(0) + 10 * i0.stride(1) + 100 * i0.storage_offset(),)")
    device = open_here("torch", None)
    kernel = device.load(Kernel("torch", "twice", seen, ("read", "read_write"), (1, 1, 1), (1, 1, 1)))
    given, got = device.allocate(80), device.allocate(48)
    device.write(given, bytes(80))
    device.run([Launch(kernel, (given, got))])
    assert set(np.frombuffer(device.read(got, 48), np.float32)) == {251.0}
    device.close()


@pytest.mark.parametrize("argument", [{"ref": "i0"}, {"memory_format": "contiguous_format"}, "__import__('os')", 2, None])
def test_an_argument_is_data_in_the_text(argument: object) -> None:
    spec = TensorSpec((2,), "float32")
    node = Node("n0", "aten.clone.default", ({"ref": "i0"},), {"memory_format": argument}, (spec,))
    text = python_text(Body("clone", (spec,), ("value",), (node,), ("n0",)), "clone", "cpu")
    written = {"ref": "i0", "memory_format": "torch.contiguous_format"}
    expected = written[next(iter(argument))] if isinstance(argument, dict) else repr(argument)
    assert f"memory_format={expected})" in text


@pytest.mark.parametrize("name", ["x=1), __import__('os').getpid(), dict(y", "inplace", "__class__"])
def test_an_argument_that_the_operator_does_not_have_is_in_no_text(here: Here, name: str) -> None:
    spec = TensorSpec((2,), "float32")
    body = Body("relu", (spec,), ("value",), (Node("n0", "aten.relu.default", ({"ref": "i0"},), {name: 1}, (spec,)),), ("n0",))
    with pytest.raises(ModelError, match="has no argument"):
        python_text(body, "relu", "cpu")
    assert here.prepare({"s": body})["s"].stage == "backend"


@pytest.mark.parametrize("target", ["os.system.default", "aten.from_file.default", "aten.add_.Tensor", "x); import os; (y"])
def test_what_a_body_may_not_call_is_in_no_text(here: Here, target: str) -> None:
    spec = TensorSpec((2,), "float32")
    body = Body("bad", (spec,), ("value",), (Node("n0", target, ({"ref": "i0"},), {}, (spec,)),), ("n0",))
    with pytest.raises(ModelError):
        python_text(body, "bad", "cpu")
    prepared = here.prepare({"s": body})["s"]
    assert (prepared.compiled, prepared.status, prepared.stage) == (None, "error", "backend")


def test_what_pytorch_refuses_is_an_error_of_the_backend() -> None:
    device = open_here("torch", None)
    shape = "inputs = [((2,), torch.float32, None, 0)]\noutputs = [((3,), torch.float32)]\n"

    def launched(text: str) -> None:
        kernel = device.load(Kernel("torch", "f", text, ("read", "read_write"), (1, 1, 1), (1, 1, 1)))
        device.run([Launch(kernel, (device.allocate(8), device.allocate(12)))])

    for text, words in (
        ("def f(", "SyntaxError"),
        (f"import torch\n{shape}", "KeyError"),
        (f"import torch\n{shape}def f(x): return (x,)", r"gives torch.float32 of shape \(2,\)"),
        (f"import torch\n{shape}def f(x): return x", "does not give 1 tensors"),
        (f"import torch\n{shape}def f(x): return (x.reshape(7),)", "invalid for input of size 2"),
    ):
        with pytest.raises(DeviceError, match=words) as caught:
            launched(text)
        assert caught.value.stage == "backend"
    device.close()


def test_what_is_not_there_is_said() -> None:
    for target, error, words in (
        ("torch:device=nowhere", TargetError, "PyTorch knows no device 'nowhere'"),
        ("torch:compile=wishes", TargetError, "no backend 'wishes'.*inductor"),
        ("torch:dtype=int8", TargetError, "not a floating point dtype"),
        ("torch:schedule=simple", TargetError, "no option 'schedule'.*compile, device, dtype"),
        ("opencl:dtype=float16", TargetError, "no option 'dtype'"),
    ):
        with pytest.raises(error, match=words):
            open_backend(target)
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="torch:device=cuda is not available"):
            open_backend("torch:device=cuda")


def test_nobody_else_may_have_texts_executed() -> None:
    assert "torch" not in PLATFORMS
    with pytest.raises(UsageError, match=r"an agent runs nobody else.s"):
        parse_offered(["torch"])
    with pytest.raises(TargetError, match="runs on this machine only"):
        open_device("torch", "any@http://localhost:1/?token=x")


BROKEN = """
def broken(operator, target, source):
    if operator != "prefill/layers.0.mlp.down_proj":
        return source
    return source.replace("return (", "return (1.2 * ")
"""


@pytest.fixture
def fault(tmp_path: Path) -> str:
    (tmp_path / "fault.py").write_text(BROKEN)
    return f"{tmp_path / 'fault.py'}:broken"


def test_a_whole_model_moves(make_run: MakeRun) -> None:
    run = tapml.Run.open(make_run("llama").path)
    result = run.migrate("torch", fresh=True)
    assert result.kept_on_source == () and result.end_to_end.passed
    assert {v.status for v in result.verdicts} == {"pass"} and {v.schedule for v in result.verdicts} == {"eager"}


def test_a_fault_in_a_text_is_found_and_explained(make_run: MakeRun, fault: str, tmp_path: Path) -> None:
    run = make_run("llama")
    found = bisect(run, "torch", inject=fault)
    (culprit,) = found.culprits
    assert culprit == "prefill/layers.0.mlp.down_proj"
    told = explain(run, culprit, "torch", inject=fault, out=tmp_path / "out")
    assert (told.triage.status, told.triage.stage) == ("fail", "backend")
    assert {e.probe for e in told.triage.evidence if e.outcome == "not needed"} >= {"text", "grid", "other schedule"}
    assert told.reproducer is not None and told.minimised is not None and told.minimised.elements_after <= 2
    done = subprocess.run([sys.executable, told.reproducer / "run.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the fault shows" in done.stdout, done.stdout + done.stderr
    text = told.reproducer / "kernel_0.py"
    text.write_text(text.read_text().replace("1.2 * ", ""))
    done = subprocess.run([sys.executable, told.reproducer / "run.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "does not show" in done.stdout, done.stdout + done.stderr


def test_operators_are_compiled_and_what_does_not_compile_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """By inductor, which needs a C++ compiler."""
    run = make_run("encoder")
    with OperatorTester(run, "torch:compile=inductor") as tester:
        name = next(o.name for o in run.operators if o.kind == "layer_norm")
        verdict = tester.test(name)
        assert (verdict.status, verdict.schedule) == ("pass", "inductor"), verdict.reason

    def unknown(operator: str, target: str, source: str) -> str:
        return source.replace("    return (", "    print(torch.empty(3).data_ptr())\n    return (")

    with OperatorTester(run, "torch:compile=inductor", inject=unknown) as tester:
        verdict = tester.test(name)
        assert (verdict.status, verdict.stage) == ("error", "backend") and "does not compile" in verdict.reason


class Transposing(torch.nn.Module):
    """Its product reads what is transposed; a part of the model makes it so, and hands it over."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 8), torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.second(self.first(x).transpose(1, 2))
        return y


FORGETS_STRIDES = """
def broken(operator, target, source):
    if operator != "second":
        return source
    contiguous = "    i0 = i0.as_strided(i0.shape, torch.empty(i0.shape).stride(), i0.storage_offset())"
    head, colon, rest = source.partition("):\\n")
    return head + colon + contiguous + "\\n" + rest
"""


def test_inputs_are_handed_over_as_they_lay_in_memory(tmp_path: Path) -> None:
    """A fault that reads a strided input as if it were contiguous shows with the recorded strides alone."""
    torch.manual_seed(0)
    x = torch.randn(5, 4, 6).transpose(0, 1)
    run = tapml.carve(Transposing().eval(), (x,), out=tmp_path / "run")
    lying = {case.operator: case.layouts for case in run.folder.cases if case.layouts}
    assert lying.keys() == {"second"}, "this operator alone gets what is not contiguous"
    assert {v.status for v in run.test("torch").verdicts} == {"pass"}
    (tmp_path / "fault.py").write_text(FORGETS_STRIDES)
    fault = f"{tmp_path / 'fault.py'}:broken"
    found = {v.operator: v for v in run.test("torch", inject=fault).verdicts}
    assert {name for name, v in found.items() if v.status == "fail"} == {"second"}
    assert "strided as recorded" in found["second"].reason
    told = explain(run.folder, "second", "torch", inject=fault, out=tmp_path / "out")
    assert told.triage.stage == "backend" and "strided as recorded" in told.triage.trial
    assert told.reproducer is not None
    done = subprocess.run([sys.executable, told.reproducer / "run.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the fault shows" in done.stdout, done.stdout + done.stderr


def test_faults_of_kernels_are_not_put_into_what_has_none(make_run: MakeRun) -> None:
    run = make_run("encoder")
    with Workbench.on(run, "torch") as bench:
        placed: dict[str, list[object]] = {}
        for fault in CATALOGUE:
            placed.setdefault(fault.level, []).extend(sites(fault, bench))
    assert not any(placed[level] for level in ("kernel text", "schedule", "lowering", "launch"))
    assert placed["graph"], "those of the graph are"
