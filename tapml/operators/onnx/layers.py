"""Softmax, normalisation and convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tapml.operators.onnx.arithmetic import Specs
from tapml.operators.onnx.reduction import spread
from tapml.operators.onnx.writer import CannotSay, Value, Writer
from tapml.tensors import EPSILON


def _softmax(operation: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value, dim: int, *_: Any) -> Value:
        x = w.cast(x, out[0].dtype)
        if not x.rank:
            return w.reshape(w.op(operation, w.reshape(x, (1,)), axis=0), ())
        return w.op(operation, x, axis=x.axis(dim)) if x.elements else x

    return convert


def _layer_norm(
    w: Writer, out: Specs, x: Value, shape: Sequence[int], weight: Value | None = None, bias: Value | None = None,
    eps: float = 1e-5, *_: Any,
) -> Value:
    return _native_layer_norm(w, out, x, shape, weight, bias, eps)[0]


def _native_layer_norm(
    w: Writer, out: Specs, x: Value, shape: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> list[Value]:
    """With the mean and the reciprocal of the deviation."""
    scale = w.full(shape, 1, x.dtype) if weight is None else weight
    axis = x.rank - len(shape)
    kept = (*x.shape[:axis], *(1,) * len(shape))
    wide = x.dtype if x.dtype == "float64" else "float32"
    specs = [(x.shape, x.dtype), (kept, wide), (kept, wide)]
    return w.several("LayerNormalization", [x, scale, bias], specs[: len(out)], axis=axis, epsilon=float(eps))


def _rms_norm(
    w: Writer, out: Specs, x: Value, shape: Sequence[int], weight: Value | None = None, eps: float | None = None
) -> Value:
    if eps is None:
        eps = EPSILON["float64" if x.dtype == "float64" else "float32"]
    wide = w.cast(x, "float32") if x.dtype in ("float16", "bfloat16") else x
    mean = w.reduce("ReduceMean", w.mul(wide, wide), tuple(range(x.rank - len(shape), x.rank)), True)
    found = w.mul(wide, w.unary("Reciprocal", w.unary("Sqrt", w.add(mean, eps))))
    return w.cast(found if weight is None else w.mul(found, w.cast(weight, found.dtype)), x.dtype)


def _channels(w: Writer, x: Value, parameter: Value | None) -> Value | None:
    """A number a channel, so that it broadcasts over all behind it."""
    return None if parameter is None else w.reshape(parameter, (parameter.elements, *(1,) * (x.rank - 2)))


def _group_norm(
    w: Writer, out: Specs, x: Value, groups: int, weight: Value | None = None, bias: Value | None = None, eps: float = 1e-5,
    *_: Any,
) -> Value:
    if not x.elements:
        return x
    rows = w.reshape(x, (x.shape[0], groups, x.elements // x.shape[0] // groups))
    variance, mean = spread(w, rows, (2,), 0)
    found = w.div(w.sub(rows, mean), w.unary("Sqrt", w.add(variance, eps)))
    found = w.reshape(found, x.shape)
    scale, shift = _channels(w, x, weight), _channels(w, x, bias)
    found = found if scale is None else w.mul(found, scale)
    return found if shift is None else w.add(found, shift)


def _native_group_norm(
    w: Writer, out: Specs, x: Value, weight: Value | None, bias: Value | None, n: int, c: int, hw: int, groups: int, eps: float
) -> list[Value | None]:
    return [_group_norm(w, out, x, groups, weight, bias, eps), None, None]


def _batch_norm(
    w: Writer, out: Specs, x: Value, weight: Value | None, bias: Value | None, mean: Value | None, variance: Value | None,
    training: bool, momentum: float, eps: float, *_: Any,
) -> Value:
    if training or mean is None or variance is None:
        raise CannotSay("it normalises by the batch that it is given")
    count = (mean.elements,)
    scale = w.full(count, 1, x.dtype) if weight is None else weight
    shift = w.full(count, 0, x.dtype) if bias is None else bias
    return w.op("BatchNormalization", x, scale, shift, mean, variance, epsilon=float(eps))


def _native_batch_norm(
    w: Writer, out: Specs, x: Value, weight: Value | None, bias: Value | None, mean: Value, variance: Value, momentum: float,
    eps: float,
) -> list[Value | None]:
    return [_batch_norm(w, out, x, weight, bias, mean, variance, False, momentum, eps), None, None]


def spatial(value: Sequence[int] | int, rank: int) -> list[int]:
    listed = [value] if isinstance(value, int) else list(value)
    return listed * rank if len(listed) == 1 else listed


def _convolution(
    w: Writer, out: Specs, x: Value, weight: Value, bias: Value | None, stride: Sequence[int], padding: Sequence[int] | str,
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Value:
    rank = weight.rank - 2
    single = x.rank == weight.rank - 1
    if not x.elements:
        raise CannotSay("it convolves nothing")
    given = w.unsqueeze(x, 0) if single else x
    shape = (1, *out[0].shape) if single else out[0].shape
    named: dict[str, Any] = {"strides": spatial(stride, rank), "dilations": spatial(dilation, rank), "group": groups}
    if isinstance(padding, str):
        around = [d * (k - 1) if padding == "same" else 0 for d, k in zip(named["dilations"], weight.shape[2:], strict=True)]
        named["pads"] = [*(n // 2 for n in around), *(n - n // 2 for n in around)]
    else:
        named["pads"] = spatial(padding, rank) * 2
    if transposed:
        named["output_padding"] = spatial(output_padding, rank)
    made = w.op("ConvTranspose" if transposed else "Conv", given, weight, bias, spec=(shape, x.dtype), **named)
    return w.reshape(made, out[0].shape)


def _conv(
    w: Writer, out: Specs, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value:
    return _convolution(w, out, x, weight, bias, stride, padding, dilation, False, [0], groups)


def _conv_transpose(
    w: Writer, out: Specs, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:
    return _convolution(w, out, x, weight, bias, stride, padding, dilation, True, output_padding, groups)


LAYERS: dict[str, Callable[..., Any]] = {
    "softmax.int": _softmax("Softmax"), "_softmax.default": _softmax("Softmax"),
    "log_softmax.int": _softmax("LogSoftmax"), "_log_softmax.default": _softmax("LogSoftmax"),
    "layer_norm.default": _layer_norm, "native_layer_norm.default": _native_layer_norm, "rms_norm.default": _rms_norm,
    "group_norm.default": _group_norm, "native_group_norm.default": _native_group_norm, "batch_norm.default": _batch_norm,
    "_native_batch_norm_legit_no_training.default": _native_batch_norm, "convolution.default": _convolution,
    **{f"conv{n}d.{which}": _conv for n in (1, 2, 3) for which in ("default", "padding")},
    "conv_transpose1d.default": _conv_transpose, "conv_transpose2d.input": _conv_transpose,
    "conv_transpose3d.input": _conv_transpose,
}  # fmt: skip
