"""Calls of PyTorch's operators drawn at random are right, or refused with a reason. `benchmarks/operators.py` draws thousands."""

from __future__ import annotations

import pytest
import torch

from tapml.errors import UnavailableError
from tests.compile.drawn import Bench, Drawn, draw, operators, tried

CALLS = 12


@pytest.fixture(scope="module", params=["opencl", "vulkan"])
def bench(request: pytest.FixtureRequest) -> Bench:
    try:
        return Bench(request.param)
    except UnavailableError as error:
        pytest.skip(f"not run: {error}")


def test_a_drawn_call_is_right_or_refused(bench: Bench) -> None:
    for drawn in draw(1, CALLS):
        outcome = tried(drawn, bench)
        assert outcome.state in ("right", "unchecked", "refused"), f"{drawn.text}: {outcome.state}, {outcome.detail}"
        assert outcome.state == "right" or outcome.detail, drawn.text


def test_most_of_the_ordinary_ones_are_right(bench: Bench) -> None:
    ordinary = ("add", "nn.functional.relu", "nn.functional.layer_norm", "matmul", "softmax", "where", "cumsum", "gather")
    found = [tried(drawn, bench) for drawn in draw(7, 16, ordinary)]
    assert sum(outcome.state == "right" for outcome in found) >= 12, found


def test_a_wrong_kernel_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a relu that gives 1 more is found."""
    from tapml.compile import conversions

    relu = conversions.CONVERSIONS["neg.default"]
    monkeypatch.setitem(conversions.CONVERSIONS, "relu.default", relu)
    x = torch.linspace(-2, 2, 64)
    assert tried(Drawn("relu", "relu", torch.relu, (x,)), bench).state == "wrong"


def test_pytorch_tells_of_its_operators() -> None:
    assert len(operators()) > 500
