"""Texts of special functions, in the part of WGSL that `tapml.compile.function_texts` describes: Γ, the error function, Bessel
functions. All are of float32; polynomials interpolate at Chebyshev's points and are exact to its rounding.
"""

from __future__ import annotations


def _horner(variable: str, coefficients: list[float]) -> str:
    """A polynomial, highest power first."""
    text = f"{coefficients[0]!r}f"
    for c in coefficients[1:]:
        text = f"({text} * {variable} {'-' if c < 0 else '+'} {abs(c)!r}f)"
    return text


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

# erf(x) = x + x P(x²) up to 0.9, beyond 1 - exp(Q(|x|)), with Q = log erfc; from 4 on it is ±1 to float32's rounding. Within
# 1.3 roundings, and odd also for -0.
_ERF_NEAR = [8.52940147e-05, -0.000817963222, 0.0052042267, -0.0268606648, 0.11283718, -0.376126352, 0.12837917]
_ERF_FAR = [
    1.64306367e-06, -4.61638589e-05, 0.000597585773, -0.00476262584, 0.0264276372, -0.110087167, -0.631823918, -1.13023106,
    0.00031853967,
]
_ERF = f"""\
fn own_erf(x : f32) -> f32 {{
  let a : f32 = abs(x);
  let z : f32 = x * x;
  if (!(a > 0.9f)) {{ return x + x * {_horner("z", _ERF_NEAR)}; }}
  var value : f32 = 1.0f;
  if (a < 4.0f) {{ value = 1.0f - exp({_horner("a", _ERF_FAR)}); }}
  if (x < 0.0f) {{ return -value; }}
  return value;
}}
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

SPECIAL_TEXTS: dict[str, str] = {
    "lgamma_one": _LGAMMA_ONE,
    "lgamma": _LGAMMA,
    "digamma": _DIGAMMA,
    "erf": _ERF,
    "scaled_erfc": _SCALED_ERFC,
    "erfc": _ERFC,
    "erfcx": _ERFCX,
    "i0": _bessel(0, _I0_NEAR, _I0_FAR),
    "i1": _bessel(1, _I1_NEAR, _I1_FAR),
}
