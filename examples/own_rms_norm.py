"""An RMSNorm kernel for OpenCL, written by hand and judged on every recorded call.

    tapml test run --target opencl --operator "*norm*" --inject examples/own_rms_norm.py:norm

TapML's RMSNorm is two kernels. This one takes the place of the first, `rms_norm_0`: the sum of squares of each row, four numbers
at a time. The second, which scales the row, stays generated. docs/own-kernels.md says what a kernel of your own has to keep to.
"""

from __future__ import annotations

import re

SUM_OF_SQUARES = """
__kernel void rms_norm_0(__global const float* restrict x, __global float* restrict sums) {
  const int row = get_global_id(0);
  float4 sum = 0.0f;
  for (int i = 0; i < WIDTH; i += 4) {
    const float4 v = vload4(0, x + row * WIDTH + i);
    sum += v * v;
  }
  sums[row] = sum.x + sum.y + sum.z + sum.w;
}
"""


def norm(operator: str, target: str, source: str) -> str:
    """The hand-written text, in place of generated text that one thread a row runs; any other text as it is."""
    loops = re.findall(r"for \(int \w+ = 0; \w+ < (\d+);", source)
    if target != "opencl" or "void rms_norm_0(" not in source or "__local" in source or len(loops) != 1:
        return source
    width = int(loops[0])
    return SUM_OF_SQUARES.replace("WIDTH", str(width)) if width % 4 == 0 else source
