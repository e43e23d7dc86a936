"""The searches of minimising, without a device: extents of bodies, simpler values under pure predicates, fewer outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.diagnose.minimise.budget import Budget
from tapml.diagnose.minimise.search import Candidate, Search
from tapml.diagnose.minimise.shrink_inputs import renumbered, smaller_inputs
from tapml.diagnose.minimise.shrink_outputs import fewer, with_outputs
from tapml.diagnose.minimise.shrink_values import complexity, simplify
from tapml.operators.execute import host_function
from tapml.operators.extents import Extent, find_extents, resized
from tapml.operators.graph import Body, Node
from tapml.operators.infer import inferred
from tapml.tensors import HostArray, TensorSpec


def ref(name: str) -> dict[str, str]:
    return {"ref": name}


def body(inputs: list[tuple[int, ...]], *calls: tuple[object, ...], outputs: tuple[str, ...] = ()) -> Body:
    """A body of float32 inputs; each call is (target, *args), and the last is the output."""
    nodes = tuple(Node(f"n{k}", f"aten.{target}", args, {}, ()) for k, (target, *args) in enumerate(calls))  # type: ignore[misc]
    specs = tuple(TensorSpec(shape, "float32") for shape in inputs)
    made = inferred(Body("test", specs, ("value",) * len(inputs), nodes, outputs or (nodes[-1].name,)))
    assert made is not None
    return made


def projection() -> Body:
    """x[1, 32, 48] · w[96, 48], as 6 heads of 16."""
    return body(
        [(1, 32, 48), (96, 48)],
        ("linear.default", ref("i0"), ref("i1")),
        ("view.default", ref("n0"), [1, 32, 6, 16]),
        ("transpose.int", ref("n1"), 1, 2),
    )


def attention() -> Body:
    """4 query heads over 2 key heads of 8, 5 queries, 8 keys: equal numbers that mean different things."""
    return body(
        [(1, 2, 8, 8), (1, 4, 5, 8), (1, 1, 5, 8)],
        ("unsqueeze.default", ref("i0"), 2),
        ("expand.default", ref("n0"), [1, 2, 2, 8, 8]),
        ("clone.default", ref("n1")),
        ("view.default", ref("n2"), [1, 4, 8, 8]),
        ("transpose.int", ref("n3"), 2, 3),
        ("matmul.default", ref("i1"), ref("n4")),
        ("add.Tensor", ref("n5"), ref("i2")),
        ("matmul.default", ref("n6"), ref("n3")),
        ("transpose.int", ref("n7"), 1, 2),
        ("reshape.default", ref("n8"), [1, 5, 32]),
    )


def axes(extents: tuple[Extent, ...]) -> set[tuple[int, tuple[tuple[int, int], ...]]]:
    return {(e.size, tuple(e.axes())) for e in extents}


def test_extents_of_a_projection_are_rows_features_heads_and_their_width() -> None:
    assert axes(find_extents(projection())) == {
        (32, ((0, 1),)), (48, ((0, 2), (1, 1))), (6, ((1, 0),)), (16, ((1, 0),)),
    }  # fmt: skip


def test_extents_of_attention_tell_the_width_from_the_number_of_keys() -> None:
    found = axes(find_extents(attention()))
    assert (8, ((0, 2), (2, 3))) in found  # keys: cache and mask
    assert (8, ((0, 3), (1, 3))) in found  # width of a head: keys and queries
    assert (5, ((1, 2), (2, 2))) in found  # queries
    assert (2, ((0, 1), (1, 1))) in found and (2, ((1, 1),)) in found  # heads, and queries' heads for each


@pytest.mark.parametrize("make", [projection, attention])
def test_every_size_that_is_accepted_runs_as_it_says(make: object) -> None:
    whole = make()  # type: ignore[operator]
    extents = find_extents(whole)
    for sizes in ([1] * len(extents), [min(3, e.size) for e in extents], [e.size for e in extents]):
        smaller = resized(whole, extents, sizes)
        assert smaller is not None
        generator = np.random.default_rng(0)
        outputs = host_function(smaller)([generator.standard_normal(s.shape).astype("f4") for s in smaller.inputs])
        assert tuple(o.shape for o in outputs) == tuple(s.shape for s in smaller.output_specs)
    assert resized(whole, extents, [e.size for e in extents]) == whole


def test_halves_of_a_head_shrink_with_it() -> None:
    """A rotation by halves: 4 to 8 and 0 to 4 of 8 become 1 to 2 and 0 to 1 of 2."""
    whole = body(
        [(3, 8), (3, 8)],
        ("slice.Tensor", ref("i0"), 1, 4, 8, 1),
        ("neg.default", ref("n0")),
        ("slice.Tensor", ref("i0"), 1, 0, 4, 1),
        ("cat.default", [ref("n1"), ref("n2")], -1),
        ("mul.Tensor", ref("n3"), ref("i1")),
    )
    extents = find_extents(whole)
    extents = tuple(e for e in extents if len(list(e.axes())) == 2)
    assert axes(extents) == {(4, ((0, 1), (1, 1))), (3, ((0, 0), (1, 0)))}
    smaller = resized(whole, extents, [1, 1])
    assert smaller is not None
    assert smaller.inputs[0].shape == (1, 2)
    assert smaller.nodes[0].args[1:] == (1, 1, 2, 1)


def test_rows_that_an_index_names_are_kept_and_renumbered() -> None:
    specs = (TensorSpec((100, 4), "float32"), TensorSpec((6,), "int64"))
    nodes = (Node("n0", "aten.embedding.default", (ref("i0"), ref("i1")), {}, ()),)
    whole = inferred(Body("embedding", specs, ("weight", "input"), nodes, ("n0",)))
    assert whole is not None
    extents = find_extents(whole)
    assert axes(extents) == {(100, ((0, 0),)), (4, ((0, 1),)), (6, ((1, 0),))}
    inputs: list[HostArray] = [np.arange(400, dtype="f4").reshape(100, 4), np.array([7, 90, 7, 33, 5, 8])]
    first = next(iter(smaller_inputs(inputs, extents, [3, 2, 4], ((1, 6), (0, 4)))))
    table, ids = next(iter(renumbered(*first)))
    assert table.shape == (3, 4) and ids.shape == (2,)
    assert host_function(whole)(inputs)[0][:2].tolist() == host_function(whole)([table, ids])[0].tolist()


def test_nodes_after_the_fault_are_left_out_with_what_they_read() -> None:
    whole = body([(2, 3), (4, 3), (2, 4)], ("linear.default", ref("i0"), ref("i1")), ("add.Tensor", ref("i2"), ref("n0")))
    smaller, kept = next(iter(fewer(whole, 0)))
    assert kept == [0, 1] and [n.target for n in smaller.nodes] == ["aten.linear.default"]
    turned, kept = with_outputs(whole, ("i2", "n1"))
    assert turned.outputs == ("i2", "n1") and kept == [0, 1, 2]


VALUES = st.lists(st.floats(-1e6, 1e6, width=32).filter(lambda v: v != 0), min_size=1, max_size=24)


@settings(max_examples=60)
@given(VALUES, st.data())
def test_simplifying_keeps_what_is_needed_and_nothing_else(values: list[float], data: st.DataObject) -> None:
    """A fault that needs some elements to be non-zero ends with exactly those, and each is 1."""
    start = np.array(values, "f4")
    needed = sorted(data.draw(st.sets(st.integers(0, len(values) - 1), min_size=1, max_size=3)))
    calls = 0

    def fails(arrays: list[HostArray]) -> bool:
        nonlocal calls
        calls += 1
        return bool((arrays[0][needed] != 0).all())

    budget = Budget(calls=3000)
    (found,) = simplify([start], fails, budget)
    assert budget.used == calls and fails([found])
    assert np.flatnonzero(found).tolist() == needed or found.tolist() == [1.0] * len(values)
    assert set(np.abs(found[needed]).tolist()) == {1.0}
    assert complexity(found) <= complexity(start)


@settings(max_examples=40)
@given(VALUES)
def test_simplifying_ends_where_nothing_may_change(values: list[float]) -> None:
    start = np.array(values, "f4")
    (found,) = simplify([start], lambda arrays: arrays[0].tobytes() == start.tobytes(), Budget())
    assert found.tobytes() == start.tobytes()


def test_simplifying_keeps_the_digits_that_matter_and_lowers_integers() -> None:
    start = [np.array([3.14159, 88.7231, -2.5], "f4"), np.array([40, 3]), np.array([True, True])]
    found = simplify(start, lambda a: bool(a[0].max() > 88.5 and a[1][0] >= 10 and a[2][1]), Budget())
    assert found[0].tolist() == [0.0, 90.0, 0.0]
    assert found[1].tolist() == [10, 0]
    assert found[2].tolist() == [False, True]


def large(candidate: Candidate) -> Candidate | None:
    """A fault as plain Python: sums of 8 products and more are wrong where an input is beyond 2."""
    x, w = candidate.inputs[:2]
    return replace(candidate, wrong=0, at=(0, 0, 0)) if w.shape[-1] >= 8 and np.abs(x).max() > 2 else None


def linear() -> Candidate:
    whole = body([(1, 32, 48), (96, 48)], ("linear.default", ref("i0"), ref("i1")), ("relu.default", ref("n0")))
    generator = np.random.default_rng(0)
    inputs: list[HostArray] = [generator.standard_normal(s.shape).astype("f4") * 3 for s in whole.inputs]
    return Candidate(whole, inputs, 0, (0, 0, 0))


def test_the_search_needs_a_predicate_and_nothing_else() -> None:
    search = Search(linear(), large, Budget())
    search.go()
    search.confirm()
    assert [a.shape for a in search.best.inputs] == [(1, 1, 8), (1, 8)]
    assert [n.target for n in search.best.body.nodes] == ["aten.linear.default"]
    assert np.count_nonzero(search.best.inputs[0]) == 1 and not search.best.inputs[1].any()
    assert all(large(candidate) is not None for candidate in search.taken)
    costs = [candidate.cost for candidate in search.taken]
    assert costs == sorted(costs, reverse=True)


def test_a_spent_budget_ends_the_search_with_the_best_so_far() -> None:
    calls = 0

    def fails(candidate: Candidate) -> Candidate | None:
        nonlocal calls
        calls += 1
        return large(candidate)

    search = Search(linear(), fails, Budget(calls=20))
    search.go()
    assert calls == 20 and search.best.elements < search.taken[0].elements and "limit" in search.steps[-1]
    search = Search(linear(), fails, Budget(seconds=0.0))
    search.go()
    assert calls == 20 and len(search.taken) == 1


def test_what_does_not_fail_again_is_taken_back() -> None:
    """The first three answers are a lucky streak, as those of a flaky device may be."""
    answers = iter([True] * 3)
    search = Search(linear(), lambda c: c if next(answers, False) else None, Budget())
    search.go()
    assert len(search.taken) > 1
    search.confirm()
    assert search.best is search.taken[0] and len(search.taken) == 1 and "reverted" in search.steps[-1]
