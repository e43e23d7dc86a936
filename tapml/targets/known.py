"""All targets by name. A new target is one new file beside this one and one line here."""

from __future__ import annotations

import importlib

from tapml.targets.target import Target

FILES = (
    "cpu",
    "opencl",
    "vulkan",
    "webgpu",
    "cuda",
    "metal",
    "rocm",
    "pytorch",
    "onnxruntime",
)


def _of(file: str) -> Target:
    found: Target = importlib.import_module(f"tapml.targets.{file}").TARGET
    return found


TARGETS: dict[str, Target] = {target.name: target for target in map(_of, FILES)}

# What diagnosis holds the others against: neither threads nor a driver take part in it, and it stores what the model has.
REFERENCE = TARGETS["cpu"]

# The target whose kernels run in a browser, too, and the one that examples are given with.
BROWSER, EXAMPLE = TARGETS["webgpu"], TARGETS["opencl"]
