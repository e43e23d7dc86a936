"""The walk over random graphs: what is alive is what somebody still reads, and states advance together at the end."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.migrate.fake import fake_model, reference


@pytest.mark.parametrize("seed", range(20))
def test_alive_is_what_is_read_later(seed: int) -> None:
    model = fake_model(random.Random(seed), graphs=1, operators=25)
    (walk,) = model.walks.values()
    graph = walk.graph
    x = np.arange(graph.inputs[0].spec.elements, dtype=np.int64)
    values = walk.begin({"x": x}, model.initial_states)
    end = {*graph.outputs, *graph.mutations.values(), *(p.name for p in graph.states)} - set(walk.weights)
    for place, step in enumerate(walk.steps, 1):
        step.done(values, model.source(step.operator.signature)(step.read(values, model.weight)))
        later = {name for other in walk.steps[place:] for name in other.operator.inputs} - set(walk.weights)
        made = {name for other in walk.steps[place:] for name in other.operator.outputs}
        unread = {p.name for p in graph.inputs} - {n for other in walk.steps for n in other.operator.inputs}
        assert set(values) == (later | end | unread) - made
    outputs, advanced = walk.outputs(values, model.weight), walk.advanced(values, model.weight)
    (expected,) = reference(model, [(graph.name, x)])
    assert list(outputs) == list(expected) and all(np.array_equal(outputs[key], expected[key]) for key in expected)
    assert set(advanced) == set(graph.mutations)


def test_an_operator_reads_weights_by_key_and_a_state_as_it_was() -> None:
    model = fake_model(random.Random(4), graphs=1, operators=25)
    (walk,) = model.walks.values()
    states = {p.name: p.key for p in walk.graph.states}
    changed = [key for key in states.values() if key in walk.graph.mutations]
    assert changed and any(key is not None for step in walk.steps for key in step.weights)
    values = walk.begin({"x": np.zeros(walk.graph.inputs[0].spec.shape, np.int64)}, model.initial_states)
    for step in walk.steps:
        step.done(values, model.source(step.operator.signature)(step.read(values, model.weight)))
    for name, key in states.items():
        assert values[name] is model.initial_states[key], "nobody writes over what a later operator may read"
    for step in walk.steps:
        assert [key for key in step.weights if key] == [walk.weights[n] for n in step.operator.inputs if n in walk.weights]
