"""Calls whose result is as large as the data say, written with calls whose result has a size that is known.

    value = RULES["masked_select"](call)           a Reference to what the call gives, or a list of them; None: as it stands

The size is that of the traced program, which has the example's where sizes depend on the data (`tapml.source.by_example`). For
data that would give another size what is written here gives as much as the example did: no error, and other numbers. What has no
such form (unique, packed sequences) stays on the source (`tapml.operators.stays`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tapml.tensors import TensorSpec

Reference = dict[str, str]
Make = Callable[[str, tuple[Any, ...], dict[str, Any], TensorSpec], Reference]
Result = Reference | list[Reference] | None

_MASKS = ("bool", "uint8")


@dataclass(frozen=True)
class Call:
    """`args` as a node has them; `given(reference)` is a value's spec, `outputs` are those of the results. `make` appends a node
    with one result."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[TensorSpec, ...]
    given: Callable[[Reference], TensorSpec]
    make: Make

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def flat(self, value: Reference) -> Reference:
        spec = self.given(value)
        return self.make("aten.reshape.default", (value, [spec.elements]), {}, TensorSpec((spec.elements,), spec.dtype))

    def found(self, mask: Reference, spec: TensorSpec) -> Reference:
        """The indices of what is not zero, a row each, as many as `spec` [count, dimensions] says."""
        return self.make("aten.nonzero_static.default", (mask,), {"size": spec.shape[0], "fill_value": 0}, spec)

    def places(self, mask: Reference, count: int) -> list[Reference]:
        """The indices [count] of what is not zero, a tensor for each dimension."""
        if not self.given(mask).shape:
            mask = self.flat(mask)
        rank = len(self.given(mask).shape)
        whole = self.found(mask, TensorSpec((count, rank), "int64"))
        return [self.make("aten.select.int", (whole, 1, k), {}, TensorSpec((count,), "int64")) for k in range(rank)]


def _nonzero(call: Call) -> Result:
    return call.found(call.args[0], call.outputs[0])


def _nonzero_in_parts(call: Call) -> Result:
    return call.places(call.args[0], call.outputs[0].shape[0])


def _index(call: Call) -> Result:
    value, indices = call.args
    place = _broadcast_end(call, indices)
    if place is None:
        return None
    rest = _without_masks(call, indices, call.outputs[0].shape[place])
    return call.make("aten.index.Tensor", (value, rest), {}, call.outputs[0])


def _index_put(call: Call) -> Result:
    """Values for each place that the mask names; a single value for all is the business of the operator itself."""
    value, indices, values = call.args[:3]
    place = _broadcast_end(call, indices)
    if place is None:
        return None
    # The values are aligned from the right with what would be read there.
    rank = len(call.given(value).shape)
    taken = sum(len(call.given(i).shape) if _is_mask(call, i) else 1 for i in indices if i is not None)
    whole = rank - taken + _broadcast_rank(call, indices)
    shape = call.given(values).shape
    at = place - whole + len(shape)
    if at < 0 or shape[at] == 1:
        return _one_for_all(call, at)
    if shape[at] == 0:
        return {"ref": str(value["ref"])}
    rest = _without_masks(call, indices, shape[at])
    return call.make("aten.index_put.default", (value, rest, values, *call.args[3:]), call.kwargs, call.outputs[0])


def _one_for_all(call: Call, at: int) -> Result:
    """What a mask names becomes the same everywhere: values are not counted along the dimension `at` (negative: they lack it)."""
    value, indices, values = call.args[:3]
    named = [i for i in indices if i is not None]
    spec, shape = call.given(value), call.given(values).shape
    if len(named) != 1 or not shape or call.argument(3, "accumulate", False):
        return None
    mask = call.given(named[0])
    after = len(spec.shape) - len(indices) + 1 - len(mask.shape)
    wide = TensorSpec((*mask.shape, *[1] * after), "bool")
    there = call.make("aten.reshape.default", (named[0], list(wide.shape)), {}, TensorSpec(wide.shape, mask.dtype))
    if mask.dtype != "bool":
        there = call.make("aten._to_copy.default", (there,), {"dtype": {"dtype": "bool"}}, wide)
    if at >= 0:
        spread = TensorSpec((*shape[:at], *[1] * len(mask.shape), *shape[at + 1 :]), call.given(values).dtype)
        values = call.make("aten.reshape.default", (values, list(spread.shape)), {}, spread)
    return call.make("aten.where.self", (there, values, value), {}, call.outputs[0])


def _is_mask(call: Call, index: Any) -> bool:
    return index is not None and call.given(index).dtype in _MASKS


def _broadcast_rank(call: Call, indices: Sequence[Any]) -> int:
    return max(1 if _is_mask(call, i) else len(call.given(i).shape) for i in indices if i is not None)


def _broadcast_end(call: Call, indices: Sequence[Any]) -> int | None:
    """The dimension of the result that counts what masks select; None where there is no mask, or one of a single truth."""
    masks = [i for i in indices if _is_mask(call, i)]
    if not masks or any(not call.given(i).shape for i in masks):
        return None
    given = [k for k, i in enumerate(indices) if i is not None]
    together = given[-1] - given[0] + 1 == len(given)
    return (given[0] if together else 0) + _broadcast_rank(call, indices) - 1


def _without_masks(call: Call, indices: Sequence[Any], count: int) -> list[Any]:
    found: list[Any] = []
    for index in indices:
        found += call.places(index, count) if _is_mask(call, index) else [index]
    return found


def _masked_select(call: Call) -> Result:
    value, mask = call.args
    shapes = [list(call.given(v).shape) for v in (value, mask)]
    rank = max(map(len, shapes))
    padded = [[1] * (rank - len(shape)) + shape for shape in shapes]
    whole = [max(a, b) if 0 not in (a, b) else 0 for a, b in zip(*padded, strict=True)]
    parts = []
    for each in (value, mask):
        spec = TensorSpec(tuple(whole), call.given(each).dtype)
        wide = call.make("aten.expand.default", (each, whole), {}, spec) if spec != call.given(each) else each
        flat = TensorSpec((math.prod(whole),), spec.dtype)
        parts.append(call.make("aten.reshape.default", (wide, [math.prod(whole)]), {}, flat))
    places = call.places(parts[1], call.outputs[0].shape[0])
    return call.make("aten.index.Tensor", (parts[0], places), {}, call.outputs[0])


def _repeats(call: Call, repeats: Reference, count: int) -> Reference:
    """Which row each of `count` results is: the first whose repeats, with those before it, are more than its number."""
    spec = call.given(repeats)
    ends = call.make("aten.cumsum.default", (repeats, 0), {}, TensorSpec(spec.shape, "int64"))
    many = TensorSpec((count,), "int64")
    number = call.make("aten.arange.start_step", (0, count, 1), {"dtype": {"dtype": "int64"}}, many)
    row = call.make("aten.searchsorted.Tensor", (ends, number), {"right": True}, many)
    return call.make("aten.clamp.default", (row, 0, spec.shape[0] - 1), {}, many)


def _repeat_interleave(call: Call) -> Result:
    spec, count = call.given(call.args[0]), call.outputs[0].shape[0]
    if not spec.elements or not count:
        return None
    row = _repeats(call, call.args[0], count)
    made = call.outputs[0]
    return row if made.dtype == "int64" else call.make("aten._to_copy.default", (row,), {"dtype": {"dtype": made.dtype}}, made)


def _repeat_interleave_rows(call: Call) -> Result:
    value, repeats = call.args[:2]
    dim = call.argument(2, "dim")
    if dim is None:
        value, dim = call.flat(value), 0
    spec = call.given(value)
    dim %= max(len(spec.shape), 1)
    count = call.outputs[0].shape[dim]
    if not spec.shape or not spec.shape[dim] or not count:
        return None
    each = call.given(repeats)
    if each.shape != (spec.shape[dim],):
        each = TensorSpec((spec.shape[dim],), each.dtype)
        repeats = call.make("aten.expand.default", (repeats, list(each.shape)), {}, each)
    row = _repeats(call, repeats, count)
    return call.make("aten.index_select.default", (value, dim, row), {}, call.outputs[0])


def _bincount(call: Call) -> Result:
    value, weights = call.args[0], call.argument(1, "weights")
    count, spec, made = call.outputs[0].shape[0], call.given(value), call.outputs[0]
    if not count or not spec.elements:
        return None
    dtype = {"dtype": {"dtype": made.dtype}}
    places = value
    if spec.dtype != "int64":
        places = call.make("aten._to_copy.default", (value,), {"dtype": {"dtype": "int64"}}, TensorSpec(spec.shape, "int64"))
    places = call.make("aten.clamp.default", (places, 0, count - 1), {}, TensorSpec(spec.shape, "int64"))
    each = TensorSpec(spec.shape, made.dtype)
    if weights is None:
        weights = call.make("aten.full.default", (list(spec.shape), 1), dtype, each)
    elif call.given(weights).dtype != made.dtype:
        weights = call.make("aten._to_copy.default", (weights,), dtype, each)
    none = call.make("aten.full.default", ([count], 0), dtype, made)
    return call.make("aten.index_add.default", (none, 0, places, weights), {}, made)


def _one_hot(call: Call) -> Result:
    value, made = call.args[0], call.outputs[0]
    spec = call.given(value)
    count = made.shape[-1]
    each = call.make("aten.unsqueeze.default", (value, -1), {}, TensorSpec((*spec.shape, 1), spec.dtype))
    number = call.make("aten.arange.start_step", (0, count, 1), {"dtype": {"dtype": "int64"}}, TensorSpec((count,), "int64"))
    same = call.make("aten.eq.Tensor", (each, number), {}, TensorSpec(made.shape, "bool"))
    return call.make("aten._to_copy.default", (same,), {"dtype": {"dtype": made.dtype}}, made)


RULES: dict[str, Callable[[Call], Result]] = {
    "aten.nonzero.default": _nonzero,
    "aten.argwhere.default": _nonzero,
    "aten.nonzero_numpy.default": _nonzero_in_parts,
    "aten.where.default": _nonzero_in_parts,
    "aten.index.Tensor": _index,
    "aten.index_put.default": _index_put,
    "aten.masked_select.default": _masked_select,
    "aten.repeat_interleave.Tensor": _repeat_interleave,
    "aten.repeat_interleave.self_Tensor": _repeat_interleave_rows,
    "aten.bincount.default": _bincount,
    "aten.one_hot.default": _one_hot,
}
