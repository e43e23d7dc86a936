"""Faults of kernels, schedules, lowering and launches: each shows on real drivers, where it is placed and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch

import tapml
from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.compile import mutations
from tapml.diagnose.faults import kernel_text, launch, lowering, schedule
from tapml.diagnose.faults import text_edits as edits
from tapml.diagnose.faults.catalogue import changed, put_in
from tapml.diagnose.faults.fault import FaultClass, Site
from tapml.diagnose.faults.source_text import KernelText, arguments, loops, names, reindexed
from tapml.migrate.operator_test import OperatorTester
from tapml.migrate.workbench import Workbench

CLASSES = sorted((*kernel_text.CLASSES, *lowering.CLASSES, *schedule.CLASSES, *launch.CLASSES), key=lambda c: c.number)
TARGETS = ("opencl", "vulkan")
WRONG = ("fail", "flaky", "error", "crash")

# By class: the operator that has what it needs, and one that has not.
NORM, WIDE, GELU, ANGLES, ATTENTION = "norm", "wide", "activation.activation", "angles", "attention.attention"
PLACES = {
    1: (GELU, NORM), 2: (NORM, ANGLES), 4: (ATTENTION, NORM), 5: (NORM, GELU), 6: (NORM, ATTENTION), 7: (WIDE, GELU),
    8: (NORM, GELU), 9: (NORM, ATTENTION), 10: (WIDE, NORM), 12: (WIDE, None), 13: (GELU, None), 17: (ANGLES, NORM),
    25: (WIDE, NORM), 26: (WIDE, NORM), 28: (ATTENTION, GELU),
}


class Part(torch.nn.Module):
    """A module of its own, so that its operator has its name."""

    def __init__(self, f: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        return self.f(*x)


def attend(x: torch.Tensor) -> torch.Tensor:
    """The first row sees one key, whose score is far below -88."""
    q = x.view(1, 8, 4, 16).transpose(1, 2)
    return torch.nn.functional.scaled_dot_product_attention(q, -90 * q, q, is_causal=True)


class EveryKind(torch.nn.Module):
    """An operator of each kind that the faults need. Its input holds values as large as those in real models."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(64)
        self.wide = torch.nn.Linear(64, 1100)
        self.activation = Part(lambda x: torch.nn.functional.gelu(x, approximate="tanh"))
        self.angles = Part(lambda x: torch.sin(x) + torch.cos(x))
        self.attention = Part(attend)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.norm(x)
        return torch.round(8 * self.wide(y)), self.activation(x), self.angles(10 * x), self.attention(y)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    torch.manual_seed(0)
    return tapml.carve(EveryKind().eval(), (12 * torch.randn(8, 64),), out=tmp_path_factory.mktemp("every") / "run").folder


@pytest.fixture(scope="module")
def testers(run: RunFolder) -> Iterator[Callable[[str], OperatorTester]]:
    """One device a target, for all tests."""
    open_ones: dict[str, OperatorTester] = {}

    def tester(target: str) -> OperatorTester:
        if target not in open_ones:
            open_ones[target] = OperatorTester.over(run, Workbench.on(run, target))
        put_in(open_ones[target].bench, None)
        return open_ones[target]

    yield tester
    for each in open_ones.values():
        each.close()


def place(fault: FaultClass, tester: OperatorTester, name: str) -> Rewrite | None:
    operator, bench = tester.run.operator(name), tester.bench
    site = Site(tester.run, bench.target, bench.program(operator), lambda s: bench.program(operator, (s,)))
    return fault.place(operator, bench.body(operator), site)


Testers = Callable[[str], OperatorTester]


@pytest.mark.parametrize("target", TARGETS)
def test_the_clean_operators_pass(target: str, run: RunFolder, testers: Testers, need: Callable[[str], str]) -> None:
    verdicts = list(testers(need(target)).test_all())
    assert [v.reason for v in verdicts if v.status != "pass"] == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fault", CLASSES, ids=lambda f: f.name)
def test_a_fault_shows_where_it_is_and_nowhere_else(
    fault: FaultClass, target: str, run: RunFolder, testers: Testers, need: Callable[[str], str]
) -> None:
    tester = testers(need(target))
    where, absent = PLACES[fault.number]
    if target in fault.cannot:
        assert len(fault.cannot[target]) > 20
        return
    if absent is not None:
        assert place(fault, tester, absent) is None
    rewrite = place(fault, tester, where)
    assert rewrite is not None
    put_in(tester.bench, rewrite)
    assert changed(tester.bench, run.operator(where))
    verdict = tester.test(where)
    assert verdict.status in WRONG, verdict.reason
    beside = GELU if where == NORM else NORM
    assert not changed(tester.bench, run.operator(beside))
    assert tester.test(beside).status == "pass"


@pytest.mark.parametrize("fault", schedule.CLASSES, ids=lambda f: f.name)
def test_a_fault_of_a_schedule_leaves_another_schedule_alone(
    fault: FaultClass, run: RunFolder, testers: Testers, need: Callable[[str], str]
) -> None:
    tester = testers(need("opencl"))
    operator = run.operator(NORM)
    clean = tester.bench.program(operator, ("simple",))
    put_in(tester.bench, place(fault, tester, operator.name))
    assert tester.bench.program(operator, ("simple",)) == clean
    assert tester.bench.program(operator, ("dlight",)) != clean


@pytest.mark.parametrize("fault", lowering.CLASSES, ids=lambda f: f.name)
def test_a_fault_of_lowering_is_on_the_processor_too(
    fault: FaultClass, run: RunFolder, testers: Testers, need: Callable[[str], str]
) -> None:
    tester = testers(need("cpu"))
    name = PLACES[fault.number][0]
    rewrite = place(fault, tester, name)
    assert rewrite is not None
    put_in(tester.bench, rewrite.elsewhere())
    assert tester.test(name).status in WRONG


def test_a_fault_of_text_is_on_its_target_alone(run: RunFolder, testers: Testers, need: Callable[[str], str]) -> None:
    tester = testers(need("opencl"))
    operator = run.operator(WIDE)
    rewrite = place(kernel_text.OUT_OF_BOUNDS_READ, tester, operator.name)
    program = tester.bench.program(operator)
    assert rewrite is not None and program is not None
    assert rewrite.program(operator.name, "vulkan", program) is program
    assert rewrite.elsewhere().program(operator.name, "opencl", program) is program
    assert rewrite.program(operator.name, "opencl", program) != program


def test_the_classes_are_told_apart() -> None:
    assert [c.number for c in CLASSES] == sorted(PLACES)
    assert len({c.name for c in CLASSES}) == len(CLASSES)
    assert all("cpu" in c.cannot for c in schedule.CLASSES)


# Text


def text(source: str, language: str = "opencl-c", **elements: int) -> KernelText:
    return KernelText(source, language, elements)


@pytest.mark.parametrize("edit", [
    edits.unclamped_tanh, edits.longer_loop, edits.narrow_index, edits.aligned_down, edits.truncated, edits.wrong_lane,
    edits.exponent_of_two,
])
def test_an_edit_without_its_pattern_changes_nothing(edit: Callable[[KernelText], str]) -> None:
    source = "out1_ptr[0] = in0_ptr[0];\nexpand(x); print(y); around(z);"
    assert edit(text(source, in0_ptr=100, out1_ptr=100)) == source


def test_tanh_loses_its_clamp() -> None:
    plain = "y = tanh(max((float)min((float)(a[(i + 1)] * 2.0f), (float)10.0e+00f), (float)-10.0e+00f)) + 1;"
    x = "a[(i + 1)] * 2.0f"
    naive = f"((exp(2.0f * ({x})) - 1.0f) / (exp(2.0f * ({x})) + 1.0f))"
    assert edits.unclamped_tanh(text(plain)) == f"y = {naive} + 1;"
    clamped = "max(min((a[(i + 1)] * 2.0f), 10.0e+00f), -10.0e+00f)"
    own = "fn accurate_tanh(x : f32) -> f32 { return x; }\n"
    assert edits.unclamped_tanh(text(f"{own}y = accurate_tanh({clamped}) + 1;", "wgsl")) == f"{own}y = {naive} + 1;"


@pytest.mark.parametrize("head, language", [
    ("for (int k = 0; k < 16; ++k) {", "opencl-c"), ("for (var k : i32 = 0i; k < 16i; k++) {", "wgsl"),
])
def test_only_a_loop_that_reads_inputs_gets_longer(head: str, language: str) -> None:
    longer = head.replace("16", "17")
    reads = " s[0] = s[0] + in0_ptr[((i * 16) + k)]; }"
    writes = " out1_ptr[k] = in0_ptr[k]; }"
    registers = " s[k] = s[k] + in0_ptr[k]; }"
    for body in (writes, registers):
        assert edits.longer_loop(text(head + body, language, in0_ptr=999)) == head + body
    several = head + writes + head + reads
    assert edits.longer_loop(text(several, language, in0_ptr=32)) == head + writes + longer + reads
    assert edits.longer_loop(text(several, language, in0_ptr=31)) == several
    renamed = head + " let v : i32 = (k * 4i); s = s + vec4<f32>(in0_ptr[v + 0]); }"
    assert edits.longer_loop(text(renamed, language, in0_ptr=128)) == renamed.replace("16", "17")
    assert edits.longer_loop(text(renamed, language, in0_ptr=127)) == renamed


def test_indices_are_found_in_every_form_of_access() -> None:
    source = "in1_ptr[in1_ptr[(k + 1)]] + vload8(0, in1_ptr + (k * 8)) + in12_ptr[k]"
    marked = "in1_ptr[<in1_ptr[<(k + 1)>]>] + vload8(0, in1_ptr + <(k * 8)>) + in12_ptr[k]"
    assert reindexed(source, "in1_ptr", lambda i: f"<{i}>") == marked
    assert edits.narrow_index(text(source, in1_ptr=65_536)) == source
    assert edits.narrow_index(text(source, in1_ptr=65_537)).count("& 65535") == 3
    assert edits.aligned_down(text("in0_ptr[0] + in1_ptr[(k)] + vload8(0, in1_ptr + k)", in0_ptr=99, in1_ptr=8)) == (
        "in0_ptr[0] + in1_ptr[(((k)) / 4 * 4)] + vload8(0, in1_ptr + k)"
    )


def test_one_lane_of_one_input_is_wrong() -> None:
    assert edits.wrong_lane(text("vload4(0, in0_ptr + (k * 4)) * vload4(0, in1_ptr + k)")) == (
        "vload4(0, in0_ptr + (k * 4)).s0122 * vload4(0, in1_ptr + k)"
    )
    vector = "vec4<f32>(in0_ptr[v__2 + 0], in0_ptr[v__2 + 1], in0_ptr[v__2 + 2], in0_ptr[v__2 + 3])"
    assert edits.wrong_lane(text(vector, "wgsl")) == vector.replace("+ 3", "+ 2")


def test_reading_text() -> None:
    source = "f(a, (b, c)[d], g(h, i))"
    assert [source[slice(*p)] for p in arguments(source, 1)] == ["a", "(b, c)[d]", "g(h, i)"]
    assert names("k(in2_ptr, in0_ptr, out1_ptr) { in0_ptr[0] }") == ["in2_ptr", "in0_ptr", "out1_ptr"]
    (outer, inner) = loops("for (int a = 0; a < 2; ++a) { for (int b = 0; b < 3; ++b) { x } y }")
    assert (outer.variable, outer.bound, inner.variable, inner.bound, inner.body) == ("a", 2, "b", 3, " x ")


# Mutations of emitted text

TREE = """\
__kernel void k(__global float* in0_ptr) {
  sum_local_ptr[0] = 0.0e+00f;
  sum_local_ptr[0] = (sum_local_ptr[0] + in0_ptr[get_local_id(0)]);
  barrier(CLK_LOCAL_MEM_FENCE);
  shared[get_local_id(0)] = sum_local_ptr[0];
  barrier(CLK_LOCAL_MEM_FENCE);
  if (get_local_id(0) < 32) {
    shared[get_local_id(0)] = (shared[get_local_id(0)] + shared[get_local_id(0) + 32]);
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  if (get_local_id(0) < 16) {
    shared[get_local_id(0)] = (shared[get_local_id(0)] + shared[get_local_id(0) + 16]);
  }
  barrier(CLK_LOCAL_MEM_FENCE);
}
"""


def lost(mutation: str) -> list[str]:
    """The lines that a mutation takes out of the text, or puts in."""
    before, after = TREE.splitlines(), mutations.emitted(mutation, "dlight", TREE, "opencl-c").splitlines()
    gone = [line.strip() for line in before if before.count(line) > after.count(line)]
    return gone + [line.strip() for line in after if line not in before]


def test_what_mutations_of_schedules_take_out() -> None:
    barrier = "barrier(CLK_LOCAL_MEM_FENCE);"
    assert lost("missing-barriers") == [barrier] * 4
    assert mutations.emitted("assumed-subgroup", "dlight", TREE, "opencl-c").count(barrier) == 3
    assert lost("early-return") == ["if (!(get_local_id(0) < 32)) { return; }"]
    assert lost("uninitialised-accumulators") == ["sum_local_ptr[0] = 0.0e+00f;"]


@pytest.mark.parametrize("name", mutations.NAMES)
def test_fallback_schedules_and_texts_without_barriers_stay(name: str) -> None:
    plain = re.sub(r"\s*barrier.*", "", TREE)
    for fallback in ("simple", "serial"):
        assert mutations.emitted(name, fallback, TREE, "opencl-c") == TREE
    assert mutations.emitted(name, "dlight", plain, "opencl-c") == plain
    assert mutations.emitted(name, "dlight", TREE, "c") == TREE


def test_an_unknown_mutation_is_an_error() -> None:
    for call in (mutations.lowered, lambda name, f: mutations.emitted(name, "dlight", f, "wgsl")):
        with pytest.raises(ValueError, match="no mutation 'nothing'"):
            call("nothing", "")
