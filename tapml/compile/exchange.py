"""Arrays between the compiler and its worker, as files of their bytes in a folder: `0.input`, …, `0.output`, …

What shape and dtype they have, the body says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tapml.tensors import NUMPY, HostArray, TensorSpec

Kind = Literal["input", "output"]


def write(folder: Path, kind: Kind, arrays: Sequence[HostArray]) -> None:
    for k, array in enumerate(arrays):
        (folder / f"{k}.{kind}").write_bytes(np.ascontiguousarray(array).tobytes())


def read(folder: Path, kind: Kind, specs: Sequence[TensorSpec]) -> list[HostArray]:
    return [
        np.frombuffer((folder / f"{k}.{kind}").read_bytes(), NUMPY[spec.dtype]).reshape(spec.shape)
        for k, spec in enumerate(specs)
    ]
