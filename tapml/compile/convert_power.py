"""Powers of floats and of integers, to numbers and to tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx

from tapml.compile.convert_arithmetic import as_element, beside
from tapml.compile.node_arguments import output, read
from tapml.compile.tensor_expressions import Element, broadcast, constant, is_float, is_nan, wide

Convert = Callable[[Any, Any], Any]


def power(x: Element, exponent: float, dtype: str) -> Element:
    """x to a number. Small whole exponents multiply, and ±1/2 is a square root."""
    if exponent in (0.5, -0.5):
        return tirx.sqrt(x) if exponent > 0 else constant(1, dtype) / tirx.sqrt(x)
    if float(exponent).is_integer() and abs(exponent) <= 8:
        result = constant(1, dtype)
        for k in range(int(abs(exponent))):
            result = x if k == 0 else result * x
        return result if exponent >= 0 else constant(1, dtype) / result
    return general_power(x, constant(exponent, dtype), dtype) if is_float(dtype) else whole_power(x, int(exponent), dtype)


def general_power(x: Element, y: Element, dtype: str) -> Element:
    """x to the y as in C, for any sign of x: `pow` of a negative base, of 0 and of infinities is undefined in several GPU
    languages. |x| is raised, and the sign follows from whether y is whole and odd."""
    zero, one, half = constant(0, dtype), constant(1, dtype), constant(0.5, dtype)
    infinite, large = constant(math.inf, dtype), constant(float(np.finfo(dtype).max), dtype)
    a = tirx.abs(x)
    limited = tirx.max(tirx.min(y, large), -large)
    value = tirx.power(tirx.Select(tirx.EQ(a, zero), one, tirx.min(a, large)), limited)
    up = y > zero
    value = tirx.Select(tirx.EQ(a, zero), tirx.Select(up, zero, infinite), value)
    value = tirx.Select(a > large, tirx.Select(up, infinite, zero), value)
    far = tirx.Select(tirx.EQ(a > one, up), infinite, zero)
    value = tirx.Select(tirx.abs(y) > large, tirx.Select(tirx.EQ(a, one), one, far), value)
    whole = tirx.EQ(tirx.floor(y), y)
    odd = tirx.And(whole, tirx.NE(tirx.floor(y * half) * constant(2, dtype), y))
    value = tirx.Select(tirx.And(x < zero, odd), zero - value, value)
    undefined = tirx.And(tirx.And(x < zero, a <= large), tirx.Not(whole))
    value = tirx.Select(undefined, constant(math.nan, dtype), value)
    value = tirx.Select(tirx.Or(is_nan(x), is_nan(y)), x + y, value)
    return tirx.Select(tirx.Or(tirx.EQ(y, zero), tirx.EQ(x, one)), one, value)


def whole_power(x: Element, exponent: int, dtype: str) -> Element:
    """An integer to a whole number by squaring; below 0 only ±1 have a power that is not 0."""
    result, square, left = constant(1, dtype), x, abs(exponent)
    while left:
        result = result * square if left & 1 else result
        square, left = square * square, left >> 1
    if exponent >= 0:
        return result
    unit = tirx.EQ(tirx.abs(x), constant(1, dtype))
    return tirx.Select(unit, result, constant(0, dtype))


def _integer_power(x: Element, y: Element, dtype: str) -> Element:
    """An integer to an integer. Beyond 2⁶ every power but those of 0 and ±1 is a multiple of 2⁶⁴ or out of range."""
    zero, one = constant(0, dtype), constant(1, dtype)
    result, square = one, x
    for k in range(6):
        bit = tirx.floormod(tirx.floordiv(tirx.max(y, zero), constant(1 << k, dtype)), constant(2, dtype))
        result = tirx.Select(tirx.EQ(bit, one), result * square, result)
        square = square * square
    odd = tirx.NE(tirx.floormod(y, constant(2, dtype)), zero)
    below = tirx.Select(tirx.EQ(x, one), one, tirx.Select(tirx.EQ(x, -one), tirx.Select(odd, -one, one), zero))
    return tirx.Select(y < zero, below, result)


def _pow(importer: Any, node: Any) -> Any:
    a, b = read(importer, node, 0, "self"), read(importer, node, 1, "exponent")
    spec = output(node)
    a = a if isinstance(a, relax.Expr) else beside(a, spec.dtype)
    dtype = wide(spec.dtype)

    def element(x: Any, y: Any) -> Element:
        if isinstance(y, int | float):
            value = power(as_element(x, dtype), y, dtype)
            if spec.dtype == "float16" and y in (0.5, -0.5):
                # In float16 PyTorch raises to a power there, as C does; else it takes the root.
                least = tirx.EQ(as_element(x, dtype), constant(-math.inf, dtype))
                return tirx.Select(least, constant(math.inf if y > 0 else 0, dtype), value)
            return value
        function = general_power if is_float(dtype) else _integer_power
        return function(as_element(x, dtype), as_element(y, dtype), dtype)

    return broadcast(importer, spec.shape, spec.dtype, element, a, b)


POWER: dict[str, Convert] = {
    **{f"pow.{kind}": _pow for kind in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")},
}
