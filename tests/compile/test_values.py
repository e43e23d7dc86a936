"""Values of element-wise operators and reductions where they are easily wrong: huge arguments, huge quotients, the edges of
integers, special numbers, half precision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tapml.compile.build import build
from tapml.compile.importer import ConversionError
from tapml.errors import DoesNotFit
from tapml.targets.known import TARGETS as KNOWN
from tests.compile.bodies import Made, Result, call, chain, check, compiled, run
from tests.compile.test_conversions import INF

NAN = float("nan")
EDGES = torch.tensor([0.0, -0.0, 1.0, -1.0, 3.0, -0.3, 0.1, 5.5, 16777217.0, 1e-45, -1e-38, 2e-38, 3.4e38, INF, -INF, NAN])
TARGETS = {"opencl": "blocked", "vulkan": "simple", "cpu": "serial"}


def any_float32(count: int, seed: int = 0) -> torch.Tensor:
    """Numbers of random bits: every exponent, NaN and subnormal numbers included."""
    bits = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(seed))
    return bits.to(torch.int32).view(torch.float32)


def normal(count: int, scale: float, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * scale


# Near a multiple of π/2 the most is lost: these are the closest for one exponent, and many small ones.
ANGLES = torch.cat([
    any_float32(4000), normal(1000, 1e3), normal(1000, 1e5), torch.arange(-2000, 2000) * (np.pi / 2), EDGES,
    torch.tensor([2048.0, 2047.9999, 16367173.0 * 2.0**72]),
])  # fmt: skip
PAIRS = [
    torch.cat([any_float32(2000), normal(1000, 1e7), torch.arange(-60, 60) * 0.1, EDGES.repeat_interleave(len(EDGES))]),
    torch.cat([any_float32(2000, 1), normal(1000, 1.0, 2), torch.full((120,), 0.3), EDGES.repeat(len(EDGES))]),
]


def result(made: Made, target: str) -> np.ndarray:
    (values,) = run(compiled(made, target, TARGETS[target]), made, target)
    return values


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_angles_of_any_size(name: str, target: str) -> None:
    expected = getattr(np, name)(ANGLES.numpy().astype(np.float64))
    values = result(call(f"aten.{name}.default", ANGLES), target)
    np.testing.assert_allclose(values, expected, rtol=4e-7)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["fmod.Tensor", "remainder.Tensor", "floor_divide.default"])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_quotients_of_any_size(name: str, target: str) -> None:
    """torch's fmod gives NaN for quotients beyond 2^100 or so where it runs eight at a time, and right numbers one at a time."""
    made = call(f"aten.{name}", *PAIRS)
    values = result(made, target)
    a, b = (t.numpy() for t in PAIRS)
    exact = np.fmod(a, b)
    if name == "remainder.Tensor":
        exact = np.where((exact != 0) & ((b < 0) != (exact < 0)), exact + b, exact)
    expected = made.outputs[0] if name.startswith("floor") else exact
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(np.signbit(values[~np.isnan(values)]), np.signbit(expected[~np.isnan(expected)]))


def test_a_sine_is_a_short_text() -> None:
    program = compiled(call("aten.sin.default", normal(64, 1.0)), "vulkan", "simple")
    assert len(program.kernels[0].source) < 5000


@pytest.mark.parametrize(("target", "head"), [("cuda", "static __device__ float own_sine("), ("metal", "static float own_sine(")])
def test_each_language_has_its_own_form_of_a_function(target: str, head: str) -> None:
    program = build(call("aten.sin.default", normal(64, 1.0)).body, KNOWN[target], "simple", lambda stage: None)
    assert head in program.kernels[0].source


WHOLE = torch.tensor([0, 1, -1, 7, -(2**31), 2**31 - 1, 2**31 - 2, 12345])
BEYOND: dict[str, Callable[[], Made]] = {
    **{f"{name} 2^40": lambda name=name: call(f"aten.{name}.Scalar", WHOLE, 2**40)
       for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"{name} -2^31 - 1": lambda name=name: call(f"aten.{name}.Scalar", WHOLE, -(2**31) - 1) for name in ("lt", "ge", "eq")},
    "the least of what a mask lets through": lambda: chain([
        ("aten.masked_fill.Scalar", (WHOLE, WHOLE < 5, 2**63 - 1), {}), ("aten.amin.default", (Result(0), [0]), {}),
    ]),
    "right shift by 40": lambda: call("aten.__rshift__.Scalar", WHOLE, 40),
    "right shifts": lambda: call("aten.__rshift__.Tensor", WHOLE, torch.tensor([31, 32, 40, 63, 63, 31, 32, 0])),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", BEYOND)
def test_int64_against_numbers_beyond_32_bits(name: str, target: str) -> None:
    made = BEYOND[name]()
    np.testing.assert_array_equal(result(made, target), made.outputs[0])


@pytest.mark.parametrize(
    ("name", "number"), [("mul", 2654435761), ("add", 2**40), ("bitwise_and", 2**32 - 1), ("remainder", 2**33)]
)
def test_calculating_with_a_number_beyond_32_bits_is_refused_where_int64_has_32(name: str, number: int) -> None:
    made = call(f"aten.{name}.Scalar", WHOLE, number)
    with pytest.raises(DoesNotFit, match=f"{number} does not fit int32"):
        compiled(made, "opencl", "simple")
    np.testing.assert_array_equal(result(made, "cpu"), made.outputs[0])


SPECIAL = torch.cat([
    torch.linspace(-20.3, 20.3, 83), normal(40, 3.0), EDGES, torch.tensor([2.0, 1e5, -1e5, 1.4616321, 8.0, 1e-20])
])  # fmt: skip
NEAR_ONE = torch.cat([torch.linspace(0.9, 1.1, 41), torch.tensor([1.0000001, 0.9999999])])
ROWS = torch.tensor([[1.0, 2, -3, 0.5], [-INF, -INF, -INF, -INF], [1, -INF, 2, 0], [NAN, 1, INF, -INF], [0, -0.0, 0, 0]])
POINTS = [normal(24, 1.0).reshape(2, 3, 4), normal(20, 1.0, 1).reshape(5, 4)]
FLOATS = torch.tensor([0.0, -0.9, 2.5, 300.0, 3e9, -3e9, 2147483520.0, 2147483648.0, -2147483648.0, 1e19, INF, -INF, NAN])
SMALL = torch.tensor([1, 100, -100, 44, -128], dtype=torch.int8)
VALUES: dict[str, Callable[[], Made]] = {
    **{name: lambda name=name: call(f"aten.{name}.default", SPECIAL)
       for name in ("lgamma", "digamma", "erf", "erfc", "special_erfcx", "i0", "special_i0e", "special_i1", "special_i1e",
                    "softshrink", "special_log_ndtr")},
    "nextafter": lambda: call("aten.nextafter.default", EDGES.repeat_interleave(len(EDGES)), EDGES.repeat(len(EDGES))),
    "hypot": lambda: call("aten.hypot.default", EDGES.repeat_interleave(len(EDGES)), EDGES.repeat(len(EDGES))),
    "logcumsumexp": lambda: call("aten.logcumsumexp.default", ROWS, -1),
    "logcumsumexp of many": lambda: call("aten.logcumsumexp.default", normal(300, 9.0), 0),
    "logaddexp": lambda: call("aten.logaddexp.default", SPECIAL, SPECIAL.flip(0)),
    **{f"{name} near 1": lambda name=name: call(f"aten.{name}.default", NEAR_ONE) for name in ("log", "log2", "log10")},
    **{name: lambda name=name: call(f"aten.{name}.default", SPECIAL) for name in ("log", "log2", "log10")},
    "floor of log2 of powers": lambda: chain([
        ("aten.log2.default", (2.0 ** torch.arange(-20, 20),), {}), ("aten.floor.default", (Result(0),), {}),
    ]),
    "logit of half": lambda: call("aten.logit.default", torch.tensor([0.0, 0.25, 1.0]).half(), 1e-6),
    "power 1/2 of half": lambda: call("aten.pow.Tensor_Scalar", torch.tensor([-INF, 4, INF]).half(), 0.5),
    "power of the largest": lambda: call("aten.pow.Tensor_Scalar", torch.tensor([-3.3e38, 3.3e38]), 0.3),
    "any of nothing": lambda: call("aten.any.default", torch.zeros(0)),
    "logsumexp of one": lambda: call("aten.logsumexp.default", torch.tensor(1.5), [0]),
    # NaN is no 0
    "count of what is not 0": lambda: call("aten.count_nonzero.dim_IntList", ROWS, [-1]),
    "norm of order 0": lambda: call("aten.linalg_vector_norm.default", ROWS[::4], 0, [-1]),
    "nan is not 1": lambda: call("aten.ne.Scalar", ROWS, 1.0),
    "nothing is nan": lambda: call("aten.eq.Scalar", ROWS, NAN),
    # nothing to reduce
    "mean of nothing": lambda: call("aten.mean.default", torch.zeros(0)),
    "mean of empty rows": lambda: call("aten.mean.dim", torch.zeros(2, 0), [1]),
    "std of one": lambda: call("aten.std.default", torch.ones(1)),
    "variance with a divisor below 0": lambda: call("aten.var.correction", POINTS[0], [1], correction=5),
    # even distances
    **{f"linspace {a}": lambda a=a: call("aten.linspace.default", *a) for a in ((0, 1, 7), (5, -5, 8), (1e6, -3, 11), (3, 4, 1))},
    "linspace of integers": lambda: call("aten.linspace.default", -3, 3, 5, dtype=torch.int64),
    **{f"cdist {p}": lambda p=p: call("aten.cdist.default", *POINTS, p) for p in (0.0, 0.5, 1.0, 2.0, 3.0, INF)},
    # a number takes the dtype of the tensor beside it
    "int8 equals 300": lambda: call("aten.eq.Scalar", SMALL, 300),
    "int8 below 300": lambda: call("aten.lt.Scalar", SMALL, 300),
    "int8 by 300": lambda: call("aten.floor_divide.default", SMALL, 300),
    "int32 equals 2^32 + 1": lambda: call("aten.eq.Scalar", SMALL.int(), 2**32 + 1),
    "half equals 0.1": lambda: call("aten.eq.Scalar", torch.tensor([0.1, 3, 0.2]).half(), 0.1),
    "remainder of half": lambda: call("aten.remainder.Scalar", torch.tensor([0.1, 3, 0.2]).half(), 0.1),
    **{f"{name} -2^31 in {dtype}".replace("torch.", ""): lambda name=name, dtype=dtype: call(
        f"aten.{name}.Scalar", WHOLE.to(dtype), -(2**31)) for name in ("eq", "ne") for dtype in (torch.int32, torch.int64)},
    "by 0": lambda: call("aten.div.Scalar", EDGES, 0.0),
    "int32 below half": lambda: call("aten.lt.Tensor", torch.tensor([2**30, 2049, 2050, -7]).int(),
                                     torch.tensor([INF, 2048.0, 2048.0, -6]).half()),
    "int64 equals bfloat16": lambda: call(
        "aten.eq.Tensor", torch.tensor([257, 259, 3]), torch.tensor([256.0, 260, 3]).bfloat16()),
    "uint8 of -1": lambda: call("aten.where.ScalarOther", SMALL > 2, SMALL.to(torch.uint8), -1),
    "acosh below 1": lambda: call("aten.acosh.default", torch.tensor([0.5, -1e4, -3e38, 1.0, 2.0])),
    "float to int32": lambda: call("aten._to_copy.default", FLOATS, dtype=torch.int32),
}


@pytest.mark.parametrize("target", ["opencl", "vulkan"])
@pytest.mark.parametrize("name", VALUES)
@pytest.mark.filterwarnings("ignore:(var|std)")
def test_value(name: str, target: str) -> None:
    check(VALUES[name](), target, "simple")


def test_neighbours_in_half_precision_are_refused() -> None:
    with pytest.raises(ConversionError, match="neighbour of a float16"):
        compiled(call("aten.nextafter.default", FLOATS.half(), FLOATS.half().flip(0)), "opencl", "simple")
