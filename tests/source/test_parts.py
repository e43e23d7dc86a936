"""Parts of a model that do not export are one operator each, which stays on the source, and the rest is recorded and moved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tapml.carving.carve import carve
from tapml.carving.executor import run_graph
from tapml.carving.folder import RunFolder
from tapml.errors import ModelError, UsageError
from tapml.manifest import seal
from tapml.migrate.model import Model
from tapml.operators import parts
from tapml.operators.stays import PART
from tapml.source.export import Exported, export
from tapml.source.load import load
from tests import models

Tensor = torch.Tensor


class Doubled(torch.nn.Module):
    """Computes outside of PyTorch."""

    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * factor)


class Sparse(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm((x.T @ x).to_sparse(), x.T).T


class Several(torch.nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor], more: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | None]]:
        made = torch.from_numpy(pair[0].detach().numpy() + more["by"])
        return made, {"same": pair[1], "none": None}


class Writing(Doubled):
    """Writes to what it is given."""

    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        x += torch.from_numpy(x.detach().numpy())
        return x


class Around(torch.nn.Module):
    def __init__(self, part: torch.nn.Module, call: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.part, self.after = torch.nn.Linear(4, 4), part, torch.nn.Linear(4, 4)
        self.call = call or (lambda part, x: part(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.call(self.part, self.before(x)))


def several(part: Any, x: Tensor) -> Tensor:
    first, more = part((x, x + 1), more={"by": 0.5})
    return first * more["same"]


PARTS: dict[str, Callable[[], Around]] = {
    "numpy": lambda: Around(Doubled()),
    "constants": lambda: Around(Doubled(), lambda part, x: part(x, factor=3.0)),
    "twice": lambda: Around(Doubled(), lambda part, x: part(part(x), 0.25)),
    "sparse": lambda: Around(Sparse()),
    "several results": lambda: Around(Several(), several),
    "within another": lambda: Around(torch.nn.Sequential(torch.nn.ReLU(), Doubled())),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda part: torch.jit.script(part), "TorchScript"),
        (lambda part: torch.ao.quantization.quantize_dynamic(part, {torch.nn.Linear}, torch.qint8)[0], "quantize_dynamic"),
    ],
)
def test_parts_whose_code_no_trace_sees_stay(make: Callable[[Any], Any], reason: str, tmp_path: Path) -> None:
    part = make(torch.nn.Sequential(torch.nn.Linear(4, 4)))
    result = carve(load(Around(part).eval(), example_inputs=(torch.randn(3, 4),)), [], tmp_path / "run")
    assert [s["operator"] for s in result.stays] == ["part.code"] and reason in result.stays[0]["reason"]
    assert result.operators == 3


def stays(exported: Exported) -> list[str]:
    return [node.kwargs["path"] for graph in exported.graphs for node in graph.nodes if node.target == PART]


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_that_does_not_export_is_one_call(kind: str) -> None:
    module = PARTS[kind]().eval()
    exported = export(load(module, example_inputs=(torch.randn(3, 4),)))
    (graph,) = exported.graphs
    assert set(stays(exported)) == {"part.1" if kind == "within another" else "part"}
    assert [node.target for node in graph.nodes].count("aten.linear.default") == 2
    x = torch.randn(3, 4)
    (made,) = run_graph(graph, exported.tensors, {}, {graph.inputs[0].key: x})[0].values()
    torch.testing.assert_close(made, module(x).detach())
    assert type(module.part) in (Doubled, Sparse, Several, torch.nn.Sequential), "something else still stands for the part"


def test_what_cannot_be_called_by_itself_takes_what_is_around_it_along() -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.writes = Writing()

        def forward(self, x: Tensor) -> Tensor:
            return self.writes(x * 2)

    exported = export(load(Around(Inner()).eval(), example_inputs=(torch.randn(3, 4),)))
    assert stays(exported) == ["part"]


def test_a_model_whose_own_code_does_not_export_is_refused_with_the_line() -> None:
    with pytest.raises(ModelError, match=r"The model does not export: .*numpy.* at test_parts.py:\d+"):
        export(load(Doubled(), example_inputs=(torch.randn(3, 4),)))


class Experts(torch.nn.Module):
    """A mixture whose loop goes over the experts that some token chose."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(size, 3)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(size, size) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(rows).softmax(-1).topk(2, -1)
        made = torch.zeros_like(rows)
        for hit in torch.unique(chosen):
            row, place = torch.where(chosen == hit)
            made.index_add_(0, row, self.experts[int(hit)](rows[row]) * weights[row, place, None])
        return made.reshape(x.shape)


def test_a_decoder_with_a_loop_over_chosen_experts_is_carved_around_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.causal_lm("llama")
    for layer in module.model.layers:
        layer.mlp = Experts(64)
    model = load(module.eval())
    result = carve(model, ["5 9 70 33 8", "11 7"], tmp_path / "run", decode_steps=3, chunk=4)
    assert [s["operator"] for s in result.stays] == [
        f"{graph}/layers.{k}.mlp.code" for graph in ("prefill", "decode") for k in (0, 1)
    ]
    assert all("runs as the model's own Python code" in s["reason"] and "test_parts.py" in s["reason"] for s in result.stays)
    assert result.operators > 40 and result.compared["texts"] >= 2


FILE = """
import torch

class Doubled(torch.nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy() * 2)

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), Doubled()).eval(), (torch.ones(2, 4),)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    carve(load("net.py:build"), [], tmp_path / "run")
    monkeypatch.chdir("/")
    another_process(monkeypatch)
    return tmp_path / "run"


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_held", {})
    monkeypatch.setattr(parts, "_offered", {})


def called(run: Path) -> Any:
    model = Model.of(RunFolder.open(run))
    operator = next(o for o in model.operators if model.why_it_stays(o))
    return model.source(operator.signature)([torch.ones(2, 4).numpy()])[0]


def test_another_process_loads_the_model_again_from_where_it_was_carved(run: Path) -> None:
    assert called(run).tolist() == torch.full((2, 4), 2.0).tolist()


@pytest.mark.parametrize("field", ["spec", "seal"])
def test_no_code_is_loaded_for_a_run_that_was_not_carved_here(run: Path, field: str) -> None:
    (run.parent / "stranger.py").write_text("raise SystemExit('code of a stranger ran')")
    manifest = json.loads((run / "run.json").read_text())
    manifest["code"][field] = f"{run.parent}/stranger.py:build" if field == "spec" else "00" * 32
    manifest["seal"] = seal(manifest)
    (run / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"not carved by this installation: code .* never loaded\. Carve the model again"):
        called(run)


def test_a_model_that_has_changed_is_not_taken_for_the_one_that_was_carved(run: Path) -> None:
    (run.parent / "net.py").write_text(FILE.replace("manual_seed(0)", "manual_seed(1)"))
    with pytest.raises(ModelError, match=r"is not the model that .* was carved from"):
        called(run)


def test_a_module_given_from_python_can_be_called_in_its_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    carve(load(Around(Doubled()).eval(), example_inputs=(torch.ones(2, 4),)), [], tmp_path / "run")
    assert called(tmp_path / "run").shape == (2, 4)
    another_process(monkeypatch)
    with pytest.raises(UsageError, match=r"passed from Python\. Do this in the process that carved it, or carve the model from"):
        called(tmp_path / "run")


def test_a_part_that_gives_other_sizes_than_in_the_example_is_told() -> None:
    class Cropped(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.detach().numpy()[: max(1, int(x.sum()))])

    module = Around(Cropped()).eval()
    module.before = torch.nn.Identity()
    exported = export(load(module, example_inputs=(torch.full((3, 4), 0.2),)))
    (graph,) = exported.graphs
    with pytest.raises(ModelError, match=r"The part part of the model gives .*: its sizes depend on the data"):
        run_graph(graph, exported.tensors, {}, {graph.inputs[0].key: torch.full((3, 4), 0.05)})


def test_code_in_a_folder_that_is_called_like_a_library_is_the_models_own(tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "transformers"
    folder.mkdir(parents=True)
    (folder / "own.py").write_text(FILE.replace("torch.nn.Sequential(torch.nn.Linear(4, 4), Doubled())", "Doubled()"))
    with pytest.raises(ModelError, match=r"at own.py:\d+"):
        export(load(f"{folder / 'own.py'}:build"))
