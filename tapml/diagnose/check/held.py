"""An engine's values by kind, number of elements and norm: which may be a value of the model, before elements are compared.

    held = Held(seen.values, {64: 12})
    held.sized(own)        may lie over it in some order of axes (`fits.py`), the engine's order
    held.near(own)         of those, the ones whose norm is about that of the part that they would cover
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tapml.diagnose.check.fits import regions
from tapml.tensors import FLOATS, NUMPY, HostArray

# Norms that are this near may belong to one value.
NEAR = 0.02

# Numbers from here on are taken for a mask.
_MASK = 1e30

_FLOATING = frozenset(NUMPY[name] for name in FLOATS)


class Held:
    """`real`: of axes of so many positions in the run's graph, how many are no padding."""

    def __init__(self, values: Mapping[str, HostArray], real: Mapping[int, int]) -> None:
        self._values = values
        self._real = real
        self._names: dict[tuple[bool, int], list[str]] = {}
        self._norms: dict[str, float] = {}
        for name, array in values.items():
            self._names.setdefault((floating(array), array.size), []).append(name)
        self._place = {name: place for place, name in enumerate(values)}

    def sized(self, own: HostArray) -> list[str]:
        kind = floating(own)
        sizes = {math.prod(region) for region in regions(own.shape, self._real)}
        found = [name for size in sizes for name in self._names.get((kind, size), ())]
        more = [name for name in self._of_many(own) if self._values[name].size not in sizes]
        return sorted((*found, *more), key=self._place.__getitem__)

    def near(self, own: HostArray) -> list[str]:
        kind = floating(own)
        found = set(self._of_many(own))
        for region in regions(own.shape, self._real):
            names = self._names.get((kind, math.prod(region)), ())
            if names:
                n = norm(own[tuple(slice(0, k) for k in region)])
                found.update(name for name in names if abs(self._norm(name) - n) <= NEAR * n)
        return sorted(found, key=self._place.__getitem__)

    def _of_many(self, own: HostArray) -> list[str]:
        """Those with an axis of positions of which the model keeps the last."""
        kind = floating(own)
        return [
            name for n in dict.fromkeys(self._real.values()) if n > 1
            for name in self._names.get((kind, own.size * n), ()) if n in self._values[name].shape
        ]  # fmt: skip

    def _norm(self, name: str) -> float:
        if name not in self._norms:
            self._norms[name] = norm(self._values[name])
        return self._norms[name]


def floating(array: HostArray) -> bool:
    return array.dtype in _FLOATING


def norm(array: HostArray) -> float:
    """Of the elements that are finite and no mask; about, for float32."""
    if not array.size:
        return 0.0
    if array.dtype == np.float32:
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            square = float(np.dot(flat, flat))
        if 1e-20 < square < 1e30:  # neither an element that is left out nor one whose square is lost
            return math.sqrt(square)
    wide = array.astype(np.float64)
    wide = wide[np.abs(wide) < _MASK]  # False for NaN
    return float(np.sqrt(np.dot(wide, wide)))
