"""Small runs for the tests of this stage, each carved once a session."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tapml.carving.carve import CarveResult, carve
from tapml.carving.folder import RunFolder
from tapml.source.load import load
from tests import models

PROMPTS = ["5 9 70 33", "7 7 7 12 99 100 3 4 5 6", "11"]


@cache
def decoder(dtype: str = "float32") -> tuple[RunFolder, CarveResult, Any]:
    """A 2-layer llama, three prompts, 6 tokens each: (run, result, loaded model)."""
    model = load(models.causal_lm("llama"), dtype=dtype)
    out = Path(mkdtemp(prefix="tapml-test-")) / "run"
    result = carve(model, PROMPTS, out, decode_steps=6, chunk=4)
    return RunFolder.open(out), result, model


@cache
def convolution() -> tuple[RunFolder, CarveResult]:
    """A small convolutional network on its example input."""
    module, inputs = models.conv_net()
    out = Path(mkdtemp(prefix="tapml-test-")) / "run"
    result = carve(load(module, example_inputs=inputs), [], out)
    return RunFolder.open(out), result
