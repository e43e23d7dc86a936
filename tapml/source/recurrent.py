"""Recurrent layers written out step by step while a model is traced: `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells.

    with unrolled(module):
        trace(module, …)

PyTorch calls such a layer as one operator, which no target has. Written out it is linear, sigmoid, tanh and sums, step after
step, so a graph grows with the length of its input: what is longer than `MOST_STEPS` steps, a packed sequence, and a class with
a `forward` of its own are one call, which stays on the source. A step takes its input by an index that is a tensor, so that all
steps are the same operators and share kernels, and writes its result into the whole by the same index: a kernel that joined all
steps would need a buffer for each. The equations are those of PyTorch's documentation of each layer; dropout between layers is
that of evaluation, none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

# Steps of all layers and directions together that are written out: about eight nodes each.
MOST_STEPS = 512

State = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, State], State]


@contextmanager
def unrolled(module: torch.nn.Module) -> Iterator[None]:
    """While it lasts, the recurrent layers in the module run step by step, but for those that are given packed sequences or more
    than `MOST_STEPS` steps."""
    patched = []
    for part in module.modules():
        own: Any = type(part)
        forward = next((ours for kind, ours in _FORWARDS.items() if own.forward is kind.forward), None)
        if forward is not None and "forward" not in part.__dict__:
            part.__dict__["forward"] = partial(forward, part)
            patched.append(part)
    try:
        yield
    finally:
        for part in patched:
            del part.__dict__["forward"]


def _layer(part: Any, input: Any, hx: Any = None) -> Any:
    if not isinstance(input, torch.Tensor):
        return type(part).forward(part, input, _packed_zeros(part, input) if hx is None else hx)
    batched = input.dim() == 3
    x = input if batched else input.unsqueeze(1)
    if batched and part.batch_first:
        x = x.transpose(0, 1)
    directions = 2 if part.bidirectional else 1
    steps = x.shape[0] * part.num_layers * directions
    if steps > MOST_STEPS:
        return type(part).forward(part, input, hx)
    given = None if hx is None else hx if isinstance(hx, tuple) else (hx,)
    if given is not None and not batched:
        given = tuple(state.unsqueeze(1) for state in given)
    last: list[State] = []
    for layer in range(part.num_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            start = _zeros(part, x) if given is None else tuple(state[number] for state in given)
            made, end = _run(part, f"_l{layer}" + ("_reverse" if direction else ""), x, start, bool(direction))
            outputs.append(made)
            last.append(end)
        x = torch.cat(outputs, -1) if directions == 2 else outputs[0]
    ends = tuple(torch.stack(states) for states in zip(*last, strict=True))
    if not batched:
        x, ends = x.squeeze(1), tuple(state.squeeze(1) for state in ends)
    elif part.batch_first:
        x = x.transpose(0, 1)
    return x, ends if len(ends) == 2 else ends[0]


def _zeros(part: Any, x: torch.Tensor) -> State:
    sizes = [part.proj_size or part.hidden_size] + ([part.hidden_size] if part.mode == "LSTM" else [])
    return tuple(x.new_zeros((x.shape[1], size)) for size in sizes)


def _packed_zeros(part: Any, input: Any) -> Any:
    """The first state for a packed sequence. The layer's own code takes a size from a tensor in a way that no trace knows."""
    sizes = [part.proj_size or part.hidden_size] + ([part.hidden_size] if part.mode == "LSTM" else [])
    layers, batch = part.num_layers * (2 if part.bidirectional else 1), int(input.batch_sizes[0])
    made = tuple(input.data.new_zeros((layers, batch, size)) for size in sizes)
    return made if part.mode == "LSTM" else made[0]


def _run(part: Any, name: str, x: torch.Tensor, state: State, backwards: bool) -> tuple[torch.Tensor, State]:
    """One layer in one direction: x [steps, batch, features] → outputs [steps, batch, hidden], last state."""
    bias = (getattr(part, f"bias_ih{name}"), getattr(part, f"bias_hh{name}")) if part.bias else (None, None)
    into = linear(x, getattr(part, f"weight_ih{name}"), bias[0])
    project = getattr(part, f"weight_hr{name}") if part.proj_size else None
    hidden = getattr(part, f"weight_hh{name}")
    made = x.new_zeros((*x.shape[:2], state[0].shape[-1]))
    places: Sequence[int] = range(x.shape[0])
    for place in reversed(places) if backwards else places:
        index = torch.tensor([place], device=x.device)
        step = into.index_select(0, index).squeeze(0)
        state = _step(part.mode, step, linear(state[0], hidden, bias[1]), state, project)
        made = made.index_copy(0, index, state[0].unsqueeze(0))
    return made, state


def _step(mode: str, into: torch.Tensor, around: torch.Tensor, state: State, project: torch.Tensor | None = None) -> State:
    """The next state from what the input and the last state were multiplied to."""
    if mode == "LSTM":
        i, f, g, o = (into + around).chunk(4, -1)
        cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        made = torch.sigmoid(o) * torch.tanh(cell)
        return (made if project is None else linear(made, project)), cell
    if mode == "GRU":
        r, z, n = into.chunk(3, -1)
        hr, hz, hn = around.chunk(3, -1)
        update = torch.sigmoid(z + hz)
        fresh = torch.tanh(n + torch.sigmoid(r + hr) * hn)
        return ((1 - update) * fresh + update * state[0],)
    return (torch.relu(into + around) if mode == "RNN_RELU" else torch.tanh(into + around),)


def _cell(mode: str, part: Any, input: torch.Tensor, hx: Any = None) -> Any:
    zeros = input.new_zeros((*input.shape[:-1], part.hidden_size))
    state = ((zeros, zeros) if mode == "LSTM" else (zeros,)) if hx is None else hx if isinstance(hx, tuple) else (hx,)
    if mode == "RNN" and part.nonlinearity == "relu":
        mode = "RNN_RELU"
    into = linear(input, part.weight_ih, part.bias_ih)
    made = _step(mode, into, linear(state[0], part.weight_hh, part.bias_hh), state)
    return made if mode == "LSTM" else made[0]


_FORWARDS: dict[Any, Callable[..., Any]] = {
    torch.nn.LSTM: _layer,
    torch.nn.GRU: _layer,
    torch.nn.RNN: _layer,
    torch.nn.LSTMCell: partial(_cell, "LSTM"),
    torch.nn.GRUCell: partial(_cell, "GRU"),
    torch.nn.RNNCell: partial(_cell, "RNN"),
}
