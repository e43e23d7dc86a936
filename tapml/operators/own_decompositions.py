"""Operators written with others where torch has no decomposition: `OWN`, by overload, as functions over torch tensors.

They are traced in place of the operator (`tapml.operators.decompose`), so shapes are numbers here, and what they call is
decomposed in its turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten


def _nonzero_static(x: torch.Tensor, *, size: int, fill_value: int = -1) -> torch.Tensor:
    """The k-th that is not zero is the first up to which there are k of them."""
    count = math.prod(x.shape)
    if not size or not count or not x.dim():
        return x.new_full((size, x.dim()), fill_value, dtype=torch.int64)
    upto = torch.cumsum((x != 0).reshape(-1).to(torch.int64), 0)
    place = torch.searchsorted(upto, torch.arange(1, size + 1, device=x.device))
    there = place < count
    columns, step = [], count
    for extent in x.shape:
        step //= extent
        columns.append(torch.where(there, torch.div(place, step, rounding_mode="floor") % extent, fill_value))
    return torch.stack(columns, 1)


OWN: dict[Any, Callable[..., Any]] = {
    aten.nonzero_static.default: _nonzero_static,
}
