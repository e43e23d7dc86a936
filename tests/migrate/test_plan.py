"""`move` against a quadratic reference, with arbitrary predicates in place of a model's check."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.migrate.plan import Step, move

Predicate = Callable[[frozenset[str]], bool]


def one_by_one(order: list[str], check: Predicate) -> tuple[list[str], list[str]]:
    moved: list[str] = []
    kept: list[str] = []
    for name in order:
        (moved if check(frozenset([*moved, name])) else kept).append(name)
    return moved, kept


def run(order: list[str], check: Predicate) -> tuple[list[Step[bool]], list[frozenset[str]]]:
    asked: list[frozenset[str]] = []

    def counting(candidate: frozenset[str]) -> bool:
        asked.append(candidate)
        return check(candidate)

    return list(move(order, counting, bool)), asked


orders = st.integers(0, 24).map(lambda n: [f"op{k}" for k in range(n)]).flatmap(st.permutations)


@st.composite
def monotone(draw: st.DrawFn) -> tuple[list[str], Predicate]:
    """A set fails if it holds one of some forbidden sets: single culprits, pairs and larger compounds."""
    order = draw(orders)
    if not order:
        return order, lambda s: True
    forbidden = draw(st.lists(st.frozensets(st.sampled_from(order), min_size=1, max_size=4), max_size=6))
    return order, lambda s: not any(f <= s for f in forbidden)


@given(monotone())
@settings(max_examples=300)
def test_monotone_checks_give_the_outcome_of_one_by_one(case: tuple[list[str], Predicate]) -> None:
    order, check = case
    steps, _ = run(order, check)
    moved, kept = one_by_one(order, check)
    assert [n for s in steps if s.moved for n in s.operators] == moved
    assert [n for s in steps if not s.moved for n in s.operators] == kept


@given(orders, st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_invariants_hold_for_any_check(order: list[str], random: object) -> None:
    answers: dict[frozenset[str], bool] = {}

    def check(candidate: frozenset[str]) -> bool:
        return answers.setdefault(candidate, bool(random.getrandbits(1)))  # type: ignore[attr-defined]

    steps, asked = run(order, check)
    assert len(asked) == len(set(asked)), "no set is checked twice"
    assert [n for s in steps for n in s.operators] == order, "each operator is decided once, in order"
    moved: frozenset[str] = frozenset()
    for step in steps:
        candidate = moved | set(step.operators)
        assert answers[candidate] is step.moved is step.answer
        if step.moved:
            moved = candidate
        else:
            assert len(step.operators) == 1, "nothing stays by association"
    assert not moved or answers[moved], "the final set passed"


def test_errors_that_cancel_move_together_and_still_pass() -> None:
    pair = {"op1", "op2"}
    steps, _ = run([f"op{k}" for k in range(4)], lambda s: len(s & pair) != 1)
    assert [s.operators for s in steps] == [("op0", "op1", "op2", "op3")]


def test_number_of_checks_grows_with_faults_not_with_operators() -> None:
    order = [f"op{k}" for k in range(512)]
    assert len(run(order, lambda s: True)[1]) == 1
    for count in (1, 2, 5):
        for bad in list(combinations(order[::37], count))[:20]:
            _, asked = run(order, lambda s, bad=bad: not s & set(bad))  # type: ignore[misc]
            assert len(asked) <= 2 * count * (1 + math.log2(512 / count)) + 1


def test_nothing_to_move() -> None:
    assert run([], lambda s: True) == ([], [])
