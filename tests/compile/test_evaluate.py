"""Bodies run as they were converted: what TVM's virtual machine gives is held against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tapml.carving.distance import distance
from tapml.compile.compiler import Compiler
from tapml.compile.evaluate import OPERATORS
from tapml.compile.function_texts import NAMES
from tapml.targets.known import TARGETS
from tapml.tensors import EPSILON, spec_of
from tests.compile.bodies import Made, Result, call, chain
from tests.compile.test_conversions import bools, floats, ints

X = floats(3, 8)

# Each function that kernels bring along as text, and what PyTorch calls it.
OWN: dict[str, Callable[[], Made]] = {
    "sine": lambda: call("aten.sin.default", X * 1e4),
    "cosine": lambda: call("aten.cos.default", X * 1e4),
    "tangent": lambda: call("aten.tan.default", X),
    "log": lambda: call("aten.log.default", X.abs()),
    "log2": lambda: call("aten.log2.default", X.abs()),
    "log10": lambda: call("aten.log10.default", X.abs()),
    "logaddexp": lambda: call("aten.logaddexp.default", X * 30, floats(3, 8, seed=1)),
    "nextafter": lambda: call("aten.nextafter.default", X, floats(3, 8, seed=1)),
    "fmod": lambda: call("aten.fmod.Tensor", X * 9, floats(3, 8, seed=1)),
    "remainder": lambda: call("aten.remainder.Tensor", X * 9, floats(3, 8, seed=1)),
    "floor_divide": lambda: call("aten.floor_divide.default", X * 9, floats(3, 8, seed=1)),
    "lgamma": lambda: call("aten.lgamma.default", X * 5),
    "digamma": lambda: call("aten.digamma.default", X.abs() + 0.1),
    "erf": lambda: call("aten.erf.default", X),
    "erfc": lambda: call("aten.erfc.default", X),
    "erfcx": lambda: call("aten.special_erfcx.default", X),
    "i0": lambda: call("aten.i0.default", X),
    "i0e": lambda: call("aten.special_i0e.default", X),
    "i1": lambda: call("aten.special_i1.default", X),
    "i1e": lambda: call("aten.special_i1e.default", X),
}
CALLS: dict[str, Callable[[], Made]] = {
    **OWN,
    "booleans": lambda: call("aten.eq.Tensor", bools(3, 8), bools(8)),
    "unequal booleans": lambda: call("aten.ne.Tensor", bools(3, 8), bools(8)),
    "one number": lambda: call("aten.mul.Tensor", torch.tensor(3.0), floats(2)),
    "long integers": lambda: call("aten.mul.Tensor", ints(5, low=2**40, high=2**41), 3),
    "in half precision": lambda: call("aten.softmax.int", floats(2, 300, dtype=torch.float16), -1),
    "in bfloat16": lambda: call("aten.linear.default", floats(4, 16, dtype=torch.bfloat16), floats(8, 16, dtype=torch.bfloat16)),
    "half precision beyond it, within": lambda: call("aten.rms_norm.default", floats(2, 64, dtype=torch.float16) * 300, [64]),
    "several outputs": lambda: call("aten.topk.default", floats(2, 9), 3),
    "several operators": lambda: chain([
        ("aten.silu.default", (X,), {}), ("aten.matmul.default", (Result(0), floats(8, 4)), {}),
        ("aten.view.default", (Result(1), [12]), {}),
    ]),
}  # fmt: skip


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiler]:
    with Compiler(TARGETS["opencl"], tmp_path_factory.mktemp("kernels"), workers=1) as compiler:
        yield compiler


@pytest.mark.parametrize("name", CALLS)
def test_a_converted_body_gives_what_pytorch_gives(compiler: Compiler, name: str) -> None:
    made = CALLS[name]()
    outputs = compiler.evaluate(made.body, made.inputs)
    assert not isinstance(outputs, str), outputs
    for got, want in zip(outputs, made.outputs, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert distance(got, want) <= 32 * EPSILON.get(spec_of(want).dtype, 0.0)


def test_every_function_of_text_has_its_counterpart() -> None:
    parts_of_others = {
        "exp_of_square", "exponent", "high_product", "lgamma_above", "lgamma_one", "log_mantissa", "log_scaled", "quadrant",
        "scaled_erfc", "turned_sine", "turns_word",
    }  # fmt: skip
    assert NAMES - parts_of_others == set(OPERATORS) == set(OWN)
