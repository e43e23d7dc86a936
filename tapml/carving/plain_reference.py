"""What an output is judged by, in a form that a few lines of any language can use: for reproducers and exported cases.

    plain = PlainReference.of(reference, "float32")
    passed if abs(actual - plain.expected) <= plain.bound * (abs(plain.expected) + plain.scale), where not plain.left_out

It is the rule for single elements (`tapml.carving.tolerance`), a little wider: half a step of the dtype around the exact value is
not left out of the error but added to the bound. Elements at a jump, which have two right values, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapml.carving.distance import scale_of
from tapml.carving.tolerance import Reference
from tapml.tensors import EPSILON, HostArray


@dataclass(frozen=True, eq=False)
class PlainReference:
    """`expected` is float64's answer, for integers and booleans the source's, which must be met exactly: then `bound` is 0. NaN
    and infinities must stand where they are expected. `left_out` marks elements that are not to be compared (None: none)."""

    expected: HostArray
    bound: float
    scale: float
    left_out: NDArray[np.bool_] | None

    @staticmethod
    def of(reference: Reference, stored: str) -> PlainReference:
        """For an output that is rounded to the graph's dtype, and to that in which it is `stored`."""
        masks = [m for m in (reference.excluded, None if reference.either is None else reference.either[0]) if m is not None]
        left_out = np.logical_or.reduce(masks) if masks else None
        if reference.exact is None:
            return PlainReference(reference.values, 0.0, 1.0, left_out)
        rounding = (EPSILON[reference.dtype] + EPSILON[stored]) / 2
        scale = scale_of(reference.exact, reference.values)
        return PlainReference(reference.exact, reference.bound + rounding, scale, left_out)

    def fails(self, actual: HostArray) -> bool:
        """Whether an output that was read back is wrong by this rule."""
        x, y = (np.asarray(a).astype(np.float64).reshape(self.expected.shape) for a in (self.expected, actual))
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.abs(y - x) > self.bound * (np.abs(x) + self.scale)
        wrong = np.where(np.isfinite(x) & np.isfinite(y), off, ~((x == y) | (np.isnan(x) & np.isnan(y))))
        return bool((wrong if self.left_out is None else wrong & ~self.left_out).any())
