"""Languages, targets and devices are said once: nobody else names one, and a new one is one new file and one line."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapml.compile import cache
from tapml.devices.known import DEVICES, NULL, PLATFORMS, RUNNABLE, WITHOUT_RUNTIME, on_processor, others
from tapml.devices.open import open_here
from tapml.devices.trial import trial_kernel
from tapml.diagnose.minimise.reproducer import TEMPLATES
from tapml.errors import UnavailableError
from tapml.languages import LANGUAGES, Language
from tapml.targets.known import TARGETS
from tapml.targets.packaged import DEVICE as PACKAGED
from tapml.targets.schedules import SCHEDULES
from tests.test_imports import PACKAGE, imports, part_of, sources

# Where they are at home.
THEIRS = {"languages", "targets", "devices"}

# PyTorch's target has the name of its package, which is in many a text.
NAMES = {*LANGUAGES, *TARGETS, *SCHEDULES} - {"torch"}
LONG = sorted(name for name in NAMES - {*SCHEDULES} if len(name) > 1)
WORDS = re.compile(rf"(?<!\w)(?:{'|'.join(LONG)})(?!\w)", re.IGNORECASE)

# A report in somebody's tracker ("ROCm/hip-ep#134") names a project.
TRACKER = re.compile(r"[\w./-]+#\d+")

# ONNX is a format of files as well, which people hand in to be checked.
OF_FILES = {"onnx", "ort"}
READ_FILES = {"diagnose/check/onnx_file.py", "diagnose/check/onnx_worker.py", "diagnose/check/stage.py", "cli/check.py"}

# PyTorch's devices have names of their own: in the parts that run the source, in files that import torch, and where it is said.
OF_PYTORCH = {"cpu", "cuda"}
RUN_THE_SOURCE = {"source", "operators", "carving"}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each string in a file's code, those in f-strings too; docstrings are none."""
    tree = ast.parse(path.read_text())
    documents = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documents:
            yield node.lineno, node.value


def is_pytorchs(path: Path) -> bool:
    return part_of(path) in RUN_THE_SOURCE or any(module.split(".")[0] == "torch" for _, module in imports(path))


def named(text: str, pytorch: bool = False) -> set[str]:
    """The languages and targets that a string names: it is the name, or has it among its words, in capitals or not. The name of C
    is a letter as well, and names of schedules are words as well: they are counted where the string is nothing else."""
    found = {word.lower() for word in WORDS.findall(TRACKER.sub("", text))} | ({text} & NAMES)
    return found - OF_PYTORCH if pytorch or "PyTorch" in text else found


def test_what_counts_as_naming_one() -> None:
    assert named("opencl") == {"opencl"} and named("c") == {"c"}
    assert named("simple") == {"simple"} and named("a simple word") == set()
    assert named("a target such as Vulkan, or cpu:device=1") == {"vulkan", "cpu"}
    assert named("cpu", True) == set() and named("opencl or cpu", True) == {"opencl"}
    assert named("ROCm/hip-ep#134") == set() and named("pyopencl, a metallic c") == set()


def test_nobody_else_names_a_language_a_target_or_a_schedule() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {', '.join(sorted(names))} in {text[:60]!r}"
        for path in sources() if part_of(path) not in THEIRS
        for pytorch in [is_pytorchs(path)]
        for line, text in texts(path)
        if (names := named(text, pytorch) - (OF_FILES if str(path.relative_to(PACKAGE)) in READ_FILES else set()))
    ]  # fmt: skip
    assert not found, "ask for a field of Language or Target, or take the name from a table:\n" + "\n".join(found)


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=lambda language: language.name)
def test_a_language_is_sound(language: Language) -> None:
    assert LANGUAGES[language.name] is language
    assert (language.private_array is None) == (language.shared_array is None)
    assert language.reproducer is None or (TEMPLATES / language.reproducer.template).is_file()
    if language.barrier:
        assert language.threads and language.waits(f"  {language.barrier}") and not language.waits("x = my_barrier_1(y);")


def test_what_runs_follows_from_the_devices() -> None:
    assert sorted((*RUNNABLE, *WITHOUT_RUNTIME)) == sorted(TARGETS)
    assert set(RUNNABLE) - set(PLATFORMS) == {"torch", "ort"}, "no agent takes what runs unconfined"
    assert PLATFORMS == ("opencl", "vulkan", "webgpu", "cpu") and [on_processor(name) for name in PLATFORMS].count(True) == 1
    assert others(TARGETS["opencl"]) == ("vulkan", "webgpu") and others(TARGETS["webgpu"]) == ("opencl",)
    assert {TARGETS[name].device for name in RUNNABLE} == set(DEVICES) - {NULL, PACKAGED}
    assert all(trial_kernel(TARGETS[name].language).source for name in RUNNABLE)
    with pytest.raises(ValueError, match="no trial kernel in hip"):
        trial_kernel("hip")


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_device_describes_itself_in_the_words_of_targets(name: str) -> None:
    try:
        device = open_here(name, None)
    except UnavailableError as error:
        pytest.skip(f"not run: {error}")
    limits = device.info.limits
    device.close()
    assert limits.largest_buffer
    assert set(TARGETS[name].limits.narrowed(limits).to_json()) == set(TARGETS[name].limits.to_json())


TOY_LANGUAGE = '''"""C in files of another name."""

from dataclasses import replace

from tapml.languages.plain_c import LANGUAGE as C

LANGUAGE = replace(C, name="toy-c", title="Toy C", suffix="toy")
'''
TOY_TARGET = '''"""The processor, through Toy C."""

from dataclasses import replace

from tapml.languages import toy
from tapml.targets.cpu import TARGET as CPU

TARGET = replace(CPU, name="toy", language=toy.LANGUAGE.name)
'''
# Kernels without barriers, one thread after the other: what is behind the headers of this text is C, but for a few words.
TOY_DEVICE = '''"""CUDA on the processor, one thread after the other."""

from dataclasses import replace

from tapml.devices.cpu import CpuDevice

HEAD = """
#include <math.h>
#include <stdalign.h>
#include <stdbool.h>
static struct { int x, y, z; } blockIdx, threadIdx, blockDim;
#define __global__
#define __launch_bounds__(threads)
#define __expf expf
"""
CALL = """
void run_{entry}({parameters}) {{
  blockDim.x = {block};
  for (blockIdx.x = 0; blockIdx.x < {grid}; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < {block}; ++threadIdx.x) {entry}({arguments});
}}
"""


class OneByOne(CpuDevice):
    def load(self, kernel):
        names = [f"a{k}" for k in range(len(kernel.access))]
        call = CALL.format(
            entry=kernel.entry, block=kernel.block[0], grid=kernel.grid[0],
            parameters=", ".join(f"float* {name}" for name in names), arguments=", ".join(names),
        )
        text = kernel.source[kernel.source.index('extern "C"') :].replace('extern "C"', "")
        one = (1, 1, 1)
        return super().load(replace(kernel, entry=f"run_{kernel.entry}", source=HEAD + text + call, grid=one, block=one))
'''
SCRIPT = """
import sys
import numpy as np
from tapml.cli.main import main
from tapml.compile.compiler import Compiler
from tapml.remote.open import open_device
from tapml.devices.runner import ProgramRunner
from tapml.operators.graph import Body, Node
from tapml.targets import parse, resolve
from tapml.tensors import TensorSpec

if __name__ == "__main__":
    choice = parse(sys.argv[1])
    assert main(["doctor", "--target", sys.argv[1]]) == 0
    spec = TensorSpec((40, 3), "float32")
    nodes = (Node("n0", "aten.exp.default", ({"ref": "i0"},), {}, (spec,)), Node("n1", "aten.sum.dim_IntList", (
        {"ref": "n0"}, [1]), {}, (TensorSpec((40,), "float32"),)))
    body = Body("toy", (spec,), ("input",), nodes, ("n1",))
    device = open_device(choice)
    with Compiler(resolve(choice, device.info), workers=1) as compiler:
        result = compiler.compile({"s": body})["s"]
    assert result.program is not None, result
    x = np.linspace(-2, 2, 120, dtype=np.float32).reshape(40, 3)
    (y,) = ProgramRunner(device).run_once(result.program, [x])
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)).sum(1), rtol=1e-6)
    print(sorted({kernel.language for kernel in result.program.kernels}), device.info.platform)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package, to which something is added."""
    shutil.copytree(PACKAGE, tmp_path / "tapml", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def test_kernels_of_another_edition_of_a_language_are_compiled_anew(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_PACKAGE", tree / "tapml")
    editions = {cache.toolchain.__wrapped__()}
    for path in sorted((tree / "tapml" / "languages").glob("*.py")):
        path.write_text(path.read_text() + "\n")
        editions.add(cache.toolchain.__wrapped__())
    assert len(editions) == 1 + len(list((tree / "tapml" / "languages").glob("*.py")))


def register(table: Path, at: str, line: str) -> None:
    """One line more, behind the line that has `at` in it."""
    lines = table.read_text().splitlines(keepends=True)
    place = next(k for k, text in enumerate(lines) if at in text)
    table.write_text("".join([*lines[: place + 1], line + "\n", *lines[place + 1 :]]))


def run(tree: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(tree))
    done = subprocess.run(
        [sys.executable, str(tree / "script.py"), target], cwd=tree, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_language_and_a_target_take_a_file_and_a_line_each(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "tapml" / "languages" / "toy.py").write_text(TOY_LANGUAGE)
    register(tree / "tapml" / "languages" / "known.py", "FILES = (", '    "toy",')
    (tree / "tapml" / "targets" / "toy.py").write_text(TOY_TARGET)
    register(tree / "tapml" / "targets" / "known.py", "FILES = (", '    "toy",')
    assert "['toy-c'] toy" in run(tree, "toy", monkeypatch)


def test_a_device_of_a_known_language_takes_a_file_and_a_line(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "tapml" / "devices" / "one_by_one.py").write_text(TOY_DEVICE)
    register(tree / "tapml" / "devices" / "known.py", "DEVICES: dict", '    "cuda": Kind("one_by_one", "OneByOne"),')
    assert "['cuda'] cuda" in run(tree, "cuda:schedule=simple", monkeypatch)
