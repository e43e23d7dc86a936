"""What users write in modules and no trace takes as it is: each gives what the module gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tapml.carving.executor import run_graph
from tapml.errors import ModelError
from tapml.source.eager import EagerModule
from tapml.source.export import Exported, export
from tapml.source.load import load

Tensor = torch.Tensor


def agrees(module: torch.nn.Module, *inputs: Tensor) -> Exported:
    """The export of a module, whose outputs are those of the module."""
    model = load(module.eval(), example_inputs=inputs)
    exported = export(model)
    (graph,) = exported.graphs
    wanted = EagerModule(model).outputs(model.example_inputs)
    made, _ = run_graph(graph, exported.tensors, exported.initial, exported.examples)
    assert made.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(made[key], value)
    return exported


class Attends(torch.nn.Module):
    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        return flex_attention(x, keys, keys * 2, **self.how)  # type: ignore[no-any-return]


def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


FLEX: dict[str, Callable[[], Attends]] = {
    "plain": Attends,
    "a bias by position": lambda: Attends(score_mod=lambda score, b, h, q, k: score + (q - k) * h, scale=0.5),
    "a block mask": lambda: Attends(block_mask=create_block_mask(causal, None, None, 16, 16, device="cpu")),
    "grouped heads": lambda: Attends(enable_gqa=True),
}


@pytest.mark.parametrize("kind", FLEX)
def test_flex_attention_is_products_and_softmax(kind: str) -> None:
    torch.manual_seed(0)
    exported = agrees(FLEX[kind](), torch.randn(1, 4, 16, 8), torch.randn(1, 2 if kind == "grouped heads" else 4, 16, 8))
    assert {"aten.matmul.default", "aten._safe_softmax.default"} <= {node.target for node in exported.graphs[0].nodes}


@dataclass
class Found:
    boxes: Tensor
    more: dict[str, Tensor]
    name: str = "found"
    none: None = None


class Finds(torch.nn.Module):
    def forward(self, x: Tensor) -> list[Found]:
        return [Found(x * 2, {"half": x / 2}), Found(x + 1, {})]


def test_dataclasses_are_outputs_by_the_names_of_their_fields() -> None:
    (graph,) = agrees(Finds(), torch.randn(3)).graphs
    assert set(graph.output_keys) == {"0.boxes", "0.more.half", "1.boxes"}


class Keeps(torch.nn.Module):
    """Sets attributes that are no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.last + x
        self.seen = x
        return x * 2


def test_a_trace_leaves_nothing_of_its_own_in_the_module() -> None:
    module = Keeps().eval()
    agrees(module, torch.ones(3))
    assert type(module.last) is torch.Tensor and module(torch.ones(3)).tolist() == [2.0] * 3
    assert module.last.tolist() == [module.calls] * 3, "a call is counted in one place and not in the other"


def test_a_padded_transformer_is_compared_as_it_is_traced() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    module = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=True).eval()
    padded = torch.tensor([[False] * 3 + [True] * 2, [False] * 4 + [True]])

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = module

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=mask)  # type: ignore[no-any-return]

    agrees(Encoder(), torch.randn(2, 5, 8), padded)
    assert torch.backends.mha.get_fastpath_enabled()


@torch.library.custom_op("tapml_tests::silent", mutates_args=())  # type: ignore[untyped-decorator]
def silent(x: Tensor) -> Tensor:
    return x[: int(x.shape[0]) - 1] * 3


@torch.library.custom_op("tapml_tests::writes", mutates_args=("x",))  # type: ignore[untyped-decorator]
def writes(x: Tensor) -> None:
    x.mul_(2)


class Calls(torch.nn.Module):
    def __init__(self, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        made = self.call(y)
        return y if made is None else made + 1


def test_an_operator_of_ones_own_needs_no_fake() -> None:
    exported = agrees(Calls(silent), torch.randn(4, 3))
    assert "tapml_tests.silent.default" in {node.target for node in exported.graphs[0].nodes}
    assert "silent at test_ordinary_modules.py" in exported.notes[0]


def test_an_operator_of_ones_own_that_writes_is_named() -> None:
    with pytest.raises(ModelError, match=r"tapml_tests.writes.default .*writes to its inputs"):
        export(load(Calls(writes), example_inputs=(torch.randn(4, 3),)))
