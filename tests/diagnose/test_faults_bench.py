"""The fault bench: what it says against verdicts taken separately, the other methods on hand-made cases, and resuming."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.diagnose.bench import baselines
from tapml.diagnose.bench.baselines import DebugCompare, Drawn, EndToEndOnly, RandomInputs, allclose
from tapml.diagnose.bench.neighbours import BackendBench, FlashinferBench, TestBackendOps, nmse
from tapml.diagnose.bench.prefix import PrefixBisection, close
from tapml.diagnose.bench.result import BenchResult, Fault, Found, Row, totals_of
from tapml.diagnose.bench.stage import ENDED, bench, bench_folder, spread
from tapml.diagnose.faults.catalogue import changed, find, sites
from tapml.diagnose.faults.fault import FaultClass, Site
from tapml.errors import UsageError
from tapml.migrate.operator_test import OperatorTester
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Body, Node, Operator
from tapml.report.faults_bench import console_view, markdown, write_report
from tests.conftest import MakeRun

Need = Callable[[str], str]
NEIGHBOURS = ("backendbench", "flashinfer_bench", "test_backend_ops")
ATTENTION = "decode/layers.0.self_attn.attention"


class Slightly(Rewrite):
    """One operator's only output is multiplied by 1.05."""

    FACTOR = 1.05

    def __init__(self, operator: str) -> None:
        super().__init__(f"five percent in {operator}", f"five percent in {operator}")
        self._operator = operator

    def body(self, operator: str, body: Body) -> Body:
        if operator != self._operator:
            return body
        more = Node("n999", "aten.mul.Tensor", ({"ref": body.outputs[0]}, self.FACTOR), {}, (body.output_specs[0],))
        return replace(body, nodes=(*body.nodes, more), outputs=("n999",))


class Larger(Slightly):
    """Multiplied by 40."""

    FACTOR = 40.0


class Deadly(Rewrite):
    """Ends the process, as far as one test can: nothing catches this."""

    def body(self, operator: str, body: Body) -> Body:
        raise KeyboardInterrupt


def handmade(name: str, where: str, made: Callable[[], Rewrite]) -> FaultClass:
    def place(operator: Operator, body: Body, site: Site) -> Rewrite | None:
        return made() if operator.name == where else None

    return FaultClass(99, name, name, "graph", "convert", "", (), {}, place)


@pytest.fixture(scope="module")
def llama(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A copy: the bench writes into its run."""
    copy = tmp_path_factory.mktemp("bench") / "llama"
    shutil.copytree(make_run("llama").path, copy)
    return RunFolder.open(copy)


@pytest.fixture(scope="module")
def result(llama: RunFolder) -> BenchResult:
    return bench(llama, "opencl", faults=["16", "20", "21", "24", "int4-packing"], operators=1)


def test_findings_agree_with_verdicts_taken_separately(need: Need, llama: RunFolder, result: BenchResult) -> None:
    need("opencl")
    by_name = {row.name: row for row in result.rows}
    for row in result.rows:
        for fault in row.faults:
            with Workbench.on(llama, "opencl") as clean:
                rewrite = dict(sites(find(row.name), clean))[fault.operator]
            with OperatorTester(llama, "opencl", inject=rewrite) as tester:
                rewritten = [o.name for o in llama.operators if changed(tester.bench, o)]
                verdicts = {name: tester.test(name) for name in rewritten}
            own = fault.findings["tapml"]
            bad = [name for name, verdict in verdicts.items() if verdict.status != "pass"]
            assert own.detected and bad == ([own.operator] if rewritten else [])
            assert own.operator_right == (own.operator in rewritten if rewritten else None)
            assert own.stage_right and own.stage == row.fault["stage"]
    assert not by_name["no-soft-cap"].faults and "not applicable" in by_name["no-soft-cap"].why
    # Handed-over values are no operator's: only a check of the whole model can see them.
    late = by_name["late-position"].faults[0].findings
    assert [m for m in late if late[m].detected] == ["tapml", "end_to_end"] and late["tapml"].operator_right is None
    assert [m for m in late if not late[m].applies] == [*NEIGHBOURS, "prefix"]
    assert "is in no operator" in late["backendbench"].reason and "its inputs itself" in late["prefix"].reason
    # Random weights go through packing, and know nothing of which tensor the model takes; the device's own weights are what
    # debug_compare hands to its reference.
    assert by_name["int4-packing"].faults[0].findings["random"].detected
    assert not by_name["tied-head"].faults[0].findings["random"].detected
    tied = by_name["tied-head"].faults[0].findings
    assert not any(tied[m].applies for m in NEIGHBOURS) and tied["prefix"].detected and tied["prefix"].operator_right
    assert all(by_name["int4-packing"].faults[0].findings[m].applies for m in NEIGHBOURS)
    # A wrong pairing of angles is no small error: every rule sees it, and who names operators names the right one.
    turned = by_name["rotary-pairing"].faults[0].findings
    assert all(turned[m].detected and turned[m].operator_right for m in NEIGHBOURS)
    prefixes = [f.findings["prefix"] for row in result.rows for f in row.faults]
    assert all((found.executions or 0) > 0 for found in prefixes if found.applies)
    assert not by_name["int4-packing"].faults[0].findings["debug_compare"].detected
    assert all(f.findings["end_to_end"].operator is None for row in result.rows for f in row.faults)
    assert not any(clean.alarms for clean in result.clean.values())


def test_result_is_written_and_read(need: Need, result: BenchResult, tmp_path: Path) -> None:
    need("opencl")
    text, data, picture = write_report(result, tmp_path / "out")
    read = BenchResult.from_json(json.loads(data.read_text()))
    assert read.rows == result.rows and read.totals() == result.totals()
    first = picture.read_bytes()
    write_report(read, tmp_path / "out")
    assert picture.read_bytes() == first and b"<svg" in first
    assert "late-position" in text.read_text() and "not applicable here" in markdown(result)
    assert console_view(result)
    own, whole = result.totals()["tapml"], result.totals()["end_to_end"]
    assert own.detected == own.stages == (4, 4) and own.operators == (3, 3) and whole.operators == (0, 3)
    theirs = result.totals()["backendbench"]
    assert theirs.detected[1] == theirs.classes[1] == theirs.operators[1] == 2 and result.totals()["prefix"].executions
    assert "not applicable: the fault is in no operator" in text.read_text()


def test_an_interrupted_bench_goes_on_and_leaves_out_what_ended_it(
    need: Need, llama: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("cpu")
    faults = [
        handmade("five-percent", ATTENTION, lambda: Slightly(ATTENTION)),
        handmade("deadly", "prefill/norm", lambda: Deadly("deadly", "deadly")),
        handmade("nowhere", "no such operator", lambda: Deadly("deadly", "deadly")),
    ]
    with pytest.raises(KeyboardInterrupt):
        bench(llama, "cpu", faults=faults, minimise=False)
    records = [json.loads(line) for line in (bench_folder(llama, "cpu") / "bench.jsonl").read_text().splitlines()]
    assert records[-1] == {"record": "begun", "name": "deadly", "operator": "prefill/norm"}

    def never(*_: object) -> None:
        raise AssertionError("what was journalled is done again")

    monkeypatch.setattr(EndToEndOnly, "find", never)
    result = bench(llama, "cpu", faults=faults, minimise=False)
    five, deadly, nowhere = result.rows
    assert result.resumed == 1 and not nowhere.faults
    assert deadly.faults[0].note == ENDED and deadly.count("tapml", lambda found: found.detected) == (0, 1)
    # Small activations: five percent of them is far beyond the measured bound, and nothing to a tolerance of 1.
    found = five.faults[0].findings
    # To a tolerance of 1e-2 some of them are, and the error is no small share of all squares.
    assert {m for m in found if found[m].detected} >= {"tapml", "random", "test_backend_ops", "end_to_end"}
    assert not found["debug_compare"].detected
    assert found["tapml"].stage == "convert" and found["tapml"].operator_right


def test_debug_compare_looks_at_each_function_once(
    need: Need, llama: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(baselines, "allclose", lambda actual, expected: seen.append("") or "")
    with Workbench.on(llama, need("cpu")) as bench_:
        assert DebugCompare(llama, bench_).find() is None
    assert len(seen) == len(llama.bodies) < len(llama.operators)


def test_tolerance_of_debug_compare() -> None:
    right = np.linspace(-0.4, 0.4, 8, dtype=np.float32)
    assert allclose(-right, right) == ""  # every sign is wrong
    assert "Mismatched elements: 1 / 8" in allclose(right + np.eye(8, dtype=np.float32)[3] * 1.1, right)
    assert allclose(np.where(right > 0.3, np.float32("nan"), right), right) != ""
    assert allclose(np.float32([np.inf, 1]), np.float32([1, 1])) != ""
    assert allclose(np.array([True, False]), np.array([False, False])) == ""


def test_random_inputs(need: Need, make_run: MakeRun, llama: RunFolder) -> None:
    with Workbench.on(make_run("conv_net"), need("cpu")) as bench_:
        # Half of all variances drawn from N(0,1) are negative: the norm is no number then, on the target as in PyTorch.
        assert not list(RandomInputs(bench_.folder, bench_).find(bench_.model.operators))
    with Workbench.on(llama, "cpu") as bench_:
        update = next(o for o in bench_.model.operators if o.kind == "cache_update" and o.graph == "prefill")
        drawn = [RandomInputs(llama, bench_, seed).draw(update, 0).inputs for seed in (1, 1, 2)]
        assert all(np.array_equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))
        for array, spec in zip(drawn[0], bench_.model.bodies[update.signature].inputs, strict=True):
            assert array.shape == spec.shape and str(array.dtype) == spec.dtype
            if spec.dtype == "int64" and array.size > 1:
                assert np.unique(array).size == array.size


def test_rules_of_the_neighbours(need: Need, llama: RunFolder) -> None:
    with Workbench.on(llama, need("cpu")) as bench_:
        project = next(o for o in bench_.model.operators if o.kind == "linear")
        norm = next(o for o in bench_.model.operators if o.kind == "rms_norm")

        def said(rule: type[RandomInputs], operator: Operator, change: Callable[[np.ndarray], np.ndarray]) -> str:
            looks = rule(llama, bench_)
            drawn = looks.draw(operator, 0)
            return looks.complaint(operator, [change(r.values) for r in drawn.references], drawn)

        for rule, low, high in ((BackendBench, 0.0, 1.0), (TestBackendOps, -1.0, 1.0), (FlashinferBench, -6.0, 6.0)):
            looks = rule(llama, bench_)
            x = looks.draw(project, 0).inputs[0]
            assert x.dtype == np.float32 and low <= x.min() and x.max() < high
            assert (x.min() < 0) == (low < 0) and (abs(x).max() > 1) == (high > 1)
            assert not list(looks.find([project, norm])) and said(rule, project, lambda y: y) == ""
            assert said(rule, project, lambda y: np.where(y == y.max(), np.float32("inf"), y)) != ""
        assert FlashinferBench(llama, bench_).draws(project) == 3
        # One percent in every element: within 1e-2, and far beyond 1e-7 of the mean square, where 5e-4 lets it pass.
        less = lambda y: y * np.float32(1.009)  # noqa: E731
        assert said(BackendBench, norm, less) == said(FlashinferBench, norm, less) == said(TestBackendOps, project, less) == ""
        assert said(TestBackendOps, norm, less).startswith("NMSE 7.96e-05 > 1e-07")
        # NaN on both sides: equal for one, wrong for the two others.
        nans = Drawn([], [replace(BackendBench(llama, bench_).draw(norm, 0).references[0], values=np.float32([np.nan, 1]))])
        wrong = [bool(r(llama, bench_).complaint(norm, [np.float32([np.nan, 1])], nans)) for r in
                 (BackendBench, FlashinferBench, TestBackendOps)]  # fmt: skip
        assert wrong == [False, True, True]
    assert nmse(np.float32([0, 0]), np.float32([0, 1])) == np.inf and np.isnan(nmse(np.float32([0]), np.float32([0])))


def test_prefixes_are_halved(need: Need, llama: RunFolder) -> None:
    with Workbench.on(llama, need("cpu")) as clean:
        bisection = PrefixBisection(llama, clean)
        assert bisection.find() is None and bisection.executions == len(llama.graphs)
        operators = clean.model.operators_of["decode"]
        start = next(s for s in bisection.starts if s.graph.name == "decode")
        # Every value behind the cut that is read before it and after it is seen at it.
        for cut in (3, len(operators) - 1):
            behind = {name for o in operators[cut + 1 :] for name in o.inputs} | set(start.leaving)
            made = [name for o in operators[: cut + 1] for name in o.outputs]
            assert start.frontier(cut) == [n for n in made if n in behind or n in operators[cut].outputs]

    with Workbench.on(llama, "cpu", inject=Larger(ATTENTION)) as bench_:
        bisection = PrefixBisection(llama, bench_)
        said = bisection.find()
        assert said is not None and said.operator == ATTENTION
        whole, halvings = len(llama.graphs) + 1, np.ceil(np.log2(len(operators)))
        assert bisection.executions <= whole + halvings
    assert close(np.float32([1.0, 0]), np.float32([1.009, 0.009])) and not close(np.float32([1.0]), np.float32([1.03]))
    assert not close(np.array([1, 2]), np.array([1, 3]))


def test_spread_takes_every_signature_first() -> None:
    operators = [Operator(f"o{k}", "forward", "linear", f"s{k // 4}", (), (), (), "") for k in range(12)]
    taken = spread(operators, 3, random.Random(0))
    assert {o.signature for o in taken} == {"s0", "s1", "s2"}
    assert spread(operators, 99, random.Random(0)) == operators and spread([], 3, random.Random(0)) == []
    assert taken != spread(operators, 3, random.Random(1))


def test_totals_count_what_ended_the_process_as_missed() -> None:
    hit = Found(True, "a", True, "convert", True, 4, 1.0, "")
    row = Row({"number": 1, "name": "x"}, 2, (Fault("a", "", {"tapml": hit}), Fault("b", "", {}, note=ENDED)))
    total = totals_of([row], {})["tapml"]
    assert total.detected == (1, 2) and total.classes == (0, 1) and total.elements == 4


def test_wrong_use(llama: RunFolder) -> None:
    with pytest.raises(UsageError, match="There is no fault 'rotary-pair'"):
        bench(llama, "opencl", faults=["rotary-pair"])
    with pytest.raises(UsageError, match="--operators 0"):
        bench(llama, "opencl", operators=0)
