"""References: what an operator's outputs are judged by, made from one call on the source.

    maker = ReferenceMaker(body)
    references = maker.make(inputs, outputs)          torch tensors in; `outputs` as they were recorded, None: computed now
    references = maker.on_host(arrays)                the same over numpy arrays

For each output: the source's answer, float64's, the elements that the source cannot decide (`distance.undecided`,
`tapml.carving.jumps`), and how exact the source is (`tolerance.Accuracy`).

Few elements say little about how exact the source is: one call may be exact by luck. So the source and float64 also run on
inputs that are a rounding away from the recorded ones, until `SAMPLED` elements were measured or `MOST` calls made. What
is judged is the recorded call alone. Weights stay as they are, and so do zeros, masks, infinities and integers.

In half precision the body also runs in float32, since a right kernel keeps its sums there and rounds at the end: how far that is
from float64 is what such a kernel may be off by before it rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tapml.carving.distance import HALF, half_step, scale_of, straddling, undecided
from tapml.carving.jumps import JumpFinder
from tapml.carving.ties import has_ties, leads
from tapml.carving.tolerance import Accuracy, Reference, measure
from tapml.operators.execute import BodyFunction, NodeByNode, body_function, host_from_tensor, tensor_from_host
from tapml.operators.graph import Body
from tapml.tensors import EPSILON, FLOATS, HostArray, dtype_name

# Elements of the outputs on which the source's exactness is measured, where that takes no more calls than this.
SAMPLED = 4096
MOST = 8

_MASK_VALUE = 1e30

Mask = NDArray[np.bool_]
Range = tuple[NDArray[Any], NDArray[Any]]


class ReferenceMaker:
    """See the module's docstring. `device` is where the tensors are that `make` is given; `most` the calls that it makes."""

    def __init__(self, body: Body, device: str | torch.device = "cpu", most: int = MOST) -> None:
        self.body = body
        self._most = most
        self._device = device
        self._source = body_function(body, device=device)
        self._half = any(spec.dtype in HALF for spec in body.output_specs)
        self._jumps = JumpFinder(body, device)

    @cached_property
    def _exact(self) -> BodyFunction:
        return body_function(self.body, torch.float64, self._device)

    @cached_property
    def _working(self) -> BodyFunction:
        return body_function(self.body, torch.float32, self._device)

    def on_host(self, inputs: Sequence[HostArray], outputs: Sequence[HostArray] | None = None) -> list[Reference]:
        """`make` over numpy arrays."""
        return self.make([tensor_from_host(a, self._device) for a in inputs], outputs)

    def make(self, inputs: Sequence[torch.Tensor], outputs: Sequence[HostArray] | None = None) -> list[Reference]:
        """The references of one call: all of the body's inputs in order, as the source has them, and what it gave."""
        with torch.inference_mode():
            held = _Weights(self.body, inputs)
            found = self._led(self._once(inputs, held, outputs), inputs)
            floats = [r for r in found if r.dtype in FLOATS]
            elements = sum(r.compared for r in floats)
            if not elements:
                return found
            accuracies = [r.accuracy for r in found]
            for seed in range(min(self._most, -(-SAMPLED // elements)) - 1):
                moved = _moved(self.body, inputs, seed)
                again = self._once(moved, held, None)
                accuracies = [a.largest(r.accuracy) for a, r in zip(accuracies, again, strict=True)]
        return [replace(r, accuracy=a) for r, a in zip(found, accuracies, strict=True)]

    def _led(self, found: list[Reference], inputs: Sequence[torch.Tensor]) -> list[Reference]:
        """With what indices lead to, where equal values are among it."""
        led = leads(self.body)
        if not led:
            return found
        steps = NodeByNode(self.body, device=self._device)
        values = steps.begin(inputs)
        last = max(steps.slots[lead.value] for lead in led.values()) - len(self.body.inputs)
        for k in range(last + 1):
            steps.run(k, values)
        for k, (name, dim, _) in led.items():
            x = host_from_tensor(values[steps.slots[name]])
            if has_ties(x, dim):
                found[k] = replace(found[k], led=(x, dim))
        return found

    def _once(
        self, inputs: Sequence[torch.Tensor], held: _Weights, outputs: Sequence[HostArray] | None
    ) -> list[Reference]:
        given = outputs if outputs is not None else [host_from_tensor(t) for t in self._source(inputs)]
        exact = [host_from_tensor(t) for t in self._exact(held.wide(inputs, torch.float64))]
        working: Sequence[HostArray | None] = [None] * len(exact)
        if self._half:
            working = [host_from_tensor(t) for t in self._working(held.wide(inputs, torch.float32))]
        ranges: Sequence[Range | None] = [None] * len(exact)
        if self._jumps.jumps:
            ranges = self._jumps.ranges(inputs)
        strict = self._jumps.strict
        return [_reference(*each, strict) for each in zip(given, exact, working, ranges, strict=True)]


class _Weights:
    """The weights of a call in wider dtypes, cast once for all calls that follow."""

    def __init__(self, body: Body, inputs: Sequence[torch.Tensor]) -> None:
        self._places = [k for k, role in enumerate(body.roles) if role == "weight" and inputs[k].is_floating_point()]
        self._inputs = inputs
        self._cast: dict[torch.dtype, dict[int, torch.Tensor]] = {}

    def wide(self, inputs: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
        if dtype not in self._cast:
            self._cast[dtype] = {k: self._inputs[k].to(dtype) for k in self._places}
        cast = self._cast[dtype]
        return [cast.get(k, tensor) for k, tensor in enumerate(inputs)]


def _reference(
    values: HostArray, exact: HostArray, working: HostArray | None, reach: Range | None, strict: bool
) -> Reference:
    dtype = dtype_name(values)
    mask = undecided(values, exact)
    if reach is None:
        return Reference(values, _accuracy(values, exact, working, mask), exact if dtype in FLOATS else None, mask)
    low, high = reach
    hangs = ~((low == high) | (np.isnan(low) & np.isnan(high)))
    if dtype not in FLOATS:
        if strict and dtype != "bool":
            mask = None if mask is None else _union(mask & ~hangs, None)
            return Reference(values, Accuracy(), None, mask, _within(reach, hangs))
        return Reference(values, Accuracy(), None, _union(mask, hangs))
    accuracy = _accuracy(values, exact, working, _union(mask, hangs))
    unit = np.abs(exact) + scale_of(exact, values)
    with np.errstate(invalid="ignore"):
        straddles = hangs & ~(high - low <= accuracy.bound(dtype) * unit)
    accuracy = _accuracy(values, exact, working, _union(mask, straddles))
    if strict:
        return Reference(values, accuracy, exact, mask, _within(reach, straddles & np.isfinite(low) & np.isfinite(high)))
    mask, accuracy = _without_outliers(values, exact, working, _union(mask, straddles), accuracy)
    return Reference(values, accuracy, exact, mask)


def _within(reach: Range, where: Mask) -> tuple[Mask, HostArray, HostArray] | None:
    """The elements that straddle a jump, and the least and greatest of each that is right."""
    return (where, reach[0][where], reach[1][where]) if where.any() else None


def _accuracy(values: HostArray, exact: HostArray, working: HostArray | None, mask: Mask | None) -> Accuracy:
    if working is None or dtype_name(values) not in HALF:
        return measure(values, exact, mask)
    return measure(values, exact, mask, working)


def _without_outliers(
    values: HostArray, exact: HostArray, working: HostArray | None, mask: Mask | None, accuracy: Accuracy
) -> tuple[Mask | None, Accuracy]:
    """Where the body jumps, elements whose error stands far above all others straddle one too."""
    errors = np.maximum(np.abs(values.astype(np.float64) - exact) - half_step(exact, dtype_name(values)), 0.0)
    errors /= np.abs(exact) + scale_of(exact, values)
    if mask is not None:
        errors = np.where(mask, 0.0, errors)
    count = straddling(errors, dtype_name(values))
    if not count:
        return mask, accuracy
    far = errors >= np.sort(errors, axis=None)[-count]
    mask = _union(mask, far)
    return mask, _accuracy(values, exact, working, mask)


def _union(a: Mask | None, b: Mask | None) -> Mask | None:
    found = b if a is None else a if b is None else a | b
    return found if found is not None and found.any() else None


def moved_by_a_rounding(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The tensor with every ordinary value moved by a rounding, up or down, or left. Integers, zeros, masks (beyond 1e30, or half
    of what the dtype holds) and infinities stay."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return tensor
    epsilon = EPSILON[str(tensor.dtype).removeprefix("torch.")]
    sign = torch.randint(-1, 2, tuple(tensor.shape), generator=generator, dtype=torch.int8).to(tensor.device, torch.float64)
    wide = tensor.to(torch.float64)
    limit = min(_MASK_VALUE, torch.finfo(tensor.dtype).max / 2)
    return torch.where(wide.abs() < limit, (wide * (1.0 + epsilon * sign)).to(tensor.dtype), tensor)


def _moved(body: Body, inputs: Sequence[torch.Tensor], seed: int) -> list[torch.Tensor]:
    """The activations and states a rounding away; the weights as they are."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return [
        tensor if role == "weight" else moved_by_a_rounding(tensor, generator)
        for tensor, role in zip(inputs, body.roles, strict=True)
    ]
