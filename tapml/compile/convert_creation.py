"""Tensors made from numbers: filled with one, counted, at even distances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, tirx

from tapml.compile.convert_arithmetic import beside
from tapml.compile.node_arguments import output, read
from tapml.compile.tensor_expressions import Element, broadcast, compute, constant, is_float, literal, to, wide

Convert = Callable[[Any, Any], Any]


def _filled(value_at: int | None, value: float = 0) -> Convert:
    """A tensor of one number: the argument at `value_at`, or `value`."""

    def convert(importer: Any, node: Any) -> Any:
        spec = output(node)
        filling = value if value_at is None else read(importer, node, value_at, "fill_value", value)
        if isinstance(filling, relax.Expr):
            return broadcast(importer, spec.shape, spec.dtype, lambda e: to(e, spec.dtype), filling)
        if not is_float(spec.dtype):
            filling = beside(filling, spec.dtype)
        return compute(importer, spec.shape, spec.dtype, lambda *at: literal(filling, spec.dtype), name="constant")

    return convert


def _arange(importer: Any, node: Any) -> Any:
    spec = output(node)
    positional = list(node.args)
    start, step = (positional[0] if len(positional) > 1 else 0), (positional[2] if len(positional) > 2 else 1)
    dtype = wide(spec.dtype)

    def element(i: Element) -> Element:
        return constant(start, dtype) + to(i, dtype) * constant(step, dtype)

    return compute(importer, spec.shape, spec.dtype, element, name="arange")


def _linspace(importer: Any, node: Any) -> Any:
    """Numbers at even distances, counted from the nearer end; integers are cut towards 0."""
    spec = output(node)
    start, end, steps = (read(importer, node, k, n) for k, n in enumerate(("start", "end", "steps")))
    if isinstance(start, relax.Expr) or isinstance(end, relax.Expr):
        raise ValueError("ends that are tensors")
    if not is_float(spec.dtype):
        start, end = int(start), int(end)
    dtype = wide(spec.dtype) if is_float(spec.dtype) else "float32"
    step, half = constant((end - start) / max(steps - 1, 1), dtype), max(steps // 2, 1)

    def element(i: Element) -> Element:
        last = tirx.const(steps - 1, "int64")
        above = constant(start, dtype) + to(i, dtype) * step
        below = constant(end, dtype) - to(last - i, dtype) * step
        return tirx.Select(i < tirx.const(half, "int64"), above, below)

    return compute(importer, spec.shape, spec.dtype, element, name="linspace")


def _copied(importer: Any, node: Any) -> Any:
    """The second in the shape and dtype of the first."""
    spec = output(node)
    return broadcast(importer, spec.shape, spec.dtype, lambda e: e, read(importer, node, 1, "src"))


CREATION: dict[str, Convert] = {
    "copy.default": _copied,
    "full.default": _filled(1),
    "full_like.default": _filled(1),
    "new_full.default": _filled(2),
    "scalar_tensor.default": _filled(0),
    "fill.Scalar": _filled(1),
    "fill.Tensor": _filled(1),
    **{f"{name}.default": _filled(None, 0) for name in ("zeros", "zeros_like", "new_zeros", "empty_like", "new_empty")},
    "empty.memory_format": _filled(None, 0),
    "empty_permuted.default": _filled(None, 0),
    **{f"{name}.default": _filled(None, 1) for name in ("ones", "ones_like", "new_ones")},
    **{f"arange.{kind}": _arange for kind in ("default", "start", "start_step")},
    "linspace.default": _linspace,
}
