"""The search for the smallest failing set, with arbitrary predicates in place of a model's check."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.diagnose.bisect.search import (
    FAILURES,
    Known,
    Rate,
    Repeated,
    confidence_of_each,
    failing_core,
    made_minimal,
    measured,
    most_checks,
    repeats,
    smallest_failing,
)

Predicate = Callable[[frozenset[str]], bool]

orders = st.integers(1, 40).map(lambda n: [f"op{k}" for k in range(n)]).flatmap(st.permutations)


class Counted:
    """A predicate that notes what it was asked."""

    def __init__(self, predicate: Predicate) -> None:
        self.predicate = predicate
        self.asked: list[frozenset[str]] = []

    def __call__(self, names: frozenset[str]) -> bool:
        self.asked.append(names)
        return self.predicate(names)


@st.composite
def monotone(draw: st.DrawFn) -> tuple[list[str], Predicate]:
    """A set fails if it holds one of some forbidden sets: single culprits, pairs and larger compounds."""
    order = draw(orders)
    forbidden = draw(st.lists(st.frozensets(st.sampled_from(order), min_size=1, max_size=5), min_size=1, max_size=5))
    return order, lambda names: any(f <= names for f in forbidden)


def is_one_minimal(found: tuple[str, ...], fails: Predicate) -> bool:
    return fails(frozenset(found)) and not any(fails(frozenset(found) - {name}) for name in found if len(found) > 1)


@given(monotone())
@settings(max_examples=400)
def test_monotone_checks(case: tuple[list[str], Predicate]) -> None:
    order, fails = case
    counted = Counted(fails)
    known = Known(counted)
    found = smallest_failing(order, known)
    assert is_one_minimal(found, fails)
    assert list(found) == [name for name in order if name in found], "culprits are in execution order"
    assert len(counted.asked) == len(set(counted.asked)) == known.checks, "no set is checked twice"
    assert frozenset() not in counted.asked and frozenset(order) not in counted.asked, "what is given is not asked"
    assert len(counted.asked) <= most_checks(len(order), len(found))


@given(monotone())
@settings(max_examples=200)
def test_the_core_of_a_monotone_check_is_minimal_already(case: tuple[list[str], Predicate]) -> None:
    order, fails = case
    core = failing_core(order, Known(fails))
    assert made_minimal(core, fails) == core


@given(orders, st.randoms(use_true_random=False), st.floats(0.05, 0.95))
@settings(max_examples=400)
def test_any_check_at_all(order: list[str], source: random.Random, share: float) -> None:
    """Each set passes or fails by a coin: the result fails, and is 1-minimal, all the same."""
    answers: dict[frozenset[str], bool] = {frozenset(): False, frozenset(order): True}

    def fails(names: frozenset[str]) -> bool:
        return answers.setdefault(names, source.random() < share)

    counted = Counted(fails)
    found = smallest_failing(order, Known(counted))
    assert found and is_one_minimal(found, fails)
    assert len(counted.asked) == len(set(counted.asked))
    assert frozenset() not in counted.asked


@given(orders, st.data())
@settings(max_examples=200)
def test_errors_that_cancel(order: list[str], data: st.DataObject) -> None:
    """Each fault flips the answer, so two of them make it right again: an odd number of them fails."""
    faults = data.draw(st.frozensets(st.sampled_from(order), min_size=1).filter(lambda f: len(f) % 2 == 1))
    found = smallest_failing(order, Known(lambda names: len(names & faults) % 2 == 1))
    assert len(found) == 1 and set(found) <= faults


def test_a_set_that_is_not_minimal_is_made_so() -> None:
    """Two operators that hide each other's fault, beside one that is wrong alone: the core holds more than is needed."""
    def fails(names: frozenset[str]) -> bool:
        return "a" in names or ("b" in names and "c" not in names)

    assert made_minimal(("a", "b", "c"), fails) in (("a",), ("b",))
    assert made_minimal(tuple("abcdefgh"), lambda names: {"b", "g"} <= names) == ("b", "g")
    assert made_minimal(("a",), lambda names: pytest.fail("nothing is left to check")) == ("a",)


def test_the_number_of_checks_grows_with_the_logarithm() -> None:
    for size in (1, 2, 3, 64, 911, 4096):
        order = [f"op{k}" for k in range(size)]
        for culprit in {0, size // 2, size - 1}:
            counted = Counted(lambda names, bad=order[culprit]: bad in names)  # type: ignore[misc]
            assert smallest_failing(order, Known(counted)) == (order[culprit],)
            assert len(counted.asked) <= math.ceil(math.log2(size)) + 1
    with pytest.raises(ValueError, match="empty set"):
        smallest_failing([], bool)


@given(st.integers(2, 40), st.data())
@settings(max_examples=100)
def test_a_coin_is_asked_until_it_is_believed(size: int, data: st.DataObject) -> None:
    """A compound fault that shows at a rate. The right set is found unless a believed pass was wrong; a set that never
    failed is never given."""
    order = [f"op{k}" for k in range(size)]
    faults = data.draw(st.frozensets(st.sampled_from(order), min_size=1, max_size=2))
    rate = data.draw(st.sampled_from([0.2, 0.5, 0.9]))
    coin = random.Random(data.draw(st.integers(0, 10_000)))
    missed: list[frozenset[str]] = []
    seen: set[frozenset[str]] = {frozenset(order)}
    repeated = Repeated(lambda names: faults <= names and coin.random() < rate, repeats(0.999, rate))

    def fails(names: frozenset[str]) -> bool:
        answer = repeated(names)
        if answer:
            seen.add(names)
        elif faults <= names:
            missed.append(names)
        return answer

    found = smallest_failing(order, Known(fails))
    assert frozenset(found) in seen and faults <= set(found)
    assert missed or set(found) == faults


def test_the_stated_confidence_is_reached() -> None:
    """1,000 searches for one flaky culprit among 100: wrong in no more than the stated share, give or take 3 sigma."""
    order = [f"op{k}" for k in range(100)]
    confidence, rate, wrong = 0.9, 0.4, 0
    times = repeats(confidence_of_each(confidence, len(order)), rate)
    coin = random.Random(5)
    for trial in range(1000):
        bad = order[trial % 100]
        check = Repeated(lambda names, bad=bad: bad in names and coin.random() < rate, times)  # type: ignore[misc]
        wrong += smallest_failing(order, Known(check)) != (bad,)
    assert wrong <= 100 + 3 * math.sqrt(1000 * 0.1 * 0.9)


def test_how_often_to_repeat() -> None:
    assert repeats(0.95, 0.5) == 5 and repeats(0.95, 0.1) == 29 and repeats(0.5, 0.9) == 1
    assert (1 - 0.1) ** 29 <= 0.05 < (1 - 0.1) ** 28
    for confidence, rate in [(0.0, 0.5), (1.0, 0.5), (0.9, 0.0), (0.9, 1.0)]:
        with pytest.raises(ValueError, match="within"):
            repeats(confidence, rate)


def test_the_rate_is_measured() -> None:
    coin = random.Random(1)
    found = [measured(lambda: coin.random() < 0.3, 1000).value for _ in range(400)]
    assert abs(sum(found) / len(found) - 0.3) < 0.02, "Haldane's estimate has no bias"
    assert measured(lambda: True, 50) == Rate(FAILURES, FAILURES) and 0.8 < Rate(FAILURES, FAILURES).value < 1
    assert measured(lambda: False, 50, Rate(1, 3)) == Rate(1, 50) and Rate(1, 50).value == 0.02
    assert measured(lambda: True, 10, Rate(0, 10)) == Rate(0, 10) and Rate(0, 0).value == 0.0
    for failures, runs in [(1, 1), (3, 10), (6, 6), (6, 40)]:
        least = Rate(failures, runs).least(0.95)
        tail = sum(math.comb(runs, k) * least**k * (1 - least) ** (runs - k) for k in range(failures, runs + 1))
        assert tail == pytest.approx(0.05) and least < failures / runs
    assert Rate(0, 10).least(0.95) == 0.0
