"""Which operators move to the target: the search over sets of operators, apart from how a set is checked.

The reference is one by one. Start with nothing moved; take the operators in order; add each to what has moved, check the
whole model, keep it there if the check passes, take it back if not. That is one check an operator, each of a whole
model: quadratic. `move` gives the same outcome with far fewer checks by trying batches and splitting those that fail.

    try a batch: check(moved + batch)
        passes                  the whole batch moves
        fails, one operator     it stays
        fails, several          try the first half, then the second half

Invariants, whatever the check does (they are tested with arbitrary predicates):
1. What has moved is always a set that passed a check as a whole (or the empty set, which is the source itself). So there is a
   runnable hybrid at every moment, and the final set passed.
2. An operator stays only if the check of (what had moved before it) + (the operator) failed. No operator stays by association.
3. Operators are decided in order: at an operator's turn, what has moved is made of operators before it only.
4. No set is checked twice: what a check said is remembered, and a resumed migration brings what it remembers along.

The outcome equals the reference's if the check is monotone: if a set passes, so does each of its subsets. (Then a passing
batch means that each of its operators would have passed in turn; a failing one is split, so by induction over the
batch's size the moved set is the reference's at each point.) Errors that cancel each other break monotony: two operators fail
one by one and pass together. `move` then may accept the pair, where the reference keeps both back; invariants 1 and 2 hold all
the same, and they are what a user relies on. Faults that only show together (a compound error) are monotone: the later of
the two stays, in both.

Checks made: 1 if all pass; with k operators that stay among n, at most about 2 k (1 + log2(n / k)) + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Step(Generic[Answer]):
    """A decision: these operators moved, or this one stays; `answer` is what the check said that decided it."""

    moved: bool
    operators: tuple[str, ...]
    answer: Answer


def move(
    order: Sequence[str], check: Callable[[frozenset[str]], Answer], passed: Callable[[Answer], bool]
) -> Iterator[Step[Answer]]:
    """Decides all operators of `order`, and yields each decision as soon as it is made. `check` takes the set that would be
    on the target; it is called at most once a set."""
    moved: frozenset[str] = frozenset()
    answers: dict[frozenset[str], Answer] = {}
    waiting: list[tuple[str, ...]] = [tuple(order)] if order else []  # a stack: the next batch is the last
    while waiting:
        batch = waiting.pop()
        candidate = moved | frozenset(batch)
        answer = answers[candidate] if candidate in answers else check(candidate)
        answers[candidate] = answer
        if passed(answer):
            moved = candidate
            yield Step(True, batch, answer)
        elif len(batch) == 1:
            yield Step(False, batch, answer)
        else:
            middle = (len(batch) + 1) // 2
            waiting += [batch[middle:], batch[:middle]]
