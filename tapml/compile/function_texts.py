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

_TEXTS: dict[str, str] = {
    "high_product": _HIGH_PRODUCT,
    "turns_word": _TURNS_WORD,
    "quadrant": _QUADRANT,
    "turned_sine": _TURNED_SINE,
    "sine": "fn own_sine(x : f32) -> f32 {\n  return own_turned_sine(x, 0u);\n}\n",
    "cosine": "fn own_cosine(x : f32) -> f32 {\n  return own_turned_sine(x, 1u);\n}\n",
    "tangent": "fn own_tangent(x : f32) -> f32 {\n  return own_turned_sine(x, 0u) / own_turned_sine(x, 1u);\n}\n",
    "fmod": _FMOD,
    "remainder": _REMAINDER,
    "floor_divide": _FLOOR_DIVIDE,
}

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
    assert name in _TEXTS, name
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
    new = set(re.findall(rf"\b{_PREFIX}(\w+)\(", text)) & set(_TEXTS)
    while new:
        found |= new
        texts = "".join(_TEXTS[name] for name in new)
        new = (set(re.findall(rf"\b{_PREFIX}(\w+)\(", texts)) & set(_TEXTS)) - found
    return found


def _as_c(text: str, language: str) -> str:
    before, bits, number = _DIALECTS[language]

    def head(match: re.Match[str]) -> str:
        parameters = re.sub(r"(\w+) : (\w+)", lambda m: f"{_C_TYPES[m[2]]} {m[1]}", match[2])
        return f"{before}{_C_TYPES[match[3]]} {match[1]}({parameters}) {{"

    text = re.sub(r"^fn (\w+)\((.*)\) -> (\w+) \{", head, text, flags=re.MULTILINE)
    text = re.sub(r"\blet (\w+) : (\w+) =", lambda m: f"const {_C_TYPES[m[2]]} {m[1]} =", text)
    text = re.sub(r"\bvar (\w+) : (\w+) =", lambda m: f"{_C_TYPES[m[2]]} {m[1]} =", text)
    text = text.replace("bitcast<u32>(", f"{bits}(").replace("bitcast<f32>(", f"{number}(")
    text = re.sub(r"\b(f32|u32|i32)\(", lambda m: f"({_C_TYPES[m[1]]})(", text)
    return (_C_BITS if language == "c" else "") + text
