"""Batches of launches that a device knows by a number: those that are run a second time, as the steps of a decoder are.

    batches = Batches(post, check)
    batches.number(batch)                        None where it is met for the first time, and is to be sent whole
    batches.forget_those_with("buffer", 3)       it is freed

`post` takes a request, `check` refuses launches of things that are not there; it is asked once for a batch. The device holds
`BATCHES` of them at most; of more, the one that was run longest ago is forgotten. A batch of more than `most` launches is sent
whole each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tapml.devices.interface import Launch

BATCHES = 64
# The launches of one request to a device elsewhere.
LAUNCHES_TOGETHER = 2048

Batch = tuple[Launch, ...]


class Batches:
    """See the module's docstring."""

    def __init__(
        self, post: Callable[[list[Any]], None], check: Callable[[Batch], None], most: int = LAUNCHES_TOGETHER
    ) -> None:
        self._post = post
        self._most = most
        self._check = check
        self._seen: OrderedDict[Batch, None] = OrderedDict()
        self._numbers: OrderedDict[Batch, int] = OrderedDict()
        # Callers hand in the same tuple again, which is found sooner by its identity.
        self._same: dict[int, tuple[Batch, int]] = {}
        self._next = 1
        self._with: dict[tuple[str, int], dict[int, Batch]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, batch: Sequence[Launch]) -> int | None:
        """What `batch` is called on the device, which is told now where this is the second time."""
        same, number = self._same.get(id(batch), (None, 0))
        if same is not batch:
            same = tuple(batch)
            known = self._numbers.get(same)
            if known is None:
                self._check(same)
                known = self._define(same)
            if known is None:
                return None
            number = known
            if same is batch:
                self._same[id(batch)] = (same, number)
        self._numbers.move_to_end(same)
        return number

    def forget_those_with(self, kind: Literal["buffer", "kernel"], handle: int) -> None:
        for batch in list(self._with.get((kind, handle), {}).values()):
            self._forget(batch)
        self._with.pop((kind, handle), None)

    def _define(self, batch: Batch) -> int | None:
        if len(batch) > self._most:
            return None
        if batch not in self._seen:
            self._seen[batch] = None
            while len(self._seen) > BATCHES:
                self._seen.popitem(last=False)
            return None
        del self._seen[batch]
        if len(self._numbers) == BATCHES:
            self._forget(next(iter(self._numbers)))
        number = self._numbers[batch] = self._next
        self._next += 1
        for key in _handles_of(batch):
            self._with.setdefault(key, {})[number] = batch
        self._post(["define", number, launches(batch)])
        return number

    def _forget(self, batch: Batch) -> None:
        number = self._numbers.pop(batch)
        for known in [key for key, (_, other) in self._same.items() if other == number]:
            del self._same[known]
        for key in _handles_of(batch):
            self._with[key].pop(number, None)
        self._post(["forget", number])


def launches(batch: Sequence[Launch]) -> list[Any]:
    """As docs/wire.md writes them."""
    return [[launch.kernel, launch.buffers] for launch in batch]


def _handles_of(batch: Batch) -> set[tuple[str, int]]:
    return {("kernel", launch.kernel) for launch in batch} | {("buffer", b) for launch in batch for b in launch.buffers}
