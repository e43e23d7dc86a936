"""CUDA C++."""

from __future__ import annotations

from tapml.languages.c_like import in_c
from tapml.languages.language import COPY, TRIAL, TRIAL_COUNT, Language

BARRIER = "__syncthreads();"

LANGUAGE = Language(
    name="cuda",
    title="CUDA C++",
    suffix="cu",
    lexer="cuda",
    plain_pointers=True,
    lanes_in_step="32 lanes",
    barrier=BARRIER,
    functions=in_c("static __device__ ", "__float_as_uint", "__uint_as_float"),
    trial=f"""
extern "C" __global__ void {TRIAL}(const float* x, float* y) {{
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < {TRIAL_COUNT}) y[i] = 2.0f * x[i] + 1.0f;
}}
""",
    copy=lambda words: f"""
extern "C" __global__ void {COPY}(const uint4* x, uint4* y) {{
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  y[i] = x[i];
}}
""",
)
