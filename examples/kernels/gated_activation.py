"""silu(gate) * up, as numpy computes it: `tapml test run --kernels examples/kernels --target torch`."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def gated_activation(gate: Tensor, up: Tensor) -> Any:
    """The inputs of the operator in order, as tensors; what it gives may be an array."""
    x = gate.numpy()
    return x / (1 + np.exp(-x)) * up.numpy()
