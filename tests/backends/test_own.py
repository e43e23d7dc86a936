"""Kernels of one's own: a folder is read, each of them runs on the recorded calls of its operator, and whatever is wrong with one
is said in its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapml.api import Run
from tapml.backends.own_folder import OwnFolder
from tapml.errors import UsageError
from tapml.launch_file import launches, program_of
from tapml.migrate.programs import kept
from tapml.migrate.records import Records, target_folder
from tapml.migrate.tested import TestResult
from tests.conftest import MakeRun
from tests.remote.processes import Agent, Hub

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "kernels"

Need = Callable[[str], str]

# Three mistakes in each of the kernels of the examples: the file, what stands there, and what instead.
WRONG = {
    "the epsilon is forgotten": ("rms_norm.wgsl", " + 1e-6", ""),
    "the mean over another axis": ("rms_norm.wgsl", "f32(WIDTH)", "8.0"),
    "the next row": ("rms_norm.wgsl", "let value = x[row.x", "let value = x[(row.x + 1u)"),
    "the mask is forgotten": ("attention.cl", "mask[row * LENGTH + p] ?", "1 ?"),
    "no scale": ("attention.cl", "0.25f", "1.0f"),
    "one position off": ("attention.cl", "values[shared + p * SIZE + k]", "values[shared + max(p - 1, 0) * SIZE + k]"),
}

# The same in the WGSL of the attention, for devices that take nothing else.
WRONG_IN_WGSL = [mistake for mistake in WRONG.values() if mistake[0] == "rms_norm.wgsl"] + [
    ("attention.wgsl", "mask[row * LENGTH + p] != 0", "true"),
    ("attention.wgsl", "const SCALE = 0.25", "const SCALE = 1.0"),
    ("attention.wgsl", "values[shared_from + p * SIZE", "values[shared_from + (max(p, 1u) - 1u) * SIZE"),
]


@pytest.fixture(scope="module")
def run(make_run: MakeRun) -> Run:
    return Run(make_run("llama"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLES, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__")))


def edit(folder: Path, file: str, before: str, after: str) -> None:
    text = (folder / file).read_text()
    assert text.count(before) == 1, before
    (folder / file).write_text(text.replace(before, after))


def statuses(found: TestResult) -> dict[str, set[str]]:
    """Of the operators that there are kernels for: by kind."""
    by_kind: dict[str, set[str]] = {}
    for verdict in found.tested:
        by_kind.setdefault(verdict.op, set()).add(verdict.status)
    return by_kind


@pytest.mark.parametrize(("target", "kinds", "count"), [
    ("webgpu", {"rms_norm", "attention"}, 6), ("opencl", {"attention"}, 2),
])
def test_the_examples_are_right(run: Run, need: Need, target: str, kinds: set[str], count: int) -> None:
    found = run.test(need(target), kernels=EXAMPLES, operator="*/layers.0.*")
    assert found.passed and statuses(found) == {kind: {"pass"} for kind in kinds} and len(found.tested) == count
    others = [v for v in found.verdicts if v.op not in kinds]
    assert {v.status for v in others} == {"skipped"} and found.without == {v.operator for v in others}
    assert all(v.reason.startswith("not tested: ") for v in others)
    (no_kernel,) = {v.reason for v in others if v.op == "linear"}
    assert no_kernel == f"not tested: no kernel in {EXAMPLES}"
    in_others = {v.op for v in others if v.op in ("rms_norm", "attention", "gated_activation") and "is in" in v.reason}
    assert in_others == {"rms_norm", "attention", "gated_activation"} - kinds
    assert found.to_json()["summary"]["pass"] == count


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_kernel_fails(run: Run, folder: Path, need: Need, mistake: str) -> None:
    file, before, after = WRONG[mistake]
    edit(folder, file, before, after)
    target, kind = ("webgpu", "rms_norm") if file.endswith(".wgsl") else ("opencl", "attention")
    found = run.test(need(target), kernels=folder, operator="*/layers.0.*")
    wrong = [v for v in found.verdicts if v.status == "fail"]
    assert wrong and not found.passed and {v.op for v in wrong} == {kind}
    assert {v.status for v in found.tested} <= {"fail", "pass"}
    assert found.to_explain == max(wrong, key=lambda v: v.badness).operator
    assert all(v.stage == "numeric" and v.error is not None and v.bound is not None and v.error > v.bound for v in wrong)


def test_results_stand_beside_those_of_generated_kernels(run: Run, folder: Path, need: Need) -> None:
    norm = "decode/layers.0.input_layernorm"
    run.test(need("opencl"), operator="decode/norm")
    before = Records.of(run.folder, "opencl").test
    found = run.test("opencl", kernels=folder, operator="decode/*attention")
    assert found.target == f"opencl:kernels={folder}" and found.kernels == str(folder)
    sheet = Records.of(run.folder, found.target).test
    assert sheet is not None and set(sheet.verdicts) == {v.operator for v in found.verdicts}
    assert Records.of(run.folder, "opencl").test == before is not None
    # A folder that was changed is another one: nothing of before is kept beside the new results.
    edit(folder, "attention.cl", "// Attention", "// An attention")
    run.test("opencl", kernels=folder, operator=norm.replace("input_layernorm", "self_attn.attention"))
    sheet = Records.of(run.folder, found.target).test
    assert sheet is not None and len(sheet.verdicts) == 1


# What the text of a kernel can be refused for, and by whom.


def test_what_a_driver_refuses_is_a_verdict(run: Run, folder: Path, need: Need, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else compiles it."""
    monkeypatch.setattr("tapml.backends.kernels.Compiler", None)
    edit(folder, "attention.cl", "float sum = 0.0f, mixed = 0.0f;", "float sum = no_such_thing;")
    edit(folder, "decode_attention.json", "int32", "int64")
    found = run.test(need("opencl"), kernels=folder, operator="*attention")
    said = {(v.operator.partition("/")[0], v.status, v.stage): v.reason for v in found.tested}
    assert said.keys() == {("prefill", "error", "driver"), ("decode", "error", "launch")} and not found.passed
    assert "no_such_thing" in said["prefill", "error", "driver"]
    assert "decode_attention.json: its inputs are" in said["decode", "error", "launch"]


def test_a_kernel_of_other_arguments_is_a_verdict(run: Run, folder: Path, need: Need) -> None:
    edit(folder, "attention.cl", "__global const int* mask, ", "")
    edit(folder, "attention.cl", "mask[row * LENGTH + p] ?", "1 ?")
    (verdict,) = run.test(need("opencl"), kernels=folder, operator="decode/layers.0.*attention").tested
    assert (verdict.status, verdict.stage) == ("error", "driver") and "has 4 arguments; 5 were declared" in verdict.reason


TWO_STEPS = """
@group(0) @binding(0) var<storage, read> x : array<f32>;
@group(0) @binding(1) var<storage, read_write> sums : array<f32>;
struct Sizes { width : u32 }
@group(0) @binding(2) var<uniform> sizes : Sizes;
@compute @workgroup_size(1) fn summed(@builtin(workgroup_id) row : vec3<u32>) {
  var sum = 0.0;
  for (var k = 0u; k < sizes.width; k++) { let value = x[row.x * sizes.width + k]; sum += value * value; }
  sums[row.x] = sum;
}
"""
SCALED = """
@group(0) @binding(0) var<storage, read> sums : array<f32>;
@group(0) @binding(1) var<storage, read> weight : array<f32>;
@group(0) @binding(2) var<storage, read> x : array<f32>;
@group(0) @binding(3) var<storage, read_write> y : array<f32>;
@compute @workgroup_size(64)
fn scaled(@builtin(workgroup_id) row : vec3<u32>, @builtin(local_invocation_id) column : vec3<u32>) {
  let at = row.x * 64 + column.x;
  y[at] = weight[column.x] * x[at] * inverseSqrt(sums[row.x] / 64 + 1e-6);
}
"""


def test_two_kernels_share_scratch(run: Run, need: Need, tmp_path: Path) -> None:
    """Steps in order over any buffers, and words of a uniform binding."""
    (tmp_path / "summed.wgsl").write_text(TWO_STEPS)
    (tmp_path / "scaled.wgsl").write_text(SCALED)
    (tmp_path / "norm.json").write_text(json.dumps({
        "operator": "prefill/norm",
        "kernels": [
            {
                "file": "scaled.wgsl", "entry": "scaled", "grid": [8, 1, 1], "block": [64, 1, 1],
                "access": ["read", "read", "read", "write"],
            },
            {"file": "summed.wgsl", "entry": "summed", "grid": [8, 1, 1], "block": [1, 1, 1], "uniform": [64]},
        ],
        "steps": [
            {"kernel": 1, "arguments": [["input", 0], ["scratch", 0]]},
            {"kernel": 0, "arguments": [["scratch", 0], ["input", 1], ["input", 0], ["output", 0]]},
        ],
        "scratch": [32],
    }))  # fmt: skip
    found = run.test(need("webgpu"), kernels=tmp_path, operator="prefill/norm")
    assert found.passed and len(found.tested) == 1


def test_devices_share_the_work(run: Run, served: tuple[Hub, Agent], need: Need) -> None:
    served[1].wait_ready(need("opencl"))
    found = run.test("opencl", f"all@{served[0].url}", kernels=EXAMPLES, operator="decode/layers.0.*")
    assert found.passed and statuses(found) == {"attention": {"pass"}} and [s.name for s in found.devices] == ["bench"]


FUNCTIONS = {
    "rms_norm.py": "import torch\ndef rms_norm(x, w):\n    return w * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True))\n",
    "attention.py": "import os\ndef attention(k, v, q, mask):\n    os.abort()\n",
    "rotary.py": "def rotary(x, cos, sin):\n    x += 1\n    return x\n",
    "cache_update.py": "def cache_update(cache, at, values):\n    return cache.double()\n",
    "linear.py": "def linera(*tensors):\n    return tensors[0]\n",
    "gated_activation.py": (EXAMPLES / "gated_activation.py").read_text(),
}


def test_functions_of_python_and_whatever_is_wrong_with_them(run: Run, tmp_path: Path) -> None:
    for name, text in FUNCTIONS.items():
        (tmp_path / name).write_text(text)
    found = run.test(kernels=tmp_path, operator="prefill/layers.0.*")
    said = {v.op: v for v in reversed(found.tested)}
    assert found.target == f"torch:kernels={tmp_path}" and "fail" in statuses(found)["rms_norm"]
    assert statuses(found)["gated_activation"] == {"pass"}, said
    for kind, status, words in (
        ("attention", "crash", "SIGABRT"),
        ("rotary", "error", "wrote to the tensor that is its argument 0"),
        ("cache_update", "error", "gives torch.float64"),
        ("linear", "error", "has no function linear. Did you mean linera?"),
    ):
        assert statuses(found)[kind] == {status} and words in said[kind].reason, said[kind]


def test_a_folder_of_backend_bench(run: Run, tmp_path: Path) -> None:
    """One function for a call of PyTorch: every operator that makes this call runs it, and what is wrong is named."""
    for name, file, function, result in (
        ("silu__default", "silu__default_implementation_v1", "silu__default", "args[0] * args[0].sigmoid()"),
        ("mul__Tensor", "mul_implementation_v2", "mul", "args[0] * args[1]"),
        ("rsqrt", "rsqrt_implementation_v1", "rsqrt", "1 / args[0].sqrt()"),
        ("neg__default", "neg__default_implementation_v1", "neg__default", "args[0].abs()"),
        ("linalg_qr__default", "linalg_qr__default_implementation_v1", "linalg_qr__default", "args[0]"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{file}.py").write_text(f"def {function}_kernel_impl(*args, **kwargs):\n    return {result}\n")
        (tmp_path / name / "README.md").write_text(name)
    (tmp_path / "empty__default").mkdir()
    own = OwnFolder.read(tmp_path, run.operators, run.folder.bodies)
    assert own.unused == ("aten.linalg_qr.default",)
    found = run.test(kernels=tmp_path, operator="decode/layers.0.*")
    assert statuses(found) == {"rms_norm": {"pass"}, "rotary": {"fail"}, "gated_activation": {"pass"}}
    (norm, *_) = [v for v in found.tested if v.op == "rms_norm"]
    program = kept(target_folder(run.folder, found.target), norm.kernel or "")
    assert program is not None
    text = program.kernels[0].source
    assert text.count(" = own_") == 5 and "torch.ops.aten.mean.dim(" in text and "torch.ops.aten.mul" not in text


# What can be known to be wrong before anything runs.

NORM = {"operator": "decode/norm", "kernels": [{"file": "k.cl", "entry": "k", "grid": [1, 1, 1], "block": [64, 1, 1]}]}


def without(key: str) -> dict[str, Any]:
    return NORM | {"kernels": [{k: v for k, v in NORM["kernels"][0].items() if k != key}]}  # type: ignore[attr-defined]


def step(*arguments: list[Any]) -> dict[str, Any]:
    return NORM | {"steps": [{"kernel": 0, "arguments": list(arguments)}]}


@pytest.mark.parametrize(("data", "says"), [
    ("{", "no.json is no JSON object"),
    ({}, '"operator"'),
    (NORM | {"operator": "decode/nrm"}, "no operator is called 'decode/nrm'. Did you mean decode/norm"),
    (NORM | {"operator": "rms_norm"}, "means operators of 2 signatures"),
    (NORM | {"inputs": [[[3], "float32"]]}, 'its "inputs" and "outputs" are not those'),
    (NORM | {"kernel": []}, "a key 'kernel', which means nothing. Did you mean kernels"),
    ({"operator": "decode/norm"}, 'lacks "kernels"'),
    (NORM | {"kernels": []}, "lacks \"steps\""),
    (without("grid"), '(k.cl) lacks "grid": how many workgroups'),
    (without("block"), '(k.cl) lacks "block"'),
    (without("entry"), 'lacks "entry"'),
    (NORM | {"kernels": [NORM["kernels"][0] | {"grid": [1, 1]}]}, "'grid' is a list of 2, not a list of 3"),  # type: ignore[index]
    (NORM | {"kernels": [NORM["kernels"][0] | {"file": "../k.cl"}]}, "not the name of a file in the same folder"),  # type: ignore[index]
    (NORM | {"kernels": [NORM["kernels"][0] | {"file": "other.cl"}]}, "other.cl is not there"),  # type: ignore[index]
    (NORM | {"kernels": [NORM["kernels"][0] | {"file": "k.text"}]}, "no language that its suffix tells: .cl (OpenCL C)"),  # type: ignore[index]
    (step(["input", 0], ["output", 0]) | {"kernels": [NORM["kernels"][0] | {"access": ["read"]}]},  # type: ignore[index]
     "binds 2 buffers, and the access of k is that of 1"),
    (step(["input", 0], ["input", 2], ["output", 0]), "binds input 2, and the operator has 2 inputs"),
    (step(["input", 0]), "no step binds output 0"),
    (step(["inptu", 0]), 'an argument is ["input", NUMBER]'),
    (step(["input", 0], ["output", 0]) | {"kernels": [NORM["kernels"][0] | {"access": ["read_write"] * 2}]},  # type: ignore[index]
     "binds input 0 to be written"),
])  # fmt: skip
def test_a_launch_file_that_is_wrong(run: Run, tmp_path: Path, data: Any, says: str) -> None:
    (tmp_path / "k.cl").write_text("__kernel void k() {}")
    (tmp_path / "no.json").write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(UsageError) as refused:
        run.test(kernels=tmp_path)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("files", "says"), [
    ({}, "no kernel is for an operator of this run; it has none"),
    ({"README.md": "", "_shared.py": "", "_old.json": ""}, "no kernel is for an operator of this run"),
    ({"rms_norn.py": ""}, "of the kind 'rms_norn'. Did you mean rms_norm?"),
    ({"k.wgsl": ""}, "k.wgsl: no launch file"),
    ({"k.cl": "", "a.json": json.dumps(NORM), "b.json": json.dumps(NORM)}, "are both for decode/"),
    ({"k.cl": "", "a.json": json.dumps(NORM), "rms_norm.py": ""}, "has kernels in OpenCL C, PyTorch: say which"),
])
def test_a_folder_that_is_wrong(run: Run, tmp_path: Path, files: dict[str, str], says: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as refused:
        run.test(kernels=tmp_path)
    assert says in str(refused.value)


def test_a_target_of_another_language_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "k.cl").write_text("")
    (tmp_path / "k.json").write_text(json.dumps(NORM))
    with pytest.raises(UsageError, match="has kernels in OpenCL C, and target vulkan takes WGSL"):
        run.test("vulkan", kernels=tmp_path)
    with pytest.raises(UsageError, match="there is no such folder"):
        run.test(kernels=tmp_path / "none")
    with pytest.raises(UsageError, match="nothing is scheduled or compiled with --kernels"):
        run.test("opencl:schedule=simple", kernels=tmp_path)
    with pytest.raises(UsageError, match="Name a target"):
        run.test()


def test_a_launch_file_says_all_of_a_program(run: Run) -> None:
    """What a reproducer writes is what a folder of kernels is read from."""
    own = OwnFolder.read(EXAMPLES, run.operators, run.folder.bodies)
    for signature, by_language in own.launched.items():
        for one in by_language.values():
            body = run.folder.bodies[signature]
            data = {k: v for k, v in one.data.items() if k not in ("inputs", "outputs")}
            made = program_of(data, one.texts.__getitem__, body.inputs, body.output_specs, {}, "own", ("operator",))
            files = [one.data["kernels"][0]["file"]]
            again = program_of(
                json.loads(json.dumps(launches(made, files))), one.texts.__getitem__, body.inputs, body.output_specs, {}, "own"
            )
            assert again == made
