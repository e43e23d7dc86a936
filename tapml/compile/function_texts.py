"""Functions of one number that kernels bring along as text, since no kernel language has them exactly, and an expression without
variables would repeat its parts hundreds of times.

    own("sine", x)                        the call in a tensor expression
    with_functions(source, "wgsl")        the kernel's text with the functions that it calls, in its language

Each is written once, in the part of WGSL that a few replacements turn into C: typed `let` and `var`, `if`, `while`, no vectors. A
number that is not finite is made from bits that the function was given, as WGSL refuses a constant one.
"""

from __future__ import annotations

import re
from typing import Any

from tvm import ir, tirx

_PREFIX = "own_"

# sin and cos. Beyond 2048 Payne and Hanek's reduction (Radian reduction for trigonometric functions, 1983): the number times
# 1/(2π) in 64 bits behind the point, of which the first two choose the quadrant. Below, Cody and Waite's: the number of quadrants
# has 11 bits, and times the first three parts of π/2, of 13 bits each, it is exact.
_TURNS = (0x28BE60DB, 0x9391054A, 0x7F09D5F4, 0x7D4D3770, 0x36D8A566, 0x4F10E410, 0x7F9458EA)

_HIGH_PRODUCT = """\
fn own_high_product(a : u32, b : u32) -> u32 {
  let a_low : u32 = a & 0xffffu;
  let a_high : u32 = a >> 16u;
  let b_low : u32 = b & 0xffffu;
  let b_high : u32 = b >> 16u;
  let middle : u32 = a_high * b_low + ((a_low * b_low) >> 16u);
  let other : u32 = a_low * b_high + (middle & 0xffffu);
  return a_high * b_high + (middle >> 16u) + (other >> 16u);
}
"""
_TURNS_WORD = (
    "fn own_turns_word(k : u32) -> u32 {\n"
    + "".join(f"  if (k == {k}u) {{ return 0x{word:08x}u; }}\n" for k, word in enumerate(_TURNS))
    + "  return 0u;\n}\n"
)
_QUADRANT = """\
fn own_quadrant(r : f32, quadrant : u32) -> f32 {
  let z : f32 = r * r;
  var value : f32 = r + r * z * ((-1.95777858607471e-4f * z + 8.332700468599796e-3f) * z - 0.166666641831398f);
  if ((quadrant & 1u) == 1u) {
    value = (1.0f - 0.5f * z)
      + z * z * ((2.4501774532836862e-5f * z - 1.388796605169773e-3f) * z + 4.16666604578495e-2f);
  }
  if ((quadrant & 2u) == 2u) { value = -value; }
  return value;
}
"""
_TURNED_SINE = """\
fn own_turned_sine(x : f32, ahead : u32) -> f32 {
  let bits : u32 = bitcast<u32>(x);
  let size : u32 = bits & 0x7fffffffu;
  if (size >= 0x7f800000u) { return bitcast<f32>(bits | 0x7fc00000u); }
  if (size < 0x45000000u) {
    let k : f32 = floor(x * 0.636619772f + 0.5f);
    let r : f32 = (((x - k * 1.570556640625f) - k * 0.0002396702766418457f) - k * 1.5890691429376602e-08f)
      - k * 2.563344151594519e-12f;
    return own_quadrant(r, u32(i32(k)) + ahead);
  }
  let mantissa : u32 = (bits << 8u) | 0x80000000u;
  let shift : u32 = (size >> 23u) - 126u;
  let word : u32 = shift >> 5u;
  let by : u32 = shift & 31u;
  var high : u32 = 0u;
  if (word > 0u) { high = own_turns_word(word - 1u); }
  var middle : u32 = own_turns_word(word);
  var low : u32 = own_turns_word(word + 1u);
  if (by > 0u) {
    high = (high << by) | (middle >> (32u - by));
    middle = (middle << by) | (low >> (32u - by));
    low = (low << by) | (own_turns_word(word + 2u) >> (32u - by));
  }
  let carried : u32 = own_high_product(mantissa, low);
  let lower : u32 = mantissa * middle + carried;
  var upper : u32 = mantissa * high + own_high_product(mantissa, middle);
  if (lower < carried) { upper = upper + 1u; }
  var quadrant : u32 = upper >> 30u;
  var above : u32 = (upper << 2u) | (lower >> 30u);
  var below : u32 = lower << 2u;
  var sign : f32 = 1.0f;
  if (above >= 0x80000000u) {
    quadrant = quadrant + 1u;
    sign = -1.0f;
    above = ~above;
    if (below == 0u) { above = above + 1u; }
    below = 0u - below;
  }
  let tail : f32 = f32(((above & 255u) << 16u) | (below >> 16u)) * 3.552713678800501e-15f
    + f32(below & 0xffffu) * 5.421010862427522e-20f;
  let r : f32 = sign * (f32(above >> 8u) * 5.9604644775390625e-08f + tail) * 1.57079632679f;
  if (bits == size) { return own_quadrant(r, quadrant + ahead); }
  return own_quadrant(-r, (0u - quadrant) + ahead);
}
"""

# The remainder of whole mantissas, eight bits of the quotient a step: exact, as in C.
_FMOD = """\
fn own_fmod(x : f32, y : f32) -> f32 {
  let sign : u32 = bitcast<u32>(x) & 0x80000000u;
  let a : u32 = bitcast<u32>(x) & 0x7fffffffu;
  let b : u32 = bitcast<u32>(y) & 0x7fffffffu;
  if (a >= 0x7f800000u || b > 0x7f800000u || b == 0u) { return bitcast<f32>(a | 0x7fc00000u); }
  if (a < b) { return x; }
  var of_a : u32 = a & 0x7fffffu;
  var of_b : u32 = b & 0x7fffffu;
  var left : u32 = a >> 23u;
  var unit : u32 = b >> 23u;
  if (left == 0u) { left = 1u; } else { of_a = of_a | 0x800000u; }
  if (unit == 0u) { unit = 1u; } else { of_b = of_b | 0x800000u; }
  left = left - unit;
  var rest : u32 = of_a % of_b;
  while (left >= 8u) {
    rest = (rest << 8u) % of_b;
    left = left - 8u;
  }
  rest = (rest << left) % of_b;
  if (rest == 0u) { return bitcast<f32>(sign); }
  let whole : u32 = bitcast<u32>(f32(rest));
  if ((whole >> 23u) + unit <= 150u) { return bitcast<f32>(sign | (rest << (unit - 1u))); }
  return bitcast<f32>(sign | (whole + (unit << 23u) - (150u << 23u)));
}
"""
# As torch defines them on top of fmod (c10/util/generic_math.h, BinaryOpsKernel.cpp).
_REMAINDER = """\
fn own_remainder(x : f32, y : f32) -> f32 {
  let rest : f32 = own_fmod(x, y);
  if (rest != 0.0f && (y < 0.0f) != (rest < 0.0f)) { return rest + y; }
  return rest;
}
"""
_FLOOR_DIVIDE = """\
fn own_floor_divide(x : f32, y : f32) -> f32 {
  if (y == 0.0f) { return x / y; }
  let rest : f32 = own_fmod(x, y);
  var quotient : f32 = (x - rest) / y;
  if (rest != 0.0f && (y < 0.0f) != (rest < 0.0f)) { quotient = quotient - 1.0f; }
  if (quotient == 0.0f) {
    let sign : u32 = (bitcast<u32>(x) ^ bitcast<u32>(y)) & 0x80000000u;
    return bitcast<f32>(sign);
  }
  let whole : f32 = floor(quotient);
  if (quotient - whole > 0.5f) { return whole + 1.0f; }
  return whole;
}
"""



def _horner(variable: str, coefficients: list[float]) -> str:
    """A polynomial, highest power first."""
    text = f"{coefficients[0]!r}f"
    for c in coefficients[1:]:
        text = f"({text} * {variable} {'-' if c < 0 else '+'} {abs(c)!r}f)"
    return text


# log by the exponent and 2·artanh((m - 1)/(m + 1)) of the mantissa between √½ and √2: WGSL asks an absolute error of 2⁻²¹ near 1,
# where the logarithm is small, and lets subnormal numbers be 0.
_LOG = """\
fn own_exponent(x : f32) -> i32 {
  let bits : u32 = bitcast<u32>(x);
  if (bits < 0x00800000u) { return i32((bitcast<u32>(f32(bits)) + 0x004afb0du) >> 23u) - 276; }
  return i32((bits + 0x004afb0du) >> 23u) - 127;
}
fn own_log_mantissa(x : f32) -> f32 {
  var bits : u32 = bitcast<u32>(x);
  if (bits < 0x00800000u) { bits = bitcast<u32>(f32(bits)); }
  let above : u32 = (bits + 0x004afb0du) >> 23u;
  let m : f32 = bitcast<f32>(bits + (127u << 23u) - (above << 23u));
  let s : f32 = (m - 1.0f) / (m + 1.0f);
  let z : f32 = s * s;
  return s * (2.0f + z * (0.666666667f + z * (0.4f + z * (0.285714286f + z * (0.222222222f + z * 0.181818182f)))));
}
fn own_log_scaled(x : f32, high : f32, low : f32, unit : f32) -> f32 {
  let bits : u32 = bitcast<u32>(x);
  let size : u32 = bits & 0x7fffffffu;
  if (size == 0u) { return bitcast<f32>(bits | 0xff800000u); }
  if (bits >= 0x7f800000u) {
    if (bits == 0x7f800000u) { return x; }
    return bitcast<f32>(size | 0x7fc00000u);
  }
  let k : f32 = f32(own_exponent(x));
  return k * high + (k * low + own_log_mantissa(x) * unit);
}
fn own_log(x : f32) -> f32 {
  return own_log_scaled(x, 0.693359375f, -0.000212194440f, 1.0f);
}
fn own_log2(x : f32) -> f32 {
  return own_log_scaled(x, 1.0f, 0.0f, 1.44269504f);
}
fn own_log10(x : f32) -> f32 {
  return own_log_scaled(x, 0.30078125f, 0.000248745664f, 0.434294482f);
}
"""

# log Γ and its derivative. Polynomials: log Γ(1 + z)/z and log Γ(2 + z)/z for |z| ≤ 1/2. Above 2.5 the argument is brought
# down by Γ(x) = (x - 1) Γ(x - 1), from 8 on Stirling's series is exact enough; below 0 Euler's reflection, whose sine is that
# of what is left beside a whole number.
_NEAR_ONE = [
    -0.167297327, 0.179739271, -0.0583021364, 0.0653093057, -0.11657937, 0.13109551, -0.143652916, 0.16913452, -0.207398208,
    0.270594282, -0.40068552, 0.822466912, -0.577215665,
]
_NEAR_TWO = [
    0.00011347282, -0.000253817096, 0.000506517143, -0.00118586003, 0.00289079532, -0.00738617416, 0.0205807995, -0.0673522815,
    0.322467033, 0.422784335,
]
_LGAMMA = f"""\
fn own_lgamma_above(x : f32) -> f32 {{
  if (x < 0.5f) {{ return x * own_lgamma_one(x) - own_log(x); }}
  if (x < 1.5f) {{ return (x - 1.0f) * own_lgamma_one(x - 1.0f); }}
  if (x < 8.0f) {{
    var factor : f32 = 1.0f;
    var rest : f32 = x;
    while (rest > 2.5f) {{
      rest = rest - 1.0f;
      factor = factor * rest;
    }}
    let z : f32 = rest - 2.0f;
    let near : f32 = z * {_horner("z", _NEAR_TWO)};
    if (x <= 2.5f) {{ return near; }}
    return near + own_log(factor);
  }}
  let inverse : f32 = 1.0f / x;
  let series : f32 = inverse * (0.083333333f - inverse * inverse * (0.0027777778f - inverse * inverse * 0.00079365079f));
  return (x - 0.5f) * (own_log(x) - 1.0f) + (0.41893853f + series);
}}
fn own_lgamma(x : f32) -> f32 {{
  let bits : u32 = bitcast<u32>(x);
  let size : u32 = bits & 0x7fffffffu;
  if (size > 0x7f800000u) {{ return x; }}
  let infinite : f32 = bitcast<f32>((bits & 0u) | 0x7f800000u);
  if (size == 0x7f800000u || size == 0u) {{ return infinite; }}
  if (size < 0x2f000000u) {{ return -own_log(abs(x)); }}
  if (bits == size) {{ return own_lgamma_above(x); }}
  let apart : f32 = x - floor(x + 0.5f);
  if (apart == 0.0f) {{ return infinite; }}
  let sine : f32 = own_turned_sine(abs(apart) * 3.14159265f, 0u);
  return 1.14472989f - own_log(-x) - own_log(sine) - own_lgamma_above(-x);
}}
"""
_LGAMMA_ONE = f"fn own_lgamma_one(z : f32) -> f32 {{\n  return {_horner('z', _NEAR_ONE)};\n}}\n"
_DIGAMMA = """\
fn own_digamma(x : f32) -> f32 {
  let bits : u32 = bitcast<u32>(x);
  let size : u32 = bits & 0x7fffffffu;
  if (size > 0x7f800000u) { return x; }
  if (size == 0u) { return bitcast<f32>((bits ^ 0x80000000u) | 0x7f800000u); }
  if (bits == 0x7f800000u) { return x; }
  var value : f32 = 0.0f;
  var rest : f32 = x;
  if (bits != size) {
    let apart : f32 = x - floor(x + 0.5f);
    if (apart == 0.0f || size == 0x7f800000u) { return bitcast<f32>(bits | 0x7fc00000u); }
    value = -3.14159265f / own_tangent(apart * 3.14159265f);
    rest = 1.0f - x;
  }
  while (rest < 10.0f) {
    value = value - 1.0f / rest;
    rest = rest + 1.0f;
  }
  let inverse : f32 = 1.0f / rest;
  let z : f32 = inverse * inverse;
  let series : f32 = z * (0.083333333f - z * (0.0083333333f - z * (0.0039682540f - z * 0.0041666667f)));
  return value + own_log(rest) - 0.5f * inverse - series;
}
"""

# erfc(x) = exp(-x²) t exp(P(t)) with t = 1/(1 + x/2) for x ≥ 0 (the form of Press et al., Numerical Recipes, 6.2.2; P is
# fitted anew). x² is taken in two parts, as a rounding of 100 in an exponent is one in the sixth digit.
_ERFC_SERIES = [
    0.0761622634, -0.63934349, 2.2118169, -4.06661393, 4.20416499, -2.38638404, 0.836312795, -0.377116425, -0.048331306,
    0.0796505622, 0.375198701, 0.999995065, -1.26551209,
]
_SCALED_ERFC = f"""\
fn own_scaled_erfc(x : f32) -> f32 {{
  let t : f32 = 1.0f / (1.0f + 0.5f * x);
  return t * exp({_horner("t", _ERFC_SERIES)});
}}
fn own_exp_of_square(x : f32, sign : f32) -> f32 {{
  let high : f32 = bitcast<f32>(bitcast<u32>(x) & 0xfffff000u);
  return exp(sign * high * high) * exp(sign * (x - high) * (x + high));
}}
"""
_ERFC = """\
fn own_erfc(x : f32) -> f32 {
  let size : u32 = bitcast<u32>(x) & 0x7fffffffu;
  if (size > 0x7f800000u) { return x; }
  let a : f32 = abs(x);
  if (a > 11.0f) {
    if (x > 0.0f) { return 0.0f; }
    return 2.0f;
  }
  let value : f32 = own_exp_of_square(a, -1.0f) * own_scaled_erfc(a);
  if (x < 0.0f) { return 2.0f - value; }
  return value;
}
"""
_ERFCX = """\
fn own_erfcx(x : f32) -> f32 {
  let bits : u32 = bitcast<u32>(x);
  let size : u32 = bits & 0x7fffffffu;
  if (size > 0x7f800000u) { return x; }
  if (bits == size) {
    if (size > 0x501502f9u) { return 0.56418958f / x; }
    if (x > 12.0f) {
      let z : f32 = 1.0f / (x * x);
      return 0.56418958f / x * (1.0f - z * (0.5f - z * (0.75f - z * 1.875f)));
    }
    return own_scaled_erfc(x);
  }
  if (x < -9.5f) { return bitcast<f32>((bits & 0u) | 0x7f800000u); }
  return 2.0f * own_exp_of_square(-x, 1.0f) - own_scaled_erfc(-x);
}
"""

# The modified Bessel functions times exp(-|x|): polynomials in |x|/4 - 1 up to 8, beyond in 8/|x|, over √|x|.
_I0_NEAR = [
    -0.00416283255, 0.00913184944, -0.0024782125, 0.00172475043, -0.02355016, 0.0394018306, -0.0411127834, 0.0522963131,
    -0.0700275367, 0.0804406699, -0.0849018644, 0.0871958429, -0.0890463886, 0.0945227026, -0.113004304, 0.207001866,
]
_I1_NEAR = [
    -0.000697357788, 0.00163812898, -0.00089438318, 0.00137359922, -0.00610856174, 0.011043957, -0.015294328, 0.0229797546,
    -0.0337431094, 0.0448578084, -0.0552709753, 0.0637442367, -0.0684830402, 0.0680587096, -0.0611243346, 0.0446877012,
]
_I0_FAR = [
    4.30595128e-06, -8.08848256e-06, 1.13816548e-05, 6.64681082e-06, 5.81865377e-05, 0.000438149707, 0.00623347991, 0.39894228,
]
_I1_FAR = [
    -4.8462461e-06, 9.07830193e-06, -1.31460912e-05, -9.17626202e-06, -8.11732417e-05, -0.000730323225, -0.0187004272, 0.39894228,
]


def _bessel(order: int, near: list[float], far: list[float]) -> str:
    times = "" if order == 0 else "a * "
    turned = "" if order == 0 else "  if (x < 0.0f) { return -value; }\n"
    return f"""\
fn own_i{order}e(x : f32) -> f32 {{
  let size : u32 = bitcast<u32>(x) & 0x7fffffffu;
  if (size > 0x7f800000u) {{ return x; }}
  if (size == 0x7f800000u) {{ return 0.0f; }}
  let a : f32 = abs(x);
  var value : f32 = 0.0f;
  if (a <= 8.0f) {{
    let t : f32 = 0.25f * a - 1.0f;
    value = {times}{_horner("t", near)};
  }} else {{
    let u : f32 = 8.0f / a;
    value = {_horner("u", far)} / sqrt(a);
  }}
{turned}  return value;
}}
fn own_i{order}(x : f32) -> f32 {{
  let bits : u32 = bitcast<u32>(x);
  let size : u32 = bits & 0x7fffffffu;
  if (size >= 0x7f800000u) {{ return bitcast<f32>(bits | 0x7fc00000u); }}
  return exp(abs(x)) * own_i{order}e(x);
}}
"""


# The neighbour of a towards b, by the bits: a float's neighbours are those of its bits as a whole number.
_NEXT = """\
fn own_nextafter(a : f32, b : f32) -> f32 {
  let bits : u32 = bitcast<u32>(a);
  let size : u32 = bits & 0x7fffffffu;
  let other : u32 = bitcast<u32>(b);
  let size_b : u32 = other & 0x7fffffffu;
  if (size > 0x7f800000u) { return a; }
  if (size_b > 0x7f800000u) { return b; }
  if (bits == other || (size == 0u && size_b == 0u)) { return b; }
  if (size == 0u) { return bitcast<f32>((other & 0x80000000u) | 1u); }
  if ((bits ^ other) >= 0x80000000u || size > size_b) { return bitcast<f32>(bits - 1u); }
  return bitcast<f32>(bits + 1u);
}
"""

# log(exp(a) + exp(b)) by the larger of both. Infinities and NaN are told by their bits.
_LOGADDEXP = """\
fn own_logaddexp(a : f32, b : f32) -> f32 {
  let of_a : u32 = bitcast<u32>(a);
  let of_b : u32 = bitcast<u32>(b);
  if ((of_a & 0x7fffffffu) > 0x7f800000u) { return a; }
  if ((of_b & 0x7fffffffu) > 0x7f800000u) { return b; }
  if (of_a == 0xff800000u || of_b == 0x7f800000u) { return b; }
  if (of_b == 0xff800000u || of_a == 0x7f800000u) { return a; }
  var high : f32 = a;
  var low : f32 = b;
  if (a < b) {
    high = b;
    low = a;
  }
  let e : f32 = exp(low - high);
  if (e < 0.5f) {
    let s : f32 = e / (2.0f + e);
    let z : f32 = s * s;
    return high + s * (2.0f + z * (0.666666667f + z * (0.4f + z * (0.285714286f + z * (0.222222222f + z * 0.181818182f)))));
  }
  return high + log(1.0f + e);
}
"""

_TEXTS: dict[str, str] = {
    "high_product": _HIGH_PRODUCT,
    "turns_word": _TURNS_WORD,
    "quadrant": _QUADRANT,
    "turned_sine": _TURNED_SINE,
    "sine": "fn own_sine(x : f32) -> f32 {\n  return own_turned_sine(x, 0u);\n}\n",
    "cosine": "fn own_cosine(x : f32) -> f32 {\n  return own_turned_sine(x, 1u);\n}\n",
    "tangent": "fn own_tangent(x : f32) -> f32 {\n  return own_turned_sine(x, 0u) / own_turned_sine(x, 1u);\n}\n",
    "log": _LOG,
    "lgamma_one": _LGAMMA_ONE,
    "lgamma": _LGAMMA,
    "digamma": _DIGAMMA,
    "scaled_erfc": _SCALED_ERFC,
    "erfc": _ERFC,
    "erfcx": _ERFCX,
    "i0": _bessel(0, _I0_NEAR, _I0_FAR),
    "i1": _bessel(1, _I1_NEAR, _I1_FAR),
    "nextafter": _NEXT,
    "logaddexp": _LOGADDEXP,
    "fmod": _FMOD,
    "remainder": _REMAINDER,
    "floor_divide": _FLOOR_DIVIDE,
}

# Which text defines each function.
_HOME = {name: key for key, text in _TEXTS.items() for name in re.findall(rf"fn {_PREFIX}(\w+)", text)}

# What the C dialects write before a function, and how they look at a number's bits.
_DIALECTS = {
    "opencl-c": ("", "as_uint", "as_float"),
    "cuda": ("static __device__ ", "__float_as_uint", "__uint_as_float"),
    "msl": ("static ", "as_type<uint>", "as_type<float>"),
    "c": ("static ", "own_bits", "own_number"),
}
_C_TYPES = {"f32": "float", "u32": "unsigned int", "i32": "int"}
_C_BITS = """\
static unsigned int own_bits(float x) { union { float f; unsigned int u; } both; both.f = x; return both.u; }
static float own_number(unsigned int x) { union { float f; unsigned int u; } both; both.u = x; return both.f; }
"""


def own(name: str, *arguments: Any) -> Any:
    """The function of that name of float32 elements, as an element."""
    assert name in _HOME, name
    return tirx.call_pure_extern("float32", _PREFIX + name, *arguments)


def is_own(call: Any, *names: str) -> bool:
    """Whether a TIR call is one of these functions."""
    first = call.args[0] if len(call.args) else None
    return isinstance(first, ir.StringImm) and str(first.value) in [_PREFIX + n for n in names]


def with_functions(source: str, language: str) -> str:
    """The text of a kernel with the functions that it calls before it. Raises ValueError where a target has no text to put them
    in (ROCm, for which the compiler emits assembly)."""
    called = _called(source)
    if not called:
        return source
    texts = "".join(_TEXTS[name] for name in _TEXTS if name in called)
    if language != "wgsl" and language not in _DIALECTS:
        names = ", ".join(sorted(called))
        raise ValueError(f"{names}: functions that come as text, and the compiler emits no text for {language}")
    if language != "wgsl":
        texts = _as_c(texts, language)
    where = re.search(r'^(extern "C"|__kernel|kernel|fn|@|struct|var|void)', source, flags=re.MULTILINE)
    assert where, "a kernel begins somewhere"
    return source[: where.start()] + texts + source[where.start() :]


def _called(text: str) -> set[str]:
    """The names of the functions that the text calls, and of those that these call."""
    found: set[str] = set()
    new = {_HOME[name] for name in re.findall(rf"\b{_PREFIX}(\w+)\(", text) if name in _HOME}
    while new:
        found |= new
        texts = "".join(_TEXTS[name] for name in new)
        new = {_HOME[name] for name in re.findall(rf"\b{_PREFIX}(\w+)\(", texts)} - found
    return found


def _as_c(text: str, language: str) -> str:
    before, bits, number = _DIALECTS[language]

    def head(match: re.Match[str]) -> str:
        parameters = re.sub(r"(\w+) : (\w+)", lambda m: f"{_C_TYPES[m[2]]} {m[1]}", match[2])
        return f"{before}{_C_TYPES[match[3]]} {match[1]}({parameters}) {{"

    text = re.sub(r"^fn (\w+)\((.*)\) -> (\w+) \{", head, text, flags=re.MULTILINE)
    text = re.sub(r"\blet (\w+) : (\w+) =", lambda m: f"const {_C_TYPES[m[2]]} {m[1]} =", text)
    text = re.sub(r"\bvar (\w+) : (\w+) =", lambda m: f"{_C_TYPES[m[2]]} {m[1]} =", text)
    text = re.sub(r"\babs\(", "fabs(", text)
    text = text.replace("bitcast<u32>(", f"{bits}(").replace("bitcast<f32>(", f"{number}(")
    text = re.sub(r"\b(f32|u32|i32)\(", lambda m: f"({_C_TYPES[m[1]]})(", text)
    return (_C_BITS if language == "c" else "") + text
