"""C: `void entry(float* a, …)`, with nothing but the C library around it.

The compiler's own C functions take packed arguments, so the text is OpenCL C of one work item. Kernels for the processor are
scheduled for one thread, so that it has no vectors and no barriers; what is left of OpenCL in it are qualifiers, work item
numbers, conversions and the names of functions, which `PRELUDE` defines.
"""

from __future__ import annotations

from tapml.languages.c_like import in_c
from tapml.languages.language import COPY, COPY_WORD, TRIAL, TRIAL_COUNT, Language, Reproducer

PRELUDE = """\
#include <stdbool.h>
#include <stdint.h>
#include <math.h>
#include <tgmath.h>
#define cl_khr_fp64 1
#define __kernel
#define __global
#define restrict
#define get_group_id(axis) 0
#define get_local_id(axis) 0
#define convert_int(x) ((int)(x))
#define convert_long(x) ((int64_t)(x))
#define convert_float(x) ((float)(x))
#define convert_double(x) ((double)(x))
#define convert_char(x) ((signed char)(x))
#define convert_uchar(x) ((unsigned char)(x))
#define convert_short(x) ((short)(x))
#define convert_uint(x) ((unsigned int)(x))
#define convert_bool(x) ((x) != 0)
#define convert_half(x) ((float)(x))
#define select(no, yes, which) ((which) ? (yes) : (no))
#define max(a, b) ((a) > (b) ? (a) : (b))
#define min(a, b) ((a) < (b) ? (a) : (b))
#define rsqrt(x) (1 / sqrt(x))
#define long int64_t
#define uchar unsigned char
#define uint unsigned int
"""

_BITS = """\
static unsigned int own_bits(float x) { union { float f; unsigned int u; } both; both.f = x; return both.u; }
static float own_number(unsigned int x) { union { float f; unsigned int u; } both; both.u = x; return both.f; }
"""

LANGUAGE = Language(
    name="c",
    title="C",
    suffix="c",
    lexer="c",
    threads=False,
    plain_pointers=True,
    has_half=False,
    generator={"kind": "opencl", "max_num_threads": 1},
    functions=in_c("static ", "own_bits", "own_number", _BITS),
    prelude=PRELUDE,
    trial=f"""
void {TRIAL}(const float* x, float* y) {{
  for (int i = 0; i < {TRIAL_COUNT}; ++i) y[i] = 2.0f * x[i] + 1.0f;
}}
""",
    copy=lambda words: f"""
void {COPY}(const unsigned long long* x, unsigned long long* y) {{
  for (long i = 0; i < {words * COPY_WORD // 8}; ++i) y[i] = x[i];
}}
""",
    reproducer=Reproducer("run_cpu.py"),
)
