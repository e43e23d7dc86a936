"""The hybrid on random models of whole numbers: any split between source and device gives exactly the same values."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tapml.operators.graph import Operator
from tapml.runtime.hybrid import Hybrid
from tapml.tensors import convert
from tests.migrate.fake import FakeBackend, FakeDevice, FakeModel, fake_model, reference


class FakeWeights:
    def __init__(self, model: FakeModel, device: FakeDevice) -> None:
        self.model, self.device = model, device
        self.buffers: dict[tuple[str, str], int] = {}

    def __call__(self, operator: Operator | None, key: str, dtype: str) -> int:
        if (key, dtype) not in self.buffers:
            data = convert(self.model.weight(key), dtype).tobytes()
            self.buffers[key, dtype] = self.device.allocate(len(data))
            self.device.write(self.buffers[key, dtype], data)
        return self.buffers[key, dtype]


def setup(seed: int, **sizes: int) -> tuple[random.Random, FakeModel, FakeDevice, Hybrid]:
    rng = random.Random(seed)
    model = fake_model(rng, **sizes)
    device = FakeDevice()
    return rng, model, device, Hybrid(model, model.source, FakeBackend(lambda: device), FakeWeights(model, device))


def calls_for(rng: random.Random, model: FakeModel, count: int) -> list[tuple[str, Any]]:
    names = [rng.choice(list(model.graphs)) for _ in range(count)]
    return [(name, np.array([rng.randrange(1000) for _ in range(model.graphs[name].inputs[0].spec.elements)])) for name in names]


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return list(left) == list(right) and all((left[k] == right[k]).all() and left[k].dtype == right[k].dtype for k in left)


@pytest.mark.parametrize("seed", range(60))
def test_any_split_gives_the_same_values(seed: int) -> None:
    rng, model, _, hybrid = setup(seed)
    calls = calls_for(rng, model, 6)
    expected = reference(model, calls)
    for share in (0.0, 1.0, 0.5, 0.9, 0.2):
        hybrid.offload({o.name: model.program(o) for o in model.operators if rng.random() < share})
        for (graph, x), want in zip(calls, expected, strict=True):
            assert same(hybrid.step(graph, {"x": x}), want), (seed, share, graph)


@pytest.mark.parametrize("seed", range(20))
def test_observing_gives_each_operators_outputs(seed: int) -> None:
    rng, model, _, hybrid = setup(seed)
    calls = calls_for(rng, model, 4)
    source = Hybrid(model, model.source)
    hybrid.offload({o.name: model.program(o) for o in model.operators if rng.random() < 0.7})
    for graph, x in calls:
        pairs = list(zip(source.observe(graph, {"x": x}), hybrid.observe(graph, {"x": x}), strict=True))
        assert [p[1][0] for p in pairs] == list(model.operators_of[graph])
        for (_, left), (_, right) in pairs:
            assert all((a == b).all() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_all_offloaded_is_one_batch_and_one_read_an_output(seed: int) -> None:
    rng, model, device, hybrid = setup(seed)
    hybrid.offload({o.name: model.program(o) for o in model.operators})
    (graph, x), = calls_for(rng, model, 1)
    for _ in range(3):
        hybrid.step(graph, {"x": x})
    before = dict(device.counts)
    hybrid.step(graph, {"x": x})
    made = {name: count - before[name] for name, count in device.counts.items()}
    definition = model.graphs[graph]
    computed = [v for v in definition.outputs if v not in {p.name for p in definition.placeholders}]
    assert made["run"] <= 1 and made["write"] <= 1
    assert len(set(computed)) <= made["read"] <= len(set(definition.outputs)) + len(definition.mutations)


def test_buffers_are_shared_and_given_back() -> None:
    rng, model, device, hybrid = setup(3, operators=60)
    calls = calls_for(rng, model, 4)
    programs = {o.name: model.program(o) for o in model.operators}
    hybrid.offload(programs)
    for graph, x in calls:
        hybrid.step(graph, {"x": x})
    weights = len(hybrid._weight_buffer.buffers)  # type: ignore[union-attr]
    transient = len(device.buffers) - weights - 2 * len(model.initial_states)
    assert transient < 0.75 * len(model.operators), "dead values' buffers are used again"
    made = device.made
    for _ in range(3):
        hybrid.offload(programs)
        for graph, x in calls:
            hybrid.step(graph, {"x": x})
    assert device.made == made, "nothing is allocated, uploaded or loaded twice"
    hybrid.close()
    assert hybrid._engine is not None
    hybrid._engine.pool.trim()
    assert len(device.buffers) == weights


def test_wrong_use_is_refused() -> None:
    rng, model, _, hybrid = setup(1)
    (graph, x), = calls_for(rng, model, 1)
    with pytest.raises(ValueError, match="wants input 'x'"):
        hybrid.step(graph, {"y": x})
    with pytest.raises(ValueError, match="has shape"):
        hybrid.step(graph, {"x": np.zeros((9, 9), np.int64)})
    with pytest.raises(ValueError, match="no such operators"):
        hybrid.offload({"nobody": model.program(model.operators[0])})
    with pytest.raises(ValueError, match="without a device"):
        Hybrid(model, model.source).offload({model.operators[0].name: model.program(model.operators[0])})
