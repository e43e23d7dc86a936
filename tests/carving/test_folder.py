"""Reading runs: what is whole opens, and every damage is named with the file and the line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tapml.api import Run
from tapml.carving import layout
from tapml.carving.folder import RunFolder, State
from tapml.carving.writer import RunWriter
from tapml.errors import RunError, UsageError
from tapml.operators.graph import Graph, Placeholder
from tapml.tensors import HostArray, TensorSpec
from tests.carving import runs


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    run, _, _ = runs.decoder()
    return Path(shutil.copytree(run.path, tmp_path / "run"))


def edit_line(path: Path, number: int, change: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1])
    path.write_text("".join(lines))


def test_a_copy_is_the_same_run(copy: Path) -> None:
    run, _, _ = runs.decoder()
    again = RunFolder.open(copy)
    assert again.digest == run.digest and again.cases == run.cases and again.operators == run.operators


@pytest.mark.parametrize("name", [t for t in layout.TABLES if t != layout.STATES])
def test_a_damaged_line_is_named(copy: Path, name: str) -> None:
    number = min(2, len((copy / name).read_text().splitlines()))
    edit_line(copy / name, number, lambda line: line[: len(line) // 2] + "\n")
    with pytest.raises(RunError, match=rf"{name} is damaged at line {number}") as caught:
        RunFolder.open(copy)
    assert "--fresh" in str(caught.value)


def test_lost_or_changed_lines_are_noticed(copy: Path) -> None:
    lines = (copy / layout.CASES).read_text().splitlines(keepends=True)
    (copy / layout.CASES).write_text("".join(lines[:-1]))
    with pytest.raises(RunError, match=rf"has {len(lines) - 1} lines where {len(lines)} were written"):
        RunFolder.open(copy)
    (copy / layout.CASES).unlink()
    with pytest.raises(RunError, match=r"cases\.jsonl is missing"):
        RunFolder.open(copy)


def test_a_line_that_is_json_of_another_shape_is_named(copy: Path) -> None:
    path = copy / layout.CASES
    edit_line(path, 3, lambda line: '{"id": "case2"}\n')
    run = RunFolder.open(runs.decoder()[0].path)
    damaged = RunFolder(copy, run.manifest)
    with pytest.raises(RunError, match=r"cases\.jsonl is damaged at line 3 \(KeyError"):
        _ = damaged.cases


def test_folders_that_are_no_run(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(RunError, match=r"No run at .*tapml carve MODEL"):
        RunFolder.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="not a run of TapML"):
        RunFolder.open(tmp_path / "empty")
    copy.rename(tmp_path / "run.partial")
    (tmp_path / "run.partial" / layout.MANIFEST).unlink()
    with pytest.raises(RunError, match=r"did not finish \(run\.partial\)"):
        RunFolder.open(tmp_path / "run")
    with pytest.raises(RunError, match="is an unfinished run"):
        RunFolder.open(tmp_path / "run.partial")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "0.0.7"}, "carved by TapML 0.0.7"),
        ({"format_version": 99}, "format 99"),
        ({"format": "zip"}, "not the manifest"),
        ({"digest": None, "tables": None}, "lacks digest, tables"),
    ],
)
def test_runs_of_another_version_are_refused(copy: Path, change: dict[str, object], message: str) -> None:
    manifest = json.loads((copy / layout.MANIFEST).read_text()) | change
    manifest = {k: v for k, v in manifest.items() if v is not None or k not in change}
    (copy / layout.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=message):
        RunFolder.open(copy)
    (copy / layout.MANIFEST).write_text("{")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        RunFolder.open(copy)


def flip(path: Path) -> None:
    """Changes one bit of the last element, and nothing that a reader of the format could notice."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def test_a_case_whose_content_changed_is_an_error_and_no_verdict(copy: Path) -> None:
    run = RunFolder.open(copy)
    first, second, third = run.cases[:3]
    flip(copy / first.file)
    with pytest.raises(RunError, match=rf"{first.file} was changed after carving.*--fresh"):
        run.case_arrays(first)
    (copy / second.file).write_bytes((copy / second.file).read_bytes()[:-4])
    with pytest.raises(RunError, match=rf"{second.file} was changed"):
        run.case_arrays(second)
    (copy / third.file).unlink()
    with pytest.raises(RunError, match=rf"{third.file} is missing"):
        run.case_arrays(third)


def test_every_file_but_the_suite_has_a_digest(copy: Path) -> None:
    run = RunFolder.open(copy)
    here = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
    left = here - set(run.manifest["files"]) - set(run.manifest["tables"]) - {layout.MANIFEST}
    assert left and all(name.startswith(f"{layout.TEST_FOLDER}/") for name in left)


def test_states_inputs_and_the_tokenizer_are_checked(tmp_path: Path) -> None:
    written: dict[str, HostArray] = {"x": np.arange(4.0, dtype=np.float32)}
    path = tmp_path / "run"
    with RunWriter.create(path) as writer:
        for name in layout.TABLES:
            writer.lines(name, ())
        x = Placeholder("x", "input", "x", TensorSpec((4,), "float32"))
        writer.lines(layout.GRAPHS, [Graph("forward", (x,), (), ("x",), ("y",), {}).to_json()])
        writer.arrays("states/0.safetensors", {"state": written["x"]})
        writer.lines(layout.STATES, [State("s", TensorSpec((4,), "float32"), "states/0.safetensors").to_json()])
        writer.arrays("inputs/0.safetensors", written)
        writer.lines(layout.PROMPTS, [{"index": 0, "text": "", "file": "inputs/0.safetensors"}])
        writer.text(layout.TOKENIZER, "{}")
        writer.finish({"kind": "module", "decoder": None})
    whole = RunFolder.open(path)
    assert (whole.initial_states["s"] == written["x"]).all() and (whole.examples[0]["x"] == written["x"]).all()
    for name in ("states/0.safetensors", "inputs/0.safetensors", layout.TOKENIZER):
        flip(path / name)
    run = RunFolder.open(path)
    with pytest.raises(RunError, match=r"states/0\.safetensors was changed"):
        _ = run.initial_states
    with pytest.raises(RunError, match=r"inputs/0\.safetensors was changed"):
        _ = run.examples
    with pytest.raises(RunError, match=r"tokenizer\.json was changed"):
        Run(run).text([1])


def test_a_changed_manifest_is_noticed(copy: Path) -> None:
    path = copy / layout.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"dtype": "float16"}))
    with pytest.raises(RunError, match=r"run\.json was changed"):
        RunFolder.open(copy)


def test_unknown_names_come_with_the_nearest() -> None:
    run, _, _ = runs.decoder()
    assert run.operator(run.operators[3].name) is run.operators[3]
    with pytest.raises(UsageError, match=r"Did you mean .*lm_head"):
        run.operator("decode/lm_heat")
    with pytest.raises(UsageError, match="case0 and so on"):
        run.case("case99999")


def test_cases_by_operator_and_by_signature() -> None:
    run, _, _ = runs.decoder()
    case = run.cases[0]
    assert case in run.cases_of(case.operator) and case in run.cases_of_signature(case.signature)
    assert run.case(case.id) is case
    assert run.cases_of("no such operator") == ()
