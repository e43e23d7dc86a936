"""Plans: memory is used again, constants are made once, and a plan that computes something else is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tapml
from tapml.api import Run
from tapml.carving.folder import RunFolder
from tapml.deploy import layout
from tapml.deploy.build import build
from tapml.deploy.bundle import BundleFolder
from tapml.deploy.plan import GraphPlan, Launch, Place, Plan, check_plan, make_plan, naive_bytes, set_apart
from tapml.deploy.player import dying
from tapml.deploy.session import Session
from tapml.errors import BundleError
from tapml.manifest import SEAL, digest, seal
from tapml.operators.graph import Graph, Node, Operator, Placeholder
from tapml.runtime.model import ModelData
from tapml.tensors import TensorSpec
from tests.conftest import MakeRun

TARGET = "cpu"


@pytest.fixture(scope="module")
def bundle(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> BundleFolder:
    run: RunFolder = make_run("llama")
    Run.open(run.path).migrate(TARGET, fresh=True)
    return BundleFolder.open(build(run, TARGET, tmp_path_factory.mktemp("bundles") / "llama").path)


def test_memory_is_used_again(bundle: BundleFolder) -> None:
    plan, model, programs = bundle.plan, bundle.model, bundle.programs
    apart = make_plan(model, programs, reuse=False)
    check_plan(apart, model, programs)
    assert naive_bytes(plan, programs) == naive_bytes(apart, programs) == apart.planned_bytes > 2 * plan.planned_bytes
    assert len(apart.slots) > 9 * len(plan.slots)
    some = [launch.operator for launch in plan.graphs["decode"].launches[4:9]]
    moved = set_apart(plan, model, programs, some)
    check_plan(moved, model, programs)
    assert len(plan.slots) < len(moved.slots) <= len(plan.slots) + 8
    assert plan == make_plan(model, programs) == Plan.from_json(json.loads(json.dumps(plan.to_json())))


class Mixing(torch.nn.Module):
    """Its mixture is a constant: only a weight goes into it."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = torch.nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ torch.softmax(self.shares, -1))


def test_constants_are_made_when_the_bundle_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Mixing().eval(), torch.randn(2, 8)
    run = tapml.carve(module, {"x": x}, out=tmp_path / "run")
    run.migrate(TARGET)
    bundle = BundleFolder.open(build(run.folder, TARGET, tmp_path / "bundle").path)
    plan = bundle.plan
    assert [launch.operator for launch in plan.constants] == ["softmax"] and plan.constant_bytes == {"forward/softmax": 256}
    assert [launch.operator for launch in plan.graphs["forward"].launches] == ["matmul"]
    with torch.no_grad(), Session(bundle) as session:
        for scale in (1.0, -2.0):
            (answer,) = session.run({"x": (scale * x).numpy()}).values()
            np.testing.assert_allclose(answer, module(scale * x).numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(BundleError, match=r"matmul reads forward softmax in constant forward/softmax, where nothing needed is"):
        check_plan(replace(plan, constants=()), bundle.model, bundle.programs)


@dataclass(frozen=True)
class Made:
    """What a plan asks of a program."""

    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scratch: tuple[int, ...] = (16,)
    forwards: tuple[tuple[int, int], ...] = ()
    schedule: str = "simple"


def test_graphs_share_a_constant() -> None:
    """Two graphs make it of one weight with one program; a third makes another of another weight."""
    x = TensorSpec((4,), "float32")
    graphs, operators, programs = [], [], {}
    for name, key in (("prefill", "w"), ("decode", "w"), ("other", "v")):
        given = (Placeholder("p_w", "weight", key, x), Placeholder("x", "input", "x", x))
        nodes = (Node("c", "aten.exp.default", ({"ref": "p_w"},), {}, (x,)),
                 Node("y", "aten.add.Tensor", ({"ref": "x"}, {"ref": "c"}), {}, (x,)))  # fmt: skip
        graphs.append(Graph(name, given, nodes, ("y",), ("y",), {}))
        for short, program, inputs, output in (("exp", "e", ("p_w",), "c"), ("add", "a", ("x", "c"), "y")):
            operators.append(Operator(f"{name}/{short}", name, short, program, inputs, (output,), (output,), ""))
            programs[f"{name}/{short}"] = Made(program, (x,) * len(inputs), (x,))
    model = ModelData(graphs, operators, {}, lambda key: np.ones(4, np.float32), {})
    plan = make_plan(model, programs)
    check_plan(plan, model, programs)
    assert [launch.operator for launch in plan.constants] == ["prefill/exp", "other/exp"]
    read = {name: graph.launches[0].inputs[1].name for name, graph in plan.graphs.items()}
    assert read == {"prefill": "prefill/c", "decode": "prefill/c", "other": "other/c"}
    decode = plan.graphs["decode"].launches[0]
    wrong = replace(decode, inputs=(decode.inputs[0], Place("constant", "other/c")))
    changed = plan.graphs | {"decode": replace(plan.graphs["decode"], launches=(wrong,))}
    with pytest.raises(BundleError, match="decode/add reads prefill c in constant other/c, where other c is"):
        check_plan(replace(plan, graphs=changed), model, programs)
    with pytest.raises(BundleError, match="other/add reads other c in constant other/c, where nothing needed is"):
        check_plan(replace(plan, constants=plan.constants[:1]), model, programs)


def changes(plan: Plan, rng: random.Random) -> Iterator[tuple[str, Plan]]:
    """Every kind of damage that leaves a plan readable."""
    for name, graph in plan.graphs.items():
        launches = graph.launches
        for k in rng.sample(range(1, len(launches)), 12):
            one, before = launches[k], launches[k - 1]

            def having(*changed: Launch, name: str = name, graph: GraphPlan = graph, k: int = k) -> Plan:
                there = (*graph.launches[:k], *changed, *graph.launches[k + 1 :])
                return replace(plan, graphs=plan.graphs | {name: replace(graph, launches=there)})

            yield f"{one.operator} left out", having()
            yield f"{one.operator} twice", having(one, one)
            if set(before.outputs) & set(one.inputs):
                swapped = (*launches[: k - 1], one, before, *launches[k + 1 :])
                yield f"{one.operator} too early", replace(plan, graphs=plan.graphs | {name: replace(graph, launches=swapped)})
            slots = [place for place in one.inputs if place.kind == "slot"]
            if slots:
                other = Place("slot", str((int(slots[0].name) + 1) % len(plan.slots)))
                if other not in one.inputs:
                    moved = tuple(other if place == slots[0] else place for place in one.inputs)
                    yield f"{one.operator} reads {other.name}", having(replace(one, inputs=moved))
                if one.outputs[0].kind == "slot" and slots[0] not in one.outputs:
                    yield f"{one.operator} over its input", having(replace(one, outputs=(slots[0], *one.outputs[1:])))
        key = next(iter(graph.advanced))
        rest = tuple(k for k in graph.advanced if k != key)
        yield f"{key} does not advance", replace(plan, graphs=plan.graphs | {name: replace(graph, advanced=rest)})
        weights = [(k, i) for k, launch in enumerate(launches) for i, p in enumerate(launch.inputs) if p.kind == "weight"]
        (a, i), (b, j) = rng.sample(weights, 2)
        if launches[a].inputs[i].name != launches[b].inputs[j].name:
            inputs = (*launches[a].inputs[:i], launches[b].inputs[j], *launches[a].inputs[i + 1 :])
            there = (*launches[:a], replace(launches[a], inputs=inputs), *launches[a + 1 :])
            yield f"{launches[a].operator} with another weight", replace(
                plan, graphs=plan.graphs | {name: replace(graph, launches=there)}
            )
    for index, nbytes in enumerate(plan.slots):
        small = (*plan.slots[:index], nbytes - 4, *plan.slots[index + 1 :])
        yield f"slot {index} too small", replace(plan, slots=small)


def test_a_plan_that_computes_something_else_is_refused(bundle: BundleFolder) -> None:
    plan, model, programs = bundle.plan, bundle.model, bundle.programs
    tried = 0
    for what, changed in changes(plan, random.Random(5)):
        tried += 1
        with pytest.raises(BundleError, match="Its plan is not sound: "):
            check_plan(changed, model, programs)
            pytest.fail(what)
    assert tried > 60


def test_memory_that_is_given_away_too_early_is_seen(bundle: BundleFolder) -> None:
    """Two values that live at one time, in one slot: each launch by itself looks right."""
    plan, model, programs = bundle.plan, bundle.model, bundle.programs
    graph = plan.graphs["decode"]
    needed = [frozenset(slot for slot in launch.inputs if slot.kind == "slot") for launch in graph.launches]
    k = next(k for k, launch in enumerate(graph.launches) if k > 4 and needed[k - 1] - needed[k] and launch.scratch == ())
    slot = next(
        place for j in range(k + 1, len(needed)) for place in needed[j]
        if place not in graph.launches[k].inputs and all(place not in launch.outputs for launch in graph.launches[k:j])
    )  # fmt: skip
    early = replace(graph.launches[k], scratch=(), outputs=(slot,))
    changed = replace(graph, launches=(*graph.launches[:k], early, *graph.launches[k + 1 :]))
    with pytest.raises(BundleError, match="not sound"):
        check_plan(replace(plan, graphs=plan.graphs | {"decode": changed}), model, programs)


def test_slots_die_after_their_last_reader(bundle: BundleFolder) -> None:
    for graph in bundle.plan.graphs.values():
        gone: set[Place] = set()
        for launch, places in zip(graph.launches, dying(graph), strict=True):
            assert not gone & set(launch.inputs)
            gone -= {*launch.outputs, *launch.scratch}
            gone |= set(places)
        assert gone and not gone & set(graph.outputs.values())


def test_a_sealed_plan_that_is_unsound_does_not_run(bundle: BundleFolder) -> None:
    path = bundle.path / layout.PLAN
    clean, manifest = path.read_bytes(), (bundle.path / layout.MANIFEST).read_text()
    changed = json.loads(clean)
    launches = changed["graphs"]["decode"]["launches"]
    launches[0], launches[-1] = launches[-1], launches[0]
    try:
        reseal(bundle.path, json.dumps(changed).encode())
        with pytest.raises(BundleError, match=r"cannot be run. Its plan is not sound: decode/.* Build or fetch it again"):
            _ = BundleFolder.open(bundle.path).plan
        reseal(bundle.path, json.dumps(changed | {"slots": [-1]}).encode())
        with pytest.raises(BundleError, match=r"plan.json is damaged \(item 0 is -1"):
            _ = BundleFolder.open(bundle.path).plan
    finally:
        path.write_bytes(clean)
        (bundle.path / layout.MANIFEST).write_text(manifest)


def reseal(folder: Path, plan: bytes) -> None:
    (folder / layout.PLAN).write_bytes(plan)
    manifest = json.loads((folder / layout.MANIFEST).read_text())
    manifest["files"][layout.PLAN] = {"bytes": len(plan), "digest": digest(plan)}
    manifest[SEAL] = seal(manifest)
    (folder / layout.MANIFEST).write_text(json.dumps(manifest))
