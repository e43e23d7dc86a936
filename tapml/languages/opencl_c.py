"""OpenCL C."""

from __future__ import annotations

import re

from tapml.languages.c_like import in_c
from tapml.languages.language import COPY, TRIAL, TRIAL_COUNT, Language, Reproducer


def finished(text: str) -> str:
    """2147483648 is a long there, and an infinity may be a double: `select` takes two of one type."""
    return re.sub(r"-2147483648(?![\w.])", "(-2147483647 - 1)", text).replace("INFINITY", "as_float(0x7f800000)")


LANGUAGE = Language(
    name="opencl-c",
    title="OpenCL C",
    suffix="cl",
    lexer="c",
    optional_dtypes={"float16": "cl_khr_fp16", "float64": "cl_khr_fp64"},
    barrier="barrier(CLK_LOCAL_MEM_FENCE);",
    lane="get_local_id",
    private_array=re.compile(r"^\s+(?!__local|__global|return\b)[a-z]\w*\s+(\w+)\[\d+\];$"),
    shared_array=re.compile(r"^\s*__local\b.*?(\w+)\[\d+\];$"),
    finished=finished,
    functions=in_c("", "as_uint", "as_float"),
    trial=f"""
__kernel void {TRIAL}(__global const float* x, __global float* y) {{
  const int i = get_global_id(0);
  if (i < {TRIAL_COUNT}) y[i] = 2.0f * x[i] + 1.0f;
}}
""",
    copy=lambda words: f"""
__kernel void {COPY}(__global const uint4* x, __global uint4* y) {{
  y[get_global_id(0)] = x[get_global_id(0)];
}}
""",
    reproducer=Reproducer("run_opencl.py", "pyopencl"),
)
