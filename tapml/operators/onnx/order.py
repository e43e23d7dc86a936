"""Sorting, the largest few, and what is found by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tapml.operators.onnx.arithmetic import Specs, widened
from tapml.operators.onnx.writer import Value, Writer


def _largest(w: Writer, x: Value, count: int, axis: int, largest: bool) -> list[Value]:
    """In order, with their places; equal ones in the order in which they stand."""
    if not x.rank:
        return [x, w.constant(0, "int64")]
    dtype = "float32" if x.dtype in ("float16", "bfloat16") else widened(x.dtype)
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    specs = [(shape, dtype), (shape, "int64")]
    return w.several("TopK", [w.cast(x, dtype), w.ints([count])], specs, axis=axis, largest=int(largest), sorted=1)


def _topk(w: Writer, out: Specs, x: Value, count: int, dim: int = -1, largest: bool = True, ordered: bool = True) -> list[Value]:
    return _largest(w, x, count, x.axis(dim), largest)


def _sort(w: Writer, out: Specs, x: Value, dim: int = -1, descending: bool = False) -> list[Value]:
    return _largest(w, x, x.shape[x.axis(dim)] if x.rank else 1, x.axis(dim), descending)


def _stable_sort(w: Writer, out: Specs, x: Value, stable: bool | None, dim: int = -1, descending: bool = False) -> list[Value]:
    return _sort(w, out, x, dim, descending)


def _argsort(w: Writer, out: Specs, x: Value, dim: int = -1, descending: bool = False) -> Value:
    return _sort(w, out, x, dim, descending)[1]


def _stable_argsort(w: Writer, out: Specs, x: Value, stable: bool, dim: int = -1, descending: bool = False) -> Value:
    return _sort(w, out, x, dim, descending)[1]


ORDER: dict[str, Callable[..., Any]] = {
    "topk.default": _topk, "sort.default": _sort, "sort.stable": _stable_sort, "argsort.default": _argsort,
    "argsort.stable": _stable_argsort,
}  # fmt: skip
