"""How other projects test kernels, each by its own rule: what the inputs are, what the reference is, and when an output is wrong.

    BackendBench(run, bench, seed).find(operators)          as `tapml.diagnose.bench.baselines.RandomInputs`
    FlashinferBench(run, bench, seed).find(operators)
    TestBackendOps(run, bench, seed).find(operators)

The reference is PyTorch on the processor in the model's own dtype, never float64, and the tolerance is the project's. What is
theirs is the rule; the operators are ours, with the shapes of this model (fused, where they have single calls of ATen or of
ggml). Where a rule leaves something open, the reading that finds more was taken:

- Integers are indices and positions here, and random ones are out of range. They are drawn from the recorded range, or are those
  recorded. BackendBench leaves operators that read indices out, and gives all others integers from -9 to 9.
- Booleans are as recorded, because a random mask may hide everything.
- There are as many draws as recorded calls of the signature, where the project says no number.

`BackendBench` (meta-pytorch/BackendBench: `BackendBench/utils.py`, `_deserialize_tensor`; `BackendBench/eval.py`, `_allclose`).
Floats are uniform in [0, 1), so that none is negative. `torch.testing.assert_close(reference, result)` with rtol and atol 1e-2
and NaN equal to NaN: the tolerance grows with the result. A tolerance that a caller asks for is dropped there.

`FlashinferBench` (flashinfer-ai/flashinfer-bench: `flashinfer_bench/bench/utils.py`, `_rand_tensor` and `compute_error_stats`;
`bench/evaluators/default.py`, `check_correctness`; `bench/config.py`). Floats from N(0, 1), three trials; integers as recorded,
since its workloads bring indices along as safetensors. Any infinity or NaN in the output is an error, and so is an element that
is off by more than 1e-2 and by more than 1e-2 of the reference.

`TestBackendOps` (ggml-org/llama.cpp: `tests/test-backend-ops.cpp`, `init_tensor_uniform`, `nmse` and `test_case::eval`). Floats
are uniform in [-1, 1). NaN on either side is an error, an infinity on one side only too; else the mean square of the differences
over that of the output, in float32, is at most 1e-7, and 5e-4 for products of matrices, convolutions and attention. 1,024 floats
lie behind every tensor (its sentinels), and must be as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from tapml.backends.interface import Compiled
from tapml.carving.tolerance import Reference
from tapml.diagnose.bench.baselines import Drawn, RandomInputs
from tapml.diagnose.probes.guard_bytes import ZERO, Filling, run_guarded
from tapml.operators.graph import Operator
from tapml.tensors import HostArray

_PRODUCTS = ("linear", "mm", "bmm", "addmm", "baddbmm", "matmul", "einsum", "convolution", "conv1d", "conv2d", "conv3d",
             "scaled_dot_product_attention")  # fmt: skip


class _Neighbour(RandomInputs):
    """PyTorch in the model's own dtype is the reference."""

    def references(self, operator: Operator, inputs: Sequence[HostArray]) -> list[Reference]:
        return [Reference(values) for values in self.bench.model.source(operator.signature)(inputs)]


class BackendBench(_Neighbour):
    """See the module's docstring."""

    RTOL = ATOL = 1e-2

    def floats(self, rng: np.random.Generator, shape: tuple[int, ...]) -> HostArray:
        return rng.random(shape, np.float32)

    def complaint(self, operator: Operator, actual: Sequence[HostArray], drawn: Drawn) -> str:
        for result, reference in zip(actual, drawn.references, strict=True):
            left, right = reference.values.astype(np.float64), result.astype(np.float64)
            with np.errstate(all="ignore"):
                wrong = ~np.isclose(left, right, rtol=self.RTOL, atol=self.ATOL, equal_nan=True)
            if wrong.any():
                return f"{wrong.sum()} of {wrong.size} elements are not close at rtol 1e-2, atol 1e-2"
        return ""


class FlashinferBench(_Neighbour):
    """See the module's docstring."""

    RTOL = ATOL = 1e-2
    TRIALS = 3

    def draws(self, operator: Operator) -> int:
        return self.TRIALS if super().draws(operator) else 0

    def integers(self, rng: np.random.Generator, recorded: Sequence[HostArray], number: int) -> HostArray:
        return recorded[number % len(recorded)]

    def complaint(self, operator: Operator, actual: Sequence[HostArray], drawn: Drawn) -> str:
        for result, reference in zip(actual, drawn.references, strict=True):
            x, y = result.astype(np.float32), reference.values.astype(np.float32)
            if not np.isfinite(x).all():
                return "the output holds infinity or NaN"
            with np.errstate(all="ignore"):
                error = np.abs(x - y)
                wrong = (error > self.ATOL) & (error / (np.abs(y) + np.float32(1e-8)) > self.RTOL)
            if wrong.any():
                return f"{wrong.sum()} of {wrong.size} elements are off by more than 1e-2, absolute and relative"
        return ""


class TestBackendOps(_Neighbour):
    """See the module's docstring."""

    __test__: ClassVar[bool] = False  # its name begins like a test's

    MOST, MOST_OF_PRODUCTS = 1e-7, 5e-4
    SENTINEL = 4096  # bytes

    def floats(self, rng: np.random.Generator, shape: tuple[int, ...]) -> HostArray:
        return rng.uniform(-1.0, 1.0, shape).astype(np.float32)

    def carried_out(self, program: Compiled, inputs: Sequence[HostArray]) -> tuple[Sequence[HostArray], str]:
        held = run_guarded(self.bench, program, inputs, Filling(ZERO, ZERO), self.SENTINEL)
        return held.outputs, f"sentinel mismatch behind {', '.join(held.overwritten)}" if held.overwritten else ""

    def complaint(self, operator: Operator, actual: Sequence[HostArray], drawn: Drawn) -> str:
        body = self.bench.model.bodies[operator.signature]
        product = any(node.target.split(".")[1] in _PRODUCTS for node in body.nodes if "." in node.target)
        most = self.MOST_OF_PRODUCTS if product else self.MOST
        found = map(partial(_nmse_complaint, most=most), actual, (r.values for r in drawn.references))
        return next((words for words in found if words), "")


def _nmse_complaint(result: HostArray, reference: HostArray, most: float) -> str:
    a, b = result.astype(np.float32), reference.astype(np.float32)
    if np.isnan(a).any() or np.isnan(b).any():
        return "NaN"
    limit = np.finfo(np.float32).max
    left, right = (np.abs(x) >= limit for x in (a, b))
    if (left != right).any() or (left & right & (np.signbit(a) != np.signbit(b))).any():
        return "inf mismatch"
    error = nmse(a, b)
    return f"NMSE {error:.3g} > {most:.0e}" if error > most else ""


def nmse(a: HostArray, b: HostArray) -> float:
    """The mean square of a - b over that of a, float32 arrays: inf where a is all zeros and b is not, NaN (which is no error)
    where both are. An infinity on both sides makes it NaN as well."""
    with np.errstate(all="ignore"):
        off, whole = (float((x * x).sum(dtype=np.float64)) for x in (a - b, a))
    return off / whole if whole else math.inf if off else math.nan
