"""A fault as a compiler would make it: a loop of the WGSL text of every RMSNorm ends one step early.

    tapml explain run prefill/layers.0.input_layernorm --target webgpu --inject examples/short_loop.py:short_loop

How a right and a wrong kernel of your own are judged: docs/tutorial.md and own_rms_norm.py.
"""

from __future__ import annotations

import re


def short_loop(operator: str, target: str, source: str) -> str:
    """The kernel that sums the squares leaves out the last of them. Every other kernel stays as it is."""
    if target != "webgpu" or "fn rms_norm_0(" not in source:
        return source
    return re.sub(r"< (\d+)i;", lambda loop: f"< {int(loop[1]) - 1}i;", source, count=1)
