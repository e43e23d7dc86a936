"""Mathematical functions of one element, written with what every kernel language has: exp, log, sqrt, floor and comparisons.

Drivers lack some (PoCL's OpenCL on recent LLVM has no tan or asin for lack of a symbol), and what WGSL asks of others is coarse.
Polynomials interpolate at Chebyshev points, in float32 to its rounding; float64 takes TVM's function. What would
repeat itself as an expression is a function of `function_texts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx

from tapml.compile.function_texts import own
from tapml.compile.tensor_expressions import Element, constant, is_nan

_TAN_22_5 = math.tan(math.pi / 8)


def polynomial(x: Element, coefficients: list[float], dtype: str) -> Element:
    """Horner's scheme, highest power first."""
    value = constant(coefficients[0], dtype)
    for c in coefficients[1:]:
        value = value * x + constant(c, dtype)
    return value


def log1p(x: Element) -> Element:
    """log(1 + x), also where 1 + x is rounded: within ±1/2 as 2·artanh(s), s = x / (2 + x), by its series in s²."""
    dtype = str(x.ty)
    one, half = constant(1, dtype), constant(0.5, dtype)
    if dtype == "float64":
        return tirx.log(one + x)
    s = x / (constant(2, dtype) + x)
    series = polynomial(s * s, [2 / k for k in range(13, 0, -2)], dtype)
    return tirx.Select(tirx.abs(x) < half, s * series, tirx.log(one + x))


def expm1(x: Element) -> Element:
    """exp(x) - 1, also where exp(x) is near 1: within ±1/2 by its series."""
    dtype = str(x.ty)
    one, half = constant(1, dtype), constant(0.5, dtype)
    if dtype == "float64":
        return tirx.exp(x) - one
    series = polynomial(x, [1 / math.factorial(k) for k in range(9, 0, -1)], dtype)
    return tirx.Select(tirx.abs(x) < half, x * series, tirx.exp(x) - one)


def sine(x: Element) -> Element:
    """sin(x), exact to two roundings for every number. Vulkan asks no more than an absolute error of 2⁻¹¹ of a driver's own
    sine; the tables of rotary embeddings need more."""
    return tirx.sin(x) if str(x.ty) == "float64" else own("sine", x)


def cosine(x: Element) -> Element:
    """cos(x), as exact as `sine`."""
    return tirx.cos(x) if str(x.ty) == "float64" else own("cosine", x)


def tangent(x: Element) -> Element:
    return tirx.tan(x) if str(x.ty) == "float64" else own("tangent", x)


def _signed(x: Element, magnitude: Element) -> Element:
    return tirx.Select(x < constant(0, str(x.ty)), constant(0, str(x.ty)) - magnitude, magnitude)


def arctangent(x: Element) -> Element:
    """|x| is brought to at most tan(π/8) by atan(x) = π/4 + atan((x - 1)/(x + 1)) = π/2 - atan(1/x)."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.atan(x)
    one, a = constant(1, dtype), tirx.abs(x)
    far, near = a > constant(1 / _TAN_22_5, dtype), a > constant(_TAN_22_5, dtype)
    reduced = tirx.Select(far, constant(-1, dtype) / a, tirx.Select(near, (a - one) / (a + one), a))
    base = tirx.Select(far, constant(math.pi / 2, dtype), tirx.Select(near, constant(math.pi / 4, dtype), constant(0, dtype)))
    z = reduced * reduced
    series = polynomial(
        z, [-0.06451928167659277, 0.10743731473387662, -0.14263955595389416, 0.19999540483494524, -0.3333333176116556], dtype
    )
    return _signed(x, base + (reduced + reduced * z * series))


def arctangent2(y: Element, x: Element) -> Element:
    """The angle of (x, y), in (-π, π]."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.atan2(y, x)
    zero, pi = constant(0, dtype), constant(math.pi, dtype)
    angle = arctangent(tirx.abs(y) / tirx.abs(x))
    both = tirx.And(tirx.EQ(tirx.abs(x), tirx.abs(y)), tirx.abs(x) > constant(3e38, dtype))
    angle = tirx.Select(both, constant(math.pi / 4, dtype), angle)
    angle = tirx.Select(tirx.And(tirx.EQ(x, zero), tirx.EQ(y, zero)), zero, angle)
    left = sign_bit(x)
    angle = tirx.Select(left, pi - angle, angle)
    angle = tirx.Select(sign_bit(y), zero - angle, angle)
    return tirx.Select(tirx.Or(is_nan(x), is_nan(y)), x + y, angle)


def arcsine(x: Element) -> Element:
    """Within ±1/2 by a polynomial; beyond, π/2 - 2·asin(√((1 - |x|)/2))."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.asin(x)
    beyond, inner = _reduced_arcsine(tirx.abs(x))
    return _signed(x, tirx.Select(beyond, constant(math.pi / 2, dtype) - constant(2, dtype) * inner, inner))


def arccosine(x: Element) -> Element:
    """Within ±1/2 as π/2 - asin(x); beyond, 2·asin(√((1 - |x|)/2)), and what is left to π of it for negative x."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.acos(x)
    beyond, inner = _reduced_arcsine(tirx.abs(x))
    twice = constant(2, dtype) * inner
    outer = tirx.Select(x < constant(0, dtype), constant(math.pi, dtype) - twice, twice)
    return tirx.Select(beyond, outer, constant(math.pi / 2, dtype) - _signed(x, inner))


def _reduced_arcsine(a: Element) -> tuple[Element, Element]:
    """Whether 0 ≤ a ≤ 1 is beyond 1/2, and asin(√((1 - a)/2)) then, else asin(a)."""
    dtype = str(a.ty)
    beyond = a > constant(0.5, dtype)
    return beyond, _half_arcsine(tirx.Select(beyond, tirx.sqrt((constant(1, dtype) - a) * constant(0.5, dtype)), a))


def _half_arcsine(x: Element) -> Element:
    """asin(x) for 0 ≤ x ≤ 1/2."""
    z = x * x
    coefficients = [0.030974570638572025, 0.010574389922989088, 0.02361182543838383, 0.030269137369915027,
                    0.044647663998003816, 0.07499992404000005, 0.16666666686090204]
    return x + x * z * polynomial(z, coefficients, str(x.ty))


def hyperbolic_sine(x: Element) -> Element:
    """Of e = exp(|x|) - 1: (e + e/(e + 1))/2; for large |x| exp(|x|/2)² / 2, which does not overflow early."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.sinh(x)
    half, one, a = constant(0.5, dtype), constant(1, dtype), tirx.abs(x)
    e = expm1(tirx.min(a, constant(20, dtype)))
    root = tirx.exp(a * half)
    value = tirx.Select(a > constant(20, dtype), half * root * root, half * (e + e / (e + one)))
    return tirx.Select(is_nan(x), x, _signed(x, value))


def hyperbolic_cosine(x: Element) -> Element:
    """(exp(|x|) + exp(-|x|))/2 by exp(|x|/2), which does not overflow early."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.cosh(x)
    half = constant(0.5, dtype)
    root = tirx.exp(tirx.abs(x) * half)
    return half * root * root + half * tirx.exp(-tirx.abs(x))


def inverse_hyperbolic_sine(x: Element) -> Element:
    """log1p(a + a²/(1 + √(1 + a²))) of a = |x|; log(a) + log 2 where a² would overflow."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.asinh(x)
    one, a = constant(1, dtype), tirx.abs(x)
    b = tirx.min(a, constant(1e9, dtype))
    near = log1p(b + b * b / (one + tirx.sqrt(one + b * b)))
    value = tirx.Select(a > constant(1e9, dtype), tirx.log(a) + constant(math.log(2), dtype), near)
    return tirx.Select(is_nan(x), x, _signed(x, value))


def inverse_hyperbolic_cosine(x: Element) -> Element:
    """log1p(t + √(2t + t²)) of t = x - 1; log(x) + log 2 where t² would overflow."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.acosh(x)
    t = x - constant(1, dtype)
    near = log1p(t + tirx.sqrt(constant(2, dtype) * t + t * t))
    value = tirx.Select(x > constant(1e9, dtype), tirx.log(x) + constant(math.log(2), dtype), near)
    return tirx.Select(x < constant(1, dtype), constant(math.nan, dtype), value)


def inverse_hyperbolic_tangent(x: Element) -> Element:
    """log1p(2a/(1 - a))/2 of a = |x|."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.atanh(x)
    a = tirx.abs(x)
    return _signed(x, constant(0.5, dtype) * log1p(constant(2, dtype) * a / (constant(1, dtype) - a)))


def inverse_error_function(x: Element) -> Element:
    """x times a polynomial in w = -log(1 - x²) for w < 5, a polynomial in √w beyond (the variables of M. Giles, Approximating the
    erfinv function, 2011); infinite at ±1, NaN outside."""
    dtype = str(x.ty)
    one = constant(1, dtype)
    w = constant(0, dtype) - log1p(constant(0, dtype) - x * x)
    w = tirx.Select(tirx.abs(x) > constant(0.5, dtype), constant(0, dtype) - tirx.log((one - x) * (one + x)), w)
    centre = x * polynomial(w - constant(2.5, dtype), _CENTRE, dtype)
    tail = _signed(x, polynomial(tirx.sqrt(w) - constant(3.2, dtype), _TAIL, dtype))
    value = tirx.Select(w < constant(5, dtype), centre, tail)
    return tirx.Select(tirx.EQ(tirx.abs(x), one), x / (one - tirx.abs(x)), value)


_CENTRE: list[float] = [
    -8.93192596e-09, 2.33359672e-08, 4.68131348e-07, -3.46398527e-06, -4.97241969e-06, 0.000218349386, -0.00125272639,
    -0.00417739288, 0.246640279, 1.50140936,
]
_TAIL: list[float] = [
    3.12055046e-06, -1.48741981e-05, 2.46928815e-05, 1.57965649e-05, -0.000228750812, 0.000912848309, -0.00262266387,
    0.00503255455, 1.0050212, 3.03358241,
]


def sign_bit(x: Element) -> Element:
    """Whether the number is negative, -0 and a NaN with that sign included."""
    return tirx.reinterpret("int32", x) < tirx.const(0, "int32")


def with_sign(x: Element, sign: Element) -> Element:
    """|x| with the sign of another."""
    bits = tirx.bitwise_and(tirx.reinterpret("int32", x), tirx.const(0x7FFFFFFF, "int32"))
    signed = tirx.bitwise_and(tirx.reinterpret("int32", sign), tirx.const(-(2**31), "int32"))
    return tirx.reinterpret("float32", tirx.bitwise_or(bits, signed))


def hypotenuse(a: Element, b: Element) -> Element:
    """√(a² + b²), by the larger of both, so that no square overflows; infinite if either is, else NaN if either is."""
    dtype = str(a.ty)
    infinite = constant(math.inf, dtype)
    high, low = tirx.max(tirx.abs(a), tirx.abs(b)), tirx.min(tirx.abs(a), tirx.abs(b))
    ratio = tirx.Select(high > constant(0, dtype), low / high, constant(0, dtype))
    value = high * tirx.sqrt(constant(1, dtype) + ratio * ratio)
    value = tirx.Select(tirx.Or(is_nan(a), is_nan(b)), a + b, value)
    return tirx.Select(tirx.Or(tirx.EQ(tirx.abs(a), infinite), tirx.EQ(tirx.abs(b), infinite)), infinite, value)


def logarithm(name: str, of_base: float) -> Callable[[Element], Element]:
    """The logarithm of that name, to a base whose natural logarithm is `of_base`."""

    def f(x: Element) -> Element:
        return tirx.log(x) * constant(1 / of_base, "float64") if str(x.ty) == "float64" else own(name, x)

    return f


def _own(name: str) -> Callable[[Element], Element]:
    def f(x: Element) -> Element:
        if str(x.ty) == "float64":
            raise ValueError(f"{name} of float64")
        return own(name, x)

    return f


SPECIAL: dict[str, Callable[[Element], Element]] = {
    "sin": sine, "cos": cosine, "tan": tangent, "asin": arcsine, "acos": arccosine, "atan": arctangent,
    "sinh": hyperbolic_sine, "cosh": hyperbolic_cosine, "asinh": inverse_hyperbolic_sine, "acosh": inverse_hyperbolic_cosine,
    "atanh": inverse_hyperbolic_tangent, "log1p": log1p, "expm1": expm1, "erfinv": inverse_error_function,
    "lgamma": _own("lgamma"), "digamma": _own("digamma"), "erfc": _own("erfc"), "special_erfcx": _own("erfcx"),
    "erfcx": _own("erfcx"), "i0": _own("i0"), "special_i0e": _own("i0e"), "special_i1": _own("i1"), "special_i1e": _own("i1e"),
    "bessel_i0": _own("i0"), "bessel_i1": _own("i1"), "bessel_i0e": _own("i0e"), "bessel_i1e": _own("i1e"),
}
