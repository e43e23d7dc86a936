"""Indices among equal values are judged by the values that they lead to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tapml
from tapml.carving.folder import RunFolder
from tapml.carving.reference import ReferenceMaker
from tapml.carving.ties import as_good, leads
from tapml.carving.tolerance import compare
from tests.compile.bodies import call

X = torch.tensor([[3.0, 1.0, 3.0, 2.0, 3.0, 1.0]])


def test_which_outputs_are_such_indices() -> None:
    assert {k: lead[:2] for k, lead in leads(call("aten.topk.default", X, 2).body).items()} == {1: ("i0", 1)}
    assert {k: lead[:2] for k, lead in leads(call("aten.argsort.default", X, 0).body).items()} == {0: ("i0", 0)}
    assert not leads(call("aten.sort.stable", X, stable=True).body) and not leads(call("aten.max.dim", X, 1).body)


@pytest.mark.parametrize(("indices", "passes"), [
    ([0, 2], True), ([4, 0], True), ([2, 4], True), ([0, 0], False), ([0, 3], False), ([0, 6], False), ([-1, 0], False),
])  # fmt: skip
def test_any_of_the_equal_ones_will_do_once(indices: list[int], passes: bool) -> None:
    made = call("aten.topk.default", X, 2)
    (_, reference) = ReferenceMaker(made.body).on_host(made.inputs)
    assert compare(np.array([indices]), reference).passed is passes


def test_without_equal_values_the_index_must_be_the_one() -> None:
    made = call("aten.topk.default", torch.arange(6.0)[None], 2)
    (_, reference) = ReferenceMaker(made.body).on_host(made.inputs)
    assert reference.led is None and not compare(np.array([[4, 5]]), reference).passed


def test_nan_leads_to_nan_and_a_dimension_may_be_gone() -> None:
    x = np.array([[np.nan, 1.0, np.nan]], np.float32)
    assert as_good(np.array([2]), np.array([0]), x, 1).tolist() == [True]
    assert as_good(np.array([1]), np.array([0]), x, 1).tolist() == [False]


class Router(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found: tuple[torch.Tensor, torch.Tensor] = torch.topk(torch.round(x * 2), 3)
        return found


def test_a_run_keeps_what_indices_lead_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tapml.carve(Router(), (torch.randn(4, 16),), out=tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    (case,) = [c for c in folder.cases if len(folder.bodies[folder.operator(c.operator).signature].outputs) == 2]
    _, references = folder.case_references(case)
    x, dim = references[1].led or (np.zeros(0), 0)
    assert x.shape == (4, 16) and dim == 1
