"""Deployments as ONNX files: small models exported by PyTorch, and bugs put into the files.

    model = exported(module, inputs, folder)          the graph as PyTorch writes it
    for bug in BUGS: bug.put_in(model)                a copy with one bug, and the module that it is in
    stripped(model)                                   without names and metadata
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper


class WithoutCache(torch.nn.Module):
    """A causal language model as a function of tokens and their mask."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return logits


class WithCache(torch.nn.Module):
    """A causal language model of two layers as a function of tokens and a cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        made = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        return (made.logits, *(x for layer in made.past_key_values.layers for x in (layer.keys, layer.values)))


def exported(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], folder: Path, inputs_named: list[str], outputs_named: list[str],
    dynamic: dict[str, dict[int, str]] | None = None,
) -> onnx.ModelProto:
    """By the exporter that needs no further package."""
    path = folder / "exported.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, inputs, str(path), dynamo=False, input_names=inputs_named, output_names=outputs_named, dynamic_axes=dynamic
        )
    return onnx.load(str(path))


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    model = copy(model)
    kept = {given.name for given in model.graph.input}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if not name or name in kept else names.setdefault(name, f"t{len(names)}")

    for node in model.graph.node:
        node.name = ""
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
        del node.metadata_props[:]
    for tensor in (*model.graph.initializer, *model.graph.output):
        tensor.name = new(tensor.name)
    del model.graph.value_info[:]
    return model


@dataclass(frozen=True)
class Bug:
    """`module` is the end of the name of the operator that it is in."""

    name: str
    module: str
    edit: Callable[[onnx.ModelProto], None]

    def put_in(self, model: onnx.ModelProto) -> onnx.ModelProto:
        wrong = copy(model)
        self.edit(wrong)
        return wrong


def _node(model: onnx.ModelProto, end: str) -> Any:
    """The node whose first output has a name with this end."""
    return next(n for n in model.graph.node if n.output and n.output[0].endswith(f"{end}_output_0"))


def _held(model: onnx.ModelProto, name: str) -> np.ndarray:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    node = next(n for n in model.graph.node if name in n.output)
    if node.op_type == "Identity":
        return _held(model, node.input[0])
    return numpy_helper.to_array(node.attribute[0].t)


def _instead(model: onnx.ModelProto, node: Any, position: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Another constant for one input of a node."""
    before = _held(model, node.input[position])
    name = f"{node.input[position]}_wrong"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(change(before)).astype(before.dtype), name))
    node.input[position] = name


def _constant(end: str, position: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[onnx.ModelProto], None]:
    return lambda model: _instead(model, _node(model, end), position, change)


def _operation(end: str, name: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        _node(model, end).op_type = name

    return edit


def _rotated_the_other_way(model: onnx.ModelProto) -> None:
    """The half that is negated in a rotation of pairs stays as it is."""
    _node(model, "layers.1/self_attn/Neg").op_type = "Identity"


def _residual_dropped(end: str) -> Callable[[onnx.ModelProto], None]:
    """What an addition adds to is left out."""

    def edit(model: onnx.ModelProto) -> None:
        add = _node(model, end)
        add.op_type = "Identity"
        del add.input[0]

    return edit


def _exchanged(one: str, other: str) -> Callable[[onnx.ModelProto], None]:
    """The weights of two projections."""

    def edit(model: onnx.ModelProto) -> None:
        a, b = _node(model, f"{one}/MatMul"), _node(model, f"{other}/MatMul")
        a.input[1], b.input[1] = b.input[1], a.input[1]

    return edit


def _quantized(shift: int) -> Callable[[onnx.ModelProto], None]:
    """The weight of a projection in int8, column by column, with zero points that are off by `shift`."""

    def edit(model: onnx.ModelProto) -> None:
        node = _node(model, "layers.1/mlp/gate_proj/MatMul")
        weight = _held(model, node.input[1])
        scale = (np.abs(weight).max(0) / 100).astype(np.float32)
        codes = np.round(weight / scale).astype(np.int8)
        zeros = np.full(scale.shape, shift, np.int8)
        for name, array in (("codes", codes), ("scale", scale), ("zeros", zeros)):
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["codes", "scale", "zeros"], ["unpacked"], axis=1))
        node.input[1] = "unpacked"

    return edit


_NORM = "layers.0.post_attention_layernorm"

LLAMA_BUGS = (
    Bug("epsilon", _NORM, _constant(f"{_NORM.replace('.p', '/p')}/Add", 1, lambda a: a + 1e-3)),
    Bug("activation", "layers.1.mlp.gated_activation", _operation("layers.1/mlp/act_fn/Sigmoid", "Tanh")),
    Bug("scale", "layers.0.self_attn.attention", _constant("layers.0/self_attn/Mul_8", 1, lambda a: a * 1.5)),
    Bug("mask", "layers.0.self_attn.attention", _constant("layers.0/self_attn/Where_2", 2, lambda a: np.full_like(a, -2.0))),
    Bug("rotary pairs", "layers.1.self_attn.rotary", _rotated_the_other_way),
    Bug("transposed weight", "layers.0.self_attn.q_proj", _constant("layers.0/self_attn/q_proj/MatMul", 1, lambda a: a.T)),
    Bug("columns swapped", "layers.1.self_attn.k_proj", _constant("layers.1/self_attn/k_proj/MatMul", 1, lambda a: a[:, ::-1])),
    Bug("residual dropped", "layers.0.mlp.down_proj", _residual_dropped("layers.0/Add_1")),
    Bug("attention's residual", "layers.1.self_attn.o_proj", _residual_dropped("layers.1/Add")),
    Bug("k and v exchanged", "layers.1.self_attn.k_proj", _exchanged("layers.1/self_attn/k_proj", "layers.1/self_attn/v_proj")),
    Bug("gate and up exchanged", "layers.0.mlp.gate_proj", _exchanged("layers.0/mlp/gate_proj", "layers.0/mlp/up_proj")),
    Bug("rows shifted", "layers.1.mlp.down_proj", _constant("layers.1/mlp/down_proj/MatMul", 1, lambda a: np.roll(a, 1, 0))),
    Bug("zero point", "layers.1.mlp.gate_proj", _quantized(40)),
)  # fmt: skip
