"""Which calls of an operator are kept as cases, decided while they stream by.

Operators with equal signatures run equal kernels, so the choice is made per signature. A case must be worth its bytes: it
covers a position in the model, or it is extreme in its numbers. Each signature has up to `limit` slots, filled in this order of
importance (a limit of 3 uses the first three):

    1  first layer       the signature's first operator, its first call
    2  late step         the same operator as late in a generation as was reached (a full key-value cache, large positions)
    3  largest magnitude the largest |input|
    4  non-finite        the first call with NaN or an infinity in an input or output, or an int64 beyond 32 bits, if there is one
    5  last layer        the signature's last operator, its first call in the last prompt
    6  widest range      the largest (max - min) of an output
    7  sample            what remains of the limit: a uniform random sample of all calls (seeded)

Of an operator that stays on the source no call is kept: there is nothing to test.

Late positions of a decoder (`tapml.carving.late`) are kept beside the slots, whatever the limit: one case a position and
signature, recorded from one operator. They compete for no slot.

A call that is the best in several slots is stored once. Slots compete for nothing, so the first `limit` slots are always
the ones described, whatever came later.

Cost. A call is judged by the minimum and maximum of its inputs and outputs, each read once; weights are never looked
at, nor are booleans. A challenger must be `HYSTERESIS` times as extreme as what it displaces, and the late step moves at
powers of two and at the planned end only, so writes grow with the logarithm of the number of calls. What is displaced is
removed from disk when no other slot holds it. Memory holds one small record a kept case and a few numbers a signature,
whatever the number of calls.

Magnitudes are of ordinary values: infinities, NaN and numbers beyond 1e30 (mask values such as float32's minimum) do not count,
or a mask would win every comparison.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from tapml.carving import layout
from tapml.errors import UsageError
from tapml.operators.execute import host_from_tensor
from tapml.operators.graph import Body, Operator
from tapml.operators.stays import why_it_stays
from tapml.tensors import HostArray, Layout

HYSTERESIS = 1.05
MASK_VALUE = 1e30

FIRST, LATE, MAGNITUDE, NONFINITE, LAST, RANGE = (
    "first layer", "late step", "largest magnitude", "non-finite", "last layer", "widest range"
)  # fmt: skip
SAMPLE = "sample"
SLOTS = (FIRST, LATE, MAGNITUDE, NONFINITE, LAST, RANGE)

Write = Callable[[str, dict[str, HostArray]], int]
Remove = Callable[[str], None]


@dataclass(frozen=True)
class Moment:
    """When a call happens. `step` counts the calls of the generation from 0; `position` is what makes a step late (the
    token's position; 0 where there are no steps); `checkpoint` says that a late case may be taken here."""

    prompt: int
    step: int
    position: int = 0
    checkpoint: bool = False
    last_prompt: bool = False


@dataclass
class Kept:
    """A call on disk. `reasons` are the slots that hold it, `layouts` how inputs lay in memory that were not contiguous."""

    operator: str
    moment: Moment
    file: str
    nbytes: int
    reasons: set[str] = field(default_factory=set)
    layouts: tuple[tuple[int, Layout], ...] = ()


@dataclass
class Tally:
    """Counts for one signature. `naive_bytes`: what inputs (weights not counted) and outputs of all calls would take."""

    seen: int = 0
    naive_bytes: int = 0
    slots: dict[str, Kept] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> list[Kept]:
        unique = {id(k): k for k in self.slots.values()}
        return list(unique.values())

    @property
    def dropped(self) -> int:
        return self.seen - len(self.kept)


class Selection:
    """Sees every call once, through `offer`. `write(name, arrays)` stores one case, `remove(name)` takes it back."""

    def __init__(
        self, operators: Sequence[Operator], bodies: dict[str, Body], limit: int, write: Write, remove: Remove, seed: int = 0
    ) -> None:
        if limit < 1:
            raise UsageError(f"--cases {limit}: at least one case per signature is needed to test anything. Give 1 or more.")
        self.tallies: dict[str, Tally] = {}
        self._bodies = bodies
        self._stay = frozenset(signature for signature, body in bodies.items() if why_it_stays(body))
        self._write, self._remove = write, remove
        self._slots = frozenset(SLOTS[:limit])
        self._samples = max(0, limit - len(SLOTS))
        self._random = random.Random(seed)
        self._written = 0
        self._first: dict[str, str] = {}
        self._last: dict[str, str] = {}
        for operator in operators:
            self._first.setdefault(operator.signature, operator.name)
            self._last[operator.signature] = operator.name
            self.tallies.setdefault(operator.signature, Tally())
        self._carried: dict[str, tuple[int, ...]] = {
            s: tuple(k for k, role in enumerate(body.roles) if role != "weight") for s, body in bodies.items()
        }
        self._call_bytes = {
            s: sum(body.inputs[k].nbytes for k in self._carried[s]) + sum(o.nbytes for o in body.output_specs)
            for s, body in bodies.items()
        }

    def offer(
        self, operator: Operator, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], moment: Moment
    ) -> None:
        """Looks at one call: all inputs in the body's order (weights among them), all outputs."""
        tally = self.tallies[operator.signature]
        tally.seen += 1
        tally.naive_bytes += self._call_bytes[operator.signature]
        if operator.signature in self._stay:
            return
        carried = self._carried[operator.signature]
        won = self._positions(operator, moment, tally)
        won += self._extremes([inputs[k] for k in carried], outputs, tally)
        won += self._sampled(tally)
        if won:
            self._keep(operator, inputs, outputs, moment, won)

    def offer_late(
        self, operator: Operator, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], moment: Moment, why: str | None
    ) -> None:
        """A call at a late position: counted, and kept for the reason `why` if there is one."""
        tally = self.tallies[operator.signature]
        tally.seen += 1
        tally.naive_bytes += self._call_bytes[operator.signature]
        if why is not None and operator.signature not in self._stay:
            self._keep(operator, inputs, outputs, moment, [why])

    def _positions(self, operator: Operator, moment: Moment, tally: Tally) -> list[str]:
        won: list[str] = []
        if operator.name == self._first[operator.signature]:
            if FIRST not in tally.slots:
                won.append(FIRST)
            elif moment.checkpoint and moment.position > tally.scores.get(LATE, tally.slots[FIRST].moment.position):
                tally.scores[LATE] = moment.position
                won.append(LATE)
        if operator.name == self._last[operator.signature] and moment.last_prompt and LAST not in tally.slots:
            won.append(LAST)
        return [slot for slot in won if slot in self._slots]

    def _extremes(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], tally: Tally) -> list[str]:
        won: list[str] = []
        nonfinite, magnitude, widest = False, 0.0, 0.0
        for tensor in inputs:
            low, high, clean = extent(tensor)
            nonfinite |= not clean
            magnitude = max(magnitude, -low, high)
        for tensor in outputs:
            low, high, clean = extent(tensor)
            nonfinite |= not clean
            widest = max(widest, high - low)
        if nonfinite and NONFINITE in self._slots and NONFINITE not in tally.slots:
            won.append(NONFINITE)
        for slot, score in ((MAGNITUDE, magnitude), (RANGE, widest)):
            if slot in self._slots and (slot not in tally.slots or score > HYSTERESIS * tally.scores[slot]):
                tally.scores[slot] = score
                won.append(slot)
        return won

    def _sampled(self, tally: Tally) -> list[str]:
        """Reservoir sampling: each of the calls seen so far has the same chance to be in one of the sample slots."""
        if not self._samples:
            return []
        place = tally.seen - 1 if tally.seen <= self._samples else self._random.randrange(tally.seen)
        return [f"{SAMPLE} {place + 1}"] if place < self._samples else []

    def _keep(
        self, operator: Operator, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], moment: Moment, won: list[str]
    ) -> None:
        arrays = {f"i{k}": host_from_tensor(inputs[k]) for k in self._carried[operator.signature]}
        arrays |= {f"o{k}": host_from_tensor(tensor) for k, tensor in enumerate(outputs)}
        file = f"{layout.CASE_FOLDER}/call{self._written}.safetensors"
        self._written += 1
        layouts = [(k, layout_of(inputs[k])) for k in self._carried[operator.signature]]
        found = tuple((k, layout) for k, layout in layouts if layout is not None)
        kept = Kept(operator.name, moment, file, self._write(file, arrays), layouts=found)
        slots = self.tallies[operator.signature].slots
        for slot in won:
            old = slots.get(slot)
            slots[slot] = kept
            kept.reasons.add(slot)
            if old is not None:
                old.reasons.discard(slot)
                if not old.reasons:
                    self._remove(old.file)


def layout_of(tensor: torch.Tensor) -> Layout | None:
    """How a tensor lies in memory; None where it is contiguous, has no strides, or its memory is out of all proportion."""
    if tensor.is_contiguous() or tensor.layout != torch.strided or tensor.is_complex():
        return None
    found = Layout(tuple(tensor.stride()), tensor.storage_offset())
    return found if found.fits(tensor.shape) else None


def extent(tensor: torch.Tensor) -> tuple[float, float, bool]:
    """(min, max, whether all is finite, and an int64 within 32 bits) of the ordinary values of a tensor; (0, 0, …) where there
    are none. Booleans and empty tensors have none."""
    if tensor.dtype == torch.bool or tensor.numel() == 0:
        return 0.0, 0.0, True
    lowest, highest = torch.aminmax(tensor)
    low, high = float(lowest), float(highest)
    if low > -MASK_VALUE and high < MASK_VALUE:  # False for NaN
        return low, high, tensor.dtype != torch.int64 or -(2.0**31) <= low <= high < 2.0**31
    clean = math.isfinite(low) and math.isfinite(high)
    ordinary = tensor[tensor.abs() < MASK_VALUE]
    if ordinary.numel() == 0:
        return 0.0, 0.0, clean
    lowest, highest = torch.aminmax(ordinary)
    return float(lowest), float(highest), clean
