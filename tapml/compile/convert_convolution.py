"""Transposed convolutions, of which TVM's importer gets dilated and grouped ones wrong; the other convolutions are TVM's."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tapml.compile.node_arguments import output, read
from tapml.compile.tensor_expressions import broadcast, constant, long, reduce, reshape, shape_of, to, wide


def _convolution(importer: Any, node: Any) -> Any:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    x, weight, bias, stride, padding, dilation, transposed, _, groups = (
        read(importer, node, k, name) for k, name in enumerate(names)
    )
    if not transposed:
        return importer.convert_map["convolution.default"](node)
    return _transposed(importer, node, x, weight, bias, stride, padding, dilation, groups)


def _transposed(
    importer: Any, node: Any, x: Any, weight: Any, bias: Any, stride: list[int], padding: list[int], dilation: list[int],
    groups: int,
) -> Any:
    """y[n, o, p] = Σ x[n, c, (p + padding - k · dilation) / stride] · w[c, o, k] over the channels c of o's group and the k for
    which the division leaves no rest and stays inside. x [N, C, …], w [C, O / groups, …]."""
    spec = output(node)
    dtype = wide(spec.dtype)
    channels, per_group, *kernel = shape_of(weight)
    sizes = shape_of(x)[2:]
    inner = channels // groups

    def element(load: Any, load_w: Any, at: Any, k: Any) -> Any:
        group = tirx.floordiv(at[1], long(per_group))
        channel = group * long(inner) + k[0]
        reach = [i + long(p) - j * long(d) for i, j, p, d in zip(at[2:], k[1:], padding, dilation, strict=True)]
        place = [tirx.floordiv(r, long(s)) for r, s in zip(reach, stride, strict=True)]
        inside = [
            tirx.all(r >= long(0), tirx.EQ(tirx.floormod(r, long(s)), long(0)), q < long(n))
            for r, s, q, n in zip(reach, stride, place, sizes, strict=True)
        ]
        safe = [tirx.max(tirx.min(q, long(n - 1)), long(0)) for q, n in zip(place, sizes, strict=True)]
        factor = to(load_w(channel, tirx.floormod(at[1], long(per_group)), *k[1:]), dtype)
        return tirx.if_then_else(tirx.all(*inside), to(load(at[0], channel, *safe), dtype) * factor, constant(0, dtype))

    total = reduce(importer, spec.shape, dtype, [inner, *kernel], element, x, weight, name="conv_transpose")
    if bias is None:
        return total
    column = reshape(importer, bias, (shape_of(bias)[0], *[1] * len(kernel)))
    return broadcast(importer, spec.shape, spec.dtype, lambda e, b: e + to(b, dtype), total, column)


CONVOLUTION = {"convolution.default": _convolution}
