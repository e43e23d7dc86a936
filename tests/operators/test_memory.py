"""What reads the memory of a tensor gives what it gives in PyTorch, also where the elements stand there in another order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tapml.carving.executor import run_graph
from tapml.source.export import export
from tapml.source.load import load

Tensor = torch.Tensor

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda y: y.T.as_strided((5, 4), (4, 1)),
    "rows of a transposed one": lambda y: y.T[1:].as_strided((3, 4), (5, 1), 2),
    "a view of a view, from where it begins": lambda y: y[2:].T.as_strided((2, 2), (1, 3)),
    "a copy in another order": lambda y: y.T.contiguous().T.as_strided((4, 4), (3, 2)),
    "three dimensions": lambda y: y.view(5, 2, 3).permute(2, 0, 1)[1:].as_strided((3, 4), (2, 7), 1),
    "scattered": lambda y: y.T.as_strided_scatter(torch.ones(3, 2), (3, 2), (7, 2), 1),
    "larger": lambda y: y.T.clone().resize_(8, 4),
    "smaller": lambda y: y.T.clone().resize_(3, 7),
    "rows, smaller": lambda y: y.clone()[2:].resize_(2, 5),
    "windows": lambda y: y.clone().as_strided((3, 3, 6), (6, 6, 1)).transpose(0, 1).as_strided((2, 5), (3, 1), 4),
}


class Calls(torch.nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x + 1) * 2


@pytest.mark.parametrize("name", CALLS)
def test_memory_in_another_order_is_read(name: str) -> None:
    module, x = Calls(CALLS[name]), torch.arange(30.0).view(5, 6)
    exported = export(load(module, example_inputs=(x,)))
    (graph,) = exported.graphs
    (made,) = run_graph(graph, exported.tensors, {}, {graph.inputs[0].key: x})[0].values()
    wanted = module(x)
    if name == "larger":
        wanted[torch.arange(32).view(8, 4) >= 30] = 0  # what PyTorch leaves undefined
    torch.testing.assert_close(made, wanted, rtol=0, atol=0)
