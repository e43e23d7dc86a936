"""Integers that go wrong: what a device holds is compared before anything narrows it, and one operator's trouble stays its own.

On OpenCL, with the storage of WGSL where a test is about it (see `narrow`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tapml.backends.interface import Backend
from tapml.backends.kernels import Kernels
from tapml.carving.beyond import Inside
from tapml.devices.interface import DeviceInfo
from tapml.diagnose.bisect.stage import bisect
from tapml.diagnose.health.stage import health
from tapml.errors import DoesNotFit, RunError, WrongValue
from tapml.migrate.migrate import migrate
from tapml.migrate.model import Model
from tapml.migrate.operator_test import OperatorTester
from tapml.targets.parse import parse
from tapml.targets.target import Target
from tapml.targets.webgpu import STORAGE
from tapml.tensors import as_read, convert, out_of_range
from tapml.verdicts import Verdict
from tests.compile.bodies import Result, chain
from tests.migrate.integers import carved, far_away, far_index, fault, no_wrap


class Narrow(Kernels):
    """int8, uint8 and int16 in 32 bits, as on Vulkan and WebGPU."""

    def _narrowed(self, info: DeviceInfo) -> Target:
        target = super()._narrowed(info)
        return replace(target, storage={**target.storage, **{d: STORAGE[d] for d in ("int8", "uint8", "int16")}})


@pytest.fixture
def narrow() -> Iterator[Narrow]:
    with closing(Narrow(parse("opencl"))) as backend:
        yield backend


def isolated(name: str, inject: Any = None, target: str | Backend = "opencl") -> dict[str, Verdict]:
    with OperatorTester(carved(name), target, inject=inject) as tester:
        return {v.operator: v for v in tester.test_all()}


def cumulative(name: str, inject: Any = None, target: str | Backend = "opencl") -> dict[str, Verdict]:
    with OperatorTester(carved(name), target, inject=inject) as tester:
        return {v.operator: v for v in tester.test_cumulative()}


def failed(verdicts: dict[str, Verdict]) -> list[str]:
    return [name for name, v in verdicts.items() if v.status != "pass"]


def test_a_narrow_sum_is_right_in_32_bits(narrow: Narrow) -> None:
    assert failed(isolated("sum", target=narrow)) == [] and failed(cumulative("sum", target=narrow)) == []
    assert migrate(carved("sum"), narrow, fresh=True).passed


def test_a_sum_that_does_not_wrap_is_the_failure_of_the_sum(narrow: Narrow) -> None:
    """It used to pass: narrowed on the host, 400 is 144. Then its reader was refused in its place."""
    wrong = isolated("sum", fault(no_wrap), narrow)
    assert failed(wrong) == ["position"]
    assert wrong["position"].stage == "numeric"
    assert "the device holds 510 in a uint8 output: it does not wrap" in wrong["position"].reason
    assert "the device holds 510" in cumulative("sum", fault(no_wrap), narrow)["position"].reason
    moved = migrate(carved("sum"), narrow, inject=fault(no_wrap), fresh=True)
    assert moved.kept_on_source == ("position",) and moved.end_to_end.passed
    found = bisect(carved("sum"), narrow, inject=fault(no_wrap))
    assert found.culprits == ("position",)
    assert found.sets[0].alone is not None and "position: the device holds 510" in found.sets[0].alone.reason


def test_integers_beyond_32_bits_are_verdicts_of_the_operators_that_meet_them() -> None:
    for verdicts in (isolated("long"), cumulative("long")):
        assert failed(verdicts) == ["position", "sort", "sort.2"]
        for name in ("position", "sort"):  # as a weight, as an input
            assert verdicts[name].status == "error" and "do not fit int32, in which this target stores" in verdicts[name].reason
        assert verdicts["sort.2"].status == "fail"  # computed
        assert "the right answer holds 100000300000, and this target stores int64 as int32" in verdicts["sort.2"].reason
    assert failed(isolated("long", target="cpu")) == []


def test_an_integer_beyond_32_bits_inside_an_operator_is_told() -> None:
    wrong, by_chance = isolated("hash").values()
    assert wrong.status == "fail"
    assert wrong.reason.startswith("inside it, aten.mul.Tensor gives 8100000000, and this target stores int64 as int32; case")
    assert by_chance.status == "unchecked"
    assert "gives 10000200001, and this target stores int64 as int32: the result is right here by chance" in by_chance.reason
    moved = migrate(carved("hash"), "opencl", fresh=True)
    assert moved.kept_on_source == ("sort", "sort.2") and moved.end_to_end.passed
    assert failed(isolated("hash", target="cpu")) == []


def test_what_is_asked_of_an_integer_decides_whether_it_may_wrap() -> None:
    x = torch.tensor([70_000, -3, 2**62])
    product = ("aten.mul.Tensor", (x, x), {})

    def beyond(*calls: Any, given: Any = None) -> str:
        inside = Inside.of(chain(list(calls)).body, "int32")
        return "" if inside is None else inside.beyond([x.numpy()] if given is None else given)

    assert "aten.mul.Tensor gives 4900000000" in beyond(product, ("aten.remainder.Scalar", (Result(0), 7), {}))
    assert "gives 4900000000" in beyond(product, ("aten._to_copy.default", (Result(0),), {"dtype": torch.float32}))
    assert "gives 4900000000" in beyond(product, ("aten.mul.Scalar", (Result(0), 0.5), {}))
    assert beyond(product, ("aten.bitwise_and.Scalar", (Result(0), 7), {})) == ""
    assert beyond(product, ("aten.sub.Tensor", (Result(0), x), {}), ("aten.sum.default", (Result(1),), {})) == ""
    remainder = ("aten.remainder.Scalar", (Result(0), 7), {})
    assert beyond(product, remainder, given=[np.array([40_000, -3, 0])]) == ""  # they fit
    endless = ("aten.masked_fill.Scalar", (x, x < 0, 2**63 - 1), {})
    assert beyond(endless, ("aten.lt.Scalar", (Result(0), 7), {}), given=[np.array([1, -3]), np.array([False, True])]) == ""
    assert Inside.of(chain([product, remainder]).body, "int64") is None


def test_a_model_with_integers_beyond_32_bits_is_moved_without_them() -> None:
    moved = migrate(carved("long"), "opencl", fresh=True)
    assert moved.offloaded == ("linear",) and moved.end_to_end.passed
    there = health(carved("long"), "opencl").target
    assert there is not None and set(there.on_source) == {"position", "sort"}


def test_what_the_source_refuses_is_the_fault_of_who_computed_it() -> None:
    """argmax gives indices beyond the table, which is on the source: PyTorch's IndexError used to end everything."""
    verdicts = cumulative("choice", fault(far_away))
    assert {name: v.status for name, v in verdicts.items()} == {"argmax": "fail", "table": "error", "linear": "pass"}
    assert "its input from the target is out of range: IndexError: index out of range in self" in verdicts["table"].reason
    found = bisect(carved("choice"), "opencl", inject=fault(far_index))
    assert found.culprits == ("argmax",)
    assert found.sets[0].alone is not None and "table, on the source, refuses what" in found.sets[0].alone.reason
    there = health(carved("choice"), "opencl", inject=fault(far_away)).target
    assert there is not None and "IndexError" in there.on_source["argmax"] and "table" in there.on_source


@pytest.mark.parametrize("error", [KeyError("n0"), ValueError("shape (2,)\nand more"), ZeroDivisionError()])
def test_an_error_that_nobody_foresaw_is_one_operators_verdict(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    trouble(monkeypatch, error)
    for verdicts in (isolated("choice"), cumulative("choice")):
        assert failed(verdicts) == ["table"]
        wrong = verdicts["table"]
        assert wrong.status == "error" and wrong.stage is None
        assert type(error).__name__ in wrong.reason and "bug in TapML; please report" in wrong.reason
        assert "and more" not in wrong.reason
    moved = migrate(carved("choice"), "opencl", fresh=True)
    assert moved.kept_on_source == ("table",)


@pytest.mark.parametrize("error", [RunError("damaged"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_concerns_everything_ends_everything(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    trouble(monkeypatch, error)
    with pytest.raises(type(error)):
        isolated("choice")
    with pytest.raises(type(error)):
        cumulative("choice")


def trouble(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The comparison of the table's outputs raises."""
    from tapml.migrate import operator_test

    judged: Callable[..., Any] = operator_test.judged

    def raising(actual: Any, references: Any) -> Any:
        if np.array_equal(references[0].values, table):
            raise error
        return judged(actual, references)

    run = carved("choice")
    (case,) = run.cases_of("table")
    table = run.case_arrays(case)[1][0]
    assert Model.of(run).named["table"].outputs
    monkeypatch.setattr(operator_test, "judged", raising)


def test_narrowing_repairs_nothing() -> None:
    held = np.array([3, 400, -1], np.int32)
    assert as_read(held, "uint8") is held and "holds 400 in a uint8" in out_of_range(held, "uint8")
    assert "holds 2 in a bool output: only 0 and 1" in out_of_range(np.array([0, 2], np.int32), "bool")
    assert "holds -1 in a bool" in out_of_range(np.array([0, -1], np.int32), "bool")
    assert "holds -129 in a int8" in out_of_range(np.array([127, -129], np.int32), "int8")
    assert as_read(np.array([0, 1], np.int32), "bool").dtype == bool
    assert as_read(np.array([255, 0], np.int32), "uint8").tolist() == [255, 0]
    assert as_read(held, "int64").dtype == np.int64 and out_of_range(np.array([1.5]), "uint8") == ""
    assert out_of_range(np.array([], np.int32), "uint8") == ""


def test_what_goes_up_fits_or_is_refused() -> None:
    assert convert(np.array([2**63 - 1, 5]), "int32").tolist() == [2**31 - 1, 5]  # "until the end"
    for values, dtype in (([2**31], "int32"), ([-(2**63)], "int32"), ([-1], "uint8"), ([256], "uint8"), ([128], "int8")):
        with pytest.raises(DoesNotFit, match=f"do not fit {dtype}"):
            convert(np.array(values), dtype)
    assert WrongValue("a", "b").stage == "numeric"
