"""Elements that rounding pushes over a jump of the function: floor of 2.9999999 and of 3 are a whole step apart, and both right.

    finder = JumpFinder(body)
    if finder.jumps:
        ranges = finder.ranges(inputs)     for each output, between which values other decisions at the jumps move each element

A node jumps where its value can change by a step while what it reads changes by a rounding: floor, round, sign, a cast to
integers, a comparison, a choice of the largest. It matters where what it reads was computed: inputs of the body that only were
moved, or gone through relu and its like, are the same bits everywhere.

The body runs node by node, in the source's dtype and several times in float64. How wrong a jump's argument may be is measured
there: the largest distance of the source's value from float64's. Then the runs in float64 decide differently:

    exact     as float64 does
    source    as the source did
    low, high with the arguments moved down, or up, by `MARGIN` times what they may be off (the second argument the other way)
    mixed     each element the one or the other, at random, since two decisions may cancel

Everything but the decisions is the same in these runs, so an output element that differs between them hangs on a decision that
two right kernels may take differently. Where each element hangs on a single decision (`strict`: one node jumps, and all after it
works element by element), a right kernel's value lies in its range; elsewhere decisions add up, and the range only says
which elements hang on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tapml.operators.execute import NodeByNode, host_from_tensor
from tapml.operators.graph import Body, Node
from tapml.tensors import FLOATS

# How many times the measured error of a jump's argument two right kernels may differ there.
MARGIN = 1.5

# Roundings of float32 that a computed argument may be off by at the least.
ROUNDINGS = 4.0

_STEPS = frozenset((
    "floor", "ceil", "round", "trunc", "fix", "sign", "sgn", "signbit", "frac", "heaviside", "hardshrink", "threshold",
    "fmod", "remainder", "floor_divide", "bucketize", "searchsorted", "atan2", "gt", "ge", "lt", "le", "quantize_per_tensor",
    "fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask", "__rshift__", "__lshift__",
))  # fmt: skip
_EQUALITIES = frozenset(("eq", "ne", "logical_not", "logical_and", "logical_or", "logical_xor", "isclose"))
_CHOICES = frozenset((
    "argmax", "argmin", "max", "min", "topk", "sort", "argsort", "kthvalue", "median", "mode", "cummax", "cummin",
))  # fmt: skip
_CASTS = frozenset(("_to_copy", "to", "type_as"))

# Nodes whose result holds no rounding that what they read does not.
_EXACT = frozenset((
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "expand", "squeeze", "unsqueeze", "slice", "select", "cat",
    "stack", "clone", "index_select", "index", "gather", "embedding", "flip", "roll", "repeat", "split", "split_with_sizes",
    "chunk", "unbind", "contiguous", "alias", "neg", "abs", "relu", "maximum", "minimum", "amax", "amin", "clamp", "clamp_min",
    "clamp_max", "where", "masked_fill", "getitem", "constant_pad_nd", "as_strided", "unfold", "diagonal", "tril", "triu",
    "full", "full_like", "zeros", "ones", "zeros_like", "ones_like", "arange", "scalar_tensor", "index_put", "scatter",
    "slice_scatter", "select_scatter", "copy", "max_pool2d", "max_pool2d_with_indices", "narrow", "movedim", "hardtanh", "relu6",
    "isnan", "isinf", "isfinite", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "detach", "lift_fresh_copy",
))  # fmt: skip


_ELEMENTWISE = _STEPS | _EQUALITIES | _CASTS | frozenset((
    "add", "sub", "mul", "div", "neg", "abs", "relu", "clamp", "clamp_min", "clamp_max", "where", "masked_fill", "view",
    "reshape", "rsub", "square", "exp", "sigmoid", "tanh", "silu", "gelu", "maximum", "minimum", "hardtanh", "relu6",
    "reciprocal",
))  # fmt: skip


class JumpFinder:
    """See the module's docstring. `jumps` holds the numbers of the body's nodes that matter."""

    def __init__(self, body: Body, device: str | torch.device = "cpu") -> None:
        self.body = body
        self._device = device
        self._rounded = _rounded(body)
        self.jumps = tuple(k for k, node in enumerate(body.nodes) if self._jumps(node))

    def _jumps(self, node: Node) -> bool:
        return _kind(node, self._dtypes) is not None and any(name in self._rounded for name in self._floats(node))

    @cached_property
    def _dtypes(self) -> dict[str, str]:
        return _dtypes(self.body)

    def _floats(self, node: Node) -> list[str]:
        dtypes = self._dtypes
        return [name for name in node.reads if dtypes.get(name) in FLOATS]

    @cached_property
    def strict(self) -> bool:
        """Whether each element of the outputs hangs on one decision at most."""
        if len(self.jumps) != 1:
            return False
        first = self.jumps[0]
        behind = {self.body.nodes[first].name}
        shape = self.body.nodes[first].outputs[0].shape
        for node in self.body.nodes[first + 1 :]:
            if behind & set(node.reads):
                if _base(node) not in _ELEMENTWISE or [s.shape for s in node.outputs] != [shape]:
                    return False
                behind.add(node.name)
        return True

    def ranges(self, inputs: Sequence[torch.Tensor], seed: int = 0) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """For each output the smallest and the largest value of each element; -inf and inf where NaN or an infinity comes or
        goes. Integers stay integers. `inputs` as the source has them."""
        with torch.inference_mode():
            return self._ranges(inputs, torch.Generator(device="cpu").manual_seed(seed))

    def _ranges(self, inputs: Sequence[torch.Tensor], generator: torch.Generator) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        source = NodeByNode(self.body, None, self._device)
        wide = NodeByNode(self.body, torch.float64, self._device)
        given = source.begin(inputs)
        as_source, exact, low, high, mixed = (wide.begin(inputs) for _ in range(5))
        for k, node in enumerate(self.body.nodes):
            source.run(k, given)
            if k not in self.jumps:
                for values in (as_source, exact, low, high, mixed):
                    wide.run(k, values)
                continue
            slots = [wide.slots[name] for name in self._floats(node)]
            room = {s: _room(given[s], as_source[s]) if self._name(wide, s) in self._rounded else None for s in slots}
            wide.run(k, exact)
            wide.run(k, as_source)
            own = wide.slots[node.name]
            as_source[own] = _widened(given[own])
            kind = _kind(node, self._dtypes)
            for values, side in ((low, -1.0), (high, 1.0), (mixed, 0.0)):
                if kind == "equality":
                    _equality(wide, k, values, slots, room, side, generator)
                else:
                    _moved(wide, k, values, slots, room, 0.0 if kind == "choice" else side, generator)
        runs = [[host_from_tensor(t) for t in wide.outputs(values)] for values in (exact, as_source, low, high, mixed)]
        return [_range(outputs) for outputs in zip(*runs, strict=True)]

    @staticmethod
    def _name(steps: NodeByNode, slot: int) -> str:
        return next(name for name, at in steps.slots.items() if at == slot)


def _kind(node: Node, dtypes: dict[str, str]) -> str | None:
    """How a node jumps: "step", "equality" or "choice"; None where it does not."""
    base = _base(node)
    if base in _EQUALITIES:
        return "equality"
    if base in _CHOICES:
        return "choice"
    if base in _STEPS or node.kwargs.get("rounding_mode") is not None:
        return "step"
    if base in _CASTS and node.outputs and node.outputs[0].dtype not in FLOATS:
        return "step"
    return None


def _base(node: Node) -> str:
    return node.target if "." not in node.target else node.target.split(".")[1]


def _dtypes(body: Body) -> dict[str, str]:
    """The dtype of each value that is one tensor."""
    found = {f"i{k}": spec.dtype for k, spec in enumerate(body.inputs)}
    found.update({node.name: node.outputs[0].dtype for node in body.nodes if len(node.outputs) == 1})
    return found


def _rounded(body: Body) -> frozenset[str]:
    """Values that were computed with a rounding."""
    dtypes = _dtypes(body)
    found: set[str] = set()
    for node in body.nodes:
        base = _base(node)
        inherited = any(name in found for name in node.reads)
        exact = base in _EXACT or _kind(node, dtypes) is not None
        if base in _CASTS and node.outputs and node.outputs[0].dtype in FLOATS:
            exact = any(dtypes.get(name) == node.outputs[0].dtype for name in node.reads)
        carries = inherited and (base in _EXACT or base in _CHOICES or base in ("fmod", "remainder", "frac", "atan2"))
        if carries or not exact:
            found.add(node.name)
    return frozenset(found)


def _room(source: Any, exact: Any) -> torch.Tensor:
    """How far the argument of a jump may be from float64's value, for each element."""
    value = exact
    size = value.abs()
    ordinary = torch.isfinite(value) & (size > 0)
    scale = size[ordinary].mean() if bool(ordinary.any()) else torch.tensor(1.0, dtype=torch.float64, device=value.device)
    unit = torch.where(torch.isfinite(size), size, torch.zeros_like(size)) + scale
    off = (source.to(torch.float64) - value).abs() / unit
    off = off[torch.isfinite(off)]
    largest = float(off.max()) if off.numel() else 0.0
    return unit * (MARGIN * max(largest, ROUNDINGS * 2.0**-23))


def _moved(
    steps: NodeByNode, k: int, values: list[Any], slots: Sequence[int], room: dict[int, torch.Tensor | None], side: float,
    generator: torch.Generator,
) -> None:
    """Runs a node with its arguments moved: the first to `side`, the others away from it; at random where `side` is 0."""
    kept = {s: values[s] for s in slots}
    for place, slot in enumerate(slots):
        space = room[slot]
        if space is None:
            continue
        if side == 0.0:
            sign = torch.randint(0, 2, tuple(space.shape), generator=generator).to(space) * 2 - 1
            values[slot] = kept[slot] + sign * space
        else:
            values[slot] = kept[slot] + (side if place == 0 else -side) * space
    steps.run(k, values)
    for slot, value in kept.items():
        values[slot] = value


def _equality(
    steps: NodeByNode, k: int, values: list[Any], slots: Sequence[int], room: dict[int, torch.Tensor | None], side: float,
    generator: torch.Generator,
) -> None:
    """Runs a node that asks whether values are equal, or zero: where they nearly are, the answer is one or the other."""
    result = steps.run(k, values)
    first = values[slots[0]]
    other = values[slots[1]] if len(slots) > 1 else _scalar(steps.body.nodes[k])
    space = sum((r for r in room.values() if r is not None), torch.zeros((), dtype=torch.float64))
    near = ((first - other).abs() <= space).expand(result.shape)
    if side == 0.0:
        answer = torch.randint(0, 2, tuple(result.shape), generator=generator).to(device=result.device, dtype=torch.bool)
    else:
        answer = torch.full_like(result, side > 0)
    values[steps.slots[steps.body.nodes[k].name]] = torch.where(near, answer, result)


def _scalar(node: Node) -> float:
    """The number that a node compares with; 0 for those that ask for zero."""
    return next((float(a) for a in node.args if isinstance(a, int | float) and not isinstance(a, bool)), 0.0)


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(torch.float64) if value.is_floating_point() else value
    return tuple(_widened(v) for v in value)


def _range(outputs: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The smallest and the largest value of each element."""
    first, *others = outputs
    low, high = first.copy(), first.copy()
    for other in others:
        if first.dtype.kind != "f":
            low, high = np.minimum(low, other), np.maximum(high, other)
            continue
        kind = np.isfinite(other) & np.isfinite(first)
        alike = (np.isnan(other) & np.isnan(first)) | (other == first)
        low = np.where(kind, np.minimum(low, other), np.where(alike, low, -np.inf))
        high = np.where(kind, np.maximum(high, other), np.where(alike, high, np.inf))
    return low, high
