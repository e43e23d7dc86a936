"""Small models of integers, and wrong kernels for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import nn

import tapml
from tapml.carving.folder import RunFolder
from tapml.migrate.inject import Injection

BEYOND = [2**24 + 1, 2**33 + 7, -(2**40), torch.iinfo(torch.int64).min, 5]


class Sum(nn.Module):
    """A uint8 sum that another operator reads: both isolated tests see values that were recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(256, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.sort(x + x)[0]
        return y > 100, self.table(y.int())


class Choice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.table(x.argmax(-1)))


class Long(nn.Module):
    """int64 beyond 32 bits as an input, as a weight, and computed from small numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stamps", torch.tensor(BEYOND))
        self.linear = nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor, small: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hashed = torch.sort(small)[0]
        return torch.sort(ids)[0], torch.flip(self.stamps, [0]), hashed * 1_000_003, self.linear(x)


class Hash(nn.Module):
    """Products beyond 32 bits of which something is asked: a quotient, which is then wrong, and whether they are above 3, which
    is right by chance."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b = torch.sort(a)[0], torch.sort(b)[0]
        return a * a // 1000, b * b > 3


@cache
def carved(name: str) -> RunFolder:
    torch.manual_seed(0)
    module, inputs = {
        "sum": lambda: (Sum(), (torch.tensor([0, 1, 5, 100, 127, 128, 200, 255], dtype=torch.uint8),)),
        "choice": lambda: (Choice(), (torch.randn(3, 16),)),
        "hash": lambda: (Hash(), (torch.tensor([100_000, 7, 90_000]), torch.tensor([100_001, 8]))),
        "long": lambda: (Long(), (torch.tensor(BEYOND), torch.tensor([100_000, 7, -90_000]), torch.randn(2, 4))),
    }[name]()
    return tapml.carve(module.eval(), inputs, out=Path(mkdtemp(prefix="tapml-test-")) / "run").folder


def no_wrap(operator: str, target: str, source: str) -> str:
    """uint8 arithmetic that is never brought back into 8 bits."""
    return source.replace("& 255", "& 65535")


def far_index(operator: str, target: str, source: str) -> str:
    """Indices that are out of every range."""
    return source.replace("= where_first_intermediate_local_ptr[0];", "= where_first_intermediate_local_ptr[0] + 999;")


def far_away(operator: str, target: str, source: str) -> str:
    """The same, and a table that the driver refuses, so that it stays on the source."""
    return source + "\nno kernel" if "table" in operator else far_index(operator, target, source)


def fault(function: Callable[[str, str, str], str]) -> Injection:
    return Injection(function.__name__, function.__name__, function)
