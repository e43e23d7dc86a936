"""Cases as plain files: a test that has numpy and the page's rule alone judges as TapML does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapml.api import Run
from tapml.carving.export import export_cases
from tapml.errors import UsageError
from tapml.tensors import HostArray
from tests.carving.runs import convolution, decoder

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export-cases.md"

Kernel = Callable[[dict[str, Any], list[HostArray]], Sequence[HostArray]]


def judged(folder: Path, kernel: Kernel) -> str:
    """What the script of the page says of a kernel: "" where it passes."""
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    try:
        exec(compile(script.replace('Path("cases")', f"Path({str(folder)!r})"), "page", "exec"), {"my_kernel": kernel})
    except AssertionError as error:
        return str(error)
    return ""


def rms_norm(epsilon: float = 1e-6) -> Kernel:
    def kernel(operator: dict[str, Any], inputs: list[HostArray]) -> list[HostArray]:
        x, weight = inputs
        return [(weight * x / np.sqrt((x.astype("f8") ** 2).mean(-1, keepdims=True) + epsilon)).astype(np.float32)]

    return kernel


def test_the_rule_of_the_page_judges(tmp_path: Path) -> None:
    run, _, _ = decoder()
    found = Run(run).export_cases(tmp_path / "cases", "*norm")
    index = json.loads((tmp_path / "cases" / "cases.json").read_text())
    assert {o["kind"] for o in index["operators"]} == {"rms_norm"} and found.operators == len(index["operators"]) == 2
    names = {c["operator"] for o in index["operators"] for c in o["cases"]}
    assert found.cases == sum(len(o["cases"]) for o in index["operators"]) > 2 and len(names) > 2
    assert judged(tmp_path / "cases", rms_norm()) == ""
    assert "rms_norm, case" in judged(tmp_path / "cases", rms_norm(0.0))
    assert any("1e-06" in line for line in index["operators"][0]["computes"])


def test_the_source_passes_everywhere(tmp_path: Path) -> None:
    """Of all operators: integers, several outputs, weights, inputs that were strided."""
    run, _, _ = decoder()
    found = export_cases(run, tmp_path / "cases")
    index = json.loads((tmp_path / "cases" / "cases.json").read_text())
    assert found.cases == len(run.cases) and found.operators == len({c.signature for c in run.cases}) and not found.without
    files = {p.relative_to(tmp_path / "cases").as_posix(): p for p in (tmp_path / "cases").rglob("*") if p.is_file()}
    assert found.files == len(files) and found.bytes == sum(p.stat().st_size for p in files.values())
    sources = iter([np.load(files[o["source"]]) for op in index["operators"] for c in op["cases"] for o in c["outputs"]])
    assert judged(tmp_path / "cases", lambda operator, inputs: [next(sources) for _ in operator["outputs"]]) == ""
    by_id = {c["id"]: (op, c) for op in index["operators"] for c in op["cases"]}
    for case in run.cases:
        operator, written = by_id[case.id]
        inputs, references = run.case_references(case)
        for array, name, spec in zip(inputs, written["inputs"], operator["inputs"], strict=True):
            assert np.array_equal(np.load(files[name]), array)
            assert [list(array.shape), str(array.dtype)] == [spec["shape"], spec["dtype"]]
            assert (spec["role"] == "weight") == name.startswith("weights/")
        for reference, output in zip(references, written["outputs"], strict=True):
            expected = np.load(files[output["expected"]])
            assert expected.dtype == (np.float64 if reference.exact is not None else reference.values.dtype)
            assert (output["bound"] > reference.bound) == (reference.exact is not None)


def test_a_run_in_bfloat16_is_written_in_float32(tmp_path: Path) -> None:
    run, _, _ = decoder("bfloat16")
    export_cases(run, tmp_path / "cases", "decode/norm")
    (operator,) = json.loads((tmp_path / "cases" / "cases.json").read_text())["operators"]
    assert operator["inputs"][0]["dtype"] == operator["outputs"][0]["dtype"] == "bfloat16"
    assert np.load(tmp_path / "cases" / operator["cases"][0]["inputs"][0]).dtype == np.float32
    assert judged(tmp_path / "cases", lambda o, inputs: [_bfloat16(rms_norm()(o, inputs)[0])]) == ""


def _bfloat16(array: HostArray) -> HostArray:
    import ml_dtypes

    return array.astype(ml_dtypes.bfloat16).astype(np.float64)


def test_a_place_that_is_taken_is_left_as_it_is(tmp_path: Path) -> None:
    run, _ = convolution()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for place, says in (("file", "is a file"), ("full", "is not empty"), ("none/cases", "there is no directory")):
        with pytest.raises(UsageError, match=says):
            export_cases(run, tmp_path / place)
    with pytest.raises(UsageError, match="No operator matches 'nothing'"):
        export_cases(run, tmp_path / "new", "nothing")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "mine"]
    (tmp_path / "empty").mkdir()
    assert export_cases(run, tmp_path / "empty", "*conv*").cases
