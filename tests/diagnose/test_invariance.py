"""The same bits in every run, and for a row wherever it stands: toy engines that keep to neither, and targets that do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch

import tapml
from tapml.api import Run
from tapml.backends.interface import PLAIN, OnPrepared, Prepared, Way
from tapml.backends.source import OnHost, Source
from tapml.diagnose.invariance.rows import arrangements, rows_of
from tapml.errors import DeviceError, RunError, UsageError
from tapml.migrate.invariance import kept_invariance
from tapml.operators.execute import host_function
from tapml.operators.graph import Body
from tapml.runtime.buffers import as_bytes
from tapml.tensors import HostArray


class Net(torch.nn.Module):
    """A projection, whose six rows have nothing to do with each other, and a softmax over them, where they have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.linear(x), 0)


@cache
def small() -> Run:
    return tapml.carve(Net(), (torch.randn(6, 8),), out=Path(mkdtemp(prefix="tapml-test-")) / "run")


LINEAR, SOFTMAX = "linear", "softmax"


class Engine(Source):
    """PyTorch in this process, whose operators round what float64 gives, so that a row is the same in every call. Projections do
    something else besides: `strike(outputs, scratch, number)` is what becomes of the outputs of the run with this number. They
    have 4 bytes of scratch."""

    def __init__(self, strike: Callable[[list[HostArray], bytes, int], None]) -> None:
        super().__init__()
        self.strike = strike
        self.count = 0

    def prepare(
        self, bodies: Any, on_prepared: OnPrepared | None = None, way: Way = PLAIN
    ) -> dict[str, Prepared]:
        found = super().prepare(bodies, on_prepared, way)
        for name, body in bodies.items():
            compiled = found[name].compiled
            assert isinstance(compiled, OnHost)
            compiled = replace(compiled, run=host_function(body, "float64"), scratch=(4,) if body.kind == LINEAR else ())
            found[name] = replace(found[name], compiled=compiled)
        return found

    def record(
        self, compiled: Any, inputs: Sequence[int], outputs: Sequence[int], scratch: Sequence[int] | None = None
    ) -> Sequence[Any]:
        return [(compiled, tuple(inputs), tuple(outputs), tuple(scratch or ()))]

    def submit(self, work: Sequence[Any]) -> None:
        for compiled, inputs, outputs, scratch in work:
            made = [np.array(a) for a in self.run_once(compiled, inputs)]
            if scratch:
                self.strike(made, self.read_many([(scratch[0], 4, 0)])[0], self.count)
                self.count += 1
            for buffer, array in zip(outputs, made, strict=True):
                self.write(buffer, as_bytes(array))


def flip(array: HostArray, index: tuple[int, ...]) -> None:
    """Changes the last bit of an element."""
    array.view(np.uint32)[index] ^= 1


def looked(strike: Callable[[list[HostArray], bytes, int], None], repeat: int = 5) -> Any:
    result = small().test(Engine(strike), repeat=repeat)
    assert all(v.status == "pass" for v in result.verdicts) and result.invariance is not None and not result.invariance.not_run
    return result


def test_an_engine_that_keeps_to_both_has_nothing_listed() -> None:
    found = looked(lambda outputs, scratch, number: None).invariance
    assert found.passed and not found.spreads
    assert (found.operators, found.calls, found.with_rows) == (2, 2, 1)


def test_an_operator_that_is_refused_says_nothing_of_the_next() -> None:
    class Refusing(Engine):
        def record(self, compiled: Any, inputs: Sequence[int], outputs: Sequence[int], scratch: Any = None) -> Sequence[Any]:
            if compiled.scratch:
                raise DeviceError("backend", "no projections here")
            return super().record(compiled, inputs, outputs, scratch)

    result = small().test(Refusing(lambda outputs, scratch, number: None), repeat=3)
    assert result.invariance is not None and result.invariance.operators == 1
    assert [(name, "no projections here" in why) for name, why in result.invariance.not_run] == [(LINEAR, True)]


def test_one_bit_now_and_then_is_not_deterministic() -> None:
    def strike(outputs: list[HostArray], scratch: bytes, number: int) -> None:
        if number in (3, 4):
            flip(outputs[0], (2, 5))

    result = looked(strike)
    (spread,) = result.invariance.not_deterministic
    assert (spread.operator, spread.relation, spread.compared, spread.differing) == ("linear", "runs", 4, 2)
    assert 0 < spread.difference < 1e-6 and 0 < spread.of_bound < 0.2
    assert result.passed and not result.invariance.depends_on_batch


def test_runs_over_the_same_memory_tell_the_kernel_from_the_memory() -> None:
    def racing(outputs: list[HostArray], scratch: bytes, number: int) -> None:
        if number == 2:
            flip(outputs[0], (0, 0))

    def unwritten(outputs: list[HostArray], scratch: bytes, number: int) -> None:
        if scratch != b"\xff" * 4:
            flip(outputs[0], (0, 0))

    def what(strike: Any, repeat: int) -> Any:
        return [(s.what, s.differing) for s in looked(strike, repeat).invariance.not_deterministic]

    assert what(racing, 5) == [("it differs from run to run", 1)]
    (said,) = what(unwritten, 5)
    assert said[0] == "it depends on what outputs and scratch held before" and said[1] >= 2
    assert what(unwritten, 2) == [("it differs from run to run, or depends on what outputs and scratch held before", 1)]


@pytest.mark.parametrize(
    ("relation", "words"),
    [("place", "the same 6 rows in other places"), ("chunk", "6 rows one by one")],
)
def test_a_row_that_hangs_on_where_it_stands_depends_on_the_batch(relation: str, words: str) -> None:
    def strike(outputs: list[HostArray], scratch: bytes, number: int) -> None:
        rows = len(outputs[0])
        if relation == "place" and rows == 6:
            flip(outputs[0], (3, 0))
        if relation == "chunk" and rows == 1:
            flip(outputs[0], (0, 0))

    result = looked(strike)
    found = [s for s in result.invariance.depends_on_batch if s.relation == relation]
    assert [(s.operator, s.what) for s in found] == [("linear", words)]
    assert found[0].differing > 0 and found[0].difference > 0 and found[0].of_bound < 1
    assert result.passed and not result.invariance.not_deterministic


def test_a_row_that_hangs_on_the_others() -> None:
    def strike(outputs: list[HostArray], scratch: bytes, number: int) -> None:
        if len(outputs[0]) == 6 and (outputs[0][1::2] == outputs[0][0]).all():
            flip(outputs[0], (2, 0))

    (spread,) = looked(strike).invariance.depends_on_batch
    assert (spread.relation, spread.compared, spread.differing) == ("company", 6, 1)


def test_a_spread_beyond_the_bound_fails() -> None:
    def strike(outputs: list[HostArray], scratch: bytes, number: int) -> None:
        if number >= 3:
            outputs[0][0, 0] += 1

    result = looked(strike)
    (spread,) = result.invariance.not_deterministic
    assert spread.difference == pytest.approx(1, abs=1e-6) and spread.of_bound > 1000
    assert not result.passed and not result.invariance.passed and not result.to_json()["passed"]
    assert result.invariance.beyond == {"linear": spread}


def test_rows_are_those_that_float64_treats_apart() -> None:
    body = {o.kind: small().folder.bodies[o.signature] for o in small().operators}
    arrays = [np.random.default_rng(0).standard_normal(s.shape).astype(np.float32) for s in body[LINEAR].inputs]

    def holding(body: Body, inputs: list[HostArray]) -> list[str]:
        return [
            a.relation for rows in rows_of(body) for a in arrangements(body, rows)
            if a.holds(host_function(body, "float64"), host_function(a.body or body, "float64"), inputs)
        ]

    assert holding(body[LINEAR], arrays) == ["company", "place", "chunk", "chunk"]
    # In other places the rows of a softmax over them are still the same, but they hang on all the others.
    assert holding(body[SOFTMAX], arrays[:1]) == ["place"]


@pytest.mark.parametrize("target", ["cpu"])
def test_targets_that_compute_each_row_alike(target: str, need: Callable[[str], str]) -> None:
    result = small().test(need(target), repeat=3)
    assert result.passed and result.invariance is not None and not result.invariance.spreads
    assert result.invariance.with_rows == 1


def test_what_was_found_is_kept(tmp_path: Path) -> None:
    folder = small().folder
    assert looked(lambda *_: None).invariance.to_json().items() <= (kept_invariance(folder, "torch") or {}).items()
    assert kept_invariance(folder, "opencl") is None
    path = folder.path / "targets" / "torch" / "invariance.json"
    path.write_text(path.read_text().replace('"repeat":5', '"repeat":"5"'))
    with pytest.raises(RunError, match=r"is damaged .* with --repeat again"):
        kept_invariance(folder, "torch")


def test_what_cannot_be_repeated() -> None:
    with pytest.raises(UsageError, match="--repeat 1 compares nothing"):
        small().test("cpu", repeat=1)
    with pytest.raises(UsageError, match="Leave one of them out"):
        small().test("cpu", mode="cumulative", repeat=3)
