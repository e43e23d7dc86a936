"""Element-wise operators: arithmetic, comparisons, logic, selection, activations, and tensors made from numbers.

The dtype of the computation is PyTorch's: that of the result for arithmetic, the promoted one for comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import relax, tirx, topi

from tapml.compile.node_arguments import axis, output, read
from tapml.compile.tensor_expressions import (
    Element,
    broadcast,
    compute,
    constant,
    dtype_of,
    intrinsic,
    is_float,
    is_true,
    shape_of,
    to,
    wide,
)

Convert = Callable[[Any, Any], Any]


def as_element(operand: Any, dtype: str) -> Element:
    """An element of a tensor, or a number, in `dtype`."""
    return constant(operand, dtype) if isinstance(operand, bool | int | float) else to(operand, dtype)


def _arithmetic(f: Callable[[Element, Element, str], Element], swap: bool = False) -> Convert:
    """`f(a, b, dtype)` in the wide form of the result's dtype; `alpha` scales the second operand."""

    def convert(importer: Any, node: Any) -> Any:
        a, b = read(importer, node, 0, "self"), read(importer, node, 1, "other")
        alpha = read(importer, node, 2, "alpha", 1)
        spec = output(node)
        dtype = wide(spec.dtype)

        def element(x: Any, y: Any) -> Element:
            left, right = as_element(x, dtype), as_element(y, dtype)
            if swap:
                left, right = right, left
            return f(left, right if alpha == 1 else right * constant(alpha, dtype), dtype)

        return broadcast(importer, spec.shape, spec.dtype, element, a, b)

    return convert


def _comparison(f: Callable[[Element, Element], Element]) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        a, b = read(importer, node, 0, "self"), read(importer, node, 1, "other")
        dtype = promoted(a, b)
        return broadcast(importer, output(node).shape, "bool", lambda x, y: f(as_element(x, dtype), as_element(y, dtype)), a, b)

    return convert


def promoted(*operands: Any) -> str:
    """The dtype in which operands are compared: float if any is, else the widest integer."""
    tensors = [dtype_of(o) for o in operands if isinstance(o, relax.Expr)]
    numbers = [o for o in operands if not isinstance(o, relax.Expr)]
    floats = [d for d in tensors if is_float(d)]
    if floats:
        return "float64" if "float64" in floats else "float32"
    if any(isinstance(n, float) for n in numbers):
        return "float32"
    return "int64" if "int64" in tensors else "int32"


def _logic(f: Callable[..., Element]) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        operands = [read(importer, node, k, "other") for k in range(len(node.args))]
        truth = [o if isinstance(o, relax.Expr) else bool(o) for o in operands]
        return broadcast(
            importer, output(node).shape, "bool", lambda *x: f(*[as_element(e, "bool") for e in x]), *truth
        )

    return convert


def _bitwise(logic: Callable[..., Element], bits: Callable[..., Element]) -> Convert:
    """On booleans the logical function, on integers the one on bits."""
    as_logic, as_bits = _logic(logic), _arithmetic(lambda a, b, dtype: bits(a, b))

    def convert(importer: Any, node: Any) -> Any:
        return (as_logic if output(node).dtype == "bool" else as_bits)(importer, node)

    return convert


def _not(importer: Any, node: Any) -> Any:
    x = read(importer, node, 0, "self")
    if output(node).dtype == "bool":
        return broadcast(importer, shape_of(x), "bool", lambda e: tirx.Not(is_true(e)), x)
    return broadcast(importer, shape_of(x), dtype_of(x), lambda e: tirx.bitwise_not(e), x)


def unary(f: Callable[[Element], Element]) -> Convert:
    """`f` in the wide form of the result's dtype."""

    def convert(importer: Any, node: Any) -> Any:
        spec = output(node)
        dtype = wide(spec.dtype)
        return broadcast(importer, spec.shape, spec.dtype, lambda e: f(to(e, dtype)), read(importer, node, 0, "self"))

    return convert


def _divide(a: Element, b: Element, dtype: str) -> Element:
    return a / b if is_float(dtype) else tirx.floordiv(a, b)


def _floor_divide(a: Element, b: Element, dtype: str) -> Element:
    return tirx.floor(a / b) if is_float(dtype) else tirx.floordiv(a, b)


def _remainder(a: Element, b: Element, dtype: str) -> Element:
    return a - tirx.floor(a / b) * b if is_float(dtype) else tirx.floormod(a, b)


def _divide_mode(importer: Any, node: Any) -> Any:
    mode = node.kwargs.get("rounding_mode")

    def trunc(a: Element, b: Element, dtype: str) -> Element:
        return tirx.trunc(a / b) if is_float(dtype) else tirx.truncdiv(a, b)

    chosen = {None: _divide, "floor": _floor_divide, "trunc": trunc}[mode]
    return _arithmetic(chosen)(importer, node)


def power(x: Element, exponent: float, dtype: str) -> Element:
    """x to a number. Small whole exponents multiply: `pow` of a negative base is undefined on several GPU languages."""
    if exponent in (0.5, -0.5):
        return tirx.sqrt(x) if exponent > 0 else tirx.rsqrt(x)
    if float(exponent).is_integer() and abs(exponent) <= 8:
        result = constant(1, dtype)
        for k in range(int(abs(exponent))):
            result = x if k == 0 else result * x
        return result if exponent >= 0 else constant(1, dtype) / result
    return tirx.power(x, constant(exponent, dtype))


def _pow(importer: Any, node: Any) -> Any:
    a, b = read(importer, node, 0, "self"), read(importer, node, 1, "exponent")
    spec = output(node)
    dtype = wide(spec.dtype)

    def element(x: Any, y: Any) -> Element:
        if isinstance(y, int | float):
            return power(as_element(x, dtype), y, dtype)
        return tirx.power(as_element(x, dtype), as_element(y, dtype))

    return broadcast(importer, spec.shape, spec.dtype, element, a, b)


def _where(importer: Any, node: Any) -> Any:
    spec = output(node)
    condition, a, b = (read(importer, node, k, n) for k, n in enumerate(("condition", "self", "other")))

    def element(c: Element, x: Any, y: Any) -> Element:
        return tirx.Select(is_true(c), as_element(x, spec.dtype), as_element(y, spec.dtype))

    return broadcast(importer, spec.shape, spec.dtype, element, condition, a, b)


def _masked_fill(importer: Any, node: Any) -> Any:
    spec = output(node)
    x, mask, value = (read(importer, node, k, n) for k, n in enumerate(("self", "mask", "value")))

    def element(e: Element, m: Element, v: Any) -> Element:
        return tirx.Select(is_true(m), as_element(v, spec.dtype), to(e, spec.dtype))

    return broadcast(importer, spec.shape, spec.dtype, element, x, mask, value)


def _clamp(low_at: int | None, high_at: int | None) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        spec = output(node)
        x = read(importer, node, 0, "self")
        low = None if low_at is None else read(importer, node, low_at, "min")
        high = None if high_at is None else read(importer, node, high_at, "max")
        bounds = [b for b in (low, high) if b is not None]

        def element(e: Element, *limits: Any) -> Element:
            value, rest = to(e, spec.dtype), list(limits)
            if low is not None:
                value = tirx.max(value, as_element(rest.pop(0), spec.dtype))
            return tirx.min(value, as_element(rest.pop(0), spec.dtype)) if high is not None else value

        return broadcast(importer, spec.shape, spec.dtype, element, x, *bounds)

    return convert


def sigmoid(x: Element) -> Element:
    one = constant(1, str(x.ty))
    return one / (one + tirx.exp(-x))


def tanh(x: Element) -> Element:
    """Clamped to ±10, where float32's tanh is ±1: some GPU drivers return NaN for large arguments."""
    dtype = str(x.ty)
    limit = constant(20 if dtype == "float64" else 10, dtype)
    return tirx.tanh(tirx.max(tirx.min(x, limit), -limit))


def erf(x: Element) -> Element:
    """The error function: on [-4, 4] an odd polynomial of degree 13 over an even one of degree 8, with the coefficients of TVM's
    `fast_erf`; absolute error below 4e-7 in float32. WGSL has no erf."""
    dtype = str(x.ty)
    if dtype == "float64":
        return tirx.erf(x)
    limit = constant(4, dtype)
    x = tirx.max(tirx.min(x, limit), -limit)
    square = x * x
    above = [-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
             -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02]
    below = [-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02]
    return x * _polynomial(square, above, dtype) / _polynomial(square, below, dtype)


def sine(x: Element) -> Element:
    """sin(x), absolute error below 1e-7 for |x| up to 50,000 in float32. Vulkan asks no more than 2⁻¹¹ of a driver's own sine;
    the tables of rotary embeddings need more."""
    return tirx.sin(x) if str(x.ty) == "float64" else _quadrants(x, 0)


def cosine(x: Element) -> Element:
    """cos(x), as exact as `sine`."""
    return tirx.cos(x) if str(x.ty) == "float64" else _quadrants(x, 1)


def _quadrants(x: Element, ahead: int) -> Element:
    """sin(x + ahead·π/2): x is brought into ±π/4 by taking away k·π/2 in three parts, the first two exact for |k| < 2¹⁵ (Cody and
    Waite, Software Manual for the Elementary Functions, 1980), and k chooses between the sine and the cosine of what is left.
    The polynomials interpolate (sin(r)/r - 1)/r² and (cos(r) - 1 + r²/2)/r⁴ in r² at Chebyshev points."""
    dtype = str(x.ty)

    def number(value: float) -> Element:
        return constant(value, dtype)

    k = tirx.floor(x * number(2 / math.pi) + number(0.5))
    r = ((x - k * number(1.5703125)) - k * number(4.837512969970703125e-4)) - k * number(7.54978995489188216e-8)
    z = r * r
    sine_of_r = r + r * z * _polynomial(z, [-1.95777858607471e-4, 8.332700468599796e-3, -0.166666641831398], dtype)
    series = _polynomial(z, [2.4501774532836862e-5, -1.388796605169773e-3, 4.16666604578495e-2], dtype)
    cosine_of_r = (number(1) - number(0.5) * z) + z * z * series
    quadrant = k + number(ahead)
    quadrant = quadrant - number(4) * tirx.floor(quadrant * number(0.25))
    odd = tirx.Or(tirx.EQ(quadrant, number(1)), tirx.EQ(quadrant, number(3)))
    value = tirx.Select(odd, cosine_of_r, sine_of_r)
    return tirx.Select(quadrant >= number(2), number(0) - value, value)


def _polynomial(x: Element, coefficients: list[float], dtype: str) -> Element:
    """Horner's scheme, highest power first."""
    value = constant(coefficients[0], dtype)
    for c in coefficients[1:]:
        value = value * x + constant(c, dtype)
    return value


def _gelu(importer: Any, node: Any) -> Any:
    """0.5·x·(1 + erf(x/√2)), or with approximate="tanh" 0.5·x·(1 + tanh(√(2/π)(x + 0.044715x³))) (arXiv:1606.08415)."""

    def exact(x: Element) -> Element:
        dtype = str(x.ty)
        return constant(0.5, dtype) * x * (constant(1, dtype) + erf(x * constant(math.sqrt(0.5), dtype)))

    def by_tanh(x: Element) -> Element:
        dtype = str(x.ty)
        inner = constant(math.sqrt(2 / math.pi), dtype) * (x + constant(0.044715, dtype) * x * x * x)
        return constant(0.5, dtype) * x * (constant(1, dtype) + tanh(inner))

    return unary(by_tanh if node.kwargs.get("approximate", "none") == "tanh" else exact)(importer, node)


def log1p(x: Element) -> Element:
    """log(1 + x), also where 1 + x is rounded: within ±1/2 as 2·artanh(s), s = x / (2 + x), by its series in s²."""
    dtype = str(x.ty)
    one, half = constant(1, dtype), constant(0.5, dtype)
    if dtype == "float64":
        return tirx.log(one + x)
    s = x / (constant(2, dtype) + x)
    series = _polynomial(s * s, [2 / k for k in range(13, 0, -2)], dtype)
    return tirx.Select(tirx.abs(x) < half, s * series, tirx.log(one + x))


def expm1(x: Element) -> Element:
    """exp(x) - 1, also where exp(x) is near 1: within ±1/2 by its series."""
    dtype = str(x.ty)
    one, half = constant(1, dtype), constant(0.5, dtype)
    if dtype == "float64":
        return tirx.exp(x) - one
    series = _polynomial(x, [1 / math.factorial(k) for k in range(9, 0, -1)], dtype)
    return tirx.Select(tirx.abs(x) < half, x * series, tirx.exp(x) - one)


def _elu(importer: Any, node: Any) -> Any:
    """scale · (x where it is positive, else alpha · (exp(input_scale · x) - 1))."""
    alpha, scale, inner = (read(importer, node, k, n, 1) for k, n in ((1, "alpha"), (2, "scale"), (3, "input_scale")))

    def f(x: Element) -> Element:
        dtype = str(x.ty)
        below = constant(alpha, dtype) * expm1(x * constant(inner, dtype))
        return constant(scale, dtype) * tirx.Select(x > constant(0, dtype), x, below)

    return unary(f)(importer, node)


def _softplus(importer: Any, node: Any) -> Any:
    beta, threshold = read(importer, node, 1, "beta", 1), read(importer, node, 2, "threshold", 20)

    def f(x: Element) -> Element:
        dtype = str(x.ty)
        scaled = x * constant(beta, dtype)
        soft = (tirx.max(scaled, constant(0, dtype)) + log1p(tirx.exp(-tirx.abs(scaled)))) / constant(beta, dtype)
        return tirx.Select(scaled > constant(threshold, dtype), x, soft)

    return unary(f)(importer, node)


def _filled(value_at: int | None, value: float = 0) -> Convert:
    """A tensor of one number: the argument at `value_at`, or `value`."""

    def convert(importer: Any, node: Any) -> Any:
        spec = output(node)
        number = value if value_at is None else read(importer, node, value_at, "fill_value", value)
        if isinstance(number, relax.Expr):
            return broadcast(importer, spec.shape, spec.dtype, lambda e: to(e, spec.dtype), number)
        return compute(importer, spec.shape, spec.dtype, lambda *at: constant(number, spec.dtype), name="constant")

    return convert


def _arange(importer: Any, node: Any) -> Any:
    spec = output(node)
    positional = list(node.args)
    start, step = (positional[0] if len(positional) > 1 else 0), (positional[2] if len(positional) > 2 else 1)
    dtype = wide(spec.dtype)

    def element(i: Element) -> Element:
        return constant(start, dtype) + to(i, dtype) * constant(step, dtype)

    return compute(importer, spec.shape, spec.dtype, element, name="arange")


def _cast(importer: Any, node: Any) -> Any:
    """Another dtype, shape kept: the recorded spec says which."""
    spec = output(node)
    x = read(importer, node, 0, "self")
    return x if dtype_of(x) == spec.dtype else broadcast(importer, spec.shape, spec.dtype, lambda e: e, x)


def _same(importer: Any, node: Any) -> Any:
    return read(importer, node, 0, "self")


def _glu(importer: Any, node: Any) -> Any:
    """First half along `dim` times the sigmoid of the second."""
    spec = output(node)
    x = read(importer, node, 0, "self")
    dim = axis(read(importer, node, 1, "dim", -1), len(spec.shape))
    half = spec.shape[dim]
    dtype = wide(spec.dtype)

    def element(load: Any, *at: Any) -> Element:
        other = [i + half if k == dim else i for k, i in enumerate(at)]
        return to(load(*at), dtype) * sigmoid(to(load(*other), dtype))

    return compute(importer, spec.shape, spec.dtype, element, x)


_SIMPLE: dict[str, Callable[[Element], Element]] = {
    "exp": tirx.exp, "log": tirx.log, "sqrt": tirx.sqrt, "rsqrt": tirx.rsqrt, "sin": sine, "cos": cosine,
    "floor": tirx.floor, "ceil": tirx.ceil, "trunc": tirx.trunc, "abs": tirx.abs, "sigmoid": sigmoid, "tanh": tanh, "erf": erf,
    "neg": lambda x: -x, "silu": lambda x: x * sigmoid(x), "relu": lambda x: tirx.max(x, constant(0, str(x.ty))),
    "square": lambda x: x * x, "reciprocal": lambda x: constant(1, str(x.ty)) / x,
    "round": lambda x: intrinsic("nearbyint", x), "log1p": log1p,
    "log2": lambda x: tirx.log(x) * constant(1 / math.log(2), str(x.ty)),
    "exp2": lambda x: tirx.exp(x * constant(math.log(2), str(x.ty))),
    "expm1": expm1,
    "relu6": lambda x: tirx.max(tirx.min(x, constant(6, str(x.ty))), constant(0, str(x.ty))),
    "sign": lambda x: topi.cast(x > constant(0, str(x.ty)), str(x.ty)) - topi.cast(x < constant(0, str(x.ty)), str(x.ty)),
}

_PAIRS: dict[str, Callable[[Element, Element, str], Element]] = {
    "add": lambda a, b, d: a + b, "sub": lambda a, b, d: a - b, "mul": lambda a, b, d: a * b, "div": _divide,
    "floor_divide": _floor_divide, "remainder": _remainder, "maximum": lambda a, b, d: tirx.max(a, b),
    "minimum": lambda a, b, d: tirx.min(a, b),
    "fmod": lambda a, b, d: a - tirx.trunc(a / b) * b if is_float(d) else tirx.truncmod(a, b),
}

_COMPARE: dict[str, Callable[[Element, Element], Element]] = {
    "eq": lambda a, b: tirx.EQ(a, b), "ne": lambda a, b: tirx.NE(a, b), "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}

_BITS: dict[str, tuple[Callable[..., Element], Callable[..., Element]]] = {
    "and": (lambda a, b: tirx.And(a, b), tirx.bitwise_and), "or": (lambda a, b: tirx.Or(a, b), tirx.bitwise_or),
    "xor": (lambda a, b: tirx.NE(a, b), tirx.bitwise_xor),
}

ARITHMETIC: dict[str, Convert] = {
    **{f"{name}.default": unary(f) for name, f in _SIMPLE.items()},
    **{f"{name}.{kind}": _arithmetic(f) for name, f in _PAIRS.items() for kind in ("Tensor", "Scalar", "default")},
    **{f"{name}.{kind}": _comparison(f) for name, f in _COMPARE.items() for kind in ("Tensor", "Scalar")},
    **{f"bitwise_{n}.{kind}": _bitwise(*f) for n, f in _BITS.items() for kind in ("Tensor", "Scalar")},
    **{f"__{n}__.{kind}": _bitwise(*f) for n, f in _BITS.items() for kind in ("Tensor", "Scalar")},
    **{f"logical_{n}.default": _logic(f[0]) for n, f in _BITS.items()},
    "logical_not.default": _not,
    "bitwise_not.default": _not,
    "rsub.Tensor": _arithmetic(lambda a, b, d: a - b, swap=True),
    "rsub.Scalar": _arithmetic(lambda a, b, d: a - b, swap=True),
    "div.Tensor_mode": _divide_mode,
    "div.Scalar_mode": _divide_mode,
    **{f"pow.{kind}": _pow for kind in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")},
    **{f"where.{kind}": _where for kind in ("self", "ScalarSelf", "ScalarOther", "Scalar")},
    **{f"masked_fill.{kind}": _masked_fill for kind in ("Scalar", "Tensor")},
    "clamp.default": _clamp(1, 2),
    "clamp.Tensor": _clamp(1, 2),
    "clamp_min.default": _clamp(1, None),
    "clamp_max.default": _clamp(None, 1),
    "gelu.default": _gelu,
    "softplus.default": _softplus,
    "elu.default": _elu,
    "glu.default": _glu,
    "full.default": _filled(1),
    "full_like.default": _filled(1),
    "new_full.default": _filled(2),
    "scalar_tensor.default": _filled(0),
    "fill.Scalar": _filled(1),
    "fill.Tensor": _filled(1),
    **{f"{name}.default": _filled(None, 0) for name in ("zeros", "zeros_like", "new_zeros", "empty_like", "new_empty")},
    "empty.memory_format": _filled(None, 0),
    "empty_permuted.default": _filled(None, 0),
    **{f"{name}.default": _filled(None, 1) for name in ("ones", "ones_like", "new_ones")},
    **{f"arange.{kind}": _arange for kind in ("default", "start", "start_step")},
    **{f"{name}": _cast for name in ("_to_copy.default", "to.dtype", "to.dtype_layout", "type_as.default")},
    **{f"{name}.default": _same for name in ("clone", "alias", "contiguous", "detach", "lift_fresh_copy", "dropout")},
}
