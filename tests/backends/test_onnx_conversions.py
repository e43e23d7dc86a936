"""Every ATen operator that is written in ONNX, computed by ONNX Runtime, against PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tapml.backends.onnxruntime import OnnxRuntime
from tapml.carving.distance import distance
from tapml.devices.interface import Device
from tapml.devices.open import open_here
from tapml.operators.onnx.to_onnx import CONVERSIONS
from tapml.targets.parse import parse
from tapml.tensors import EPSILON, spec_of
from tests.compile.bodies import Made, call
from tests.compile.test_conversions import CASES, bools, floats, ints

X = floats(2, 3, 8)
SMALL = X.clamp(-0.99, 0.99)
ABOVE = X.abs() + 1.0
SIGNED = torch.tensor([-7, -6, -1, 0, 1, 5, 7])
DIVISORS = torch.tensor([2, -4, 3, -3, -2, 3, -7])
EVEN = torch.tensor([-2.5, -1.5, -0.5, -0.0, 0.5, 1.5, 2.5, float("inf"), float("nan")])
ODD = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.5])
IMAGE, VOLUME = floats(1, 2, 6, 6), floats(1, 2, 4, 4, 4)
SQUARE = floats(2, 5, 5)
PLACES = torch.tensor([[0, 5], [2, 1], [4, 3]])

Arguments = tuple[Any, ...]
ONE: tuple[Arguments, ...] = ((X,),)

# By overload, the arguments of each call that is tried. A dict at the end are arguments by name.
CALLS: dict[str, tuple[Arguments, ...]] = {
    "add.Tensor": ((X, floats(1, 8)), (bools(4), bools(4)), (ints(4).to(torch.uint8) + 250, ints(4).to(torch.uint8) + 9)),
    "add.Scalar": ((X, 2), (ints(4), 2.5)),
    "sub.Tensor": ((X, floats(8), {"alpha": 3}),), "sub.Scalar": ((X, 1.5),), "rsub.Tensor": ((X, floats(8)),),
    "mul.Tensor": ((X, ints(8)), (bools(4), bools(4)), (ints(4).to(torch.int8) + 100, ints(4).to(torch.int8))),
    "mul.Scalar": ((X, 3),), "div.Tensor": ((SIGNED, DIVISORS), (X, floats(8))), "div.Scalar": ((SIGNED, 4),),
    "div.Tensor_mode": tuple(
        (a, b, {"rounding_mode": mode}) for mode in ("floor", "trunc") for a, b in ((SIGNED, DIVISORS), (X * 9, floats(8)))),
    "div.Scalar_mode": ((SIGNED, -3, {"rounding_mode": "floor"}), (EVEN, 0.7, {"rounding_mode": "floor"})),
    "true_divide.Tensor": ((SIGNED, 2.0 * DIVISORS),), "true_divide.Scalar": ((X, 4),),
    "floor_divide.default": ((SIGNED, DIVISORS), (ODD, torch.tensor([2.0, 2.0, -2.0, 0.0, -0.5]))),
    "floor_divide.Scalar": ((SIGNED, -2),),
    "remainder.Tensor": ((SIGNED, DIVISORS), (X * 9, floats(8)), (SIGNED.to(torch.int32), DIVISORS.to(torch.int32))),
    "remainder.Scalar": ((SIGNED, -3), (EVEN[:7], -0.7)), "remainder.Scalar_Tensor": ((-9, DIVISORS),),
    "fmod.Tensor": ((SIGNED, DIVISORS), (X * 9, floats(8))), "fmod.Scalar": ((SIGNED, 4), (X * 9, 1.3)),
    "pow.Tensor_Tensor": ((ABOVE, X), (ints(4), ints(4, high=4))),
    "eq.Scalar": ((ints(4), 2), (ints(4), 2.0), (ODD, float("nan"))), "ne.Tensor": ((ODD, ODD),), "ne.Scalar": ((bools(4), 1),),
    "lt.Tensor": ((X, floats(8)), (ints(4), torch.tensor([0.5, 9, 1, 2]))),
    "lt.Scalar": ((SIGNED, 2**40), (SIGNED.to(torch.int32), 2**40), (SIGNED.to(torch.uint8), -1), (X, 0.5)),
    "le.Tensor": ((ODD, ODD),), "le.Scalar": ((SIGNED, 0),), "gt.Tensor": ((X, torch.tensor(0)),), "ge.Tensor": ((X, X),),
    "ge.Scalar": ((SIGNED.to(torch.int8), 0.5),),
    **{f"bitwise_{word}.Tensor": ((ints(6), SIGNED[:6]), (bools(6), bools(6)), (ints(6).to(torch.uint8), ints(6).to(torch.uint8)))
       for word in ("and", "or", "xor")},
    **{f"bitwise_{word}.Scalar": ((SIGNED, 5),) for word in ("and", "or", "xor")},
    **{f"bitwise_{word}.Scalar_Tensor": ((5, SIGNED),) for word in ("and", "or", "xor")},
    **{f"__{word}__.Tensor": ((SIGNED, DIVISORS), (bools(6), bools(1))) for word in ("and", "or", "xor")},
    **{f"__{word}__.Scalar": ((SIGNED, 3),) for word in ("and", "or", "xor")},
    **{f"__{side}shift__.Tensor": ((SIGNED, DIVISORS.abs()),) for side in "lr"},
    **{f"__{side}shift__.Scalar": ((SIGNED, 2),) for side in "lr"},
    **{f"bitwise_{side}_shift.Tensor": ((SIGNED, DIVISORS.abs()),) for side in ("left", "right")},
    **{f"bitwise_{side}_shift.Tensor_Scalar": ((SIGNED, 1),) for side in ("left", "right")},
    **{f"bitwise_{side}_shift.Scalar_Tensor": ((-9, DIVISORS.abs()),) for side in ("left", "right")},
    "bitwise_not.default": ((SIGNED,), (bools(6),), (SIGNED.to(torch.int8),)),
    "maximum.default": ((X, floats(8)), (SIGNED, DIVISORS)), "minimum.default": ((X, floats(8)), (SIGNED, DIVISORS)),
    "max.other": ((X, floats(8)),), "min.other": ((SIGNED, DIVISORS),),
    "prims.mul.default": ((X, X),), "prims.add.default": ((X, X),), "prims.sub.default": ((X, X),),
    "prims.pow.default": ((ABOVE, X),),
    **{f"prims.{word}.default": ((X, X.flip(0)),) for word in ("eq", "ne", "lt", "le", "gt", "ge")},
    "prims.where.default": ((X > 0, X, X),), "prims.convert_element_type.default": ((X, torch.float64),),
    "copy.default": ((X, floats(8)),),
    "clamp.Tensor": ((X, floats(8) - 2, floats(3, 1) + 2),), "clip.default": ((X, 0.1, 0.3), (SIGNED, -2, None)),
    "clamp_min.Tensor": ((X, floats(8)),), "clamp_max.default": ((X, 0.3), (SIGNED, 2)), "clamp_max.Tensor": ((X, floats(8)),),
    "hardtanh.default": ((X,), (X, -0.2, 0.5)),
    **{f"logical_{word}.default": ((bools(6), ints(6)), (X, X > 0)) for word in ("and", "or", "xor")},
    "where.ScalarSelf": ((bools(3, 8), 1.5, X),), "where.Scalar": ((bools(4), 1.0, -float("inf")), (bools(4), 1, 2)),
    "where.self": ((bools(3, 8), X, X + 1), (bools(6), bools(1), ~bools(6)), (bools(4), ints(4), ints(4).to(torch.int8))),
    "masked_fill.Tensor": ((X, bools(3, 8), torch.tensor(2.0)),),
    "to.dtype": ((X * 5, torch.int32), (ODD, torch.bool)), "type_as.default": ((ints(4), X),), "clone.default": ONE,
    "alias.default": ONE, "contiguous.default": ONE, "detach.default": ONE, "lift_fresh_copy.default": ONE,
    "dropout.default": ((X, 0.5, False),),
    "addcmul.default": ((X, floats(8), floats(3, 1), {"value": 0.5}),), "addcdiv.default": ((X, floats(8), ABOVE),),
    "lerp.Scalar": ((X, floats(8).expand(2, 3, 8), 0.3), (X, X + 1, 0.8)), "lerp.Tensor": ((X, X + 1, floats(8)),),
    "atan2.default": ((X, floats(8)), (torch.tensor([1.0, -1, 0, 0]), torch.tensor([0.0, 0, 1, -1]))),
    "signbit.default": ((SIGNED,),),
    **{f"{name}.default": ((X,), (ODD,)) for name in (
        "sin", "cos", "tanh", "sigmoid", "exp", "neg", "atan", "sinh", "cosh", "asinh", "square", "exp2", "sign", "sgn", "floor",
        "ceil", "trunc", "fix", "isnan", "isinf", "isfinite", "reciprocal", "erf", "silu", "expm1")},
    **{f"{name}.default": ((X,),) for name in (
        "tan", "hardswish", "frac", "mish", "celu", "selu", "hardsigmoid", "relu6", "hardshrink", "softshrink",
        "log_sigmoid_forward", "relu")},
    **{f"{name}.default": ((ABOVE,),) for name in ("sqrt", "log", "rsqrt", "log2", "log10", "acosh")},
    **{f"{name}.default": ((SMALL,),) for name in ("asin", "acos", "atanh")},
    "sqrt.default": ((ints(4),), (ABOVE,)), "abs.default": ((X,), (SIGNED.to(torch.int8),)),
    "round.default": ((EVEN,), (SIGNED,)),
    "round.decimals": ((X, {"decimals": 0}), (X, {"decimals": 2})), "leaky_relu.default": ((X,), (X, 0.3)),
    "threshold.default": ((X, 0.1, -3.0),), "prelu.default": ((X, floats(3)), (X, floats(1))),
    "_prelu_kernel.default": ((X, floats(1, 3, 1)),), "nan_to_num.default": ((ODD,), (ODD, 1.0, 2.0, -2.0)),
    "xlogy.Tensor": ((torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, float("nan")])),),
    "xlogy.Scalar_Other": ((ABOVE, 2.0),),
    "zeros.default": (([2, 3],), ([2, 0],), ([], {"dtype": torch.int64})), "zeros_like.default": ONE,
    "new_zeros.default": ((X, [4]),), "zero.default": ONE, "ones.default": (([3], {"dtype": torch.bool}),),
    "ones_like.default": ONE,
    "new_ones.default": ((X, [4], {"dtype": torch.float16}),), "full_like.default": ((X, 2.5), (ints(4), 7)),
    "new_full.default": ((X, [3], -1.0),), "fill.Scalar": ((X, 2),), "fill.Tensor": ((X, torch.tensor(3)),),
    "scalar_tensor.default": ((1.5,), (3, {"dtype": torch.int32})), "arange.default": ((7,), (2.5,)), "arange.start": ((-3, 4),),
    "arange.start_step": ((1.0, 2.0, 0.1), (9, 1, -2)), "eye.default": ((3,),), "eye.m": ((3, 5, {"dtype": torch.int64}),),
    "linspace.default": ((0.0, 1.0, 7), (2, -3, 1)), "tril.default": ((SQUARE, -1), (SQUARE > 0,), (ints(4, 6),)),
    "triu.default": ((SQUARE, 2), (ints(4, 6).to(torch.int32),)),
    "mm.default": ((floats(3, 4), floats(4, 5)), (ints(2, 3), ints(3, 2)), (floats(0, 4), floats(4, 5))),
    "bmm.default": ((floats(2, 3, 4), floats(2, 4, 5)),), "mv.default": ((floats(3, 4), floats(4)),),
    "dot.default": ((floats(4), floats(4) + 1),), "addmv.default": ((floats(3), floats(3, 4), floats(4), {"alpha": 0.5}),),
    "linear.default": ((floats(4), floats(3, 4), floats(3)), (floats(2, 5, 4), floats(3, 4)),
        (floats(0, 4), floats(3, 4), floats(3))),
    "addmm.default": ((torch.full((5,), float("nan")), floats(3, 4), floats(4, 5), {"beta": 0}),),
    "prod.default": ONE, "prod.dim_int": ((X, -1, True), (SIGNED, 0)), "std.correction": ((X, [1, 2], {"correction": 0}),),
    "sum.dim_IntList": ((X, [-1]), (X, []), (bools(3, 8), [0], {"dtype": torch.float32}), (torch.tensor(2.0), [0])),
    "mean.dim": ((X, [-2, 0]), (floats(0, 3), [0])),
    "max.default": ((X,), (ODD,)), "min.default": ((SIGNED,),), "max.dim": ((X, -1), (bools(3, 8), 0), (torch.tensor(2.0), 0)),
    "min.dim": ((X, 1, True), (SIGNED, 0)), "aminmax.default": ((X, {"dim": 1}), (X,)),
    "amax.default": ((X, [-1, 0], True), (SIGNED.to(torch.int8), [0])), "argmax.default": ((ints(3, 8), 1), (torch.tensor(2.0),)),
    "any.default": ((X > 9,), (torch.zeros(0, 3),)), "any.dims": ((bools(2, 3, 8), [0, 1]),), "all.dim": ((X, 1, True),),
    "all.dims": ((bools(2, 3, 8), [0, 2]),), "all.default": ((torch.zeros(0, 3),),),
    "linalg_vector_norm.default": ((X, 1, [1]), (X, float("inf"), [0, 1]), (X, 3, [2], True), (X,)),
    "logsumexp.default": ((X, [1]), (torch.tensor([[-float("inf")] * 2, [float("inf"), 1.0], [900.0, 901.0]]), [1], True)),
    "cumsum.default": ((X, -2), (bools(3, 8), 1), (torch.tensor(2.0), 0)),
    "topk.default": ((X, 2, 1, False), (ints(9, high=99), 3)), "sort.default": ((X, 0), (bools(8), 0)),
    "sort.stable": ((ints(9, high=3), {"stable": True, "dim": 0}),), "argsort.default": ((X, 1, True),),
    "argsort.stable": ((ints(9, high=3), {"stable": True}),),
    "view.default": ((X, [-1, 4]), (floats(0, 3), [3, 0])), "reshape.default": ((X, [2, 24]),), "unsqueeze.default": ((X, -1),),
    "squeeze.default": ((floats(1, 3, 1),),), "squeeze.dim": ((floats(1, 3, 1), -1),),
    "squeeze.dims": ((floats(1, 3, 1), [0, 2]),),
    "flatten.using_ints": ((X, 1),), "unflatten.int": ((X, -1, [2, 4]),), "view_as.default": ((X, floats(6, 8)),),
    "reshape_as.default": ((X, floats(6, 8)),), "expand_as.default": ((floats(3, 1), X),),
    "broadcast_to.default": ((floats(8), [3, 8]),),
    "expand.default": ((bools(3, 1), [3, 4]), (torch.tensor(2), [3])), "transpose.int": ((X, 0, -1),),
    "swapaxes.default": ((X, 0, 1),),
    "permute.default": ((bools(2, 3), [-1, 0]),), "t.default": ((floats(3, 4),),), "numpy_T.default": ONE, "mT.default": ONE,
    "slice.Tensor": ((X, -1, -5, -1), (X, 1, 2, 1), (bools(9), 0, None, None, 3)), "narrow.default": ((X, 2, 1, 3),),
    "select.int": ((bools(2, 3), 0, 1),), "flip.default": ((X, [0, -1]), (floats(0, 3), [0])),
    "roll.default": ((X, [1, -2], [0, 2]), (X, [5])), "concat.default": (([X, X], -1),), "cat.default": (([floats(0), X], 0),),
    "split.Tensor": ((X, 3, 2),), "split.sizes": ((X, [1, 2], 1),), "chunk.default": ((X, 3, -1), (X, 1)),
    "tensor_split.sections": ((X, 3, 2),), "tensor_split.indices": ((X, [1, 4], 2),), "unbind.int": ((X, 1), (bools(2, 3),)),
    "repeat.default": ((floats(3), [2, 2]), (floats(2, 3), [1, 1])), "tile.default": ((X, [2]),),
    "repeat_interleave.self_int": ((X, 2),), "constant_pad_nd.default": ((X, [1, 2], 5.0), (X, [-1, 2, 0, -1]),
        (bools(3), [1, 1])),
    "pad.default": ((X, [1, 2]), (X, [2, 1], "reflect"), (X, [1, 1], "circular"), (ints(4), [1, 0], "constant", 3.0)),
    "reflection_pad1d.default": ((X, [2, 1]),), "reflection_pad2d.default": ((IMAGE, [1, 2, 3, 0]),),
    "reflection_pad3d.default": ((VOLUME, [1, 1, 0, 2, 1, 0]),), "replication_pad1d.default": ((X, [2, 1]), (X, [2, -1])),
    "replication_pad2d.default": ((IMAGE, [1, 2, 3, 0]),), "replication_pad3d.default": ((VOLUME, [1, 1, 0, 2, 1, 0]),),
    "take.default": ((X, torch.tensor([[0, -1], [5, 7]])),), "_unsafe_index.Tensor": ((X, [None, torch.tensor([1, -1])]),),
    "_unsafe_index_put.default": ((X.clone(), [torch.tensor([1])], floats(1, 3, 8)),),
    "index.Tensor": ((floats(3, 4, 5), [torch.tensor([0, -1]), torch.tensor([[3], [-4]])]), (bools(6), [torch.tensor([0, 5])])),
    "index_put.default": (
        (floats(6, 5, 4), [torch.tensor([1, -2]), None, torch.tensor([0, 3])], floats(2, 5)),
        (ints(6), [torch.tensor([1, 4])], torch.tensor([9, 8])),
        (floats(3, 4), [torch.tensor([], dtype=torch.int64)], floats(0, 4))),
    "index_fill.int_Scalar": ((X, 1, torch.tensor([0, 2]), 9.0),),
    "index_fill.int_Tensor": ((X, 2, torch.tensor([0]), torch.tensor(2.0)),),
    "gather.default": ((X, -1, torch.tensor([[[7, 0]]])), (torch.tensor([4.0, 5.0]), 0, torch.tensor([], dtype=torch.int64))),
    "index_add.default": ((floats(6, 4), 0, torch.tensor([3, 1]), floats(2, 4), {"alpha": 2}),),
    "scatter.src": ((floats(3, 6), 1, PLACES, floats(3, 4)), (bools(3, 6), 1, PLACES, bools(3, 2))),
    "scatter_reduce.two": (
        *((floats(3, 6), 1, PLACES, floats(3, 2), how) for how in ("sum", "prod", "amax", "amin", "mean")),
        (ints(3, 6), 1, PLACES * 0, ints(3, 2), "mean", {"include_self": False}),
        (floats(3, 6), 1, PLACES, floats(3, 2), "amax", {"include_self": False})),
    "slice_scatter.default": ((X, floats(1, 3, 8), 0, 0, 1), (bools(8), bools(2), 0, 1, 3)),
    "select_scatter.default": ((X, floats(2, 3), -1, -1),), "one_hot.default": ((ints(4, high=5),),),
    "softmax.int": ((X, -2), (torch.tensor(2.0), 0), (X, 0, torch.float64)), "log_softmax.int": ((X, -1), (X, 0)),
    "layer_norm.default": ((X, [3, 8]), (X, [8], floats(8), None, 1e-6)),
    "native_layer_norm.default": ((X, [8], floats(8), floats(8), 1e-5),),
    "rms_norm.default": ((X, [3, 8]),), "group_norm.default": ((floats(2, 6), 2),),
    "native_group_norm.default": ((floats(2, 6, 4), floats(6), floats(6), 2, 6, 4, 3, 1e-5),),
    "batch_norm.default": ((IMAGE, floats(2), floats(2), floats(2), floats(2).abs(), False, 0.1, 1e-5, False),
                           (IMAGE, None, None, floats(2), floats(2).abs(), False, 0.1, 1e-3, False)),
    "_native_batch_norm_legit_no_training.default": ((IMAGE, floats(2), floats(2), floats(2), floats(2).abs(), 0.1, 1e-5),),
    "convolution.default": ((IMAGE, floats(4, 2, 3, 3), None, [2, 1], [0, 1], [1, 2], False, [0, 0], 1),
                            (IMAGE, floats(2, 3, 3, 3), floats(3), [2, 2], [1, 1], [1, 1], True, [1, 0], 1)),
    "conv2d.default": ((IMAGE[0], floats(4, 2, 3, 3), floats(4)),), "conv1d.padding": ((X, floats(4, 3, 4), None, [1], "same"),),
    "conv2d.padding": ((IMAGE, floats(4, 2, 2, 3), None, [1], "same"), (IMAGE, floats(4, 1, 3, 3), None, [2], "valid", [1], 2)),
    "conv3d.default": ((VOLUME, floats(3, 2, 2, 2, 2), floats(3)),),
    "conv3d.padding": ((VOLUME, floats(3, 2, 3, 3, 3), None, [1], "same"),),
    "conv_transpose1d.default": ((X, floats(3, 2, 4), floats(2), [2], [1], [1]),),
    "conv_transpose2d.input": ((IMAGE, floats(2, 3, 3, 3), None, [2, 2]),),
    "conv_transpose3d.input": ((VOLUME, floats(2, 3, 2, 2, 2)),),
    "max_pool1d.default": ((X, 3, 2, 1),), "max_pool2d.default": ((IMAGE[0], 3, 2, 1, 2), (IMAGE, 4, 3, 0, 1, True)),
    "max_pool3d.default": ((VOLUME, 2),), "max_pool1d_with_indices.default": ((X, 3),),
    "max_pool3d_with_indices.default": ((VOLUME, 2),),
    "max_pool2d_with_indices.default": ((floats(2, 3, 8, 8), [2, 2], [2, 2]),),
    "avg_pool1d.default": ((X, 3, 2, 1),), "avg_pool2d.default": ((IMAGE, 3, 2, 1, False, False), (IMAGE, 4, 3, 0, True),
        (IMAGE, 3, 2, 1, True, False), (IMAGE, 4, 2, 0, False, True, 5), (IMAGE[0], 2)),
    "avg_pool3d.default": ((VOLUME, 2),), "adaptive_avg_pool1d.default": ((X, 4), (X, 3)),
    "_adaptive_avg_pool2d.default": ((IMAGE, [3, 2]), (IMAGE, [4, 4])),
    "adaptive_avg_pool3d.default": ((VOLUME, [1, 1, 1]),), "_adaptive_avg_pool3d.default": ((VOLUME, [2, 2, 4]),),
    "upsample_nearest1d.default": ((X, [12]),), "upsample_nearest1d.vec": ((X, None, [2.0]),),
    "upsample_nearest2d.default": ((IMAGE, [12, 9]),),
    "upsample_nearest2d.vec": ((IMAGE, None, [2.0, 3.0]), (IMAGE, [7, 5], None)),
    "upsample_nearest3d.default": ((VOLUME, [8, 4, 6]),),
    "upsample_nearest3d.vec": ((VOLUME, None, [2.0, 2.0, 2.0]),), "upsample_bilinear2d.default": ((IMAGE, [12, 9], False),),
    "upsample_bilinear2d.vec": ((IMAGE, None, True, [2.0, 2.0]), (IMAGE, [9, 4], False, None)),
}  # fmt: skip

# What these give has no values that could be compared.
EMPTY = {"empty.memory_format", "empty_like.default", "new_empty.default"}


class Here(OnnxRuntime):
    """With its device in this process, without a pipe to a child."""

    def _opened(self) -> Device:
        return open_here(self.choice.name, self.choice.opened_with)


@pytest.fixture(scope="module")
def here() -> Iterator[Here]:
    backend = Here(parse("ort"))
    yield backend
    backend.close()


def check(backend: Here, made: Made) -> None:
    """Within 32 roundings of the output's dtype, in the unit of `tolerance.distance`."""
    prepared = backend.prepare({"s": made.body})["s"]
    assert prepared.compiled is not None, prepared.message
    for got, want in zip(backend.run_once(prepared.compiled, made.inputs, poison=True), made.outputs, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        bound = 32 * EPSILON.get(spec_of(want).dtype, 0.0)
        assert not want.size or distance(got, want) <= bound, f"{got}, not {want}"


def made_of(name: str, arguments: Arguments) -> Made:
    named = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
    target = name if name.startswith("prims.") else f"aten.{name}"
    return call(target, *(arguments[:-1] if named else arguments), **named)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_what_pytorch_gives(here: Here, name: str) -> None:
    for arguments in CALLS[name]:
        check(here, made_of(name, arguments))


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"conv1d in bfloat16"}))
def test_a_case_of_the_compilers_is_right_here(here: Here, name: str) -> None:
    check(here, CASES[name]())


def test_every_conversion_is_tried() -> None:
    tried = {name.removeprefix("prims.") for name in CALLS}
    for make in CASES.values():
        tried |= {node.target.partition(".")[2] for node in make().body.nodes}
    assert set(CONVERSIONS) - tried == EMPTY
