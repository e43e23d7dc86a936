"""Element-wise operators: arithmetic, comparisons, logic, selection, activations.

The dtype of the computation is PyTorch's: that of the result for arithmetic, the promoted one for comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx, topi
from tvm.ir import Expr
from tvm.tirx import FloatImm

from tapml.compile.function_texts import own
from tapml.compile.node_arguments import axis, output, read
from tapml.compile.special_functions import (
    SPECIAL,
    arctangent2,
    expm1,
    hypotenuse,
    log1p,
    logarithm,
    sign_bit,
    with_sign,
)
from tapml.compile.tensor_expressions import (
    Element,
    broadcast,
    compute,
    constant,
    dtype_of,
    intrinsic,
    is_float,
    is_hidden,
    is_nan,
    is_true,
    larger,
    literal,
    rounded_to,
    shape_of,
    smaller,
    to,
    wide,
)
from tapml.tensors import NUMPY

Convert = Callable[[Any, Any], Any]


def as_element(operand: Any, dtype: str) -> Element:
    """An element of a tensor, or a number, in `dtype`."""
    return literal(operand, dtype) if isinstance(operand, bool | int | float) else to(operand, dtype)


def beside(number: float | int | bool, dtype: str) -> float | int | bool:
    """A number as PyTorch takes it beside a tensor of that dtype: rounded to it, or wrapped."""
    if isinstance(number, bool) or dtype == "bool":
        return number
    if is_float(dtype):
        with np.errstate(over="ignore"):
            return float(np.float64(number).astype(NUMPY[dtype]))
    if isinstance(number, float):
        return number
    bits = NUMPY[dtype].itemsize * 8
    low = 0 if dtype == "uint8" else -(2 ** (bits - 1))
    return int((int(number) - low) % 2**bits + low)


def _arithmetic(f: Callable[[Element, Element, str], Element], swap: bool = False, rounded: bool = False) -> Convert:
    """`f(a, b, dtype)` in the wide form of the result's dtype; `alpha` scales the second operand. Numbers are wrapped to an
    integer dtype, and rounded to a half precision where `rounded` says so: in most operators PyTorch does not."""

    def convert(importer: Any, node: Any) -> Any:
        a, b = read(importer, node, 0, "self"), read(importer, node, 1, "other")
        alpha = read(importer, node, 2, "alpha", 1)
        spec = output(node)
        dtype = wide(spec.dtype)
        if rounded or not is_float(spec.dtype):
            a, b = (o if isinstance(o, relax.Expr) else beside(o, spec.dtype) for o in (a, b))

        def element(x: Any, y: Any) -> Element:
            left, right = as_element(x, dtype), as_element(y, dtype)
            if swap:
                left, right = right, left
            return f(left, right if alpha == 1 else right * literal(alpha, dtype), dtype)

        return broadcast(importer, spec.shape, spec.dtype, element, a, b)

    return convert


def _comparison(name: str) -> Convert:
    """NaN is told by its bits: `x == x` is what compilers take for true, and WGSL lets them take `x != 1` for false there."""
    f = _COMPARE[name]

    def convert(importer: Any, node: Any) -> Any:
        a, b = read(importer, node, 0, "self"), read(importer, node, 1, "other")
        (kind, *_) = [dtype_of(o) for o in (a, b) if isinstance(o, relax.Expr)]
        a, b = (o if isinstance(o, relax.Expr) else beside(o, kind) for o in (a, b))
        dtype = promoted(a, b)
        tensors = [isinstance(o, relax.Expr) for o in (a, b)]
        if any(isinstance(o, float) and math.isnan(o) for o in (a, b)):
            return compute(importer, output(node).shape, "bool", lambda *at: constant(name == "ne", "bool"), name="constant")

        halves = {dtype_of(o) for o in (a, b) if isinstance(o, relax.Expr) and is_float(dtype_of(o))}

        def side(e: Any) -> Element:
            """An integer beside half precision is rounded to it before it is compared."""
            number = as_element(e, dtype)
            (half, *other) = [*halves, ""]
            narrow = half in ("float16", "bfloat16") and other == [""] and isinstance(e, Expr) and not is_float(str(e.ty))
            return rounded_to(number, half) if narrow else number

        def element(x: Any, y: Any) -> Element:
            left, right = side(x), side(y)
            if name in ("eq", "ne") and isinstance(b, int) and b == -(2**31) and not is_float(dtype):
                # TVM takes the comparison with int32's least number for false.
                least = left < constant(b + 1, dtype)
                if dtype == "int64":
                    least = tirx.And(least, left > constant(b - 1, dtype))
                return least if name == "eq" else tirx.Not(least)
            if not is_float(dtype):
                return f(left, right)
            first, *more = [is_nan(e) for e, tensor in zip((left, right), tensors, strict=True) if tensor]
            nan = tirx.Or(first, *more) if more else first
            return tirx.Or(nan, f(left, right)) if name == "ne" else tirx.And(tirx.Not(nan), f(left, right))

        return broadcast(importer, output(node).shape, "bool", element, a, b)

    return convert


def promoted(*operands: Any) -> str:
    """The dtype in which operands are compared: float if any is, else the widest integer, of 64 bits for numbers beyond 32."""
    tensors = [dtype_of(o) for o in operands if isinstance(o, relax.Expr)]
    numbers = [o for o in operands if not isinstance(o, relax.Expr)]
    floats = [d for d in tensors if is_float(d)]
    if floats:
        return "float64" if "float64" in floats else "float32"
    if any(isinstance(n, float) for n in numbers):
        return "float32"
    return "int64" if "int64" in tensors or any(not -(2**31) <= n < 2**31 for n in numbers) else "int32"


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


def _shift(left: bool) -> Convert:
    """Bits moved up or down; by as many as there are, or more, or by a negative number, what is left is the sign."""

    def convert(importer: Any, node: Any) -> Any:
        a, b = read(importer, node, 0, "self"), read(importer, node, 1, "other")
        spec = output(node)
        dtype, bits = wide(spec.dtype), np.dtype(spec.dtype).itemsize * 8

        def element(x: Any, y: Any) -> Element:
            value, by = as_element(x, dtype), as_element(y, dtype)
            last = constant(bits - 1, dtype)
            outside = tirx.Or(by < constant(0, dtype), by > last)
            if left:
                return tirx.Select(outside, constant(0, dtype), tirx.shift_left(value, tirx.Select(outside, last, by)))
            return tirx.shift_right(value, tirx.Select(outside, last, by))

        return broadcast(importer, spec.shape, spec.dtype, element, a, b)

    return convert


def _told(f: Callable[[Element], Element]) -> Convert:
    """A question about each number, which for integers and booleans is answered by them as float32."""

    def convert(importer: Any, node: Any) -> Any:
        x = read(importer, node, 0, "self")
        dtype = dtype_of(x) if dtype_of(x) == "float64" else "float32"
        return broadcast(importer, output(node).shape, "bool", lambda e: f(to(e, dtype)), x)

    return convert


def _is_infinite(x: Element) -> Element:
    return tirx.EQ(tirx.abs(x), constant(math.inf, str(x.ty)))


def _logsumexp_of_two(scale: float) -> Convert:
    """log(exp(a) + exp(b)), or with base 2: the larger, and the logarithm of 1 + exp(-|a - b|)."""

    def join(a: Element, b: Element, dtype: str) -> Element:
        high = larger(a, b)
        by = constant(scale, dtype)
        spread = tirx.exp(tirx.Select(tirx.EQ(a, b), constant(0, dtype), (constant(0, dtype) - tirx.abs(a - b)) * by))
        return tirx.Select(_is_infinite(high), high, high + log1p(spread) / by)

    return _arithmetic(join)


def _logaddexp(importer: Any, node: Any) -> Any:
    if wide(output(node).dtype) != "float32":
        return _logsumexp_of_two(1)(importer, node)
    return _arithmetic(lambda a, b, dtype: own("logaddexp", a, b))(importer, node)


def _celu(importer: Any, node: Any) -> Any:
    """x where it is positive, else alpha · (exp(x / alpha) - 1)."""
    alpha = read(importer, node, 1, "alpha", 1.0)

    def f(x: Element) -> Element:
        dtype = str(x.ty)
        return tirx.Select(x > constant(0, dtype), x, constant(alpha, dtype) * expm1(x / constant(alpha, dtype)))

    return unary(f)(importer, node)


def _softshrink(importer: Any, node: Any) -> Any:
    """x brought nearer to 0 by lambd, and 0 within it."""
    by = read(importer, node, 1, "lambd", 0.5)

    def f(x: Element) -> Element:
        zero, limit = constant(0, str(x.ty)), constant(by, str(x.ty))
        value = tirx.Select(x > limit, x - limit, tirx.Select(x < zero - limit, x + limit, zero))
        return tirx.Select(is_nan(x), x, value)

    return unary(f)(importer, node)


def _logit(importer: Any, node: Any) -> Any:
    """log(x / (1 - x)), of x limited to what lies between eps and 1 - eps in its own dtype."""
    eps, kind = read(importer, node, 1, "eps"), output(node).dtype

    def f(x: Element) -> Element:
        dtype = str(x.ty)
        if eps is not None:
            low, high = beside(eps, kind), beside(1 - beside(eps, kind), kind)
            x = tirx.Select(x < constant(low, dtype), constant(low, dtype), x)
            x = tirx.Select(x > constant(high, dtype), constant(high, dtype), x)
        return logarithm("log", 1)(x / (constant(1, dtype) - x))

    return unary(f)(importer, node)


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
    if is_hidden(b) and isinstance(b.args[0], FloatImm):  # 0, by which drivers divide in ways of their own
        return a * constant(math.copysign(math.inf, b.args[0].value), dtype)
    return a / b if is_float(dtype) else tirx.floordiv(a, b)


def _floor_divide(a: Element, b: Element, dtype: str) -> Element:
    if dtype == "float64":
        rest = _remainder(a, b, dtype)
        return tirx.Select(tirx.EQ(b, constant(0, dtype)), a / b, tirx.nearbyint((a - rest) / b))
    return own("floor_divide", a, b) if is_float(dtype) else tirx.floordiv(a, b)


def _remainder(a: Element, b: Element, dtype: str) -> Element:
    """The part of `a` that is left beside whole multiples of `b`, with the sign of `b`."""
    if dtype == "float64":
        rest, zero = tirx.fmod(a, b), constant(0, dtype)
        apart = tirx.And(tirx.NE(rest, zero), tirx.NE(rest < zero, b < zero))
        return tirx.Select(apart, rest + b, rest)
    return own("remainder", a, b) if is_float(dtype) else tirx.floormod(a, b)


def _fmod(a: Element, b: Element, dtype: str) -> Element:
    """The part of `a` that is left beside whole multiples of `b`, with the sign of `a`."""
    if dtype == "float64":
        return tirx.fmod(a, b)
    return own("fmod", a, b) if is_float(dtype) else tirx.truncmod(a, b)


def _divide_mode(importer: Any, node: Any) -> Any:
    mode = node.kwargs.get("rounding_mode")

    def trunc(a: Element, b: Element, dtype: str) -> Element:
        return tirx.trunc(a / b) if is_float(dtype) else tirx.truncdiv(a, b)

    chosen = {None: _divide, "floor": _floor_divide, "trunc": trunc}[mode]
    return _arithmetic(chosen)(importer, node)


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
                value = larger(value, as_element(rest.pop(0), spec.dtype))
            return smaller(value, as_element(rest.pop(0), spec.dtype)) if high is not None else value

        return broadcast(importer, spec.shape, spec.dtype, element, x, *bounds)

    return convert


def sigmoid(x: Element) -> Element:
    one = constant(1, str(x.ty))
    return one / (one + tirx.exp(-x))


def tanh(x: Element) -> Element:
    """Clamped to ±10, where float32's tanh is ±1: some GPU drivers return NaN for large arguments."""
    dtype = str(x.ty)
    limit = constant(20 if dtype == "float64" else 10, dtype)
    return tirx.Select(is_nan(x), x, tirx.tanh(tirx.max(tirx.min(x, limit), -limit)))


def erf(x: Element) -> Element:
    """The error function, which WGSL does not have. Its text says how."""
    return tirx.erf(x) if str(x.ty) == "float64" else own("erf", x)


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


def _cast(importer: Any, node: Any) -> Any:
    """Another dtype, shape kept: the recorded spec says which. A float that no int32 (or int64) holds, NaN included, becomes the
    least one, as on x86."""
    spec = output(node)
    x = read(importer, node, 0, "self")
    have = dtype_of(x)
    if have == spec.dtype:
        return x
    if not is_float(have) or spec.dtype not in ("int32", "int64"):
        return broadcast(importer, spec.shape, spec.dtype, lambda e: e, x)
    last = 2 ** (31 if spec.dtype == "int32" else 63)

    def element(e: Element) -> Element:
        number = to(e, wide(have))
        inside = tirx.And(number >= constant(-last, wide(have)), number < constant(last, wide(have)))
        return tirx.Select(inside, tirx.Cast(spec.dtype, number), tirx.const(-last, spec.dtype))

    return broadcast(importer, spec.shape, spec.dtype, element, x)


def _nextafter(importer: Any, node: Any) -> Any:
    if output(node).dtype != "float32":
        raise ValueError(f"the neighbour of a {output(node).dtype}")
    return _arithmetic(lambda a, b, dtype: own("nextafter", a, b))(importer, node)


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
    "exp": tirx.exp, "log": logarithm("log", 1), "sqrt": tirx.sqrt, "rsqrt": tirx.rsqrt, **SPECIAL,
    "floor": tirx.floor, "ceil": tirx.ceil, "trunc": tirx.trunc, "abs": tirx.abs, "sigmoid": sigmoid, "tanh": tanh, "erf": erf,
    "neg": lambda x: -x, "silu": lambda x: x * sigmoid(x), "relu": lambda x: larger(x, constant(0, str(x.ty))),
    "square": lambda x: x * x, "reciprocal": lambda x: constant(1, str(x.ty)) / x,
    "round": lambda x: intrinsic("nearbyint", x),
    "log2": logarithm("log2", math.log(2)), "log10": logarithm("log10", math.log(10)),
    "exp2": lambda x: tirx.exp(x * constant(math.log(2), str(x.ty))),
    "relu6": lambda x: larger(smaller(x, constant(6, str(x.ty))), constant(0, str(x.ty))),
    "sign": lambda x: topi.cast(x > constant(0, str(x.ty)), str(x.ty)) - topi.cast(x < constant(0, str(x.ty)), str(x.ty)),
}


_PAIRS: dict[str, Callable[[Element, Element, str], Element]] = {
    "add": lambda a, b, d: a + b, "sub": lambda a, b, d: a - b, "mul": lambda a, b, d: a * b, "div": _divide,
    "floor_divide": _floor_divide, "remainder": _remainder, "maximum": lambda a, b, d: larger(a, b),
    "minimum": lambda a, b, d: smaller(a, b),
    "fmax": lambda a, b, d: tirx.Select(is_nan(a), b, tirx.Select(is_nan(b), a, tirx.max(a, b))),
    "fmin": lambda a, b, d: tirx.Select(is_nan(a), b, tirx.Select(is_nan(b), a, tirx.min(a, b))),
    "hypot": lambda a, b, d: hypotenuse(a, b), "atan2": lambda a, b, d: arctangent2(a, b),
    "copysign": lambda a, b, d: with_sign(a, b),
    "fmod": _fmod,
}

_COMPARE: dict[str, Callable[[Element, Element], Element]] = {
    "eq": tirx.EQ, "ne": tirx.NE, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}

_BITS: dict[str, tuple[Callable[..., Element], Callable[..., Element]]] = {
    "and": (lambda a, b: tirx.And(a, b), tirx.bitwise_and), "or": (lambda a, b: tirx.Or(a, b), tirx.bitwise_or),
    "xor": (lambda a, b: tirx.NE(a, b), tirx.bitwise_xor),
}

ARITHMETIC: dict[str, Convert] = {
    "erf_inv.default": unary(SPECIAL["erfinv"]),
    **{f"{name}.default": unary(f) for name, f in _SIMPLE.items()},
    **{f"{name}.{kind}": _arithmetic(f, rounded=name in ("fmod", "remainder")) for name, f in _PAIRS.items()
       for kind in ("Tensor", "Scalar", "default")},
    **{f"{name}.{kind}": _comparison(name) for name in _COMPARE for kind in ("Tensor", "Scalar", "default")},
    **{f"bitwise_{n}.{kind}": _bitwise(*f) for n, f in _BITS.items() for kind in ("Tensor", "Scalar")},
    **{f"__{n}__.{kind}": _bitwise(*f) for n, f in _BITS.items() for kind in ("Tensor", "Scalar")},
    **{f"logical_{n}.default": _logic(f[0]) for n, f in _BITS.items()},
    **{f"__{n}shift__.{kind}": _shift(n == "l") for n in "lr" for kind in ("Tensor", "Scalar")},
    **{f"bitwise_{n}_shift.{kind}": _shift(n == "left") for n in ("left", "right")
       for kind in ("Tensor", "Tensor_Scalar", "Scalar_Tensor")},
    "shift_left.default": _shift(left=True),
    "shift_right_arithmetic.default": _shift(left=False),
    "isnan.default": _told(is_nan),
    "isinf.default": _told(_is_infinite),
    "isfinite.default": _told(lambda x: tirx.Not(tirx.Or(is_nan(x), _is_infinite(x)))),
    "signbit.default": _told(sign_bit),
    "logaddexp.default": _logaddexp,
    "nextafter.default": _nextafter,
    "logaddexp2.default": _logsumexp_of_two(math.log(2)),
    "celu.default": _celu,
    "softshrink.default": _softshrink,
    "logit.default": _logit,
    "special_logit.default": _logit,
    "logical_not.default": _not,
    "bitwise_not.default": _not,
    "rsub.Tensor": _arithmetic(lambda a, b, d: a - b, swap=True),
    "rsub.Scalar": _arithmetic(lambda a, b, d: a - b, swap=True),
    "div.Tensor_mode": _divide_mode,
    "div.Scalar_mode": _divide_mode,
    **{f"where.{kind}": _where for kind in ("self", "ScalarSelf", "ScalarOther", "Scalar", "default")},
    **{f"masked_fill.{kind}": _masked_fill for kind in ("Scalar", "Tensor")},
    "clamp.default": _clamp(1, 2),
    "clamp.Tensor": _clamp(1, 2),
    "clamp_min.default": _clamp(1, None),
    "clamp_max.default": _clamp(None, 1),
    "gelu.default": _gelu,
    "softplus.default": _softplus,
    "elu.default": _elu,
    "glu.default": _glu,
    **{f"{name}": _cast for name in (
        "_to_copy.default", "to.dtype", "to.dtype_layout", "type_as.default", "convert_element_type.default")},
    **{f"{name}.default": _same for name in (
        "clone", "alias", "contiguous", "detach", "lift_fresh_copy", "dropout", "positive", "real")},
}
