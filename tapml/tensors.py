"""Shapes, dtypes and host arrays, named the same way in every part of TapML.

A dtype is a string: PyTorch's name without the `torch.` ("float32", "bfloat16", "int64", "bool"). On the host a
tensor is a C-contiguous numpy array; bfloat16 is `ml_dtypes.bfloat16`. This module imports neither torch nor tvm,
so that devices and deployed models can use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tapml import strict
from tapml.errors import DoesNotFit

HostArray: TypeAlias = NDArray[Any]

NUMPY: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}

# What numpy and PyTorch have in axes, and more elements than any memory holds.
MOST_AXES = 64
MOST_ELEMENTS = 2**44

FLOATS = ("float64", "float32", "float16", "bfloat16")

# Dtypes that values within an operator may have, on the source, and the dtype in which such a value goes from one operator to
# another: complex numbers as pairs of reals in a last axis more, the others bit for bit (see `tapml.operators.carried`).
COMPLEX = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}
_BITS = {
    "uint16": "int16", "uint32": "int32", "uint64": "int64", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8",
    "float8_e4m3fnuz": "uint8", "float8_e5m2fnuz": "uint8", "float8_e8m0fnu": "uint8",
}  # fmt: skip
CARRIED_AS: dict[str, str] = COMPLEX | _BITS

# Distance from 1.0 to the next larger number (machine epsilon).
EPSILON: dict[str, float] = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor; a scalar has shape ()."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * NUMPY[self.dtype].itemsize

    def to_json(self) -> list[Any]:
        return [list(self.shape), self.dtype]

    @property
    def carried(self) -> TensorSpec:
        """As the value goes from one operator to another; itself for a dtype that operators hand on as it is."""
        if self.dtype not in CARRIED_AS:
            return self
        return TensorSpec((*self.shape, 2) if self.dtype in COMPLEX else self.shape, CARRIED_AS[self.dtype])

    @staticmethod
    def from_json(data: list[Any], within: bool = False) -> TensorSpec:
        """`within`: of a value within an operator. Raises ValueError, TypeError or IndexError for what is no shape and dtype, or
        no tensor that a machine could hold."""
        shape = strict.several(strict.whole, data, 0)
        found = TensorSpec(shape, strict.one_of(data, 1, (*NUMPY, *CARRIED_AS) if within else tuple(NUMPY)))
        if len(data) != 2 or len(shape) > MOST_AXES or math.prod(n or 1 for n in shape) > MOST_ELEMENTS:
            raise ValueError(f"{list(shape)!s:.80} is not the shape of a tensor")
        return found

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def dtype_name(array: HostArray) -> str:
    """The TapML name of a numpy array's dtype. Raises ValueError for one that TapML does not carry."""
    name = str(array.dtype)
    if name not in NUMPY:
        raise ValueError(f"numpy dtype {name} has no TapML name; known: {', '.join(NUMPY)}")
    return name


def spec_of(array: HostArray) -> TensorSpec:
    return TensorSpec(tuple(array.shape), dtype_name(array))


def convert(array: HostArray, dtype: str) -> HostArray:
    """The same values in another dtype, as a device stores them (int64 as int32, bool as int32, bfloat16 as
    float32). Raises DoesNotFit when an integer does not fit."""
    want = NUMPY[dtype]
    if array.dtype == want:
        return np.ascontiguousarray(array).reshape(array.shape)
    if want.kind in "iu" and array.dtype.kind in "iu" and array.size and not np.can_cast(array.dtype, want):
        limits = np.iinfo(want)
        low, high = int(array.min()), int(array.max())
        # An "until the end" index (2**63 - 1) keeps its meaning when it saturates; others would change value.
        endless = array.dtype == np.int64 and high == np.iinfo(np.int64).max
        if low < limits.min or (high > limits.max and not endless):
            raise DoesNotFit(
                f"{array.dtype} values from {low} to {high} do not fit {dtype}, in which this target stores them; a target with "
                "64-bit integers can take them, such as the processor"
            )
        return np.clip(array, limits.min, limits.max).astype(want)
    with np.errstate(over="ignore"):  # a number beyond the dtype becomes an infinity, as on any device
        return np.ascontiguousarray(array.astype(want)).reshape(array.shape)


def as_read(array: HostArray, dtype: str) -> HostArray:
    """What a device stored, in the graph's dtype. Integers that this dtype cannot hold stay as they are stored, all of them:
    to narrow them here would repair what the kernel got wrong, and what reads them on the device sees them unrepaired."""
    return array if out_of_range(array, dtype) else convert(array, dtype)


def out_of_range(array: HostArray, dtype: str) -> str:
    """What is wrong with integers that a device holds for a value of `dtype`; "" when each of them is one."""
    want = NUMPY[dtype]
    if array.dtype.kind not in "iu" or want.kind not in "iub" or np.can_cast(array.dtype, want) or not array.size:
        return ""
    low, high = (0, 1) if want.kind == "b" else (np.iinfo(want).min, np.iinfo(want).max)
    least, most = int(array.min()), int(array.max())
    if low <= least and most <= high:
        return ""
    why = "only 0 and 1 are booleans" if want.kind == "b" else "it does not wrap"
    return f"the device holds {most if most > high else least} in a {dtype} output: {why}"


# The memory of a tensor may be this many times as large as it, and so many elements more.
MOST_SPREAD = 64
LEAST_SPREAD = 2**20


@dataclass(frozen=True)
class Layout:
    """Where the elements of a tensor lie in its memory where that is not in order: strides and offset, in elements."""

    strides: tuple[int, ...]
    offset: int = 0

    def elements(self, shape: Sequence[int]) -> int:
        """How many elements the memory must have for a tensor of this shape."""
        return 0 if 0 in shape else self.offset + 1 + sum((n - 1) * s for n, s in zip(shape, self.strides, strict=True))

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape can lie so, in memory that is not out of all proportion to it."""
        if len(self.strides) != len(shape) or min((self.offset, *self.strides)) < 0:
            return False
        return self.elements(shape) <= MOST_SPREAD * math.prod(shape) + LEAST_SPREAD

    def laid_out(self, array: HostArray) -> HostArray:
        """The memory with the array in it, one-dimensional; zeros where no element lies."""
        memory = np.zeros(self.elements(array.shape), array.dtype)
        if array.size:
            steps = [stride * array.itemsize for stride in self.strides]
            np.lib.stride_tricks.as_strided(memory[self.offset :], array.shape, steps)[...] = array
        return memory
