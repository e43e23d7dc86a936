"""Each schedule computes the same, keeps to the target's limits, and falls back where it cannot do a piece."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tapml.compile.build import LONGEST_TEXT, build
from tapml.kernels import Program
from tapml.languages import LANGUAGES
from tapml.limits import LimitError
from tapml.targets.known import TARGETS
from tapml.targets.schedules import SCHEDULES
from tests.compile.bodies import Made, Result, call, chain, check, compiled, platform, run
from tests.compile.test_conversions import attention, floats


def linear(rows: int, summed: int, columns: int) -> Made:
    return call("aten.linear.default", floats(1, rows, summed), floats(columns, summed), floats(columns))


SHAPES = {
    "one row": lambda: linear(1, 96, 64),
    "many rows": lambda: linear(32, 64, 48),
    "rows that do not divide": lambda: linear(7, 96, 40),
    "odd sizes": lambda: linear(5, 67, 31),
    "weight along the columns": lambda: call("aten.addmm.default", floats(64), floats(6, 48), floats(48, 64)),
    "batched": lambda: call("aten.bmm.default", floats(4, 16, 32), floats(4, 32, 24)),
    "attention": lambda: attention(16, "bool"),
    "layer norm": lambda: call("aten.layer_norm.default", floats(3, 5, 64), [64], floats(64), floats(64, seed=1)),
    "softmax": lambda: call("aten.softmax.int", floats(4, 300), -1),
    "gated": lambda: chain([
        ("aten.linear.default", (floats(1, 8, 64), floats(96, 64)), {}),
        ("aten.silu.default", (Result(0),), {}),
        ("aten.mul.Tensor", (Result(1), floats(1, 8, 96)), {}),
    ]),
    "long reduction": lambda: call("aten.sum.dim_IntList", floats(2, 90_000).abs(), [1]),
    "long argmax": lambda: call("aten.argmax.default", floats(2, 49_152), -1),
    "largest of -inf": lambda: call("aten.amax.default", torch.full((3, 300), -float("inf")), [1]),
    "long largest of -inf": lambda: call("aten.amax.default", torch.full((2, 8192), -float("inf")), [1]),
    "scalar": lambda: call("aten.sum.default", floats(1000)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", ["opencl", "vulkan"])
@pytest.mark.parametrize("schedule", ["blocked", "dlight", "serial"])
def test_schedule(shape: str, target: str, schedule: str) -> None:
    if (target, schedule) == ("vulkan", "serial") and shape in ("many rows", "long reduction", "long argmax"):
        pytest.skip("llvmpipe ends a thread's loops after 65535 iterations: see docs/findings.md")
    check(SHAPES[shape](), target, schedule)


def behind_linear(name: str) -> Made:
    linear_call = ("aten.linear.default", (floats(8, 64), floats(64, 64), floats(64)), {})
    return chain([linear_call, (f"aten.{name}.default", (Result(0),), {})])


def test_gelu_behind_a_matrix_product_is_a_text_that_browsers_compile() -> None:
    program = compiled(behind_linear("gelu"), "webgpu", "dlight")
    assert sum(len(k.source) for k in program.kernels) < 60_000


def test_what_a_schedule_would_write_out_too_long_is_done_by_the_simple_one() -> None:
    made, notes = behind_linear("asinh"), list[str]()
    program = build(made.body, TARGETS["vulkan"], "dlight", lambda stage: None, notes.append)
    assert max(len(k.source) for k in program.kernels) < LONGEST_TEXT
    assert any("characters of text" in note and "simple instead" in note for note in notes)
    (values,) = run(program, made, "vulkan")
    np.testing.assert_allclose(values, made.outputs[0], rtol=1e-5, atol=1e-5)


def test_every_name_that_targets_ask_for_exists() -> None:
    generated = [t for t in TARGETS.values() if LANGUAGES[t.language].generated]
    asked = {s for t in generated for s in t.schedules} | {"blocked"}
    assert asked <= set(SCHEDULES)


@pytest.mark.parametrize(("target", "vector"), [("opencl", "float8"), ("vulkan", "vec4<f32>")])
def test_blocked_uses_vectors_and_no_barriers(target: str, vector: str) -> None:
    (kernel,) = compiled(linear(32, 64, 48), target, "blocked").kernels
    assert vector in kernel.source
    assert "barrier" not in kernel.source.lower() and "workgroup>" not in kernel.source and "__local" not in kernel.source


def test_an_epilogue_stays_with_its_product() -> None:
    assert len(compiled(SHAPES["gated"](), "opencl", "blocked").kernels) == 1


def test_costly_work_is_not_repeated_for_each_column() -> None:
    """An activation before a product becomes a kernel of its own; a transposition does not."""
    x, weight = floats(1, 1, 512), floats(512, 512)
    costly = chain([("aten.silu.default", (x,), {}), ("aten.linear.default", (Result(0), weight), {})])
    cheap = chain([("aten.transpose.int", (x, 0, 1), {}), ("aten.linear.default", (Result(0), weight), {})])
    assert len(compiled(costly, "opencl", "simple").steps) == 2
    assert len(compiled(cheap, "opencl", "simple").steps) == 1


def numbers_in(program: Program) -> list[float]:
    return [float(n) for n in re.findall(r"\d+\.\d+e[+-]\d+", program.kernels[0].source)]


@pytest.mark.parametrize("target", ["opencl", "vulkan"])
def test_constants_keep_all_their_digits(target: str) -> None:
    made = call("aten.mul.Tensor", floats(8), 1.2345678901)
    assert float(torch.tensor(1.2345678901)) in numbers_in(check(made, target, "simple"))


def test_a_wgsl_launch_is_folded_into_the_limit() -> None:
    target, _ = platform("vulkan")
    made = call("aten.add.Tensor", floats(64 * 40), 1.0)
    small = replace(target, limits=replace(target.limits, max_workgroups_per_dimension=16))
    (kernel,) = build(made.body, small, "simple", lambda stage: None).kernels
    assert kernel.grid == (14, 1, 3) and kernel.uniform == (39,)
    program = build(made.body, small, "simple", lambda stage: None)
    assert (run(program, made, "vulkan")[0] == made.outputs[0]).all()


def test_too_many_buffers_are_spread_over_kernels() -> None:
    target, _ = platform("vulkan")
    few = replace(target, limits=replace(target.limits, max_storage_buffers=4))
    parts = [floats(3, 4, seed=k) for k in range(6)]
    made = chain([("aten.add.Tensor", (parts[0], parts[1]), {})]
                 + [("aten.mul.Tensor", (Result(k), parts[k + 2]), {}) for k in range(4)])
    notes: list[str] = []
    program = build(made.body, few, "simple", lambda stage: None, notes.append)
    assert all(len(k.access) <= 4 for k in program.kernels) and "storage buffers" in notes[0]
    assert abs(run(program, made, "vulkan")[0] - made.outputs[0]).max() < 1e-5


@pytest.mark.parametrize("joined", ["cat", "stack"])
def test_many_parts_are_joined_in_groups_where_a_kernel_binds_few_buffers(joined: str) -> None:
    """A dense block joins dozens of parts; WebGPU's default limits bind eight buffers."""
    target, _ = platform("vulkan")
    few = replace(target, limits=replace(target.limits, max_storage_buffers=8))
    made = call(f"aten.{joined}.default", [floats(2, k % 3 + 1 if joined == "cat" else 2, 3, seed=k) for k in range(60)], 1)
    program = build(made.body, few, "simple", lambda stage: None)
    assert max(len(k.access) for k in program.kernels) <= 8
    assert (run(program, made, "vulkan")[0] == made.outputs[0]).all()


def test_a_binding_beyond_the_limit_is_refused_with_both_numbers() -> None:
    target, _ = platform("vulkan")
    small = replace(target, limits=replace(target.limits, max_binding_bytes=1000))
    with pytest.raises(LimitError, match=r"needs 4000 bytes in one binding; vulkan has 1000"):
        build(call("aten.neg.default", floats(1000)).body, small, "simple", lambda stage: None)


def test_equal_work_gives_equal_text() -> None:
    first, second = compiled(linear(1, 96, 64), "opencl", "blocked"), compiled(linear(1, 96, 64), "opencl", "blocked")
    assert first.digest == second.digest
