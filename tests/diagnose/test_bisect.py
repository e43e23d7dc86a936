"""`bisect` on small models and real devices: single, compound, flaky and other faults, and the engine that it searches with.

The search is the same whatever the target: most tests are on the one that opens and compiles soonest, one each on the others.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tapml.backends.rewrite import Rewrite
from tapml.carving.folder import RunFolder
from tapml.cli import bisect as verb
from tapml.cli import main as cli
from tapml.diagnose.bisect.model_check import ModelCheck
from tapml.diagnose.bisect.prefix import Memory, Value, value_of
from tapml.diagnose.bisect.result import BisectResult
from tapml.diagnose.bisect.stage import RIGHT, bisect
from tapml.diagnose.faults.catalogue import put_in
from tapml.errors import UsageError
from tapml.migrate.workbench import Workbench
from tests.diagnose.faulty import Handed, OnDevice, Scaled, doubled_at_times

MakeRun = Callable[[str], RunFolder]
Need = Callable[[str], str]


@pytest.fixture
def llama(make_run: MakeRun) -> RunFolder:
    return make_run("llama")


@pytest.fixture(scope="module")
def bench(make_run: MakeRun) -> Iterator[Workbench]:
    with Workbench.on(make_run("llama"), "cpu") as bench:
        bench.compile(bench.model.operators)
        yield bench


def whole(run: RunFolder, bench: Workbench, budget: int = 1 << 30) -> ModelCheck:
    return ModelCheck(run, bench, bench.programs(list(bench.model.named)), budget)


def check_counts(result: BisectResult) -> None:
    """What must hold of every search."""
    assert result.runs == len(result.course) and result.runs <= result.bound
    assert 0 < result.operators_run <= result.operators_without_memory
    json.dumps(result.to_json())


@pytest.mark.parametrize("name, call", [
    ("prefill/embed_tokens", 0), ("prefill/layers.1.self_attn.v_proj", 0), ("decode/lm_head", 2),
])
def test_one_faulty_kernel_anywhere(need: Need, llama: RunFolder, name: str, call: int) -> None:
    result = bisect(llama, need("cpu"), inject=Scaled({name: 1.01}))
    assert result.culprits == (name,) and not result.more and not result.passed and not result.flaky
    (found,) = result.sets
    assert found.how == "one by one" and found.stage == "numeric" and found.repeats == 1
    assert not found.alone.passed and found.answer.error is not None and found.answer.bound is not None
    assert found.answer.error > found.answer.bound
    assert result.without is not None and result.without.passed
    assert result.first_wrong_call == found.first_wrong_call == call
    assert result.operators_run < result.operators_without_memory
    check_counts(result)


def test_on_vulkan(need: Need, llama: RunFolder) -> None:
    name = "prefill/layers.0.mlp.up_proj"
    result = bisect(llama, need("vulkan"), inject=Scaled({name: 1.01}))
    assert result.culprits == (name,) and result.without is not None and result.without.passed
    check_counts(result)


def test_a_module_that_is_no_decoder(need: Need, make_run: MakeRun) -> None:
    run = make_run("encoder")
    name = next(o.name for o in run.operators if o.kind == "linear")
    result = bisect(run, need("cpu"), inject=Scaled({name: 1.01}))
    assert result.culprits == (name,) and result.first_wrong_call == 0
    check_counts(result)


def test_several_faults(need: Need, llama: RunFolder) -> None:
    """Without --all the first set, and that there are more; with it all of them."""
    names = {"prefill/layers.0.self_attn.o_proj", "prefill/layers.1.mlp.gate_proj", "decode/norm"}
    fault = Scaled(dict.fromkeys(names, 1.01))
    one = bisect(llama, need("cpu"), inject=fault)
    assert len(one.culprits) == 1 and set(one.culprits) < names and one.more
    assert one.without is not None and not one.without.passed and "--all" in one.reason
    every = bisect(llama, "cpu", inject=fault, all_sets=True)
    assert set(every.culprits) == names and len(every.sets) == 3 and not every.more
    assert every.without is not None and every.without.passed
    check_counts(every)


def over_bound(run: RunFolder, bench: Workbench, fault: Rewrite) -> float:
    """How far off the whole model is with everything on the target, as a share of the bound."""
    put_in(bench, fault)
    try:
        answer = whole(run, bench).together(frozenset(bench.model.named)).answer
    finally:
        put_in(bench, None)
    assert answer.error is not None and answer.bound is not None
    return answer.error / answer.bound


def test_a_compound_error(need: Need, llama: RunFolder, bench: Workbench) -> None:
    """Two kernels, each a little off: each alone keeps the model within its bound, both together do not."""
    need("cpu")
    names = ("prefill/norm", "prefill/lm_head")
    size = 1e-3
    shares = [over_bound(llama, bench, Scaled({name: 1 + size})) for name in names]
    factors = {name: 1 + size * 0.7 / share for name, share in zip(names, shares, strict=True)}
    alone = [over_bound(llama, bench, Scaled({name: factors[name]})) for name in names]
    assert max(alone) < 1.0 < over_bound(llama, bench, Scaled(factors)), "the faults are as they are meant to be"
    result = bisect(llama, "cpu", inject=Scaled(factors))
    assert result.culprits == names and len(result.sets) == 1
    assert result.without is not None and result.without.passed and "together make the model wrong" in result.reason
    assert not result.sets[0].alone.passed
    check_counts(result)


def test_a_flaky_kernel(need: Need, llama: RunFolder) -> None:
    name = "prefill/layers.0.mlp.down_proj"
    result = bisect(llama, need("cpu"), inject=OnDevice(name, doubled_at_times(0.4, seed=3)))
    assert result.culprits == (name,) and result.flaky and result.unsteady == (name,)
    (found,) = result.sets
    assert found.rate is not None and 0.1 < found.rate.value < 1.0 and found.repeats > 1 and not found.steady
    assert result.without is not None and result.without.passed
    check_counts(result)


def test_the_hand_over_between_calls(need: Need, llama: RunFolder) -> None:
    """Every kernel is right. What the device is handed is not, which only the real hybrid shows."""
    result = bisect(llama, need("cpu"), inject=Handed("decode"), all_sets=True)
    assert result.sets and all(found.how == "together" and found.stage == "state" for found in result.sets)
    readers = {o.name for o in llama.operators if o.graph == "decode" and _position(llama) in o.inputs}
    assert set(result.culprits) <= readers and result.without is not None and result.without.passed
    assert "what is passed between them" in result.reason
    assert result.runs <= result.bound


def _position(run: RunFolder) -> str:
    (decode,) = (graph for graph in run.graphs if graph.name == "decode")
    return next(p.name for p in decode.inputs if p.key == "position_ids")


def test_the_engine_and_the_hybrid_give_the_same_bits(need: Need, llama: RunFolder, bench: Workbench) -> None:
    """Whatever is on the target, and however much the engine remembers."""
    need("cpu")
    model, small = whole(llama, bench), whole(llama, bench, budget=20_000)
    names = list(bench.model.named)
    coin = random.Random(2)
    for share in (1.0, 0.5, 0.9, 0.0):
        chosen = frozenset(name for name in names if coin.random() < share)
        expected = model.together(chosen)
        assert model.one_by_one(chosen) == expected and small.one_by_one(chosen) == expected
    assert small.engine.memory.evicted and small.engine.memory.nbytes <= 20_000
    assert model.engine.executed < small.engine.executed == small.engine.asked - _hits(small)


def _hits(model: ModelCheck) -> int:
    return model.engine.asked - model.engine.executed


def test_a_set_starts_where_it_differs(need: Need, llama: RunFolder, bench: Workbench) -> None:
    """The same set again runs nothing; without the last operator of the last call, that operator alone runs."""
    need("cpu")
    model = whole(llama, bench)
    names = frozenset(bench.model.named)
    model.one_by_one(names)
    before = model.engine.executed
    model.one_by_one(names)
    assert model.engine.executed == before
    decodes = sum(record == "decode" for record in (c.graph for c in model._reference.calls))
    model.one_by_one(names - {"decode/lm_head"})
    assert model.engine.executed == before + decodes
    model.engine.steady = False
    model.one_by_one(names)
    assert model.engine.executed == before + decodes + sum(len(bench.model.operators_of[c.graph]) for c in model._reference.calls)


def test_memory_keeps_the_front_of_what_was_used_last() -> None:
    def made(n: int) -> tuple[Value, ...]:
        return (value_of(np.full(25, n, np.float32)),)

    memory = Memory(300)
    for position in range(3):
        memory.put((f"op{position}", True, ()), made(position), 1, position)
    assert memory.nbytes == 300 and not memory.evicted
    assert memory.get(("op2", True, ()), 2, 2) is not None
    memory.put(("new", True, ()), made(7), 2, 3)
    kept = [key for key in ("op0", "op1", "op2", "new") if memory.get((key, True, ()), 2, 9) is not None]
    assert kept == ["op0", "op2", "new"], "of the older check, what lies farther along went first"
    memory.put(("large", True, ()), tuple(v for n in range(4) for v in made(n)), 3, 0)
    assert memory.nbytes <= 300 and memory.get(("large", True, ()), 3, 0) is None


def test_the_verb(
    need: Need, llama: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.VERBS, "bisect", verb)
    target = need("opencl")
    fault = tmp_path / "fault.py"
    fault.write_text(
        "import re\n"
        "def broken(operator, target, source):\n"
        "    if operator != 'prefill/layers.1.mlp.up_proj':\n"
        "        return source\n"
        "    return re.sub(r'(out\\d+_ptr\\[.*\\]) = (.+);', r'\\1 = (\\2) * 1.01f;', source)\n"
    )
    words = ["bisect", str(llama.path), "--target", target]
    data = tmp_path / "result.json"
    assert cli.main([*words, "--inject", f"{fault}:broken", "--json", str(data)]) == 1
    shown = capsys.readouterr().out
    found = json.loads(data.read_text())
    assert found["culprits"] == ["prefill/layers.1.mlp.up_proj"] and found["runs"] > 0
    assert "prefill/layers.1.mlp.up_proj" in shown and "tapml explain" in shown and f"{found['runs']} runs" in shown
    assert cli.main([*words, "--json", str(data)]) == 0
    clean = json.loads(data.read_text())
    assert clean["culprits"] == [] and clean["runs"] == RIGHT and clean["answer"]["status"] == "pass"
    assert not clean["flaky"] and not clean["not_compiled"]
    assert clean["reason"].startswith(f"the model is right with all {len(llama.operators)} operators on opencl")
    assert "the model is right" in capsys.readouterr().out
    for wrong in ("0", "1", "-3", "nan", "much"):
        assert cli.main([*words, "--confidence", wrong]) == 2
        assert "between 0 and 1" in capsys.readouterr().err
    assert cli.main(["bisect", str(tmp_path), "--target", target]) == 2
    with pytest.raises(UsageError, match="not between 0 and 1"):
        bisect(llama, target, confidence=1.0)
