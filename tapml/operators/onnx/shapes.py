"""What moves elements without computing: other shapes, orders of axes, parts, repetitions, and putting together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tapml.operators.onnx.arithmetic import Specs
from tapml.operators.onnx.writer import CannotSay, Value, Writer


def _reshaped(w: Writer, out: Specs, x: Value, *_: Any) -> Value:
    return w.reshape(x, out[0].shape)


def _expanded(w: Writer, out: Specs, x: Value, *_: Any) -> Value:
    return w.expand(x, out[0].shape)


def _permute(w: Writer, out: Specs, x: Value, dims: Sequence[int]) -> Value:
    return w.transpose(x, [x.axis(d) for d in dims])


def _transpose(w: Writer, out: Specs, x: Value, first: int, second: int) -> Value:
    order = list(range(x.rank))
    if x.rank:
        a, b = x.axis(first), x.axis(second)
        order[a], order[b] = b, a
    return w.transpose(x, order)


def _reversed(w: Writer, out: Specs, x: Value) -> Value:
    return w.transpose(x, list(range(x.rank))[::-1])


def _swapped(w: Writer, out: Specs, x: Value) -> Value:
    return w.swapped(x)


def _slice(
    w: Writer, out: Specs, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    axis = x.axis(dim)
    first, last, _ = slice(start, end, step).indices(x.shape[axis])
    return w.slice(x, axis, first, max(first, last), step)


def _narrow(w: Writer, out: Specs, x: Value, dim: int, start: int, length: int) -> Value:
    axis = x.axis(dim)
    start = start + x.shape[axis] if start < 0 else start
    return w.slice(x, axis, start, start + length)


def _select(w: Writer, out: Specs, x: Value, dim: int, index: int) -> Value:
    axis = x.axis(dim)
    return w.gather(x, w.constant(index % x.shape[axis], "int64"), axis)


def _flip(w: Writer, out: Specs, x: Value, dims: Sequence[int]) -> Value:
    for axis in {x.axis(d) for d in dims} if x.rank else ():
        x = w.slice(x, axis, x.shape[axis] - 1, -1, -1)
    return x


def _roll(w: Writer, out: Specs, x: Value, shifts: Sequence[int] | int, dims: Sequence[int] | int = ()) -> Value:
    shifts = [shifts] if isinstance(shifts, int) else shifts
    dims = [dims] if isinstance(dims, int) else dims
    if not x.elements or not x.rank:
        return x
    if not dims:
        return w.reshape(_roll(w, out, w.reshape(x, (x.elements,)), shifts, [0]), out[0].shape)
    for shift, dim in zip(shifts, dims, strict=True):
        axis = x.axis(dim)
        extent = x.shape[axis]
        if (cut := -shift % extent) != 0:
            x = w.concat([w.slice(x, axis, cut, extent), w.slice(x, axis, 0, cut)], axis)
    return x


def _cat(w: Writer, out: Specs, parts: Sequence[Value], dim: int = 0) -> Value:
    """Vectors without elements are left out, whatever the others are."""
    kept = [w.cast(p, out[0].dtype) for p in parts if p.shape != (0,)] or [w.cast(parts[0], out[0].dtype)]
    return w.concat(kept, kept[0].axis(dim))


def _stack(w: Writer, out: Specs, parts: Sequence[Value], dim: int = 0) -> Value:
    axis = dim % (parts[0].rank + 1)
    return w.concat([w.unsqueeze(w.cast(p, out[0].dtype), axis) for p in parts], axis)


def _split(w: Writer, out: Specs, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    """As large as the parts that PyTorch gave."""
    axis = x.axis(dim)
    if len(out) == 1:
        return [x]
    extents = [spec.shape[axis] for spec in out]
    return w.several("Split", [x, w.ints(extents)], [(spec.shape, x.dtype) for spec in out], axis=axis)


def _unbind(w: Writer, out: Specs, x: Value, dim: int = 0) -> list[Value]:
    axis = x.axis(dim)
    return [w.gather(x, w.constant(k, "int64"), axis) for k in range(x.shape[axis])]


def _repeat(w: Writer, out: Specs, x: Value, times: Sequence[int]) -> Value:
    x = w.reshape(x, (*(1,) * (len(times) - x.rank), *x.shape))
    return x if all(n == 1 for n in times) else w.op("Tile", x, w.ints(times), spec=(out[0].shape, x.dtype))


def _tile(w: Writer, out: Specs, x: Value, times: Sequence[int]) -> Value:
    return _repeat(w, out, x, [*(1,) * (x.rank - len(times)), *times])


def _repeat_interleave(w: Writer, out: Specs, x: Value, times: int, dim: int | None = None, size: int | None = None) -> Value:
    x = w.reshape(x, (x.elements,)) if dim is None else x
    axis = x.axis(dim or 0)
    wide = w.expand(w.unsqueeze(x, axis + 1), (*x.shape[: axis + 1], times, *x.shape[axis + 1 :]))
    return w.reshape(wide, out[0].shape)


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _padded(w: Writer, x: Value, pads: Sequence[int], mode: str, value: float | None = None) -> Value:
    """`pads` are those before and behind each axis, the last axis first."""
    if mode != "constant" and min(pads) < 0:
        raise CannotSay(f"it cuts off, and pads by {mode}")
    before, behind = [0] * x.rank, [0] * x.rank
    for k in range(len(pads) // 2):
        before[x.rank - 1 - k], behind[x.rank - 1 - k] = pads[2 * k], pads[2 * k + 1]
    for axis in range(x.rank):  # what is cut off first, so that nothing but padding is left
        cut = (max(-before[axis], 0), x.shape[axis] - max(-behind[axis], 0))
        x = w.slice(x, axis, cut[0], max(cut))
    before, behind = [max(n, 0) for n in before], [max(n, 0) for n in behind]
    if mode == "wrap":
        for axis in range(x.rank):
            extent = x.shape[axis]
            ends = [w.slice(x, axis, extent - before[axis], extent), x, w.slice(x, axis, 0, behind[axis])]
            x = w.concat([part for part in ends if part.shape[axis]], axis)
        return x
    if not any((*before, *behind)):
        return x
    shape = [n + a + b for n, a, b in zip(x.shape, before, behind, strict=True)]
    wide = x.dtype if x.dtype not in ("bool", "int16") else "int32"
    filling = w.constant(value or 0, wide) if mode == "constant" else None
    return w.op("Pad", w.cast(x, wide), w.ints([*before, *behind]), filling, spec=(shape, wide), mode=mode)


def _pad_constant(w: Writer, out: Specs, x: Value, pads: Sequence[int], value: float = 0) -> Value:
    return _padded(w, x, pads, "constant", value)


def _pad(w: Writer, out: Specs, x: Value, pads: Sequence[int], mode: str = "constant", value: float | None = None) -> Value:
    return _padded(w, x, pads, _MODES[mode], value)


def _pad_by(mode: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value, pads: Sequence[int]) -> Value:
        return _padded(w, x, pads, mode)

    return convert


_RESHAPED = (
    "view.default", "_unsafe_view.default", "reshape.default", "unsqueeze.default", "squeeze.default", "squeeze.dim",
    "squeeze.dims", "flatten.using_ints", "unflatten.int", "view_as.default", "reshape_as.default",
)  # fmt: skip

SHAPES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_RESHAPED, _reshaped),
    **dict.fromkeys(("expand.default", "expand_as.default", "broadcast_to.default"), _expanded),
    "permute.default": _permute, "transpose.int": _transpose, "swapaxes.default": _transpose,
    "t.default": _reversed, "numpy_T.default": _reversed, "mT.default": _swapped,
    "slice.Tensor": _slice, "narrow.default": _narrow, "select.int": _select, "flip.default": _flip, "roll.default": _roll,
    "cat.default": _cat, "concat.default": _cat, "stack.default": _stack, "split.Tensor": _split, "split.sizes": _split,
    "split_with_sizes.default": _split, "chunk.default": _split, "tensor_split.sections": _split, "tensor_split.indices": _split,
    "unbind.int": _unbind, "repeat.default": _repeat, "tile.default": _tile, "repeat_interleave.self_int": _repeat_interleave,
    "constant_pad_nd.default": _pad_constant, "pad.default": _pad,
    **{f"reflection_pad{n}d.default": _pad_by("reflect") for n in (1, 2, 3)},
    **{f"replication_pad{n}d.default": _pad_by("edge") for n in (1, 2, 3)},
}  # fmt: skip
