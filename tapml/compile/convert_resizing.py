"""Resizing to the nearest element. The other ways of resizing are decomposed.

PyTorch computes in float32 which element that is, so this does too: ⌊o · scale⌋, or ⌊(o + 1/2) · scale⌋ for nearest-exact, with 1
over the factor where one is given and the ratio of the sizes where not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import tirx

from tapml.compile.node_arguments import output, read
from tapml.compile.tensor_expressions import compute, constant, dtype_of, shape_of

Convert = Callable[[Any, Any], Any]


def _nearest(rank: int, exact: bool) -> Convert:
    def convert(importer: Any, node: Any) -> Any:
        x, spec = read(importer, node, 0, "input"), output(node)
        if node.target.__name__.endswith("vec"):
            factors = read(importer, node, 2, "scale_factors") or [None] * rank
        else:
            factors = [read(importer, node, 2 + k, "scales") for k in range(rank)]
        sizes, outputs = shape_of(x)[-rank:], spec.shape[-rank:]
        scales = [
            float(np.float32(1 / f) if f else np.float32(n) / np.float32(m))
            for f, n, m in zip(factors, sizes, outputs, strict=True)
        ]

        def element(load: Any, *at: Any) -> Any:
            place = []
            for o, n, m, scale in zip(at[-rank:], sizes, outputs, scales, strict=True):
                if n == m and scale == 1:
                    place.append(o)
                    continue
                position = tirx.Cast("float32", o) + constant(0.5 if exact else 0, "float32")
                index = tirx.Cast("int64", tirx.floor(position * constant(scale, "float32")))
                place.append(tirx.min(index, tirx.const(n - 1, "int64")))
            return load(*at[:-rank], *place)

        return compute(importer, spec.shape, dtype_of(x), element, x, name="nearest")

    return convert


RESIZING: dict[str, Convert] = {
    f"{name}{rank}d.{kind}": _nearest(rank, exact)
    for name, exact in (("upsample_nearest", False), ("_upsample_nearest_exact", True))
    for rank in (1, 2, 3)
    for kind in ("default", "vec")
}
