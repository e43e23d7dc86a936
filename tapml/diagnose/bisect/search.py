"""The smallest set that fails, among names in order: the search, apart from how a set is checked.

    fails = Known(check)                                     check(frozenset of names) -> bool; no set is asked for twice
    found = smallest_failing(order, fails)                   the names of one 1-minimal failing set, in order
    fails = Known(Repeated(check, repeats(0.95, 0.3)))       for a fault that shows in 3 runs of 10

A set fails when the model with these operators on the target is wrong. What is given: all of `order` together fail, and the
empty set (the source itself) does not; neither is asked for. What comes back is failing and 1-minimal: it failed when it was
checked, and without any one of its names it passed. It need not be the smallest of all failing sets.

The search has two parts. `failing_core` walks by prefixes:

    base = {}, before = order
    repeat: the shortest prefix of `before` that, with base, fails ends in a culprit; base takes it, before = what is before it
    until base alone fails

Invariants, whatever the check says (they are tested with arbitrary predicates):
1. base + before fails, at every moment. (At first it is the whole. The prefix that was found fails with base, and it is the
   culprit plus the new `before`.) So when `before` runs out, base fails: the loop ends, and what it gives fails.
2. Within the halving, base + the first `high` names fails and base + the first `low` passes, so the last name of the prefix that
   comes out is one whose taking away turned a failing set into a passing one.
3. `before` gets shorter in each round, and no name comes back.

If the check is monotone (a set that holds a failing set fails), base is 1-minimal already. Take away one culprit c: what is
left lies within (base when c was found) + (the prefix before c), which passed. That holds for compound errors, where each
operator passes alone and several fail together. If it is not monotone (errors that cancel each other), the core may hold names
that are not needed, so `made_minimal` always has the last word: delta debugging over the core.

Invariants of `made_minimal`: what is left fails at every moment; it gets smaller with each success; and it ends only after a
pass in which every name was taken away alone and each such set passed. The first pass takes names away one by one, since for a
monotone check that pass is also the last.

Checks for k culprits among n names, when the check is monotone: k rounds of at most ceil(log2 n) halvings and one check of the
base, then k for the last pass: `most_checks(n, k)` = k (ceil(log2 n) + 2).

Flaky checks. A set that fails once has failed. One that passes is asked again until it would have failed with the stated
confidence if it failed as often as the whole does: n = ceil(log(1 - confidence) / log(1 - rate)) passes (`repeats`), since n
passes in a row have probability (1 - rate)^n. The rate is measured (`measured`), and taken as low as the measurement allows
(`Rate.least`). A wrongly believed pass can lead to a set with names too many, never to one that
was not seen failing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Check = Callable[[frozenset[str]], bool]

# Failures of the whole that its rate is measured from, and the runs after which that is given up.
FAILURES = 6


class Known:
    """A check that remembers its answers. `checks` counts the sets that were asked for."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._answers: dict[frozenset[str], bool] = {}

    @property
    def checks(self) -> int:
        return len(self._answers)

    def __call__(self, names: frozenset[str]) -> bool:
        if names not in self._answers:
            self._answers[names] = self._check(names)
        return self._answers[names]


class Repeated:
    """A check for faults that come and go: fails when one of up to `times` runs fails."""

    def __init__(self, check: Check, times: int) -> None:
        self._check = check
        self.times = times

    def __call__(self, names: frozenset[str]) -> bool:
        return any(self._check(names) for _ in range(self.times))


def smallest_failing(order: Sequence[str], fails: Check) -> tuple[str, ...]:
    """One 1-minimal failing set, in order. See the module's docstring for what is given. ValueError for an empty order."""
    return made_minimal(failing_core(order, fails), fails)


def failing_core(order: Sequence[str], fails: Check) -> tuple[str, ...]:
    """A failing set, in order; 1-minimal where the check is monotone."""
    if not order:
        raise ValueError("the empty set is the source, which does not fail")
    base: tuple[str, ...] = ()
    before = tuple(order)
    while before and not (base and fails(frozenset(base))):
        low, high = 0, len(before)
        while high - low > 1:
            middle = (low + high) // 2
            if fails(frozenset(base + before[:middle])):
                high = middle
            else:
                low = middle
        base = (before[high - 1], *base)  # what is found later stands before it
        before = before[: high - 1]
    return base


def made_minimal(failing: Sequence[str], fails: Check) -> tuple[str, ...]:
    """A 1-minimal failing set within a failing one. At worst a number of checks that is quadratic in its size."""
    left = tuple(failing)
    parts = len(left)
    while len(left) > 1:
        for part in _split(left, parts):
            rest = tuple(name for name in left if name not in part)
            if fails(frozenset(rest)):
                left, parts = rest, 2
                break
        else:
            if parts == len(left):
                return left
            parts = min(2 * parts, len(left))
    return left


def _split(names: tuple[str, ...], parts: int) -> list[frozenset[str]]:
    """That many parts of equal size, up to one; none is empty, and none is all of the names."""
    edges = [len(names) * k // parts for k in range(parts + 1)]
    return [frozenset(names[a:b]) for a, b in pairwise(edges)]


def most_checks(names: int, culprits: int) -> int:
    """The most sets that `smallest_failing` asks for, where the check is monotone."""
    return culprits * (math.ceil(math.log2(names)) + 2) if names else 0


@dataclass(frozen=True)
class Rate:
    """How often the whole failed: `failures` of `runs`."""

    failures: int
    runs: int

    @property
    def value(self) -> float:
        """The estimate of the probability that a run fails. Where runs were made until a number of failures was reached, that
        is (failures - 1) / (runs - 1) (Haldane, Biometrika 33, 1945), else failures / runs; never quite 1, since runs that all
        failed are no proof: at most (runs + 1) / (runs + 2), Laplace's rule."""
        if self.failures >= FAILURES and self.runs > 1:
            estimate = (self.failures - 1) / (self.runs - 1)
        else:
            estimate = self.failures / self.runs if self.runs else 0.0
        return min(estimate, (self.runs + 1) / (self.runs + 2))

    def least(self, confidence: float) -> float:
        """The lowest rate that the runs do not rule out with this confidence: at it, so many failures or more have probability
        1 - confidence (Clopper and Pearson, Biometrika 26, 1934). Within (0, 1) where there were failures, else 0."""
        if not self.failures:
            return 0.0
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            tail = sum(
                math.comb(self.runs, k) * middle**k * (1 - middle) ** (self.runs - k) for k in range(self.failures, self.runs + 1)
            )
            low, high = (middle, high) if tail < 1.0 - confidence else (low, middle)
        return low


def measured(fails: Callable[[], bool], most: int, before: Rate = Rate(0, 0)) -> Rate:
    """The rate of a check: run until it failed `FAILURES` times, or `most` times in all. `before` is what was seen already."""
    failures, runs = before.failures, before.runs
    while failures < FAILURES and runs < most:
        runs += 1
        failures += fails()
    return Rate(failures, runs)


def repeats(confidence: float, rate: float) -> int:
    """How many passes in a row make it believable that a set does not fail at this rate. ValueError unless both are within
    (0, 1)."""
    if not (0.0 < confidence < 1.0 and 0.0 < rate < 1.0):
        raise ValueError(f"a confidence and a rate are within (0, 1), not {confidence} and {rate}")
    return max(1, math.ceil(math.log(1.0 - confidence) / math.log(1.0 - rate)))


def confidence_of_each(confidence: float, names: int) -> float:
    """The confidence that each passing set needs so that the search for one culprit among so many names is right with
    `confidence`: the risk is shared out over the sets that may pass on the way (Bonferroni)."""
    return 1.0 - (1.0 - confidence) / (most_checks(names, 1) or 1)
