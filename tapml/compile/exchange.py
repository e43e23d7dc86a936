"""Arrays between the compiler and its worker, as files of their bytes in a folder: `0.input`, …, `0.output`, …

What shape and dtype they have, the body says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tapml.operators.graph import Body
from tapml.tensors import NUMPY, HostArray, TensorSpec


def write_inputs(folder: Path, arrays: Sequence[HostArray]) -> None:
    _write(folder, "input", arrays)


def read_inputs(folder: Path, body: Body) -> list[HostArray]:
    return _read(folder, "input", body.inputs)


def write_outputs(folder: Path, arrays: Sequence[HostArray]) -> None:
    _write(folder, "output", arrays)


def read_outputs(folder: Path, body: Body) -> list[HostArray]:
    return _read(folder, "output", body.output_specs)


def _write(folder: Path, kind: str, arrays: Sequence[HostArray]) -> None:
    for k, array in enumerate(arrays):
        (folder / f"{k}.{kind}").write_bytes(np.ascontiguousarray(array).tobytes())


def _read(folder: Path, kind: str, specs: Sequence[TensorSpec]) -> list[HostArray]:
    return [
        np.frombuffer((folder / f"{k}.{kind}").read_bytes(), NUMPY[spec.dtype]).reshape(spec.shape)
        for k, spec in enumerate(specs)
    ]
