"""No thread reads what another one keeps in its registers: the check, the epilogues that it found, and the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import tvm
from tvm import s_tir, te, tirx
from tvm.s_tir import SBlock, SBlockRealize, dlight

from tapml.compile import schedules
from tapml.compile.build import _prepared
from tapml.compile.emit import device_target
from tapml.compile.epilogue import in_the_writers_threads
from tapml.compile.importer import import_body
from tapml.compile.lower import lower
from tapml.compile.ownership import foreign_read
from tapml.compile.pieces import cut
from tapml.compile.schedules import ScheduleFailure
from tapml.targets.known import TARGETS
from tests.compile.bodies import Made, Result, call, chain, check
from tests.compile.test_conversions import floats

HALF, BRAIN = torch.float16, torch.bfloat16


def decode(heads: int, groups: int, positions: int, size: int = 64, dtype: torch.dtype = HALF, rows: int = 1) -> Made:
    """Attention of `heads` query heads, `groups` to a key head, over so many positions."""
    q = floats(1, heads, rows, size, dtype=dtype)
    k, v = (floats(1, heads // groups, positions, size, dtype=dtype, seed=s) for s in (1, 2))
    mask = floats(1, 1, rows, positions, dtype=dtype)
    return call("aten.scaled_dot_product_attention.default", q, k, v, mask, enable_gqa=groups > 1)


def finished(rows: int, summed: int, columns: int, dtype: torch.dtype, activation: str = "silu") -> Made:
    """A linear layer with a bias, an activation and a product with another tensor after it."""
    x, weight, bias = floats(1, rows, summed, dtype=dtype), floats(columns, summed, dtype=dtype), floats(columns, dtype=dtype)
    return chain([
        ("aten.linear.default", (x * 0.1, weight, bias), {}),
        (f"aten.{activation}.default", (Result(0),), {}),
        ("aten.mul.Tensor", (Result(1), floats(1, rows, columns, dtype=dtype)), {}),
    ])


KERNELS: dict[str, Callable[[], Made]] = {
    "32 heads, 8 of keys, 577 positions": lambda: decode(32, 4, 577),
    "4 heads, 2 of keys": lambda: decode(4, 2, 20),
    "4 heads, 2 of keys in bfloat16": lambda: decode(4, 2, 20, dtype=BRAIN),
    "4 heads, 2 of keys in float32": lambda: decode(4, 2, 20, dtype=torch.float32),
    "9 heads, 3 of keys, odd positions": lambda: decode(9, 3, 33),
    "8 heads, 1 of keys": lambda: decode(8, 8, 17, 32),
    "heads of 20": lambda: decode(6, 2, 5, 20),
    "two rows": lambda: decode(6, 3, 31, 16, rows=2),
    "one head for each": lambda: decode(4, 1, 20),
    "linear with an epilogue": lambda: finished(1, 160, 96, HALF),
    "linear with an epilogue, odd sizes": lambda: finished(1, 67, 31, HALF),
    "linear with an epilogue, odd sizes in bfloat16": lambda: finished(1, 33, 65, BRAIN, "gelu"),
    "linear with an epilogue, five rows": lambda: finished(5, 100, 33, HALF, "tanh"),
    "columns of a matrix, grouped": lambda: chain([
        ("aten.matmul.default", (floats(2, 3, 1, 40, dtype=HALF), floats(2, 1, 40, 24, dtype=HALF)), {}),
        ("aten.relu.default", (Result(0),), {})]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_half_precision_epilogue_under_dlight(name: str) -> None:
    check(KERNELS[name](), "opencl", "dlight")


def last_piece(made: Made) -> Any:
    return cut(_prepared(lower(import_body(made.body).module), TARGETS["opencl"], inline=True))[-1].function


def under(rule: Any, function: Any) -> Any:
    with device_target(TARGETS["opencl"]):
        return dlight.ApplyDefaultSchedule(rule)(tvm.IRModule({"main": function}))["main"]


@pytest.mark.parametrize(("heads", "groups", "size"), [(32, 4, 64), (4, 2, 64), (9, 3, 64), (6, 2, 20)])
def test_dlights_own_epilogue_is_found_out_and_moved(heads: int, groups: int, size: int) -> None:
    """Heads that share a key are split off the loop over heads: the epilogue's order of the loops is another one."""
    function = under(dlight.gpu.Reduction(), last_piece(decode(heads, groups, 20, size)))
    assert "block value reads elements of mix_intermediate_local" in str(foreign_read(function))
    assert foreign_read(in_the_writers_threads(function)) is None


def test_an_epilogue_in_the_right_threads_is_left_alone() -> None:
    function = under(dlight.gpu.Reduction(), last_piece(decode(4, 1, 20)))
    assert schedules.bound(function) and foreign_read(function) is None


def test_the_moved_epilogue_needs_no_other_kernel() -> None:
    programs = [check(decode(8, groups, 20), "opencl", "dlight") for groups in (1, 2)]
    assert [len(p.steps) for p in programs] == [len(programs[0].steps)] * 2


def copied(reader: int, rows: int = 32) -> Any:
    """Rows of 8 summed to registers by 8 threads, and read from there by threads that take `reader` neighbouring rows each."""
    x = te.placeholder((rows, 8), name="x")
    k = te.reduce_axis((0, 8), name="k")
    total = te.compute((rows,), lambda i: te.sum(x[i, k], axis=[k]), name="total")
    schedule = s_tir.Schedule(te.create_prim_func([x, te.compute((rows,), lambda i: total[i] + 1.0, name="more")]))
    for name, each in (("total", 4), ("more", reader)):
        (row, *_) = schedule.get_loops(schedule.get_sblock(name))
        outer, inner = schedule.split(row, factors=[None, each])
        schedule.bind(schedule.add_unit_loop(outer), "blockIdx.x")
        schedule.bind(outer, "threadIdx.x")
        assert schedule.get(inner).extent == each
    schedule.set_scope(schedule.get_sblock("total"), 0, "local")
    both = schedule.mod["main"].body.block.body.seq
    assert len(both) == 2
    # Both nests in one workgroup.
    nest = tirx.For(both[0].loop_var, both[0].min, 1, both[0].kind, tirx.SeqStmt([s.body for s in both]), both[0].thread_binding)
    root = schedule.mod["main"].body.block
    block = SBlock([], [], [], "root", nest, alloc_buffers=list(root.alloc_buffers))
    return tirx.PrimFunc(list(schedule.mod["main"].params), SBlockRealize([], True, block))


def test_other_neighbours_are_found() -> None:
    assert foreign_read(copied(4)) is None
    assert foreign_read(copied(2)) is not None
    assert foreign_read(copied(8)) is not None


def test_any_schedule_with_a_foreign_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "_simple", lambda function, target, tvm_target: copied(2))
    with pytest.raises(ScheduleFailure, match="block more reads elements of total"):
        schedules.apply("simple", copied(2), TARGETS["opencl"], device_target(TARGETS["opencl"]))
