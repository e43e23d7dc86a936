"""Calls that run a program again and again, which no list of calls can be: `while_loop`, and `map` and `scan` over many steps.

    function = loop("loops.while_loop.default")           from arguments as PyTorch's own has them; None for another target

In a graph such a call is one node. The programs that it runs are bodies (`{"body": its JSON}`, see `tapml.operators.graph`), each
without weights of its own: these are among the arguments. What it gives is one tensor, or a tuple.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tapml.errors import ModelError

Tensors = Sequence[torch.Tensor]
Program = Callable[[Tensors], tuple[torch.Tensor, ...]]

# What PyTorch calls them, and their targets in graphs.
TARGETS = {"while_loop": "loops.while_loop.default", "map_impl": "loops.map.default", "scan": "loops.scan.default"}

# A run may come from anybody: no loop of it is endless.
MOST_ROUNDS = 1_000_000


def loop(target: str) -> Callable[..., Any] | None:
    return _LOOPS.get(target)


def _while(goes_on: Program, body: Program, state: Tensors, more: Tensors) -> Any:
    for _ in range(MOST_ROUNDS):
        if not bool(goes_on((*state, *more))[0]):
            return _given(state)
        state = body((*state, *more))
    raise ModelError(f"A loop of the model goes on after {MOST_ROUNDS:,} rounds.")


def _map(body: Program, given: Tensors, more: Tensors) -> Any:
    rows = [body((*(x[step] for x in given), *more)) for step in range(len(given[0]))]
    return _given([torch.stack(column) for column in zip(*rows, strict=True)])


def _scan(body: Program, state: Tensors, given: Tensors, more: Tensors) -> Any:
    rows = []
    for step in range(len(given[0])):
        made = body((*state, *(x[step] for x in given), *more))
        state = made[: len(state)]
        rows.append(made[len(state) :])
    return _given([*state, *(torch.stack(column) for column in zip(*rows, strict=True))])


def _given(tensors: Tensors) -> Any:
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


_LOOPS: dict[str, Callable[..., Any]] = {
    TARGETS["while_loop"]: _while, TARGETS["map_impl"]: _map, TARGETS["scan"]: _scan,
}  # fmt: skip
