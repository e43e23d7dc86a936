"""Pooling, and resizing of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tapml.operators.onnx.arithmetic import Specs
from tapml.operators.onnx.layers import spatial
from tapml.operators.onnx.writer import CannotSay, Value, Writer
from tapml.tensors import FLOATS


def _batched(w: Writer, x: Value, rank: int) -> tuple[Value, bool]:
    return (x, False) if x.rank == rank + 2 else (w.unsqueeze(x, 0), True)


def _windows(kernel: Any, stride: Any, padding: Any, rank: int, ceil: bool) -> dict[str, Any]:
    extents = spatial(kernel, rank)
    return {
        "kernel_shape": extents, "strides": spatial(stride, rank) if stride not in (None, []) else extents,
        "pads": spatial(padding, rank) * 2, "ceil_mode": int(ceil),
    }  # fmt: skip


def _max_pool(rank: int) -> Callable[..., Any]:
    def convert(
        w: Writer, out: Specs, x: Value, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
    ) -> Any:
        """With places, in each plane, where PyTorch gives them; the engine counts over all planes."""
        if x.dtype not in FLOATS:
            raise CannotSay("it pools integers")
        given, single = _batched(w, x, rank)
        shape = (1, *out[0].shape) if single else out[0].shape
        named = {**_windows(kernel, stride, padding, rank, ceil), "dilations": spatial(dilation, rank)}
        specs = [(shape, x.dtype), (shape, "int64")][: len(out)]
        made = w.several("MaxPool", [given], specs, **named)
        if len(out) == 1:
            return w.reshape(made[0], out[0].shape)
        plane = 1
        for extent in given.shape[2:]:
            plane *= extent
        places = w.binary("Mod", made[1], w.constant(plane, "int64"))
        return [w.reshape(made[0], out[0].shape), w.reshape(places, out[1].shape)]

    return convert


def _average_pool(rank: int) -> Callable[..., Value]:
    def convert(
        w: Writer, out: Specs, x: Value, kernel: Any, stride: Any = None, padding: Any = 0, ceil: bool = False,
        counts_padding: bool = True, divisor: int | None = None,
    ) -> Value:
        given, single = _batched(w, x, rank)
        shape = (1, *out[0].shape) if single else out[0].shape
        named = _windows(kernel, stride, padding, rank, False)
        if divisor is not None or ceil:
            return w.reshape(_counted_average(w, given, shape, named, counts_padding, divisor), out[0].shape)
        made = w.op("AveragePool", given, spec=(shape, x.dtype), **named, count_include_pad=int(counts_padding))
        return w.reshape(made, out[0].shape)

    return convert


def _counted_average(
    w: Writer, x: Value, shape: Sequence[int], named: dict[str, Any], counts_padding: bool, divisor: int | None
) -> Value:
    """Sums over windows, divided by how many elements PyTorch counts in each: on windows beyond the end engines differ."""
    rank = x.rank - 2
    kernel, strides, pads = named["kernel_shape"], named["strides"], named["pads"][:rank]
    extents = x.shape[2:]
    behind = [max((shape[2 + k] - 1) * strides[k] + kernel[k] - extents[k] - pads[k], 0) for k in range(rank)]
    around = [0, 0, *pads, 0, 0, *behind]
    wide = [extents[k] + pads[k] + behind[k] for k in range(rank)]
    padded = w.op("Pad", x, w.ints(around), spec=((*x.shape[:2], *wide), x.dtype), mode="constant")
    means = w.op("AveragePool", padded, spec=(shape, x.dtype), kernel_shape=kernel, strides=strides)
    sums = w.mul(means, math.prod(kernel))
    if divisor is not None:
        return w.div(sums, divisor)
    for k in range(rank):
        extent, pad = extents[k], pads[k]
        counts = []
        for at in range(shape[2 + k]):
            start = at * strides[k] - pad
            end = min(start + kernel[k], extent + pad)
            counts.append(end - start if counts_padding else min(end, extent) - max(start, 0))
        sums = w.div(sums, w.constant(counts, x.dtype, (len(counts), *(1,) * (rank - 1 - k))))
    return sums


def _adaptive_average(rank: int) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value, sizes: Sequence[int]) -> Value:
        axes = range(x.rank - rank, x.rank)
        if all(out[0].shape[k] == 1 for k in axes):
            return w.reduce("ReduceMean", x, tuple(axes), True)
        if any(not out[0].shape[k] or x.shape[k] % out[0].shape[k] for k in axes):
            raise CannotSay("its windows are not all of one size")
        return _average_pool(rank)(w, out, x, [x.shape[k] // out[0].shape[k] for k in axes])

    return convert


def _resized(mode: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value, *arguments: Any) -> Value:
        """`arguments`: sizes, whether corners are aligned (not for the nearest), and factors."""
        rest = list(arguments[1:])
        corners = False if mode == "nearest" else bool(rest.pop(0))
        factors = [f for item in rest for f in (item if isinstance(item, list | tuple) else [item]) if f is not None]
        extents = list(zip(x.shape[2:], out[0].shape[2:], strict=True))
        if factors and any(abs(a * f - b) > 1e-9 for (a, b), f in zip(extents, factors, strict=True)):
            raise CannotSay("a factor does not lead from one size to the other")
        if mode != "linear" and mode != "nearest":
            raise CannotSay(f"resizing by {mode} is not to be relied upon")
        where = "asymmetric" if mode == "nearest" else "align_corners" if corners else "half_pixel"
        nearest = {"nearest_mode": "floor"} if mode == "nearest" else {}
        return w.op(
            "Resize", x, None, None, w.ints(out[0].shape), spec=(out[0].shape, x.dtype), mode=mode,
            coordinate_transformation_mode=where, **nearest,
        )  # fmt: skip

    return convert


POOLING: dict[str, Callable[..., Any]] = {
    **{f"max_pool{n}d.default": _max_pool(n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices.default": _max_pool(n) for n in (1, 2, 3)},
    **{f"avg_pool{n}d.default": _average_pool(n) for n in (1, 2, 3)},
    "adaptive_avg_pool1d.default": _adaptive_average(1), "adaptive_avg_pool2d.default": _adaptive_average(2),
    "_adaptive_avg_pool2d.default": _adaptive_average(2), "adaptive_avg_pool3d.default": _adaptive_average(3),
    "_adaptive_avg_pool3d.default": _adaptive_average(3),
    **{f"upsample_nearest{n}d.{which}": _resized("nearest") for n in (1, 2, 3) for which in ("default", "vec")},
    **{f"upsample_bilinear2d.{which}": _resized("linear") for which in ("default", "vec")},
}  # fmt: skip
