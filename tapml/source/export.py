"""A loaded model becomes graphs: `prefill` and `decode` for a causal language model, `forward` for anything else.

    exported = export(model, chunk=64, max_len=256)
    exported.graphs, exported.tensors, exported.states, exported.protocol

Reading a traced program into a `Graph` is `tapml.operators.from_fx`'s; the step that is traced is `tapml.source.decoder`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tapml.errors import ModelError, UsageError, message_of
from tapml.operators.buffers import buffers_kept
from tapml.operators.carried import carried
from tapml.operators.from_fx import graph_from_exported
from tapml.operators.graph import Graph
from tapml.operators.stays import PART
from tapml.runtime.decoder import Decoder
from tapml.runtime.module import Module
from tapml.runtime.protocol import ModelProtocol
from tapml.source.checked import batch_experts, eagerly, transformers_parts, unseen_parts
from tapml.source.decoder import MODEL, CacheShape, DecoderStep, cache_shapes
from tapml.source.model import LoadedModel, called
from tapml.source.parts import Parts
from tapml.source.prompts import positions
from tapml.source.trace import trace
from tapml.tensors import TensorSpec


@dataclass(frozen=True, eq=False)
class Exported:
    """`tensors` holds the weights by the keys that the graphs use, each once however many graphs and names it has. `states` has a
    spec a state; each starts as zeros, or as the tensor in `initial` if it is there. `protocol` says how it is
    called; `examples` holds the example inputs of a module by the keys of the graph's inputs, and `notes` what these fixed. All
    tensors have the form in which operators hand them on (`tapml.operators.carried`)."""

    graphs: tuple[Graph, ...]
    tensors: dict[str, torch.Tensor]
    states: dict[str, TensorSpec]
    initial: dict[str, torch.Tensor]
    protocol: ModelProtocol
    examples: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def has_own_code(self) -> bool:
        """Whether a part of the model runs as its own Python code (`tapml.source.parts`)."""
        return any(node.target == PART for graph in self.graphs for node in graph.nodes)


def export(model: LoadedModel, *, chunk: int = 64, max_len: int = 256) -> Exported:
    """`chunk` tokens go into a prefill call; `max_len`, a multiple of it, is the number of positions in the cache. Both matter
    to causal language models only. Raises ModelError when the model does not export, UsageError for lengths that do not fit
    it."""
    if model.kind == "module":
        return _with_attention(model, lambda parts: _export_module(model, parts))
    if chunk < 1 or max_len < chunk or max_len % chunk:
        raise UsageError(f"The cache length ({max_len}) must be a multiple of the prefill chunk ({chunk}).")
    limit = positions(model.module)
    if limit is not None and max_len > limit:
        fits = limit // chunk * chunk
        advice = f"Carve with --max-len {fits} or less" if fits else f"Carve with --chunk {limit} or less"
        raise UsageError(f"{model.name} has {limit} positions, so its cache cannot hold {max_len}. {advice}.")
    return _with_attention(model, lambda parts: _export_decoder(model, chunk, max_len, parts))


def _with_attention(model: LoadedModel, attempt: Callable[[Parts | None], Exported]) -> Exported:
    """The attempt with the attention that the model came with, if that does not export with the eager one, and if neither does
    without the parts that do not. What is set in a transformers model is set back afterwards."""
    with eagerly(model.module):
        if unseen := unseen_parts(model.module):
            with _settings_kept(transformers_parts(model.module)):
                batch_experts(model.module)
                return attempt(Parts(model, unseen))
        try:
            with _settings_kept(transformers_parts(model.module)):
                return _attempted(model.module, attempt)
        except ModelError as error:
            refused = error
        with _settings_kept(transformers_parts(model.module)):
            batch_experts(model.module)
            with suppress(ModelError):
                return attempt(Parts(model))
        raise refused


def _attempted(module: torch.nn.Module, attempt: Callable[[Parts | None], Exported]) -> Exported:
    batch_experts(module)
    parts = transformers_parts(module)
    if any(part.config._attn_implementation != "eager" for part in parts):
        with suppress(ModelError):
            return attempt(None)
        for part in parts:
            part.set_attn_implementation("eager")
    return attempt(None)


@contextmanager
def _settings_kept(parts: Sequence[Any]) -> Iterator[None]:
    """Afterwards the configs say what they said. They are written as they are kept: a setter refuses what some part of a model
    does not have, also where nothing was changed."""
    names = ("_attn_implementation_internal", "_experts_implementation_internal")
    configs: dict[int, Any] = {}
    waiting = [part.config for part in parts]
    while waiting:
        config = waiting.pop()
        if config is not None and id(config) not in configs:
            configs[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    before = [(config, {name: config.__dict__[name] for name in names if name in config.__dict__}) for config in configs.values()]
    try:
        yield
    finally:
        for config, held in before:
            config.__dict__.update(held)


def _export_decoder(model: LoadedModel, chunk: int, max_len: int, parts: Parts | None) -> Exported:
    shapes = cache_shapes(model.module)
    step = DecoderStep(model.module, shapes, max_len).eval()
    states = _states(shapes, max_len)
    graphs, tensors = [], {}
    for name, length in (("prefill", chunk), ("decode", 1)):
        inputs = {
            "input_ids": torch.zeros(1, length, dtype=torch.long, device=model.device),
            "position_ids": torch.arange(length, device=model.device)[None],
        }
        if name == "prefill":
            inputs["last"] = torch.zeros(1, dtype=torch.long, device=model.device)
        graph, weights = _read(parts, step, inputs, lambda name=name, inputs=inputs: graph_from_exported(  # type: ignore[misc]
            name, trace(step, inputs), step, tuple(inputs), ("logits",), strip_prefix=MODEL, state_keys=states,
        ))
        graphs.append(graph)
        tensors.update(weights)
    vocabulary = graphs[0].specs[graphs[0].outputs[0]].shape[-1]
    return Exported(tuple(graphs), tensors, states, {}, Decoder(chunk, max_len, vocabulary, model.stop))


def _read(
    parts: Parts | None, wrapper: torch.nn.Module, inputs: Mapping[str, Any],
    attempt: Callable[[], tuple[Graph, dict[str, torch.Tensor]]],
) -> tuple[Graph, dict[str, torch.Tensor]]:  # fmt: skip
    return attempt() if parts is None else parts.traced(wrapper, inputs, attempt)


def _states(shapes: tuple[CacheShape, ...], max_len: int) -> dict[str, TensorSpec]:
    found = {}
    for index, shape in enumerate(shapes):
        for name, size in (("keys", shape.keys), ("values", shape.values)):
            spec = TensorSpec((size[0], size[1], max_len, size[3]), str(shape.dtype).removeprefix("torch."))
            found[f"{name}_{index}"] = spec
    return found


class _Flat(torch.nn.Module):  # type: ignore[misc]
    """A module whose output is a dict of named tensors, whatever structure it has by itself."""

    def __init__(self, module: torch.nn.Module, positional: Sequence[str]) -> None:
        super().__init__()
        self.add_module(MODEL, module)
        self.positional = tuple(positional)

    def forward(self, **inputs: Any) -> dict[str, torch.Tensor]:
        return flat_outputs(called(getattr(self, MODEL), inputs, self.positional))


def flat_outputs(result: Any) -> dict[str, torch.Tensor]:
    """The tensors in what a module returned, named by where they stand in it: "last_hidden_state", "0", "boxes.1"; a single one
    is "output". Complex ones are as they are; in a graph they are pairs (`tapml.operators.carried`)."""
    if isinstance(result, torch.Tensor):
        return {"output": result}
    result = _opened(result)
    # transformers' outputs are ordered dicts that pytree knows by their own class.
    if isinstance(result, Mapping):
        result = dict(result)
    return _named(result)


def _opened(value: Any) -> Any:
    """With dataclasses as dicts of their fields, which no tree of PyTorch's knows."""
    if is_dataclass(value) and not isinstance(value, type | Mapping):
        return {f.name: _opened(getattr(value, f.name)) for f in fields(value)}
    if type(value) in (list, tuple):
        return type(value)(map(_opened, value))
    return {key: _opened(item) for key, item in value.items()} if type(value) is dict else value


def _named(tree: Any) -> dict[str, torch.Tensor]:
    leaves, _ = pytree.tree_flatten_with_path(tree)
    return {_path_name(path): leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}


def _path_name(path: tuple[Any, ...]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)


def _export_module(model: LoadedModel, parts: Parts | None) -> Exported:
    if not model.example_inputs:
        raise ModelError(f"{model.name} needs example inputs to be exported. Give example_inputs=…, or FILE.py:FUNCTION.")
    wrapper = _Flat(model.module, model.positional).eval()
    inputs = dict(model.example_inputs)
    examples = {key: carried(tensor) for key, tensor in _named(inputs).items()}
    try:
        with torch.no_grad(), buffers_kept(model.module):
            outputs = wrapper(**inputs)
    except Exception as error:
        # A model's own code can raise anything.
        raise ModelError(
            f"{model.name} does not run on its example inputs: {type(error).__name__}: {message_of(error)}."
        ) from error
    if not outputs:
        raise ModelError(f"{model.name} returns no tensors, so there is nothing to compare.")
    notes: list[str] = []
    keys = tuple(_path_name(path) for path, _ in pytree.tree_flatten_with_path(inputs)[0])

    def attempt() -> tuple[Graph, dict[str, torch.Tensor]]:
        notes.clear()
        program = trace(wrapper, inputs, notes)
        return graph_from_exported("forward", program, wrapper, keys, tuple(outputs), strip_prefix=MODEL)

    graph, tensors = _read(parts, wrapper, inputs, attempt)
    states = {p.key: p.spec for p in graph.states}
    buffers = dict(model.module.named_buffers())
    initial = {key: carried(buffers[key].detach().clone()) for key in states}
    return Exported((graph,), tensors, states, initial, Module(), examples, tuple(notes))
