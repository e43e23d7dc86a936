"""The operators that `check_backend` runs: small, of every kind that models are made of, in the dtypes that they come in.

Each is one call of ATen, or two, as a body with its inputs. Inputs are drawn from a fixed seed, so that a failure is the same
each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapml.operators.graph import Body, Node
from tapml.tensors import NUMPY, HostArray, TensorSpec, spec_of

Made = tuple[tuple[int, ...], str]


@dataclass(frozen=True, eq=False)
class Sample:
    """An operator, by the name that messages have, and inputs for it, in its body's order and dtypes."""

    name: str
    body: Body
    inputs: tuple[HostArray, ...]


def ref(name: str) -> dict[str, str]:
    return {"ref": name}


def body(inputs: Sequence[TensorSpec], nodes: Sequence[tuple[str, list[Any], Made]], outputs: Sequence[str] = ()) -> Body:
    """Nodes are "n0", "n1", …, each a target, its arguments, and what it gives; the last is the output where none are named."""
    made = tuple(
        Node(f"n{k}", f"aten.{target}", tuple(args), {}, (TensorSpec(*spec),)) for k, (target, args, spec) in enumerate(nodes)
    )
    kind = nodes[-1][0].partition(".")[0].strip("_")
    return Body(kind, tuple(inputs), ("value",) * len(inputs), made, tuple(outputs) or (made[-1].name,))


class _Drawn:
    def __init__(self) -> None:
        self._random = np.random.default_rng(20)

    def floats(self, *shape: int, dtype: str = "float32") -> HostArray:
        return self._random.standard_normal(shape).astype(NUMPY[dtype])

    def whole(self, below: int, *shape: int, dtype: str = "int64") -> HostArray:
        return self._random.integers(0, below, shape).astype(NUMPY[dtype])


def _one(name: str, inputs: Sequence[HostArray], args: list[Any], shape: tuple[int, ...], dtype: str = "float32") -> Sample:
    specs = [spec_of(array) for array in inputs]
    return Sample(f"aten.{name}", body(specs, [(name, args, (shape, dtype))]), tuple(inputs))


def samples() -> tuple[Sample, ...]:
    """All of them; the first is multiplication with a number and the second addition."""
    d, i0, i1, i2 = _Drawn(), ref("i0"), ref("i1"), ref("i2")
    small, other = d.floats(3, 5), d.floats(5)
    return (
        _one("mul.Tensor", [small], [i0, 2.0], (3, 5)),
        _one("add.Tensor", [small, other], [i0, i1], (3, 5)),
        _one("mul.Tensor", [d.floats()], [i0, 2.0], ()),
        _one("mul.Tensor", [d.floats(0, 3)], [i0, 2.0], (0, 3)),
        _one("exp.default", [small], [i0], (3, 5)),
        _one("sum.dim_IntList", [d.floats(7, 33)], [i0, [1]], (7,)),
        _one("mean.dim", [d.floats(2, 9, 4)], [i0, [1], True], (2, 1, 4)),
        _one("mm.default", [d.floats(5, 19), d.floats(19, 6)], [i0, i1], (5, 6)),
        _one("linear.default", [d.floats(2, 3, 17), d.floats(9, 17), d.floats(9)], [i0, i1, i2], (2, 3, 9)),
        _one("softmax.int", [d.floats(4, 21)], [i0, -1], (4, 21)),
        _one("layer_norm.default", [d.floats(4, 24), d.floats(24), d.floats(24)], [i0, [24], i1, i2, 1e-5], (4, 24)),
        _one("transpose.int", [d.floats(3, 4, 5)], [i0, 0, 2], (5, 4, 3)),
        _one("cat.default", [d.floats(2, 3), d.floats(2, 4)], [[i0, i1], 1], (2, 7)),
        _one("slice.Tensor", [d.floats(3, 9)], [i0, 1, 2, 8, 2], (3, 3)),
        _one("embedding.default", [d.floats(11, 6), d.whole(11, 2, 4)], [i0, i1], (2, 4, 6)),
        _one("where.self", [d.whole(2, 3, 5, dtype="bool"), small, d.floats(3, 5)], [i0, i1, i2], (3, 5)),
        _one("argmax.default", [d.floats(4, 13)], [i0, 1], (4,), "int64"),
        _one("ge.Scalar", [small], [i0, 0], (3, 5), "bool"),
        _one("bitwise_and.Tensor", [d.whole(2, 7, dtype="bool"), d.whole(2, 7, dtype="bool")], [i0, i1], (7,), "bool"),
        _one("add.Tensor", [d.whole(1000, 6), d.whole(1000, 6)], [i0, i1], (6,), "int64"),
        _one("add.Tensor", [d.floats(40, dtype="float16"), d.floats(40, dtype="float16")], [i0, i1], (40,), "float16"),
        _one("mul.Tensor", [d.floats(40, dtype="bfloat16"), d.floats(40, dtype="bfloat16")], [i0, i1], (40,), "bfloat16"),
        _one("conv2d.default", [d.floats(1, 3, 7, 7), d.floats(4, 3, 3, 3), d.floats(4)], [i0, i1, i2], (1, 4, 5, 5)),
        _one("scaled_dot_product_attention.default", [d.floats(1, 2, 5, 8) for _ in range(3)], [i0, i1, i2], (1, 2, 5, 8)),
    )


SPEC = TensorSpec((3, 5), "float32")

_MADE: Made = (SPEC.shape, SPEC.dtype)
_TWICE = ("mul.Tensor", [ref("i0"), 2.0], _MADE)

# y = 2 x + 1, whose runs in a row show an order, and the same with another number, which nothing may take for it.
STEP = body([SPEC], [_TWICE, ("add.Tensor", [ref("n0"), 1.0], _MADE)])
OTHER_STEP = body([SPEC], [_TWICE, ("add.Tensor", [ref("n0"), 3.0], _MADE)])
# An output that is an input unchanged, then one that is computed.
HANDED_ON = body([SPEC], [_TWICE], ["i0", "n0"])
# A sum of two inputs, which may be one buffer.
SUM = body([SPEC, SPEC], [("add.Tensor", [ref("i0"), ref("i1")], _MADE)])
# What no backend has.
UNKNOWN = body([SPEC], [("tapml_no_such_operator.default", [ref("i0")], _MADE)])
