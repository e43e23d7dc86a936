"""Texts of elementary functions, in the part of WGSL that `tapml.compile.function_texts` describes: sines, remainders, logarithms
and neighbours. All are of float32, right to a few roundings for every number.
"""

from __future__ import annotations

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

ELEMENTARY: dict[str, str] = {
    "high_product": _HIGH_PRODUCT,
    "turns_word": _TURNS_WORD,
    "quadrant": _QUADRANT,
    "turned_sine": _TURNED_SINE,
    "sine": "fn own_sine(x : f32) -> f32 {\n  return own_turned_sine(x, 0u);\n}\n",
    "cosine": "fn own_cosine(x : f32) -> f32 {\n  return own_turned_sine(x, 1u);\n}\n",
    "tangent": "fn own_tangent(x : f32) -> f32 {\n  return own_turned_sine(x, 0u) / own_turned_sine(x, 1u);\n}\n",
    "log": _LOG,
    "nextafter": _NEXT,
    "logaddexp": _LOGADDEXP,
    "fmod": _FMOD,
    "remainder": _REMAINDER,
    "floor_divide": _FLOOR_DIVIDE,
}
