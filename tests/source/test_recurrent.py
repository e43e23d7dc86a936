"""Recurrent layers, written out step by step, give what PyTorch gives in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tapml.api import Run
from tapml.carving.carve import carve
from tapml.carving.executor import GraphExecutor
from tapml.errors import ModelError
from tapml.operators.cut import cut
from tapml.operators.stays import sort_of_stay
from tapml.source.export import export, flat_outputs
from tapml.source.load import load
from tapml.source.recurrent import MOST_STEPS, unrolled

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two_layers": {"num_layers": 2, "dropout": 0.5},
    "bidirectional": {"bidirectional": True, "num_layers": 2, "batch_first": True},
    "no_bias": {"bias": False},
}


def both(module: torch.nn.Module, *inputs: Any) -> None:
    """The same in one call and step by step, to the last few roundings."""
    with torch.no_grad():
        wanted = flat_outputs(module(*inputs))
        with unrolled(module):
            got = flat_outputs(module(*inputs))
    assert list(got) == list(wanted)
    for key, value in wanted.items():
        assert got[key].shape == value.shape
        torch.testing.assert_close(got[key], value, rtol=1e-5, atol=1e-6)
    assert "forward" not in module.__dict__


@pytest.mark.parametrize("settings", LAYERS)
@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_layers(kind: Any, settings: str) -> None:
    torch.manual_seed(0)
    module = kind(5, 7, **LAYERS[settings]).eval()
    both(module, torch.randn(3, 4, 5))
    count = module.num_layers * (2 if module.bidirectional else 1)
    batch = 3 if module.batch_first else 4
    start = [torch.randn(count, batch, 7) for _ in range(2)]
    both(module, torch.randn(3, 4, 5), tuple(start) if kind is torch.nn.LSTM else start[0])
    both(module, torch.randn(6, 5))


def test_projections_and_relu() -> None:
    torch.manual_seed(0)
    both(torch.nn.LSTM(5, 7, proj_size=3, num_layers=2, bidirectional=True).eval(), torch.randn(4, 2, 5))
    both(torch.nn.RNN(5, 7, nonlinearity="relu").eval(), torch.randn(4, 2, 5))


@pytest.mark.parametrize("kind", [torch.nn.LSTMCell, torch.nn.GRUCell, torch.nn.RNNCell])
def test_cells(kind: Any) -> None:
    torch.manual_seed(0)
    both(kind(5, 7), torch.randn(3, 5))
    both(kind(5, 7), torch.randn(5))


class Reads(torch.nn.Module):
    """A bidirectional LSTM, a GRU behind it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(5, 6, batch_first=True, bidirectional=True)
        self.gru = torch.nn.GRU(12, 4, batch_first=True)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.gru(self.rnn(x)[0])[1][0])


def test_a_model_with_them_moves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = carve(load(Reads().eval(), example_inputs=(torch.randn(2, 4, 5),)), [], tmp_path / "run")
    assert result.compared["error"] < 1e-4
    run = Run.open(tmp_path / "run")
    assert {o.module.split(".")[0] for o in run.operators} >= {"rnn", "gru", "head"}
    tested = run.test("opencl")
    assert tested.passed and len(tested.verdicts) == result.operators
    assert run.migrate("opencl").passed


class Packed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(5, 6, bidirectional=True)
        self.after = torch.nn.GRU(12, 4)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        whole, (last, _) = self.rnn(packed)
        return *torch.nn.utils.rnn.pad_packed_sequence(self.after(whole)[0]), last


def test_steps_share_their_kernels(tmp_path: Path) -> None:
    found = []
    for steps in (6, 12):
        model = load(torch.nn.LSTM(3, 3, batch_first=True).eval(), example_inputs=(torch.randn(1, steps, 3),))
        (graph,) = export(model).graphs
        operators, bodies = cut(graph, "")
        assert len(operators) > 3 * steps - 3
        found.append(len(bodies))
        assert all(len(body.inputs) <= 6 for body in bodies.values()), "WebGPU has 8 buffers a kernel"
    assert found[0] == found[1] <= 14


class Doubled(torch.nn.LSTM):
    def forward(self, *given: Any) -> Any:
        made, state = super().forward(*given)
        return made * 2, state


class Renamed(torch.nn.LSTM):
    pass


@pytest.mark.parametrize(
    ("module", "steps", "calls"),
    [(torch.nn.GRU(2, 2, num_layers=2), MOST_STEPS, 1), (Doubled(2, 2), 3, 1), (Renamed(2, 2), 3, 0)],
)
def test_what_is_not_written_out_is_one_call(module: torch.nn.Module, steps: int, calls: int) -> None:
    given = (torch.randn(steps, 1, 2),)
    exported = export(load(module.eval(), example_inputs=given))
    (graph,) = exported.graphs
    assert sum(node.target in ("aten.lstm.input", "aten.gru.input") for node in graph.nodes) == calls
    with torch.no_grad():
        wanted = flat_outputs(module(*given))
    found = GraphExecutor.uncut(exported.graphs, exported.tensors, {}).step_tensors("forward", exported.examples)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_packed_sequences_are_calls_of_their_own() -> None:
    """The lengths are those of the example: what is packed has as many rows as they have steps."""
    model = load(Packed().eval(), example_inputs=(torch.randn(3, 2, 5), torch.tensor([2, 3])))
    exported = export(model)
    (graph,) = exported.graphs
    kept = [node.target for node in graph.nodes if sort_of_stay(node, ())]
    assert [t.split(".")[1] for t in kept] == ["_pack_padded_sequence", "lstm", "gru", "_pad_packed_sequence"]
    with torch.no_grad():
        wanted = flat_outputs(model.call(model.example_inputs))
    executor = GraphExecutor.uncut(exported.graphs, exported.tensors, {})
    found = executor.step_tensors("forward", exported.examples)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelError, match="its sequences have other lengths"):
        executor.step_tensors("forward", {**exported.examples, "lengths": torch.tensor([1, 3])})
