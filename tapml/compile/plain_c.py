"""OpenCL C of one work item as plain C: `void entry(float* a, …)`, with nothing but the C library around it.

Kernels for the processor are scheduled for one thread, so that the OpenCL text has no vectors, no barriers and one work
item; what is left of OpenCL in it are qualifiers, work item numbers, conversions and the names of functions.
"""

from __future__ import annotations

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


def plain_c(source: str) -> str:
    return PRELUDE + source
