"""What an engine's run of the model showed: arrays by name, and what is known of how they came about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from tapml.tensors import HostArray


@dataclass(frozen=True)
class Seen:
    """`values` in the order in which they were computed, where the engine tells. `paths`: the module path that a value's name or
    metadata names, "encoder.layer.0.output.dense". `made_of`: the names that each was computed from, in that order; empty where
    nobody knows. `outputs`: what the engine gives its users. `rounded`: values that the nodes behind them read in another form,
    since they are quantized there."""

    values: Mapping[str, HostArray]
    paths: Mapping[str, str] = field(default_factory=dict)
    made_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    rounded: Mapping[str, Callable[[HostArray], HostArray]] = field(default_factory=dict)

    @cached_property
    def _bits(self) -> dict[str, int]:
        """Equal values that were computed twice from the same have one bit: engines do so, to dequantize beside each of
        its readers."""
        found: dict[str, int] = {}
        first: dict[tuple[str, ...], list[str]] = {}
        for k, name in enumerate(dict.fromkeys((*self.values, *self.made_of))):
            twins = first.setdefault(self.made_of.get(name, (name,)), [])
            twin = next((other for other in twins if self._equal(name, other)), None)
            twins.append(name)
            found[name] = 1 << k if twin is None else found[twin]
        return found

    def _equal(self, one: str, other: str) -> bool:
        return one in self.values and other in self.values and np.array_equal(self.values[one], self.values[other])

    @cached_property
    def _reach(self) -> dict[str, int]:
        """For each name those that it was computed from, itself too, as bits."""
        found: dict[str, int] = {}
        for name, sources in self.made_of.items():
            found[name] = self._bits[name]
            for source in sources:
                found[name] |= found.get(source, self._bits.get(source, 0))
        return found

    @cached_property
    def _users(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, sources in self.made_of.items():
            for source in sources:
                found.setdefault(source, []).append(name)
        return found

    def soon_after(self, name: str, steps: int) -> list[str]:
        """Values that were computed from one in at most so many steps, the nearest first; none where nobody knows."""
        found: dict[str, None] = {}
        front = [name]
        for _ in range(steps):
            front = [user for source in front for user in self._users.get(source, ()) if user not in found]
            found |= dict.fromkeys(front)
        return [user for user in found if user in self.values]

    def depends(self, name: str, source: str) -> bool:
        """Whether one value was computed from another; True where nobody knows."""
        if not self.made_of or source not in self._bits:
            return True
        return bool(self._reach.get(name, self._bits.get(name, 0)) & self._bits[source])
