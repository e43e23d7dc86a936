"""Reproducers: the folder runs where TapML cannot be imported, and its exit code tells whether the fault shows."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tapml.diagnose.minimise.reproducer as reproducer
from tapml.diagnose.faults.catalogue import put_in
from tapml.diagnose.minimise.reproducer import write_reproducer
from tapml.diagnose.minimise.stage import minimise
from tapml.migrate.workbench import Workbench
from tests.conftest import MakeRun
from tests.diagnose.test_minimise import Text, inputs_of, started_wrong

NAME = "prefill/layers.0.self_attn.q_proj"
TEMPLATES = sorted(reproducer.TEMPLATES.glob("run_*.py"))

# Runs a script with nothing of this project importable: isolated, from another folder, and with a finder that refuses.
ALONE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tapml", "torch", "tvm"):
            raise ImportError(f"{name} may not be imported here")
sys.meta_path.insert(0, Refuse())
script = sys.argv[1]
sys.argv = [script]
runpy.run_path(script, run_name="__main__")
"""


def run_alone(folder: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder / "run.py")],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )


@pytest.mark.parametrize("target", ["cpu", "opencl", "vulkan"])
def test_the_folder_runs_without_tapml(target: str, make_run: MakeRun, need: Callable[[str], str], tmp_path: Path) -> None:
    run = make_run("llama")
    with Workbench.on(run, need(target)) as bench:
        put_in(bench, Text(NAME, started_wrong))
        found = minimise(bench, run.operator(NAME), inputs_of(run, NAME), seconds=60.0)
        folder = write_reproducer(tmp_path / "made", target, found, bench.info, "codegen: sums start wrong")
    kernels = sorted(folder.glob("kernel_*"))
    assert kernels and found.program is not None
    faulty = run_alone(folder, tmp_path)
    assert faulty.returncode == 1, faulty.stdout + faulty.stderr
    assert "the fault shows" in faulty.stdout
    for path in kernels:
        path.write_text(path.read_text().replace("= 1.0e-02f;", "= 0.0e+00f;"))
    right = run_alone(folder, tmp_path)
    assert right.returncode == 0, right.stdout + right.stderr
    assert "does not show" in right.stdout
    for path in kernels:
        path.write_text("this is no kernel")
    refused = run_alone(folder, tmp_path)
    assert refused.returncode == 1 and "refuses" in refused.stdout, refused.stdout + refused.stderr


def test_the_readme_says_what_a_reader_upstream_needs(make_run: MakeRun, need: Callable[[str], str], tmp_path: Path) -> None:
    run = make_run("llama")
    with Workbench.on(run, need("opencl")) as bench:
        put_in(bench, Text(NAME, started_wrong))
        found = minimise(bench, run.operator(NAME), inputs_of(run, NAME), seconds=60.0)
        info = bench.info
        text = (write_reproducer(tmp_path, "opencl", found, info, "a note") / "README.md").read_text()
    wanted = ("a note", "aten.linear", info.name, info.driver, "Apache TVM", "pyopencl", "run.py", "kernel_0.cl", "Exit code")
    for part in wanted:
        assert part in text
    assert f"{found.elements_after} input elements" in text
    plan = json.loads((tmp_path / "launch.json").read_text())
    assert [len(step["arguments"]) for step in plan["steps"]] == [len(k["access"]) for k in plan["kernels"]]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_scripts_are_short_and_need_little(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 100
    binding = {"run_opencl.py": {"pyopencl"}, "run_wgpu.py": {"wgpu"}, "run_cpu.py": set(), "run_torch.py": {"torch"},
               "run_onnxruntime.py": {"onnxruntime"}, "run_engine.py": {"tapml.backends", "tapml.errors"}}[path.name]
    tree = ast.parse(text)
    imported = {n.names[0].name for n in ast.walk(tree) if isinstance(n, ast.Import)}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name for name in imported if name not in sys.stdlib_module_names} == binding | {"numpy"}


def test_scripts_differ_in_how_they_launch_alone() -> None:
    """The reading, the judging and the exit codes are the same text in all of them."""
    def shared(path: Path) -> list[str]:
        tree = ast.parse(path.read_text())
        return [ast.unparse(n) for n in tree.body if isinstance(n, ast.FunctionDef) and n.name != "launch"]

    assert len(TEMPLATES) == 6
    assert len({tuple(shared(path)) for path in TEMPLATES}) == 1


def test_a_platform_that_is_absent_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text((TEMPLATES[0].parent / "run_opencl.py").read_text())
    (tmp_path / "launch.json").write_text(json.dumps({"repeats": 1, "device": "x"}))
    empty = (2).to_bytes(8, "little") + b"{}"
    (tmp_path / "inputs.safetensors").write_bytes(empty)
    (tmp_path / "expected.safetensors").write_bytes(empty)
    blocked = ALONE.replace('"tvm")', '"tvm", "pyopencl")')
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked, str(tmp_path / "run.py")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2 and "not run: no OpenCL device" in done.stdout
