"""Values of element-wise operators and reductions where they are easily wrong: huge arguments, huge quotients, the edges of
integers, special numbers, half precision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tapml.compile.build import build
from tapml.errors import DoesNotFit
from tapml.targets.known import TARGETS as KNOWN
from tests.compile.bodies import Made, Result, call, chain, compiled, run
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
