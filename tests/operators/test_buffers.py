"""Whatever a model's own code does to its buffers while TapML runs it, they are afterwards what they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tapml.errors import ModelError
from tapml.operators.buffers import buffers_kept
from tapml.operators.parts import given_by
from tapml.source.eager import EagerModule
from tapml.source.export import export
from tapml.source.load import load

WAYS: dict[str, Callable[[torch.nn.Module, torch.Tensor], object]] = {
    "written": lambda module, x: module.total.add_(x),
    "replaced": lambda module, x: setattr(module, "total", module.total + x),
    "grown": lambda module, x: setattr(module, "total", torch.cat([module.total, x])),
    "resized": lambda module, x: module.total.resize_(5).zero_(),
    "taken out": lambda module, x: delattr(module, "total"),
}


class Counts(torch.nn.Module):
    """Returns its own buffer, which it has changed in one of the ways; raises where the input is negative."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.register_buffer("total", torch.full((2,), 5.0))
        self.register_buffer("fixed", torch.ones(1).expand(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        WAYS[self.way](self, x)
        if float(x.sum()) < 0:
            raise ValueError("negative")
        return self.total if self.way != "taken out" else x


def unchanged(module: Counts, total: torch.Tensor) -> bool:
    return module.total is total and total.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("way", WAYS)
def test_buffers_are_what_they_were_also_after_an_error(way: str) -> None:
    module = Counts(way)
    total = module.total
    with buffers_kept(module):
        module(torch.ones(2))
    assert unchanged(module, total)
    with pytest.raises(ValueError, match="negative"), buffers_kept(module):
        module(-torch.ones(2))
    assert unchanged(module, total)


def test_a_part_gives_what_it_computed_and_not_what_is_put_back() -> None:
    module = Counts("written")
    total = module.total
    (given,) = given_by(module, ((torch.ones(2),), {}))
    assert given.tolist() == [6.0, 6.0] and unchanged(module, total)
    with pytest.raises(ValueError, match="negative"):
        given_by(module, ((-torch.ones(2),), {}))
    assert unchanged(module, total)


@pytest.mark.parametrize("way", ["written", "grown"])
def test_a_module_that_fails_on_its_example_keeps_its_buffers(way: str) -> None:
    module = Counts(way)
    total = module.total
    with pytest.raises(ModelError, match="does not run on its example inputs: ValueError: negative"):
        export(load(module, example_inputs=(-torch.ones(2),)))
    assert unchanged(module, total)
    model = load(module, example_inputs=(torch.ones(2),))
    given = EagerModule(model).outputs(model.example_inputs)["output"]
    assert given.tolist() == ([6.0, 6.0] if way == "written" else [5.0, 5.0, 1.0, 1.0])
    assert unchanged(module, total)
