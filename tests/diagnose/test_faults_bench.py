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
from tapml.diagnose.bench.baselines import DebugCompare, EndToEndOnly, RandomInputs, allclose
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
ATTENTION = "decode/layers.0.self_attn.attention"


class Slightly(Rewrite):
    """One operator's only output is multiplied by 1.05."""

    def __init__(self, operator: str) -> None:
        super().__init__(f"five percent in {operator}", f"five percent in {operator}")
        self._operator = operator

    def body(self, operator: str, body: Body) -> Body:
        if operator != self._operator:
            return body
        more = Node("n999", "aten.mul.Tensor", ({"ref": body.outputs[0]}, 1.05), {}, (body.output_specs[0],))
        return replace(body, nodes=(*body.nodes, more), outputs=("n999",))


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
    # Random weights go through packing, and know nothing of which tensor the model takes; the device's own weights are what
    # debug_compare hands to its reference.
    assert by_name["int4-packing"].faults[0].findings["random"].detected
    assert not by_name["tied-head"].faults[0].findings["random"].detected
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
    assert [m for m in found if found[m].detected] == ["tapml", "random", "end_to_end"]
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
