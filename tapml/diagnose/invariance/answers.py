"""One answer of a target over memory with a known content, and how far two answers are from each other.

    outputs = answer(bench, operator, program, inputs, specs, ZERO)
    apart = difference(outputs, first, references)          None where all bits are the same

Two right answers are each within the bound of float64, and each rounds to its dtype: the unit of `of_bound` is the bound and one
such rounding, so that in half precision the next number is no large difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tapml.backends.interface import Compiled
from tapml.carving.distance import HALF, distance
from tapml.carving.tolerance import Reference
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator
from tapml.runtime.buffers import as_bytes
from tapml.tensors import EPSILON, NUMPY, HostArray, TensorSpec, as_read, convert

# Bytes that outputs and scratch hold before a run: NaN and -1; zeros; a large number in every dtype. LEFT: whatever the work
# before left there.
NAN, ZERO, LARGE = 0xFF, 0x00, 0x5F
LEFT = None


@dataclass(frozen=True)
class Apart:
    """The largest difference of an element, in output `output`, and the largest distance in units of the bound."""

    output: int
    difference: float
    of_bound: float

    @property
    def size(self) -> tuple[float, float]:
        """Sorts the larger last."""
        return self.of_bound, self.difference


def answer(
    bench: Workbench, operator: Operator, program: Compiled, inputs: Sequence[HostArray], specs: Sequence[TensorSpec],
    filling: int | None,
) -> list[HostArray]:
    """The outputs of one run in the dtypes of `specs`; weights are those that lie on the device. Raises DeviceError, DeviceLost
    and ConnectionLost."""
    backend = bench.backend
    with backend.pool.borrowed() as take:

        def memory(nbytes: int) -> int:
            buffer = take(nbytes)
            if filling is not None and nbytes:
                backend.write(buffer, bytes([filling]) * nbytes)
            return buffer

        given: list[int] = []
        for array, key, spec in zip(inputs, bench.model.weight_keys(operator), program.inputs, strict=True):
            if key is not None:
                given.append(bench.weight_buffer(operator, key, spec.dtype))
                continue
            given.append(take(spec.nbytes))
            backend.write(given[-1], as_bytes(convert(array, spec.dtype)), keep=True)
        outputs = [memory(spec.nbytes) for spec in program.outputs]
        scratch = [memory(nbytes) for nbytes in program.scratch]
        backend.submit(backend.record(program, given, outputs, scratch))
        sources = dict(enumerate(outputs)) | {o: given[i] for o, i in program.forwards}
        made = backend.read_many([(sources[k], spec.nbytes, 0) for k, spec in enumerate(program.outputs)])
        return [
            as_read(np.frombuffer(data, NUMPY[stored.dtype]).reshape(spec.shape), spec.dtype)
            for data, stored, spec in zip(made, program.outputs, specs, strict=True)
        ]


def difference(outputs: Sequence[HostArray], first: Sequence[HostArray], references: Sequence[Reference]) -> Apart | None:
    """How far two answers to the same inputs are apart; None where they have the same bits."""
    found: Apart | None = None
    for k, (y, x, reference) in enumerate(zip(outputs, first, references, strict=True)):
        if same(y, x):
            continue
        here = Apart(k, _largest(y, x), _of_bound(y, x, reference))
        if found is None or here.size > found.size:
            found = here
    return found


def same(a: HostArray, b: HostArray) -> bool:
    """The same bits, so that NaN equals itself."""
    return a.dtype == b.dtype and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _largest(a: HostArray, b: HostArray) -> float:
    wide, other = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.abs(wide - other)
    both = (wide == other) | (np.isnan(wide) & np.isnan(other))
    return float(np.max(np.where(both, 0.0, np.where(np.isnan(off), math.inf, off)), initial=0.0))


def _of_bound(y: HostArray, x: HostArray, reference: Reference) -> float:
    masked = x if reference.excluded is None else np.ma.MaskedArray(x, reference.excluded)
    error = distance(y, masked)
    room = reference.bound + (EPSILON[reference.dtype] if reference.dtype in HALF else 0.0)
    return error / room if room else math.inf if error else 0.0
