"""Functions of each element: elementary functions, activations, roundings, and what asks for NaN and infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tapml.operators.onnx.arithmetic import Operand, Specs, operand, truncated, widened
from tapml.operators.onnx.writer import Value, Writer
from tapml.operators.overload import named_dtype
from tapml.tensors import FLOATS


def _computed(w: Writer, out: Specs, x: Value) -> Value:
    """In the dtype of the result: integers have floating point results."""
    return w.cast(x, widened(out[0].dtype))


def _plain(operation: str, **attributes: Any) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value, *_: Any) -> Value:
        return w.unary(operation, _computed(w, out, x), **attributes)

    return convert


def _rounded(operation: str) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value) -> Value:
        return w.unary(operation, x) if x.dtype in FLOATS else x

    return convert


def _trunc(w: Writer, out: Specs, x: Value) -> Value:
    return truncated(w, x) if x.dtype in FLOATS else x


def _frac(w: Writer, out: Specs, x: Value) -> Value:
    return w.sub(x, truncated(w, x))


def _rsqrt(w: Writer, out: Specs, x: Value) -> Value:
    return w.unary("Reciprocal", w.unary("Sqrt", _computed(w, out, x)))


def _square(w: Writer, out: Specs, x: Value) -> Value:
    x = _computed(w, out, x)
    return w.mul(x, x)


def _log(base: float) -> Callable[..., Value]:
    def convert(w: Writer, out: Specs, x: Value) -> Value:
        return w.div(w.unary("Log", _computed(w, out, x)), math.log(base))

    return convert


def _log1p(w: Writer, out: Specs, x: Value) -> Value:
    """Kahan's: what rounding 1 + x loses comes back in the quotient."""
    return log1p(w, _computed(w, out, x))


def log1p(w: Writer, x: Value) -> Value:
    whole = w.add(x, 1)
    part = w.sub(whole, 1)
    found = w.div(w.mul(w.unary("Log", whole), x), part)
    found = w.where(w.compare("Equal", whole, w.constant(math.inf, x.dtype)), whole, found)
    return w.where(w.compare("Equal", part, 0), x, found)


def _expm1(w: Writer, out: Specs, x: Value) -> Value:
    """exp(x) - 1 = 2 tanh(x / 2) exp(x / 2) cosh(x / 2) … where that is near 0: (u - 1) x / log(u), with u = exp(x)."""
    return expm1(w, _computed(w, out, x))


def expm1(w: Writer, x: Value) -> Value:
    u = w.unary("Exp", x)
    part = w.sub(u, 1)
    near = w.div(w.mul(part, x), w.unary("Log", u))
    found = w.where(w.compare("Less", w.unary("Abs", x), 0.5), near, part)
    return w.where(w.compare("Equal", u, 1), x, found)


def _exp2(w: Writer, out: Specs, x: Value) -> Value:
    x = _computed(w, out, x)
    return w.binary("Pow", w.constant(2, x.dtype), x)


def _silu(w: Writer, out: Specs, x: Value) -> Value:
    return w.mul(x, w.unary("Sigmoid", x))


def _gelu(w: Writer, out: Specs, x: Value, approximate: str = "none") -> Value:
    return w.unary("Gelu", x, approximate=approximate)


def _softplus(w: Writer, out: Specs, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    scaled = x if beta == 1 else w.mul(x, beta)
    soft = w.unary("Softplus", scaled)
    return w.where(w.compare("Greater", scaled, threshold), x, soft if beta == 1 else w.div(soft, beta))


def _log_sigmoid(w: Writer, out: Specs, x: Value) -> list[Value | None]:
    """min(x, 0) - log1p(exp(-|x|)); what backward wants besides is not written."""
    rest = log1p(w, w.unary("Exp", w.unary("Neg", w.unary("Abs", x))))
    return [w.sub(w.binary("Min", x, w.constant(0, x.dtype)), rest), None]


def _mish(w: Writer, out: Specs, x: Value) -> Value:
    return w.mul(x, w.unary("Tanh", _softplus(w, out, x)))


def _leaky_relu(w: Writer, out: Specs, x: Value, slope: float = 0.01) -> Value:
    return w.unary("LeakyRelu", x, alpha=float(slope))


def _elu(w: Writer, out: Specs, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    below = w.mul(expm1(w, x if input_scale == 1 else w.mul(x, input_scale)), alpha * scale)
    return w.where(w.compare("Greater", x, 0), x if scale == 1 else w.mul(x, scale), below)


def _celu(w: Writer, out: Specs, x: Value, alpha: float = 1) -> Value:
    return _elu(w, out, x, alpha, 1, 1 / alpha)


def _selu(w: Writer, out: Specs, x: Value) -> Value:
    return _elu(w, out, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def _hard_sigmoid(w: Writer, out: Specs, x: Value) -> Value:
    return w.unary("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def _relu6(w: Writer, out: Specs, x: Value) -> Value:
    return w.op("Clip", x, w.constant(0, x.dtype), w.constant(6, x.dtype))


def _threshold(w: Writer, out: Specs, x: Value, threshold: float, value: float) -> Value:
    return w.where(w.compare("LessOrEqual", x, threshold), w.constant(value, x.dtype), x)


def _hardshrink(w: Writer, out: Specs, x: Value, border: float = 0.5) -> Value:
    return w.where(w.compare("LessOrEqual", w.unary("Abs", x), border), w.constant(0, x.dtype), x)


def _softshrink(w: Writer, out: Specs, x: Value, border: float = 0.5) -> Value:
    near = w.compare("LessOrEqual", w.unary("Abs", x), border)
    return w.where(near, w.constant(0, x.dtype), w.sub(x, w.mul(w.unary("Sign", x), border)))


def _prelu(w: Writer, out: Specs, x: Value, slope: Value) -> Value:
    if slope.elements == 1:
        slope = w.reshape(slope, (1,) * x.rank)
    elif slope.rank < x.rank:
        slope = w.reshape(slope, (slope.elements, *(1,) * (x.rank - 2)))
    return w.where(w.compare("Greater", x, 0), x, w.mul(x, slope))


def _isnan(w: Writer, out: Specs, x: Value) -> Value:
    return w.op("IsNaN", x, spec=(x.shape, "bool")) if x.dtype in FLOATS else w.full(x.shape, False, "bool")


def _isinf(w: Writer, out: Specs, x: Value) -> Value:
    """ONNX asks it of float32 and float64 only, on most engines; the difference of an infinity and itself is NaN."""
    if x.dtype not in FLOATS:
        return w.full(x.shape, False, "bool")
    return w.compare("Equal", w.unary("Abs", x), math.inf)


def _isfinite(w: Writer, out: Specs, x: Value) -> Value:
    if x.dtype not in FLOATS:
        return w.full(x.shape, True, "bool")
    return w.compare("Less", w.unary("Abs", x), math.inf)


def _nan_to_num(
    w: Writer, out: Specs, x: Value, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Value:
    if x.dtype not in FLOATS:
        return x
    limits = torch.finfo(named_dtype(x.dtype))
    most, least = limits.max if posinf is None else posinf, limits.min if neginf is None else neginf
    for value, instead in ((math.inf, most), (-math.inf, least)):
        x = w.where(w.compare("Equal", x, value), w.constant(instead, x.dtype), x)
    return w.where(_isnan(w, out, x), w.constant(nan or 0.0, x.dtype), x)


def _sign(w: Writer, out: Specs, x: Value) -> Value:
    """Of NaN it is 0."""
    if x.dtype == "bool":
        return x
    wide = w.cast(x, widened(x.dtype))
    if x.dtype not in FLOATS:
        return w.unary("Sign", wide)
    above, below = (w.cast(w.compare(operation, wide, 0), wide.dtype) for operation in ("Greater", "Less"))
    return w.sub(above, below)


def _abs(w: Writer, out: Specs, x: Value) -> Value:
    return w.unary("Abs", w.cast(x, widened(x.dtype)))


def _round(w: Writer, out: Specs, x: Value, decimals: int = 0) -> Value:
    if x.dtype not in FLOATS or not decimals:
        return w.unary("Round", x) if x.dtype in FLOATS else x
    scale = 10.0 ** abs(decimals)
    if decimals < 0:
        return w.mul(w.unary("Round", w.div(x, scale)), scale)
    return w.div(w.unary("Round", w.mul(x, scale)), scale)


def _xlogy(w: Writer, out: Specs, a: Operand, b: Operand) -> Value:
    x, y = operand(w, a, out[0].dtype), operand(w, b, out[0].dtype)
    found = w.where(w.compare("Equal", x, 0), w.constant(0, x.dtype), w.mul(x, w.unary("Log", y)))
    return w.where(_isnan(w, out, y), y, found)


_PLAIN = {
    "exp": "Exp", "sqrt": "Sqrt", "log": "Log", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos",
    "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "tanh": "Tanh",
    "sigmoid": "Sigmoid", "erf": "Erf", "reciprocal": "Reciprocal", "neg": "Neg", "relu": "Relu", "hardswish": "HardSwish",
}  # fmt: skip

ELEMENTWISE: dict[str, Callable[..., Any]] = {f"{name}.default": _plain(operation) for name, operation in _PLAIN.items()} | {
    "rsqrt.default": _rsqrt, "square.default": _square, "log2.default": _log(2), "log10.default": _log(10),
    "log1p.default": _log1p, "expm1.default": _expm1, "exp2.default": _exp2, "abs.default": _abs, "sign.default": _sign,
    "sgn.default": _sign, "floor.default": _rounded("Floor"), "ceil.default": _rounded("Ceil"), "trunc.default": _trunc,
    "fix.default": _trunc, "frac.default": _frac, "round.default": _round, "round.decimals": _round,
    "silu.default": _silu, "gelu.default": _gelu, "softplus.default": _softplus, "log_sigmoid_forward.default": _log_sigmoid,
    "mish.default": _mish, "leaky_relu.default": _leaky_relu, "elu.default": _elu, "celu.default": _celu, "selu.default": _selu,
    "hardsigmoid.default": _hard_sigmoid, "relu6.default": _relu6, "threshold.default": _threshold,
    "hardshrink.default": _hardshrink, "softshrink.default": _softshrink, "prelu.default": _prelu,
    "_prelu_kernel.default": _prelu, "isnan.default": _isnan, "isinf.default": _isinf, "isfinite.default": _isfinite,
    "nan_to_num.default": _nan_to_num, "xlogy.Tensor": _xlogy, "xlogy.Scalar_Other": _xlogy,
}  # fmt: skip
