"""What no target can run stays on the source, each call with its reason, and the rest is recorded as ever."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

from tapml.carving.carve import carve
from tapml.carving.executor import GraphExecutor
from tapml.carving.faithful import compare_decoder, compare_module
from tapml.carving.folder import RunFolder
from tapml.errors import ModelError
from tapml.operators.cut import cut
from tapml.operators.execute import host_from_tensor
from tapml.operators.stays import why_it_stays
from tapml.runtime.module import Module
from tapml.source.export import Exported, export, flat_outputs
from tapml.source.load import load
from tapml.source.model import LoadedModel
from tests import models

Tensor = torch.Tensor


class Around(torch.nn.Module):
    """A linear layer, a function, and where its result is [n, 4] of floats another linear layer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.before = torch.nn.Linear(4, 4)
        self.after = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.after(self.function(self.before(x), *more))


def around(function: Callable[..., Any], rows: int = 3, *more: Tensor) -> LoadedModel:
    torch.manual_seed(0)
    return load(Around(function).eval(), example_inputs=(torch.randn(rows, 4), *more))


def products(x: Tensor) -> Tensor:
    """Of complex numbers, and what nobody writes in real ones."""
    turns = torch.view_as_complex(x.view(-1, 2, 2))
    return torch.view_as_real(torch.cumprod(turns, 0)).flatten(1)


def several(x: Tensor) -> Tensor:
    values, vectors = torch.linalg.eig(x[:3, :3])
    return torch.nn.functional.pad(values.abs() + vectors.real.sum(1) + (values * (1 + 2j)).conj().imag, (0, 1))


def layer(x: Tensor) -> Tensor:
    return torch.gru(x[None], torch.zeros(1, 1, 4), [torch.ones(12, 4) * 0.1] * 2, False, 1, 0.0, False, False, True)[0][0]


def draws(x: Tensor) -> Tensor:
    mixed = torch.randn(3, 4) - torch.randn(3, 4) + torch.rand_like(x) * torch.bernoulli(x.sigmoid())
    dropped = torch.nn.functional.dropout(x, 0.5, True) + torch.empty(3, 4).uniform_()
    return mixed + dropped + x[torch.randperm(3)]


def halves(x: Tensor) -> Tensor:
    return while_loop(lambda k, y: (k < 5) & (y.abs().sum() > 1e-3), lambda k, y: (k + 1, y * 0.5), (torch.tensor(0), x))[1]


# The function, what stays, and how many operators do.
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str, int]] = {
    "products": (products, "complex numbers", 1),
    "several results": (several, "complex numbers", 1),
    "bits": (lambda x: (x.view(torch.int32) & -65536).view(torch.float32), "the bits of numbers", 2),
    "float8": (lambda x: x.to(torch.float8_e4m3fn).to(torch.float32), "computes in float8_e4m3fn", 1),
    "unsigned": (lambda x: (x * 100).abs().to(torch.uint16).to(torch.float32), "computes in uint16", 1),
    "recurrent": (layer, "a recurrent layer in one call", 1),
    "random": (draws, "draws random numbers", 7),
    "while": (halves, r"repeats a part of the model in one call \(while_loop\)", 1),
}


def cut_up(model: LoadedModel) -> tuple[Exported, GraphExecutor, list[tuple[str, str]]]:
    """The operators that stay, and why, and the executor of all."""
    exported = export(model)
    operators, bodies = cut(exported.graphs[0])
    executor = GraphExecutor(exported.graphs, operators, bodies, exported.tensors, {**exported.states, **exported.initial})
    return exported, executor, [(o.name, why) for o in operators if (why := why_it_stays(bodies[o.signature]))]


def outputs(executor: GraphExecutor, exported: Exported) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in executor.step_tensors("forward", exported.examples).items()}


def answer(model: LoadedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.call(model.example_inputs)
        return found


def agrees(model: LoadedModel, exported: Exported) -> None:
    compare_module(model, exported, [{key: host_from_tensor(t) for key, t in exported.examples.items()}])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_stays_alone(kind: str) -> None:
    function, reason, count = KINDS[kind]
    model = around(function)
    exported, executor, stay = cut_up(model)
    assert [bool(re.search(reason, why)) for _, why in stay] == [True] * count, stay
    assert sum(o.kind == "linear" for o in executor.operators) == 2
    agrees(model, exported)
    first, again = outputs(executor, exported), outputs(executor, exported)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    if kind != "random":
        torch.testing.assert_close(first["output"], answer(model), rtol=1e-5, atol=1e-6)


class Complex(torch.nn.Module):
    """Complex inputs, outputs, weights, constants and a state: all are handed over as pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
        self.register_buffer("kept", torch.zeros(4, dtype=torch.complex64))
        self.constant = torch.randn(4, dtype=torch.complex64)
        self.real = torch.nn.Linear(4, 4)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        made = torch.cumprod(torch.complex(self.real(z.real), z.imag) @ self.weight + self.constant, 0)
        self.kept.mul_(0.5).add_(made[0])
        return made, self.real(self.kept.abs())


def test_complex_inputs_outputs_weights_and_states() -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 4, dtype=torch.complex64)
    model = load(Complex().eval(), example_inputs=(z,))
    exported, executor, stay = cut_up(model)
    assert {str(t.dtype) for t in (*exported.tensors.values(), *exported.examples.values())} == {"torch.float32"}
    assert exported.tensors["weight"].shape == (4, 4, 2) and exported.states["kept"].shape == (4, 2)
    assert 0 < len(stay) < len(executor.operators)
    agrees(model, exported)
    for _ in range(2):
        with torch.no_grad():
            made, kept = model.module(z)
        found = executor.step_tensors("forward", exported.examples)
        torch.testing.assert_close(torch.view_as_complex(found["0"].clone()), made, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["1"], kept, rtol=1e-5, atol=1e-6)


def test_a_dtype_that_is_asked_for_leaves_complex_weights_complex() -> None:
    model = load(Complex().eval(), example_inputs=(torch.randn(3, 4, dtype=torch.complex64),), dtype="float32")
    assert model.module.weight.is_complex() and model.module.kept.is_complex()


def test_no_wrong_result_agrees_with_a_module_that_draws() -> None:
    """The comparison with the module is one of numbers: another distribution is seen."""
    model = around(lambda x: x + torch.randn(3, 4))
    exported = export(model)
    other = export(around(lambda x: x + torch.rand(3, 4)))
    with pytest.raises(ModelError, match="does not compute what Around itself computes"):
        agrees(model, Exported(other.graphs, exported.tensors, {}, {}, Module(), exported.examples))


def test_a_decoder_that_draws_is_refused_with_the_line() -> None:
    module = models.causal_lm("llama")
    own = module.model.norm.forward
    module.model.norm.forward = lambda x: own(x) + torch.randn_like(x)
    model = load(module)
    with pytest.raises(ModelError, match=r"draws random numbers \(aten.randn_like.default, \w+.py:\d+\)"):
        compare_decoder(model, export(model, chunk=4, max_len=8), [[5, 9, 70]], [[1, 2]])


BRANCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "cond": lambda x: torch.cond(x.sum() > 0, lambda x: x.sin() * 2, lambda x: x.cos(), (x,)),
    "the other": lambda x: torch.cond(x.sum() > 99, lambda x: x.sin() * 2, lambda x: x.cos(), (x,)),
    "nested": lambda x: torch.cond(
        x.sum() > 0, lambda x: torch.cond(x.max() > 9, lambda x: x * 2, lambda x: x + torch.ones(4), (x,)), torch.cos, (x,)
    ),
    "map": lambda x: map_rows(lambda row: row * row.sum(), x),
    "scan": lambda x: scan(lambda c, row: (c + row, c * row), torch.zeros(4), x)[1],
}  # fmt: skip


@pytest.mark.parametrize("kind", BRANCHES)
def test_branches_and_short_loops_are_written_out(kind: str) -> None:
    torch.manual_seed(0)
    model = around(BRANCHES[kind])
    exported, executor, stay = cut_up(model)
    assert not stay
    agrees(model, exported)
    torch.testing.assert_close(outputs(executor, exported)["output"], answer(model), rtol=1e-5, atol=1e-6)


def test_a_long_scan_is_one_call_that_stays() -> None:
    model = around(lambda x: scan(lambda c, row: (c * 0.5 + row, c * row), torch.zeros(4), x)[1], rows=300)
    exported, executor, stay = cut_up(model)
    assert [why for _, why in stay] == ["it repeats a part of the model in one call (scan)"] and len(executor.operators) < 8
    torch.testing.assert_close(outputs(executor, exported)["output"], answer(model), rtol=1e-5, atol=1e-6)


def assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0] = x[x > 0] * 2
    y[1:, x[0] > 0] = 7.0
    y[x[:, 0] > 0] = x[0] * 3
    y[:, x[0] > 0] = x[:, :1] * 5
    return y


def experts(x: Tensor) -> Tensor:
    """Each takes the rows that chose it; nobody chose the last."""
    shares, chosen = x.softmax(-1).topk(2, -1)
    made = torch.zeros_like(x)
    for number in range(5):
        rows, place = torch.where(chosen == number)
        made.index_add_(0, rows, (x[rows] * number).sin() * shares[rows, place, None])
    return made


# By what their sizes or their course depend on the data.
SIZES: dict[str, Callable[[Tensor], Any]] = {
    "index": lambda x: (x[x[:, 0] > 0], x[x > 0], x[:, x[0] > 0, None], x[0] if x[0, 0] > 99 else x[1]),
    "nonzero": lambda x: (x.nonzero(), torch.argwhere(x > 0), torch.where(x > 9), (x[0, 0] < 9).nonzero()),
    "masked_select": lambda x: (
        torch.masked_select(x[0, 0], x[0, 1] > -9), torch.masked_select(x, x[:, :1] > 0), torch.masked_select(x[0], x > 0.1)),
    "unique": lambda x: (torch.unique(x > 0, return_inverse=True), torch.unique_consecutive(x[:, 0] > 0)),
    "repeat_interleave": lambda x: (
        x.repeat_interleave((x[:, 0] > 0).long() + 1, 0), torch.repeat_interleave((x[0] > 0).int()),
        x.repeat_interleave((x[0, :1] > 9).long() + 2)),
    "bincount": lambda x: (torch.bincount((x[0] > 0).int(), x[0], 4), torch.bincount((x > 0).flatten().long())),
    "one_hot": lambda x: torch.nn.functional.one_hot((x[:, 0] > 0).long()),
    "item": lambda x: (x[: int(x.abs().max()) + 1], x.split([int((x[:, 0] > 0).sum()), int((x[:, 0] <= 0).sum())])),
    "equal": lambda x: x + 1 if torch.equal(x, x * 1) and torch.allclose(x, x + 1e-9) else x,
    "assigned": assigned,
    "experts": experts,
}


class Sized(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {key: function(self.linear(x)) for key, function in SIZES.items()}


def test_sizes_that_depend_on_the_data_are_those_of_the_example() -> None:
    torch.manual_seed(0)
    model = load(Sized().eval(), example_inputs=(torch.randn(6, 4),))
    exported, executor, stay = cut_up(model)
    assert [why for _, why in stay] == [
        f"the size of what it gives depends on the data ({word})" for word in ("_unique2", "unique_consecutive")]
    agrees(model, exported)
    torch.testing.assert_close(outputs(executor, exported), flat_outputs(answer(model)), rtol=1e-5, atol=1e-6)
    empty = {n.target for n in exported.graphs[0].nodes if len(n.outputs) == 1 and 0 in n.outputs[0].shape}
    assert empty == {"aten.full.default"}, "nothing is computed of no element"
    (note,) = exported.notes
    line = next(k for k, text in enumerate(Path(__file__).read_text().splitlines(), 1) if '"index": lambda' in text)
    assert f"index at test_stays.py:{line}, item at test_stays.py:{line}, nonzero at test_stays.py:{line + 1} and" in note
    other = {"x": torch.randn(6, 4, generator=torch.Generator().manual_seed(3))}
    executor.step_tensors("forward", other)  # other numbers, and no error
    with pytest.raises(ModelError, match="does not compute what Sized itself computes"):
        compare_module(model, exported, [{key: host_from_tensor(t) for key, t in other.items()}])


def test_a_run_says_what_stays_and_records_the_rest(tmp_path: Path) -> None:
    model = around(lambda x: halves(products(x) + torch.randn(3, 4)) + x.to(torch.float8_e5m2).to(torch.float32))
    result = carve(model, [], tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    named = {entry["operator"]: entry["reason"] for entry in result.stays}
    assert named == {o.name: why for o in run.operators if (why := why_it_stays(run.bodies[o.signature]))}
    assert {why.split()[1] for why in named.values()} == {"computes", "draws", "repeats"} and len(named) >= 4
    assert {case.operator for case in run.cases} == {o.name for o in run.operators} - named.keys()
    assert result.compared["dtype"] == "float32" and result.compared["error"] < 1e-5


def test_a_stranger_cannot_hand_on_what_only_the_source_has(tmp_path: Path) -> None:
    """In a run's tables such dtypes are within operators, nowhere else."""
    from tapml.operators.graph import Body

    _, executor, stay = cut_up(around(products))
    operator = next(o for o in executor.operators if o.name == stay[0][0])
    (body,) = [b for b in cut(executor.graphs[0])[1].values() if b.signature == operator.signature]
    written = body.to_json()
    assert Body.from_json(written) == body
    inner = next(n["name"] for n in written["nodes"] if n["outputs"][0][1] == "complex64")
    with pytest.raises(ValueError, match="leaves an operator"):
        Body.from_json({**written, "outputs": [inner]})
    with pytest.raises(ValueError, match="complex64"):
        Body.from_json({**written, "inputs": [[[2], "complex64"]] * len(written["inputs"])})
