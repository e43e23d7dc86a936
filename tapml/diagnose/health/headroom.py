"""How far an operator's numbers are from the end of a half-precision type, in bits.

    peak = Peak()
    peak.see(array, "output 0: aten.mul.Tensor", "float32", stored=True)
    peak.reach(70000.0, "partial sums of aten.linear.default")
    bits(peak.magnitude, "float16")           log2(65504 / largest magnitude): below 0 it would overflow

Numbers that are put there on purpose (infinities, and the limits of the dtype that masks are made of) do not count as magnitudes:
they would be others in another dtype. The share of numbers that float16 would lose (below 2^-24) or hold with fewer digits (below
2^-14, its smallest normal) counts those that are not zero. What is `stored` between operators has to fit the type itself; what
is inside one may be kept in float32 by kernels that do so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from tapml.tensors import NUMPY, HostArray

# Largest finite numbers.
LIMITS = {name: float(ml_dtypes.finfo(NUMPY[name]).max) for name in ("float16", "bfloat16")}

LOST = 2.0**-24
SUBNORMAL = 2.0**-14

# A mask's lowest number, or one that something was added to, is this close to the limit of its dtype.
_NEAR = 2.0**-8


def bits(magnitude: float, dtype: str) -> float | None:
    """Headroom of a magnitude in float16 or bfloat16; None for 0.0, which has no end of it."""
    return math.log2(LIMITS[dtype] / magnitude) if magnitude > 0 else None


@dataclass
class Peak:
    """The largest magnitude of an operator and where it stands, over all that was seen of it; and the largest that is stored."""

    magnitude: float = 0.0
    stored: float = 0.0
    where: str = ""
    counted: int = 0
    lost: int = 0
    subnormal: int = 0
    _known: set[str] = field(default_factory=set)

    def see(
        self, array: HostArray, where: str, dtype: str, stored: bool = False, count: bool = False, once: str | None = None
    ) -> None:
        """Looks at an array of which the source's dtype is `dtype`. `count`: its small numbers count. `once`: a name under which
        it is looked at one time only, for weights."""
        if once is not None:
            if once in self._known:
                return
            self._known.add(once)
        sizes = np.abs(array.astype(np.float64, copy=False)).reshape(-1)
        limit = float(ml_dtypes.finfo(NUMPY[dtype]).max)
        meant = ~np.isfinite(sizes) | (np.abs(sizes - limit) <= limit * _NEAR)
        if meant.any():
            sizes = sizes[~meant]
        if sizes.size:
            size = float(sizes.max())
            self.reach(size, where)
            self.stored = max(self.stored, size) if stored else self.stored
        if count:
            some = sizes > 0
            self.counted += int(some.sum())
            self.lost += int((some & (sizes < LOST)).sum())
            self.subnormal += int((some & (sizes < SUBNORMAL)).sum())

    def reach(self, magnitude: float, where: str) -> None:
        if magnitude > self.magnitude:
            self.magnitude, self.where = magnitude, where

    @property
    def lost_share(self) -> float:
        return self.lost / self.counted if self.counted else 0.0

    @property
    def subnormal_share(self) -> float:
        return self.subnormal / self.counted if self.counted else 0.0
