"""The ONNX model that conversions write, as text in ONNX's own textual syntax, and the operations that they are made of.

    writer = Writer("softmax_0", body.inputs)
    value = writer.op("Softmax", writer.inputs[0], axis=-1)
    print(writer.text({"n0": value}))

Every value knows its shape and dtype, since all sizes are numbers here. Constants are written once, however often they are used.
Equal calls give equal text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapml.tensors import FLOATS, TensorSpec

# The version of the standard's operators, and of the file: what engines of the last years read.
OPSET = 21
IR_VERSION = 10

# What ONNX calls our dtypes, in texts and as the number of a cast.
TYPES: dict[str, tuple[str, int]] = {
    "float32": ("float", 1), "uint8": ("uint8", 2), "int8": ("int8", 3), "int16": ("int16", 5), "int32": ("int32", 6),
    "int64": ("int64", 7), "bool": ("bool", 9), "float16": ("float16", 10), "float64": ("double", 11),
    "bfloat16": ("bfloat16", 16),
}  # fmt: skip

# Dtypes of which a text can hold constants; others are cast from the one named here.
_WRITTEN_AS = {"float16": "float32", "bfloat16": "float32"}
# Integers in which engines compute; narrower ones are computed in int32, and wrap when they are cast back.
COMPUTED = ("int32", "int64", *FLOATS)

FIRST, LAST = -(2**63), 2**63 - 1


class CannotSay(Exception):
    """A call cannot be written: the message says why."""


@dataclass(frozen=True)
class Value:
    """A tensor of the graph."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def axis(self, dim: int) -> int:
        """An axis as PyTorch counts them, which gives a scalar one, as a number from 0."""
        return dim % max(self.rank, 1)

    def axes(self, dims: Sequence[int] | int | None) -> tuple[int, ...]:
        """Several, in order; all of them for none."""
        if dims is None or (not isinstance(dims, int) and not dims):
            return tuple(range(self.rank))
        listed = [dims] if isinstance(dims, int) else list(dims)
        return tuple(sorted({self.axis(d) for d in listed})) if self.rank else ()


@dataclass
class _Line:
    operation: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    comment: str


class Writer:
    """One graph. `inputs` are its inputs "i0", "i1", …"""

    def __init__(self, entry: str, specs: Sequence[TensorSpec]) -> None:
        self.entry = entry
        self.inputs = [Value(f"i{k}", s.shape, s.dtype) for k, s in enumerate(specs)]
        self.comment = ""
        self._lines: list[_Line] = []
        self._constants: dict[str, str] = {}
        self._count = 0

    # Any operation

    def op(
        self, operation: str, *inputs: Value | None, spec: tuple[Sequence[int], str] | None = None, **attributes: Any
    ) -> Value:
        """One output; without `spec` it is like the first input."""
        first = inputs[0]
        assert spec is not None or first is not None
        shape, dtype = spec if spec is not None else (first.shape, first.dtype)  # type: ignore[union-attr]
        return self.several(operation, inputs, [(shape, dtype)], **attributes)[0]

    def several(
        self, operation: str, inputs: Sequence[Value | None], specs: Sequence[tuple[Sequence[int], str]], **attributes: Any
    ) -> list[Value]:
        """`inputs` that are None are left away."""
        made = []
        for shape, dtype in specs:
            made.append(Value(f"t{self._count}", tuple(shape), dtype))
            self._count += 1
        given = ["" if v is None else v.name for v in inputs]
        while given and not given[-1]:
            given.pop()
        self._lines.append(_Line(operation, given, [v.name for v in made], attributes, self.comment))
        return made

    # Constants

    def constant(self, values: Any, dtype: str, shape: Sequence[int] = ()) -> Value:
        """A number, or numbers in the order of memory for a `shape`."""
        written = _WRITTEN_AS.get(dtype, dtype)
        listed = [values] if not isinstance(values, Sequence) else list(values)
        assert len(listed) == math.prod(shape), (listed, shape)
        extent = f"[{', '.join(map(str, shape))}]" if shape else ""
        text = f"{TYPES[written][0]}{extent} = {{{', '.join(_number(v, written) for v in listed)}}}"
        name = self._constants.setdefault(text, f"k{len(self._constants)}")
        return self.cast(Value(name, tuple(shape), written), dtype)

    def ints(self, values: Sequence[int]) -> Value:
        """A vector of int64, as the sizes and axes of operations are given."""
        return self.constant(list(values), "int64", (len(values),))

    def full(self, shape: Sequence[int], value: Any, dtype: str) -> Value:
        return self.expand(self.constant(value, dtype), shape)

    def counted(self, count: int) -> Value:
        """0, 1, … as int64."""
        return self.op("Range", *(self.constant(n, "int64") for n in (0, count, 1)), spec=((count,), "int64"))

    # What conversions are made of

    def cast(self, x: Value, dtype: str) -> Value:
        return x if x.dtype == dtype else self.op("Cast", x, spec=(x.shape, dtype), to=TYPES[dtype][1])

    def unary(self, operation: str, x: Value, **attributes: Any) -> Value:
        return self.op(operation, x, **attributes)

    def binary(self, operation: str, a: Value, b: Value, dtype: str | None = None, **attributes: Any) -> Value:
        """Broadcasting; the result has `dtype`, or that of `a`."""
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self.op(operation, a, b, spec=(shape, dtype or a.dtype), **attributes)

    def add(self, a: Value, b: Value | float) -> Value:
        return self.binary("Add", a, self.like(b, a))

    def sub(self, a: Value, b: Value | float) -> Value:
        return self.binary("Sub", a, self.like(b, a))

    def mul(self, a: Value, b: Value | float) -> Value:
        return self.binary("Mul", a, self.like(b, a))

    def div(self, a: Value, b: Value | float) -> Value:
        return self.binary("Div", a, self.like(b, a))

    def like(self, b: Value | float, a: Value) -> Value:
        """A value as it is, a number as a constant of the dtype of `a`."""
        return b if isinstance(b, Value) else self.constant(b, a.dtype)

    def compare(self, operation: str, a: Value, b: Value | float) -> Value:
        return self.binary(operation, a, self.like(b, a), "bool")

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
        if a.dtype not in (*COMPUTED, "uint8"):
            chosen = self.op("Where", condition, *(self.cast(v, "int32") for v in (a, b)), spec=(shape, "int32"))
            return self.cast(chosen, a.dtype)
        return self.op("Where", condition, a, b, spec=(shape, a.dtype))

    def negate(self, x: Value) -> Value:
        """Of a boolean."""
        return self.op("Not", x)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        if tuple(shape) == x.shape:
            return x
        zero = {"allowzero": 1} if 0 in shape else {}
        return self.op("Reshape", x, self.ints(shape), spec=(shape, x.dtype), **zero)

    def unsqueeze(self, x: Value, axis: int) -> Value:
        return self.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        if list(order) == list(range(x.rank)):
            return x
        return self.op("Transpose", x, spec=([x.shape[k] for k in order], x.dtype), perm=list(order))

    def swapped(self, x: Value) -> Value:
        """With the last two axes changed."""
        return self.transpose(x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        return x if tuple(shape) == x.shape else self.op("Expand", x, self.ints(shape), spec=(shape, x.dtype))

    def slice(self, x: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
        """`start` and `end` as Python has them, within the extent."""
        count = len(range(start, end, step))
        if step == 1 and count == x.shape[axis]:
            return x
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        end = FIRST if end < 0 else end
        return self.op("Slice", x, *(self.ints([n]) for n in (start, end, axis, step)), spec=(shape, x.dtype))

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        if len(parts) == 1:
            return parts[0]
        extent = sum(p.shape[axis] for p in parts)
        shape = (*parts[0].shape[:axis], extent, *parts[0].shape[axis + 1 :])
        return self.op("Concat", *parts, spec=(shape, parts[0].dtype), axis=axis)

    def gather(self, x: Value, index: Value, axis: int) -> Value:
        """Rows along an axis, one for each index, which may be negative."""
        shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
        return self.op("Gather", x, index, spec=(shape, x.dtype), axis=axis)

    def reduce(self, operation: str, x: Value, axes: Sequence[int], keep: bool) -> Value:
        """Over these axes, none of them negative."""
        if not axes:
            return self.op(operation, x, self.ints([]), keepdims=1, noop_with_empty_axes=1) if x.rank else x
        shape = [1 if k in axes else n for k, n in enumerate(x.shape) if keep or k not in axes]
        return self.op(operation, x, self.ints(list(axes)), spec=(shape, x.dtype), keepdims=int(keep))

    def matmul(self, a: Value, b: Value) -> Value:
        """Of matrices, or stacks of them that broadcast."""
        shape = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return self.op("MatMul", a, b, spec=(shape, a.dtype))

    # The model

    def text(self, outputs: Sequence[Value], constant: Collection[int] = ()) -> str:
        """The whole model; outputs are called "o0", "o1", … The inputs of these numbers are constants of it, whose values are
        outside, under their name."""
        made = {name for line in self._lines for name in line.outputs}
        names: dict[str, str] = {}
        specs = []
        for k, value in enumerate(outputs):
            if value.name not in made or value.name in names:
                self.comment = ""
                value = self.op("Identity", value)
            names[value.name] = f"o{k}"
            specs.append(f"{_type(value)} o{k}")
        given = ", ".join(f"{_type(v)} {v.name}" for k, v in enumerate(self.inputs) if k not in constant)
        outside = (self.inputs[k] for k in sorted(constant))
        constants = [f'  {_type(v)} {v.name} = ["location": "{v.name}"]' for v in outside]
        for text, name in self._constants.items():
            kind, _, numbers = text.partition(" = ")
            constants.append(f"  {kind} {name} = {numbers}")
        lines = [f"  {_written(line, names)}" for line in self._lines]
        return "\n".join([
            f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>',
            f"{self.entry} ({given}) => ({', '.join(specs)})",
            *(["<", ",\n".join(constants), ">"] if constants else []),
            "{",
            *lines,
            "}",
            "",
        ])  # fmt: skip


def _type(value: Value) -> str:
    extent = f"[{', '.join(map(str, value.shape))}]" if value.shape else ""
    return TYPES[value.dtype][0] + extent


def _written(line: _Line, names: dict[str, str]) -> str:
    outputs = ", ".join(names.get(n, n) for n in line.outputs)
    inputs = ", ".join(names.get(n, n) for n in line.inputs)
    attributes = ", ".join(f"{key} = {_attribute(value)}" for key, value in line.attributes.items())
    listed = f" <{attributes}>" if attributes else ""
    comment = f"  # {line.comment}" if line.comment else ""
    return f"{outputs} = {line.operation}{listed} ({inputs}){comment}"


def _attribute(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_attribute, value))}]"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float) and not math.isfinite(value):
        raise CannotSay(f"{value} is no value of an attribute")
    return _number(value, "float32") if isinstance(value, float) else str(int(value))


def _number(value: Any, dtype: str) -> str:
    if dtype == "bool":
        return str(int(bool(value)))
    if dtype in FLOATS:
        with np.errstate(over="ignore"):
            number = np.float32(value) if dtype == "float32" else np.float64(value)
        return str(number) if np.isfinite(number) else str(float(number))
    info = np.iinfo(dtype)
    if value != int(value) or not info.min <= int(value) <= info.max:
        raise CannotSay(f"{value} is no {dtype}")
    return str(int(value))
