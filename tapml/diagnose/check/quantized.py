"""What is quantized in an ONNX file: its weights as they count, and which activations are rounded on their way to an operator.

    weights = quantized_weights(model, folder)        by the name of the constant, as the file's own nodes compute with them
    found = matched(run_model, weights)               which are the model's within the rounding, and which are not
    activations = quantized(model, folder)            what is rounded on its way; `activations.roundings(values)` says how

Known: DequantizeLinear of constants (also behind a Gather), MatMulInteger and ConvInteger with a constant and a scale,
MatMulNBits; what else holds a weight in few bits is named, and not read. Of activations DynamicQuantizeLinear and
DynamicQuantizeMatMul, and QuantizeLinear before products and convolutions, by the formulas of the ONNX standard. Where
activations are quantized within operators (also by those of QOperator files, QLinearMatMul and others), quantization and faults
cannot be told apart: `inside` names such values.

A weight that was quantized is off by at most half a step, where it stands at an end of the range by at most a step more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tapml.migrate.model import Model
from tapml.tensors import FLOATS, HostArray, dtype_name

# A weight that is further off than this, as a share of its norm, is not taken for the model's.
ALIKE = 0.4

# Rows and columns of a weight that are looked at to recognise it.
_SAMPLED = 64

Rounding = Callable[[HostArray], HostArray]

# What reads an input that was rounded on the way to it, and gives what was not.
_PRODUCTS = ("MatMul", "Gemm", "Conv", "MatMulNBits")

# Integer products, whose scale comes after them; and the axis of a weight that has a scale a place.
_INTEGER = {"MatMulInteger": 1, "ConvInteger": 0}

MICROSOFT = "com.microsoft"

# ONNX's numbers of these element types.
_UINT8, _INT8 = 2, 3

# Operators that read codes and give codes, beside those that are called QLinear….
_OF_CODES = ("QGemm", "QAttention", "QOrderedMatMul", "QOrderedAttention", "QEmbedLayerNormalization")


@dataclass(frozen=True)
class QuantizedWeight:
    """`values` as the file's nodes compute with them, `step` the distance of neighbouring ones, `end` where they stand at an end
    of the range; all of one shape."""

    values: HostArray
    step: HostArray
    end: HostArray


@dataclass(frozen=True)
class Quantized:
    """Activations: `fixed` and `dynamic` are values that are rounded, with constants and by what is in them; `inside` those of
    `fixed` that other nodes than products and convolutions read rounded, and results that are codes."""

    fixed: Mapping[str, Rounding] = field(default_factory=dict)
    dynamic: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    def roundings(self, values: Mapping[str, HostArray]) -> dict[str, Rounding]:
        """Of the engine's values, whole: how each is rounded, also a part of it."""
        return dict(self.fixed) | {name: _dynamic(values[name]) for name in self.dynamic if name in values}


@dataclass(frozen=True)
class Weights:
    """Of the model's weights, by key: `instead` what the file has, each time that it has it (for an embedding and for a head),
    where that is the weight within its rounding, and the model's own elements where it is not; `wrong` what to say of those with
    such elements. `unknown`: quantized weights of the file that are like none of the model's, or whose form is not known here:
    they were compared with nothing."""

    instead: Mapping[str, tuple[HostArray, ...]] = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def quantized(model: Any, folder: Path) -> Quantized:
    """Of an onnx.ModelProto whose external data, if any, lie in `folder`. No weight is read."""
    return _Reading(model, folder).activations()


def quantized_weights(model: Any, folder: Path) -> dict[str, QuantizedWeight | None]:
    """All that are quantized, by the name of the constant; None for one in a form that is not known here."""
    return _Reading(model, folder).weights()


class _Reading:
    def __init__(self, model: Any, folder: Path) -> None:
        self.nodes = list(model.graph.node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.folder = folder
        self.tensors = {t.name: t for t in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                self.tensors.update((node.output[0], a.t) for a in node.attribute if a.name == "value")

    def weights(self) -> dict[str, QuantizedWeight | None]:
        found: dict[str, QuantizedWeight | None] = {}
        for node in self.nodes:
            name = node.input[0] if node.op_type == "DequantizeLinear" else node.input[1] if len(node.input) > 1 else ""
            if node.op_type == "DequantizeLinear":
                made_by = self.maker.get(name)
                if made_by is not None and made_by.op_type == "Gather":
                    name = made_by.input[0]
                if name in self.tensors:
                    scale = self._array(node, 1)
                    zero = self._array(node, 2)
                    found[name] = None if scale is None else _dequantized(self._constant(name), scale, zero, _axis(node))
            elif node.op_type in _INTEGER and name in self.tensors:
                scale, axis = self._scale_behind(node), _INTEGER[node.op_type]
                zero = self._array(node, 3)
                found[name] = None if scale is None else _dequantized(self._constant(name), scale, zero, axis)
            elif node.op_type == "MatMulNBits" and name in self.tensors:
                found[name] = self._packed(node)
            elif node.domain == MICROSOFT:
                found |= {each: None for each in node.input if self._is_codes(each)}
        return found

    def _is_codes(self, name: str) -> bool:
        """Whether a constant may be a weight in few bits: a matrix of bytes."""
        tensor = self.tensors.get(name)
        return tensor is not None and len(tensor.dims) > 1 and tensor.data_type in (_UINT8, _INT8)

    def activations(self) -> Quantized:
        fixed: dict[str, Rounding] = {}
        dynamic: list[str] = []
        inside: list[str] = []
        for node in self.nodes:
            if node.op_type == "QuantizeLinear" and node.input[0] not in self.tensors:
                scale, zero = self._array(node, 1), self._array(node, 2)
                if scale is not None:
                    fixed[node.input[0]] = _fixed(scale, np.zeros((), np.uint8) if zero is None else zero, _axis(node))
                    if any(reader.op_type not in _PRODUCTS for d in self._users(node) for reader in self._users(d)):
                        inside.append(node.input[0])
            elif node.op_type in ("DynamicQuantizeLinear", "DynamicQuantizeMatMul"):
                dynamic.append(node.input[0])
            elif node.op_type.startswith("QLinear") or node.op_type in _OF_CODES:
                inside += node.output[:1]
        return Quantized(fixed, tuple(dynamic), tuple(inside))

    def _users(self, node: Any) -> list[Any]:
        return [user for name in node.output for user in self.readers.get(name, ())]

    def _array(self, node: Any, place: int) -> HostArray | None:
        """A constant input of a node; None where it has none there."""
        name = node.input[place] if len(node.input) > place else ""
        return self._constant(name) if name in self.tensors else None

    def _constant(self, name: str) -> HostArray:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self.tensors[name], str(self.folder)))

    def _scale_behind(self, node: Any) -> HostArray | None:
        """The constant factor of what an integer product is multiplied with: of the weight's steps."""
        for cast in self._users(node):
            for product in self._users(cast):
                other = next((name for name in product.input if name != cast.output[0]), "")
                scales = self.maker.get(other)
                for name in scales.input if product.op_type == "Mul" and scales is not None and scales.op_type == "Mul" else ():
                    if name in self.tensors:
                        return self._constant(name)
        return None

    def _packed(self, node: Any) -> QuantizedWeight:
        """[N, K], of blocks along K in `bits` bits, the low ones first."""
        attributes = {a.name: a.i for a in node.attribute}
        n, k, bits, block = (attributes[key] for key in ("N", "K", "bits", "block_size"))
        blocks = -(-k // block)
        codes = _unpacked(self._constant(node.input[1]).reshape(n, blocks, -1), bits)[..., :block].reshape(n, blocks * block)
        scales = np.asarray(self._array(node, 2)).astype(np.float32).reshape(n, blocks)
        zero = self._array(node, 3)
        if zero is None:
            zeros = np.full((n, blocks), 2 ** (bits - 1), np.float32)
        elif zero.dtype == np.uint8:
            zeros = _unpacked(zero.reshape(n, -1), bits)[:, :blocks].astype(np.float32)
        else:
            zeros = zero.astype(np.float32).reshape(n, blocks)
        step, zeros = (np.repeat(a, block, 1)[:, :k] for a in (scales, zeros))
        codes = codes[:, :k]
        return QuantizedWeight((codes.astype(np.float32) - zeros) * step, np.abs(step), (codes == 0) | (codes == 2**bits - 1))


def _unpacked(packed: HostArray, bits: int) -> HostArray:
    per = 8 // bits
    parts = [(packed >> (bits * k)) & (2**bits - 1) for k in range(per)]
    return np.stack(parts, -1).reshape(*packed.shape[:-1], -1)


def _axis(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 1)


def _along(array: HostArray, rank: int, axis: int) -> HostArray:
    """A scale or zero point, one for all or one a place along an axis, against an array of that rank."""
    if array.ndim == 0 or array.size == 1:
        return array.reshape(())
    if array.ndim == 1:
        return array.reshape([-1 if k == axis % max(rank, 1) else 1 for k in range(rank)])
    return array


def _dequantized(codes: HostArray, scale: HostArray, zero: HostArray | None, axis: int) -> QuantizedWeight:
    step = _along(scale.astype(np.float32), codes.ndim, axis)
    if step.ndim == codes.ndim and codes.ndim and step.shape[axis] not in (1, codes.shape[axis]):
        step = np.repeat(step, codes.shape[axis] // step.shape[axis], axis)  # by blocks
    offset = 0.0 if zero is None else _along(zero.astype(np.float32), codes.ndim, axis)
    if isinstance(offset, np.ndarray) and offset.ndim == codes.ndim and codes.ndim and offset.shape != step.shape:
        offset = np.repeat(offset, codes.shape[axis] // offset.shape[axis], axis)
    limits = np.iinfo(codes.dtype) if codes.dtype.kind in "iu" else None
    end = np.zeros(codes.shape, bool) if limits is None else (codes == limits.min) | (codes == limits.max)
    values = (codes.astype(np.float32) - offset) * step
    return QuantizedWeight(values, np.broadcast_to(np.abs(step), codes.shape), end)


def _fixed(scale: HostArray | np.float32, zero: HostArray, axis: int) -> Rounding:
    limits = np.iinfo(zero.dtype)

    def rounded(x: HostArray) -> HostArray:
        step, offset = (_along(np.asarray(a, np.float32), x.ndim, axis) for a in (scale, zero))
        codes = np.clip(np.rint(x.astype(np.float32) / step) + offset, limits.min, limits.max)
        return np.asarray(((codes - offset) * step).astype(x.dtype))

    return rounded


def _dynamic(whole: HostArray) -> Rounding:
    """As DynamicQuantizeLinear rounds an array."""
    wide = whole.astype(np.float32)
    low, high = min(0.0, float(wide.min(initial=0.0))), max(0.0, float(wide.max(initial=0.0)))
    step = np.float32((high - low) / 255)
    if not step > 0:
        return lambda x: x
    return _fixed(step, np.clip(np.rint(np.float32(-low) / step), 0, 255).astype(np.uint8), 1)


def matched(model: Model, found: Mapping[str, QuantizedWeight | None]) -> Weights:
    """The quantized weights by the model's keys. A model's weight that no quantized one is like is left as it is."""
    keys = dict.fromkeys(p.key for graph in model.graphs.values() for p in graph.weights)
    instead: dict[str, tuple[HostArray, ...]] = {}
    wrong: dict[str, str] = {}
    unknown: list[str] = []
    for name, weight in found.items():
        like = [] if weight is None else [
            (_off(theirs, own), key, turned)
            for key in keys
            for own in [model.weight(key)]
            if dtype_name(own) in FLOATS and own.ndim == weight.values.ndim and own.size == weight.values.size
            for turned in ((False, True) if own.ndim == 2 else (False,))
            for theirs in [weight.values.T if turned else weight.values]
            if theirs.shape == own.shape
        ]  # fmt: skip
        nearest = min(like, default=None)
        if weight is None or nearest is None or nearest[0] > ALIKE:
            unknown.append(name)
            continue
        _, key, turned = nearest
        values, step, end = (a.T if turned else a for a in (weight.values, weight.step, weight.end))
        own = model.weight(key)
        steps = np.abs(values.astype(np.float64) - own.astype(np.float64)) / np.maximum(step, np.finfo(np.float32).tiny)
        beyond = ~(steps <= np.where(end, 1.5, 0.5) + 1e-2)  # a NaN too
        if beyond.any():
            said = (
                f"{name} in the file is not {key} of the model: {int(beyond.sum()):,} of {own.size:,} elements are off by more "
                f"than half a step of the quantization, up to {float(np.max(steps)):.3g} steps, all of them in {_box(beyond)}"
            )
            wrong[key] = f"{wrong[key]}; {said}" if key in wrong else said
        instead[key] = (*instead.get(key, ()), np.ascontiguousarray(np.where(beyond, own, values.astype(own.dtype))))
    return Weights(instead, wrong, tuple(unknown))


def _box(which: HostArray) -> str:
    """The smallest part of an array that holds the elements that are true, as Python writes it."""
    places = [(int(p.min()), int(p.max()) + 1) for p in np.nonzero(which)]
    return "[" + ", ".join(str(a) if b == a + 1 else ":" if b - a == n else f"{a}:{b}"
                           for (a, b), n in zip(places, which.shape, strict=True)) + "]"  # fmt: skip


def _off(theirs: HostArray, own: HostArray) -> float:
    """Of a part of the rows and columns: how far one is from the other, as a share of the norm of the second."""
    part = tuple(slice(None, None, -(-n // _SAMPLED)) for n in own.shape)
    a, b = theirs[part].astype(np.float64), own[part].astype(np.float64)
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-300))
