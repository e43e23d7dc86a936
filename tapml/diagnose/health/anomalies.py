"""Numbers that went bad: which elements of a result overflowed, underflowed, or became NaN or Inf where float64 has a number.

    for kind, where in bad_elements(actual, exact).items(): ...         where is a boolean mask of the result's shape

`exact` is what float64 gives for the very inputs that `actual` was made from. So a NaN or Inf that came in explains itself, and a
mask of -inf, which float64 gives as well, is meant. What is left was made here:

    overflow    infinite, where float64 gives a finite number beyond the dtype's largest
    inf         infinite, where float64 gives a number that the dtype could hold, or the other infinity
    nan         not a number, where float64 gives one
    underflow   exactly zero, where float64 gives another number below the dtype's smallest normal one
"""

from __future__ import annotations

from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tapml.tensors import HostArray

Kind = Literal["overflow", "nan", "inf", "underflow"]
KINDS: tuple[Kind, ...] = ("overflow", "nan", "inf", "underflow")


def bad_elements(actual: HostArray, exact: HostArray) -> dict[Kind, NDArray[np.bool_]]:
    """The kinds that occur. Both arrays are floats of the same shape. Raises ValueError on another shape."""
    if actual.shape != exact.shape:
        raise ValueError(f"a result of shape {actual.shape} has no counterpart in one of {exact.shape}")
    kind = ml_dtypes.finfo(actual.dtype)
    y, x = actual.astype(np.float64), exact.astype(np.float64)
    size = np.abs(x)
    infinite = np.isinf(y) & ~np.isnan(x) & (y != x)
    beyond = infinite & np.isfinite(x) & (size > float(kind.max))
    found: dict[Kind, NDArray[np.bool_]] = {
        "overflow": beyond,
        "nan": np.isnan(y) & ~np.isnan(x),
        "inf": infinite & ~beyond,
        "underflow": (y == 0) & (size > 0) & (size < float(kind.smallest_normal)),
    }
    return {name: mask for name, mask in found.items() if mask.any()}
