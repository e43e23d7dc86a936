"""The examples do what their texts say: a right kernel passes, a wrong one fails in every operator that runs it."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tapml.api import Run
from tapml.migrate.inject import InjectFunction
from tapml.migrate.tested import TestResult
from tests.conftest import MakeRun

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def function(file: str, name: str, *edit: str) -> InjectFunction:
    """A function of an example, its text edited before."""
    text = (EXAMPLES / file).read_text()
    if edit:
        assert text.count(edit[0]) == 1
        text = text.replace(*edit)
    space: dict[str, object] = {}
    exec(compile(text, file, "exec"), space)
    found = space[name]
    assert callable(found)
    return found


def norms(run: Run, target: str, inject: InjectFunction) -> TestResult:
    return run.test(target, operator="*norm*", inject=inject)


@pytest.mark.parametrize(("edit", "status"), [
    ((), "pass"),
    (("i < WIDTH", "i + 4 < WIDTH"), "fail"),
    (("sum.z + sum.w", "sum.z"), "fail"),
])
def test_a_norm_written_by_hand(edit: tuple[str, ...], status: str, make_run: MakeRun, need: Callable[[str], str]) -> None:
    found = norms(Run(make_run("llama")), need("opencl"), function("own_rms_norm.py", "norm", *edit))
    assert [v.status for v in found.verdicts] == [status] * 10
    assert found.circumstances.kernels_changed == 10


def test_a_loop_that_ends_early(make_run: MakeRun, need: Callable[[str], str]) -> None:
    found = norms(Run(make_run("llama")), need("webgpu"), function("short_loop.py", "short_loop"))
    assert {v.status for v in found.verdicts} == {"fail"} and found.circumstances.kernels_changed == 10


def test_a_text_of_another_shape_stays() -> None:
    norm = function("own_rms_norm.py", "norm")
    loop = "for (int k = 0; k < 64; ++k)"
    taken = f"__kernel void rms_norm_0( {loop}"
    assert "i < 64" in norm("x", "opencl", taken)
    for other in (f"{taken} {loop}", f"{taken} __local float a[2];", taken.replace("64", "63"), taken.replace("_0", "_1")):
        assert norm("x", "opencl", other) == other
    assert norm("x", "vulkan", taken) == taken


def test_the_tiny_model_answers_the_same_each_time() -> None:
    model = runpy.run_path(str(EXAMPLES / "tiny_llama.py"))["model"]
    (first, inputs), (second, _) = model(), model()
    with torch.no_grad():
        assert torch.equal(first(**inputs).logits, second(**inputs).logits)
