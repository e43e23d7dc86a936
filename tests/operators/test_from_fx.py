"""Reading exported programs: what is dropped, what is merged, what keys weights get, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tapml.carving.executor import run_graph
from tapml.errors import ModelError
from tapml.operators.from_fx import graph_from_exported
from tapml.operators.graph import Graph
from tapml.operators.patterns import word_of
from tests.models import causal_lm
from tests.operators.programs import check_values, of_model, program, programs


def words(graph: Graph) -> list[str]:
    return [word_of(node) for node in graph.nodes]


class Views(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.view(2, -1).chunk(2, -1)
        kept = x.clone().detach()[0:].view(4, 6).expand(4, -1)
        return a.reshape(-1)[:-2] + b.flatten()[2:] + kept.unbind(0)[1].sum() + torch.zeros_like(a).sum()


def test_shapes_become_numbers_and_no_ops_go() -> None:
    found = program(Views(), {"x": torch.zeros(4, 6)})
    check_values(found)
    gone = {"detach", "alias", "expand", "split", "chunk", "unbind", "zeros_like", "reshape"}
    assert not set(words(found.graph)) & gone
    assert Counter(words(found.graph))["clone"] == 2, "those that make a strided half contiguous"
    for node in found.graph.nodes:
        if word_of(node) == "view":
            assert node.args[1] == list(node.outputs[0].shape)
        if word_of(node) == "slice":
            assert all(0 <= end <= 12 for end in node.args[2:4]) and not node.kwargs
    assert "device" not in str([node.kwargs for node in found.graph.nodes])


class Beside(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([x.sin(), x[:, 6:]], -1)
        longer = torch.cat([x[:0], x, whole], 0)
        return torch.cat([x[:, 6:].double(), longer[4:]], -1)


def test_nothing_is_put_beside_something() -> None:
    found = program(Beside(), {"x": torch.randn(4, 6)})
    check_values(found)
    joined = [node for node in found.graph.nodes if word_of(node) == "cat"]
    assert [len(node.args[0]) for node in joined] == [2, 2] and words(found.graph).count("slice") == 1
    assert joined[1].outputs[0].dtype == "float64", "which the empty part decides"
    assert words(found.graph).count("full") == 1, "no element is computed"


class Twice(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 6)
        self.second = torch.nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(6.0), persistent=False)
        self.register_buffer("count", torch.zeros(6))
        self.unused = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor, skipped: torch.Tensor) -> torch.Tensor:
        half = torch.tensor([0.5, float("inf")])[0]
        self.count.add_(1)
        there = torch.sin(self.table) + torch.sin(self.table)
        x.mul_(2)
        return (self.first(x) + self.second(x)) * half + there + self.count


def test_weights_states_and_constants_have_keys() -> None:
    module = Twice()
    found = program(module, {"x": torch.randn(4, 6), "skipped": torch.zeros(1)})
    roles = {p.key: p.role for p in found.graph.placeholders}
    constant = next(key for key in roles if key.startswith("constant."))
    assert roles == {
        "x": "input", "skipped": "input", "count": "state", "first.weight": "weight", "first.bias": "weight",
        "second.bias": "weight", "table": "weight", constant: "weight",
    }
    assert set(found.weights) == {key for key, role in roles.items() if role == "weight"}
    assert found.weights["first.weight"].data_ptr() == module.first.weight.data_ptr()
    assert found.weights[constant].tolist() == [0.5, float("inf")]
    assert list(found.graph.mutations) == ["count"]
    assert Counter(words(found.graph))["sin"] == 1
    check_values(found)


def test_a_prefix_is_taken_off_and_paths_and_lines_are_kept() -> None:
    graph = programs("llama")[1].graph
    assert {p.key for p in graph.states} == {"keys_0", "keys_1", "values_0", "values_1"}
    gate = next(n for n in graph.nodes if n.module == "model.layers.1.mlp.gate_proj")
    assert gate.source.startswith("modeling_llama.py:")
    assert "model.layers.1.mlp.gate_proj.weight" in {p.key for p in graph.weights}
    shared = [n for n in graph.nodes if n.module == "model.layers"]
    assert shared, "nodes that layers share belong to the path above both"


def test_tied_embeddings_are_one_weight() -> None:
    for found in of_model(causal_lm("llama", tie_word_embeddings=True))[1:]:
        assert {"model.embed_tokens.weight"} == {p.key for p in found.graph.weights if "embed" in p.key or "lm_head" in p.key}
        check_values(found)


class Infinite(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, float("-inf")).softmax(-1)


def test_infinity_is_written_as_json() -> None:
    found = program(Infinite(), {"x": torch.zeros(4, 6)})
    assert Graph.from_json(found.graph.to_json()) == found.graph
    assert "{'float': '-inf'}" in str(found.graph.nodes)
    check_values(found)


def test_none_inputs_are_left_out() -> None:
    class Optional(torch.nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return x * 2 if mask is None else x * mask

    exported = torch.export.export(Optional(), (torch.zeros(3), None)).run_decompositions({})
    graph, _ = graph_from_exported("forward", exported, None, ("x", "mask"), ("output",))
    assert [p.key for p in graph.inputs] == ["x"]


class Counts(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.nonzero() * 2


@pytest.mark.parametrize(("module", "says"), [(Counts(), "depends on the data")])
def test_what_cannot_be_moved_is_refused_with_its_line(module: torch.nn.Module, says: str) -> None:
    exported = torch.export.export(module, (torch.randn(4, 4),), strict=False).run_decompositions({})
    with pytest.raises(ModelError, match=says) as error:
        graph_from_exported("forward", exported, module, ("x",), ("output",))
    assert "test_from_fx.py:" in str(error.value)


def _grown(x: torch.Tensor) -> torch.Tensor:
    return x.clone().resize_(3, 4) + 1


def _partly_written(x: torch.Tensor) -> torch.Tensor:
    made = torch.empty_strided((3, 4), (1, 3))
    made[0] = x[0]
    return made


UNDEFINED = {
    "empty": lambda x: torch.cat([x, torch.empty(2, 4)]),
    "empty_bool": lambda x: torch.where(torch.empty(4, dtype=torch.bool), x, 2 * x),
    "empty_like": lambda x: x + torch.empty_like(x),
    "empty_strided": _partly_written,
    "empty_permuted": lambda x: x + torch.empty_permuted((2, 4), (1, 0)),
    "new_empty": lambda x: torch.cat([x, x.new_empty((2, 4))]),
    "new_empty_strided": lambda x: x + x.new_empty_strided((2, 4), (1, 2)),
    "resize": _grown,
    "resize_smaller": lambda x: (x + 1).resize_(5) * 2,
}


class Undefined(torch.nn.Module):
    """Reads memory that nobody has written."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return UNDEFINED[self.kind](x)


@pytest.mark.parametrize("kind", UNDEFINED)
def test_undefined_memory_is_zeros(kind: str) -> None:
    found = program(Undefined(kind), {"x": torch.arange(8.0).reshape(2, 4)})
    assert not [word for word in words(found.graph) if "empty" in word or word == "resize"]
    x = torch.arange(8.0).reshape(2, 4)
    wanted = {
        "empty": torch.cat([x, torch.zeros(2, 4)]), "empty_bool": 2 * x, "new_empty": torch.cat([x, torch.zeros(2, 4)]),
        "empty_strided": torch.cat([x[:1], torch.zeros(2, 4)]), "resize": torch.cat([x, torch.zeros(1, 4)]) + 1,
        "resize_smaller": 2 * (torch.arange(5.0) + 1),
    }.get(kind, x)  # fmt: skip
    outputs, _ = run_graph(found.graph, found.weights, {}, {"x": x})
    (got,) = outputs.values()
    assert torch.equal(got, wanted)
