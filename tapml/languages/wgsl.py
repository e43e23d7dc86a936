"""WGSL, the language of WebGPU. Here it is Vulkan's as well: wgpu translates it for the driver."""

from __future__ import annotations

import re

from tapml.languages.language import (
    COPY,
    COPY_BLOCK,
    TRIAL,
    TRIAL_BLOCK,
    TRIAL_COUNT,
    Extent,
    Language,
    Reproducer,
    unchanged,
)
from tapml.limits import LimitError

# TVM writes tanh for WGSL with (1 - exp(-2x)) in it, which cancels near 0. Here a polynomial there (degree 4 in x², fitted to
# (tanh(x)/x - 1)/x² at Chebyshev's points; off by 1.5 units in the last place), and 1 - 2/(exp(2x) + 1) beyond.
_TANH = """\
fn accurate_tanh(x : f32) -> f32 {
  let z = x * x;
  let p = (((-0.006104948 * z + 0.021003641) * z - 0.053852497) * z + 0.13332782) * z - 0.33333329;
  let far = 1.0 - 2.0 / (exp(2.0 * min(abs(x), 20.0)) + 1.0);
  return select(select(sign(x) * far, x + x * z * p, abs(x) < 0.625), x, x != x);
}
"""

# Compilers of WGSL take floats for real numbers, too: x - x is 0, x · 0 is 0. The sign of a number of workgroups is 0, which they
# do not know.
_UNKNOWN = """\
fn unknown(x : f32) -> f32 {
  return bitcast<f32>(bitcast<u32>(x) ^ (podArgs.packGridDimX & 0x80000000u));
}
"""


def finished(text: str) -> str:
    """The numbers that WGSL cannot write, and the functions above where they are called."""
    # A minus is an operator in WGSL, and 2147483648 is no i32.
    text = _runtime_infinities(text.replace("-2147483648i", "(-2147483647i - 1i)"))
    for call, function in (("accurate_tanh(", _TANH), ("unknown(", _UNKNOWN)):
        if call in text:
            text = _declared(function, text)
    return text


def folded(grid: Extent, most: int | None) -> tuple[Extent, tuple[int, ...]]:
    """TVM's WGSL reads workgroup x as z · (number along x) + x, so a long x is folded over z. The uniform word is the last number
    along x."""
    x, y, z = grid
    if z != 1:
        raise LimitError(f"a WGSL kernel with {z} workgroups along z, which the code generator needs for folding x")
    layers = 1 if most is None else -(-x // most)
    return (-(-x // layers), y, layers), (x - 1,)


_NOT_FINITE = {"inf": "0x7f800000u", "-inf": "0xff800000u", "nan": "0x7fc00000u"}


def _runtime_infinities(source: str) -> str:
    """WGSL refuses a constant expression that is not finite; the bits of one in a variable are no constant expression."""
    declared: set[str] = set()

    def replaced(match: re.Match[str]) -> str:
        name, half = match.group("name"), match.group("dtype") in ("f16", "h")
        declared.add(name)
        single = f"bitcast<f32>({_variable(name)})"
        return f"f16({single})" if half else single

    source = re.sub(r"(?P<dtype>f32|f16)\((?P<name>-?inf|nan)\)", replaced, source)
    source = re.sub(r"(?<![\w.])(?P<name>-?inf|nan)(?P<dtype>f|h|)(?![\w(])", replaced, source)
    lines = [f"var<private> {_variable(n)} : u32 = {_NOT_FINITE[n]};\n" for n in sorted(declared)]
    return _declared("".join(lines), source)


def _declared(declarations: str, source: str) -> str:
    """WGSL with these before its own declarations; directives must stay the first."""
    return re.sub(r"\A((enable|requires|diagnostic)\b[^;]*;\s*)*", lambda directives: directives[0] + declarations, source)


def _variable(name: str) -> str:
    return {"inf": "bits_of_inf", "-inf": "bits_of_minus_inf", "nan": "bits_of_nan"}[name]


LANGUAGE = Language(
    name="wgsl",
    title="WGSL",
    suffix="wgsl",
    lexer="wgsl",
    native=False,
    zeroes_memory=True,
    optional_dtypes={"float16": "shader-f16"},
    lanes=(4,),
    threads_as_vector=8,
    barrier="workgroupBarrier();",
    lane="threadIdx|local_invocation",
    private_array=re.compile(r"^\s+var (\w+) : array<.*>;$"),
    shared_array=re.compile(r"^\s*var<workgroup> (\w+) : array<.*>;$"),
    rounding=r"\bround\(",
    own_tanh="accurate_tanh",
    unknown="unknown",
    rest_by_division=True,
    finished=finished,
    functions=unchanged,
    launched=folded,
    trial=f"""
@group(0) @binding(0) var<storage, read> x : array<f32>;
@group(0) @binding(1) var<storage, read_write> y : array<f32>;
struct Arguments {{ count : u32 }}
@group(0) @binding(2) var<uniform> arguments : Arguments;
@compute @workgroup_size({TRIAL_BLOCK})
fn {TRIAL}(@builtin(global_invocation_id) id : vec3<u32>) {{
  if (id.x < arguments.count) {{ y[id.x] = 2.0 * x[id.x] + 1.0; }}
}}
""",
    trial_uniform=(TRIAL_COUNT,),
    copy=lambda words: f"""
@group(0) @binding(0) var<storage, read> x : array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> y : array<vec4<u32>>;
@compute @workgroup_size({COPY_BLOCK})
fn {COPY}(@builtin(global_invocation_id) id : vec3<u32>) {{
  y[id.x] = x[id.x];
}}
""",
    reproducer=Reproducer("run_wgpu.py", "wgpu"),
)
