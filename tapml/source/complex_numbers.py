"""Complex numbers as pairs of real tensors, and the arithmetic of PyTorch on them.

    mul(Pair(a, b), Pair(c, d))         Pair(a·c - b·d, a·d + b·c)
    ARITHMETIC["mul"]                   the same by PyTorch's name: takes what that operator takes, pairs for complex tensors

The rules are plain PyTorch on the parts, so they run on any tensors. A real tensor or number among complex ones has no imaginary
part, and costs nothing for it. Division and absolute value scale first, as PyTorch's do, so that squares do not overflow. Where
a part is infinite, NaN can stand where PyTorch's kernels have none, or the other way round: their vectorised and scalar loops
differ there as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# The largest whole exponent that is written out as products.
_MOST_PRODUCTS = 64


class NotWritten(Exception):
    """A call is not written in real numbers, so that it stays on the source; the message says why."""


@dataclass(frozen=True)
class Pair:
    """The real and the imaginary part: tensors of one shape and dtype, or numbers. Within rules `im` is None for what is real."""

    re: Any
    im: Any

    @staticmethod
    def of(value: Any) -> Pair:
        """A tensor or number, complex or not, as a pair."""
        if isinstance(value, Pair):
            return value
        return Pair(value.real, value.imag) if isinstance(value, complex) else Pair(value, None)


def add(x: Any, y: Any, alpha: Any = 1) -> Pair:
    a, b = Pair.of(x), Pair.of(y) if alpha == 1 else mul(y, alpha)
    return Pair(a.re + b.re, plus(a.im, b.im))


def sub(x: Any, y: Any, alpha: Any = 1) -> Pair:
    return add(x, neg(y) if alpha == 1 else mul(y, -alpha))


def mul(x: Any, y: Any) -> Pair:
    a, b = Pair.of(x), Pair.of(y)
    if a.im is None or b.im is None:
        scale, whole = (a.re, b) if a.im is None else (b.re, a)
        return Pair(_scaled(whole.re, scale), None if whole.im is None else _scaled(whole.im, scale))
    return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def _scaled(part: Any, scale: Any) -> Any:
    return scale if _is_one(part) else part if _is_one(scale) else part * scale


def _is_one(value: Any) -> bool:
    return isinstance(value, int | float) and value == 1


def div(x: Any, y: Any) -> Pair:
    a, b = Pair.of(x), Pair.of(y)
    if b.im is None:
        return Pair(a.re / b.re, None if a.im is None else a.im / b.re)
    if not isinstance(b.re, torch.Tensor):
        return mul(a, 1 / complex(b.re, b.im))
    largest = torch.maximum(b.re.abs(), b.im.abs())
    c, d = b.re / largest, b.im / largest
    below = (c * c + d * d) * largest
    if a.im is None:
        return Pair(a.re * c / below, -(a.re * d) / below)
    return Pair((a.re * c + a.im * d) / below, (a.im * c - a.re * d) / below)


def neg(x: Any) -> Pair:
    a = Pair.of(x)
    return Pair(-a.re, None if a.im is None else -a.im)


def plus(a: Any, b: Any) -> Any:
    """A sum in which None is nothing."""
    return b if a is None else a if b is None else a + b


def conj(x: Any) -> Pair:
    a = Pair.of(x)
    return Pair(a.re, None if a.im is None else -a.im)


def _rsub(x: Any, y: Any, alpha: Any = 1) -> Pair:
    return sub(y, x, alpha)


def _abs(x: Pair) -> torch.Tensor:
    return torch.hypot(x.re, x.im)


def _angle(x: Pair) -> torch.Tensor:
    return torch.atan2(x.im, x.re)


def _polar(radius: torch.Tensor, angle: torch.Tensor) -> Pair:
    return Pair(radius * torch.cos(angle), radius * torch.sin(angle))


def _sgn(x: Pair) -> Pair:
    size = _abs(x)
    return Pair(*(torch.where(size == 0, 0.0, part / size) for part in (x.re, x.im)))


def _reciprocal(x: Pair) -> Pair:
    return div(1.0, x)


def _square(x: Pair) -> Pair:
    return mul(x, x)


def _exp(x: Pair) -> Pair:
    return _polar(torch.exp(x.re), x.im)


def _log(x: Pair) -> Pair:
    return Pair(torch.log(_abs(x)), _angle(x))


def _log2(x: Pair) -> Pair:
    return mul(_log(x), 1 / math.log(2))


def _log10(x: Pair) -> Pair:
    return mul(_log(x), 1 / math.log(10))


def _sqrt(x: Pair) -> Pair:
    """The root in the right half plane; the part that is a difference of near numbers is divided out of the other."""
    large = torch.sqrt((_abs(x) + x.re.abs()) / 2)
    small = torch.where(large == 0, 0.0, x.im.abs() / (2 * large))
    right = x.re >= 0
    size = torch.where(right, small, large)
    return Pair(torch.where(right, large, small), torch.where(torch.signbit(x.im), -size, size))


def _rsqrt(x: Pair) -> Pair:
    return _reciprocal(_sqrt(x))


def _tanh(x: Pair) -> Pair:
    real = x.re.clamp(-20.0, 20.0)  # beyond, cosh² has the infinities that tanh has not
    rising, turn = torch.sinh(real), torch.cos(x.im)
    below = rising * rising + turn * turn
    return Pair(rising * torch.cosh(real) / below, torch.sin(x.im) * turn / below)


def _sigmoid(x: Pair) -> Pair:
    half = _tanh(mul(x, 0.5))
    return Pair(0.5 + 0.5 * half.re, 0.5 * half.im)


def _silu(x: Pair) -> Pair:
    return mul(x, _sigmoid(x))


def _sin(x: Pair) -> Pair:
    return Pair(torch.sin(x.re) * torch.cosh(x.im), torch.cos(x.re) * torch.sinh(x.im))


def _cos(x: Pair) -> Pair:
    return Pair(torch.cos(x.re) * torch.cosh(x.im), -(torch.sin(x.re) * torch.sinh(x.im)))


def _sinh(x: Pair) -> Pair:
    return Pair(torch.sinh(x.re) * torch.cos(x.im), torch.cosh(x.re) * torch.sin(x.im))


def _cosh(x: Pair) -> Pair:
    return Pair(torch.cosh(x.re) * torch.cos(x.im), torch.sinh(x.re) * torch.sin(x.im))


def _pow(x: Any, exponent: Any) -> Pair:
    if isinstance(exponent, complex) and exponent.imag == 0:
        exponent = exponent.real
    if isinstance(exponent, int | float) and exponent == int(exponent) and abs(exponent) <= _MOST_PRODUCTS:
        return _whole_power(Pair.of(x), int(exponent))
    if isinstance(exponent, float) and exponent == 0.5:
        return _sqrt(Pair.of(x))
    base, power = Pair.of(x), Pair.of(exponent)
    if base.im is None:  # a real base, a number or a tensor, to a complex power
        base = Pair(torch.as_tensor(base.re, dtype=power.re.dtype, device=power.re.device), None)
        base = Pair(base.re, torch.zeros_like(base.re))
    elif not isinstance(base.re, torch.Tensor):
        like = power.re
        base = Pair(*(torch.full((), part, dtype=like.dtype, device=like.device) for part in (base.re, base.im)))
    size, angle = _abs(base), _angle(base)
    radius, turn = torch.pow(size, power.re), angle * power.re
    if power.im is not None:
        radius, turn = radius * torch.exp(-power.im * angle), turn + power.im * torch.log(size)
    return _polar(radius, turn)


def _whole_power(x: Pair, exponent: int) -> Pair:
    if exponent < 0:
        return _reciprocal(_whole_power(x, -exponent))
    if exponent == 0:
        return Pair(torch.ones_like(x.re), torch.zeros_like(x.re))
    half = _whole_power(x, exponent // 2) if exponent > 1 else None
    squared = x if half is None else mul(half, half)
    return mul(squared, x) if half is not None and exponent % 2 else squared


def _equal(x: Any, y: Any) -> torch.Tensor:
    a, b = Pair.of(x), Pair.of(y)
    zero = 0.0
    same: torch.Tensor = (a.re == b.re) & ((zero if a.im is None else a.im) == (zero if b.im is None else b.im))
    return same


def _unequal(x: Any, y: Any) -> torch.Tensor:
    return torch.logical_not(_equal(x, y))


def _is_zero(x: Pair) -> torch.Tensor:
    return _equal(x, 0)


def _dropout(x: Pair, p: float, train: bool) -> Pair:
    if train and p:
        raise NotWritten("draws random numbers")
    return x


def _of_sizes(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A norm is that of the absolute values."""
    return lambda x, *rest, **named: function(_abs(x), *rest, **named)


def _any_part(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Pair], torch.Tensor]:
    return lambda x: torch.logical_or(function(x.re), function(x.im))


def _isfinite(x: Pair) -> torch.Tensor:
    return torch.logical_and(torch.isfinite(x.re), torch.isfinite(x.im))


def _linear_step(x: Any, tensor1: Any, tensor2: Any, value: Any = 1) -> Pair:
    return add(x, mul(mul(tensor1, tensor2), value))


def _as_complex(x: torch.Tensor) -> Pair:
    return Pair(x.select(-1, 0), x.select(-1, 1))


def as_real(x: Pair) -> torch.Tensor:
    """[…] complex → […, 2]: the form in which complex numbers go in and out of a graph."""
    return torch.stack((x.re, x.im), -1)


def _complex(real: torch.Tensor, imag: torch.Tensor) -> Pair:
    return Pair(real, imag)


def _real(x: Any) -> Any:
    return Pair.of(x).re


def _imag(x: Pair) -> Any:
    return x.im


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": add, "sub": sub, "subtract": sub, "rsub": _rsub, "mul": mul, "multiply": mul, "div": div, "divide": div,
    "true_divide": div, "addcmul": _linear_step, "reciprocal": _reciprocal, "square": _square, "pow": _pow,
    "complex": _complex, "polar": _polar, "view_as_complex": _as_complex, "view_as_real": as_real, "real": _real, "imag": _imag,
    "conj": conj, "_conj": conj, "conj_physical": conj, "_conj_physical": conj, "abs": _abs, "absolute": _abs, "angle": _angle,
    "sgn": _sgn, "linalg_vector_norm": _of_sizes(torch.linalg.vector_norm), "exp": _exp, "log": _log, "log2": _log2,
    "log10": _log10, "sqrt": _sqrt, "rsqrt": _rsqrt, "sin": _sin, "cos": _cos, "sinh": _sinh, "cosh": _cosh, "tanh": _tanh,
    "sigmoid": _sigmoid, "silu": _silu, "eq": _equal, "ne": _unequal, "logical_not": _is_zero, "isnan": _any_part(torch.isnan),
    "isinf": _any_part(torch.isinf), "isfinite": _isfinite, "dropout": _dropout,
}  # fmt: skip
