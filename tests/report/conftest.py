"""A run with results of two targets, made up once for all tests of reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tapml.carving.folder import RunFolder
from tests.report.results import bare, pretend


@pytest.fixture(scope="session")
def results(make_run: Callable[[str], RunFolder], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The small llama with results of opencl and vulkan."""
    run = bare(make_run("llama"), tmp_path_factory.mktemp("results") / "run")
    pretend(run, "opencl")
    pretend(run, "vulkan", scale=3.0, done=False)
    return run
