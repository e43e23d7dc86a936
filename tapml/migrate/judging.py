"""From comparisons to what a verdict says: every output of a call, the range of integers, how much was compared.

    found = judged(actual, references)             a comparison an output
    coverage.add(found, inputs, references, body)  over the calls of one operator; coverage.hollow() says why they show nothing
    verdict = worse(before, now)                   of two calls

Numbers are compared in `tapml.carving.tolerance`; running, and writing verdicts, is `tapml.migrate.operator_test`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tapml.carving.tolerance import LEAST, Comparison, Reference, compare, enough
from tapml.operators.graph import Body
from tapml.tensors import NUMPY, HostArray, TensorSpec, dtype_name, out_of_range
from tapml.verdicts import Verdict

# A number an output, by the step of the first prompt.
ByStep = dict[int, tuple[float, ...]]


class Coverage:
    """How much of each output was compared, over the calls of one operator. What counts, and what not: an element that is NaN
    because a whole input is NaN is no evidence, since whatever a kernel computes from it is NaN too."""

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}
        self._compared: dict[int, int] = {}
        self.elements = 0
        self.excluded = 0

    def add(
        self, found: Sequence[Comparison], inputs: Sequence[HostArray], references: Sequence[Reference], body: Body
    ) -> None:
        starved = any(
            role != "weight" and array.size and array.dtype.kind not in "iub" and bool(np.isnan(array.astype(np.float64)).all())
            for array, role in zip(inputs, body.roles, strict=True)
        )
        for k, (comparison, reference) in enumerate(zip(found, references, strict=True)):
            self._calls[k] = self._calls.get(k, 0) + comparison.elements
            compared = comparison.elements - comparison.excluded + comparison.straddling if comparison.bound < 1.0 else 0
            if starved and reference.exact is not None and bool(np.isnan(reference.exact).all()):
                compared = 0
            self._compared[k] = self._compared.get(k, 0) + compared
            self.elements += comparison.elements
            self.excluded += comparison.excluded

    def hollow(self) -> str:
        """Why this shows nothing; "" where enough was compared of every output."""
        for k, total in self._calls.items():
            if not enough(self._compared[k], total):
                output = f" of output {k}" if len(self._calls) > 1 else ""
                return (
                    f"only {self._compared[k]:,} of {total:,} elements{output} could be compared, less than {LEAST:.0%}: on the "
                    "others the source cannot decide (it overflows, holds NaN, is too far from float64, or stands at a jump), so "
                    "this proves nothing. Record other inputs, or carve in float32"
                )
        return ""


def judged(actual: Sequence[HostArray], references: Sequence[Reference]) -> list[Comparison]:
    """The comparison of each output. An integer out of its range fails also where the source cannot decide."""
    found: list[Comparison] = []
    for y, reference in zip(actual, references, strict=True):
        compared = compare(y, reference)
        if compared.passed and out_of_range(y, reference.dtype):
            compared = replace(compared, error=math.inf, over=1)
        found.append(compared)
    return found


def why_out_of_range(actual: HostArray, expected: HostArray, stored: TensorSpec) -> str:
    """What to say of a failed output whose integers do not fit where they are, or where they should be."""
    dtype = dtype_name(expected)
    words = out_of_range(actual, dtype)
    if words:
        return f"{words}; "
    have, want = NUMPY[stored.dtype], NUMPY[dtype]
    if have.kind != "i" or want.kind != "i" or have.itemsize >= want.itemsize or not expected.size:
        return ""
    low, high = int(expected.min()), int(expected.max())
    limits = np.iinfo(have)
    if limits.min <= low and high <= limits.max:
        return ""
    beyond = high if high > limits.max else low
    return f"the right answer holds {beyond}, and this target stores {dtype} as {stored.dtype}; "


def worse(before: Verdict | None, now: Verdict) -> Verdict:
    """Of the verdicts on two calls. One that shows nothing says less than one that does."""
    if before is None:
        return now
    if "unchecked" in (before.status, now.status) and before.status != now.status:
        return now if before.status == "unchecked" else before
    return now if now.badness > before.badness else before


def at_step(errors: ByStep, step: int, outputs: int) -> tuple[float, ...]:
    """The source's compound error at a call; where none was measured, the largest that was."""
    if step in errors:
        return errors[step]
    return tuple(max(e[k] for e in errors.values()) for k in range(outputs)) if errors else (0.0,) * outputs
