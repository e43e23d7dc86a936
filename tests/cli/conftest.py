"""A small model as a file, its run carved once through the command line, and a way to type commands in this process."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from tapml.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

MODEL = '''"""Models for the tests of the command line."""

import torch
from tests.models import causal_lm, conv_net as network

PROMPT = {"input_ids": torch.tensor([[5, 9, 70, 33, 12, 8]])}


def llama():
    return causal_lm("llama"), PROMPT


def conv_net():
    return network()


class Gate(torch.nn.Module):
    def forward(self, x):
        return x * float(x.detach().numpy().sum())


def by_the_data():
    return Gate(), (torch.ones(3),)


@torch.library.custom_op("tapml_tests::own_double", mutates_args=("x",))
def own_double(x: torch.Tensor) -> None:
    x.mul_(2)


class Own(torch.nn.Module):
    def forward(self, x):
        y = x + 1
        own_double(y)
        return y


def by_its_own():
    return Own(), (torch.ones(3),)
'''


@dataclass(frozen=True)
class Typed:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The line that tells what went wrong. Nothing but progress may stand before it."""
        *before, last = self.err.splitlines() or [""]
        assert all(line.startswith(("carve: ", "test: ", "migrate: ")) for line in before), self.err
        assert last.startswith("tapml: "), self.err
        return last


@pytest.fixture
def type_in() -> Callable[..., Typed]:
    """`type_in("test", run, "--target", "opencl")` runs the command in this process."""

    def run(*words: str | Path) -> Typed:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([str(word) for word in words])
        return Typed(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python file with functions that give models."""
    path = tmp_path_factory.mktemp("models") / "models_for_cli.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="session")
def whole_run(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a two-layer llama; not to be changed."""
    out = tmp_path_factory.mktemp("run") / "llama"
    # The shapes of `make_run("llama")`, so that the kernels are the same.
    words = ["carve", f"{models}:llama", "-o", str(out), "--decode-steps", "4", "--chunk", "8", "--max-len", "32"]
    with redirect_stdout(io.StringIO()):
        assert main(words) == 0
    return out


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to do with as a test likes."""
    return Path(shutil.copytree(whole_run, tmp_path / "llama"))
