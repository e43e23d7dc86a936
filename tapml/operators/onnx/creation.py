"""Tensors that are made from nothing but numbers: filled ones, ranges, diagonals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tapml.operators.onnx.arithmetic import Operand, Specs, operand
from tapml.operators.onnx.writer import CannotSay, Value, Writer
from tapml.tensors import FLOATS


def _filled(value: float) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, *_: Any) -> Value:
        return w.full(out[0].shape, value, out[0].dtype)

    return convert


def _full(w: Writer, out: Specs, shape: Any, value: Operand, *_: Any) -> Value:
    return w.expand(operand(w, value, out[0].dtype), out[0].shape)


def _new_full(w: Writer, out: Specs, x: Value, shape: Any, value: Operand, *_: Any) -> Value:
    return _full(w, out, shape, value)


def _fill(w: Writer, out: Specs, x: Value, value: Operand) -> Value:
    return _full(w, out, None, value)


def _scalar_tensor(w: Writer, out: Specs, value: float, *_: Any) -> Value:
    return w.constant(value, out[0].dtype)


def _arange(w: Writer, out: Specs, start: float, step: float) -> Value:
    """Whole numbers are counted; others are computed in float64, as PyTorch does."""
    (count,), dtype = out[0].shape, out[0].dtype
    whole = float(start).is_integer() and float(step).is_integer()
    if whole:
        numbers = (w.constant(int(n), "int64") for n in (start, start + count * step, step))
        return w.cast(w.op("Range", *numbers, spec=((count,), "int64")), dtype)
    return w.cast(w.add(w.mul(w.cast(w.counted(count), "float64"), step), start), dtype)


def _arange_to(w: Writer, out: Specs, end: float, *_: Any) -> Value:
    return _arange(w, out, 0, 1)


def _arange_from(w: Writer, out: Specs, start: float, end: float, *_: Any) -> Value:
    return _arange(w, out, start, 1)


def _arange_by(w: Writer, out: Specs, start: float, end: float, step: float = 1, *_: Any) -> Value:
    return _arange(w, out, start, step)


def _eye(w: Writer, out: Specs, *_: Any) -> Value:
    rows, columns = out[0].shape
    down, across = w.counted(rows), w.counted(columns)
    return w.cast(w.compare("Equal", w.unsqueeze(down, 1), across), out[0].dtype)


def _linspace(w: Writer, out: Specs, start: Operand, end: Operand, steps: int, *_: Any) -> Value:
    """From both ends to the middle, as PyTorch does."""
    if isinstance(start, Value) or isinstance(end, Value) or out[0].dtype not in FLOATS:
        raise CannotSay("its ends are no numbers, or its result are integers")
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    numbers = [start + step * k if k < steps // 2 else end - step * (steps - k - 1) for k in range(steps)]
    if steps == 1:
        numbers = [start]
    return w.constant(numbers, out[0].dtype, (steps,))


def _triangle(upper: int) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value, diagonal: int = 0) -> Value:
        dtype = x.dtype if x.dtype in ("float32", "float64", "int64") else "int64" if x.dtype not in FLOATS else "float32"
        made = w.op("Trilu", w.cast(x, dtype), w.constant(diagonal, "int64"), upper=upper)
        return w.cast(made, x.dtype)

    return convert


CREATION: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("zeros.default", "zeros_like.default", "new_zeros.default", "empty.memory_format", "empty_like.default",
                     "new_empty.default", "zero.default"), _filled(0)),
    **dict.fromkeys(("ones.default", "ones_like.default", "new_ones.default"), _filled(1)),
    "full.default": _full, "full_like.default": _full, "new_full.default": _new_full, "fill.Scalar": _fill, "fill.Tensor": _fill,
    "scalar_tensor.default": _scalar_tensor, "arange.default": _arange_to, "arange.start": _arange_from,
    "arange.start_step": _arange_by, "eye.default": _eye, "eye.m": _eye, "linspace.default": _linspace,
    "tril.default": _triangle(0), "triu.default": _triangle(1),
}  # fmt: skip

