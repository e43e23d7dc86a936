"""A run that somebody else made is data: whatever stands in it, no code of it runs, and nothing outside of it is touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapml
from tapml.carving import layout
from tapml.carving.layout import folder_name, operator_folder
from tapml.devices.cpu import find_compiler
from tapml.errors import ModelError, RunError, UnavailableError
from tapml.kernels import Program
from tapml.manifest import SEAL, digest, seal
from tapml.migrate import programs
from tapml.migrate.journal import Header, Journal
from tapml.migrate.picture import keep_picture
from tapml.migrate.records import target_folder
from tapml.report.html.evidence import explained
from tapml.report.html.kernels import KernelTable
from tapml.tensors import TensorSpec
from tests.carving import runs
from tests.carving.tampered import node, reseal, with_nodes, write_table

LIBRARY = r"""
#include <stdio.h>
__attribute__((constructor)) static void loaded(void) {{ fclose(fopen("{mark}", "w")); }}
"""


@pytest.fixture
def library(tmp_path: Path) -> tuple[Path, Path]:
    """A shared object, and the file that it makes as soon as it is loaded."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C compiler here to build the shared object with")
    mark, source, made = tmp_path / "loaded", tmp_path / "evil.c", tmp_path / "evil.so"
    source.write_text(LIBRARY.format(mark=mark))
    subprocess.run([compiler[0], "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    return made, mark


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs.convolution()[0].path, tmp_path / "run"))


def health(run: tapml.Run) -> Any:
    return run.health()


def migrate(run: tapml.Run) -> Any:
    return run.migrate("cpu", tokens=1)


def bisect(run: tapml.Run) -> Any:
    return run.bisect("cpu", tokens=1)


VERBS: list[Callable[[tapml.Run], Any]] = [health, migrate, bisect]


def by_getitem(path: str) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """A literal list gives a text, and the text goes to a function that is no operator."""
    return lambda body: [
        node("x0", "getitem", [[path], 0]),
        node("x1", "load_library", [{"ref": "x0"}]),
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_no_library_of_a_run_is_loaded(library: tuple[Path, Path], tmp_path: Path, verb: Callable[[tapml.Run], Any]) -> None:
    made, mark = library
    run = with_nodes(runs.convolution()[0].path, tmp_path / "run", by_getitem(str(made)))
    try:
        verb(tapml.Run.open(run))
    except ModelError as error:
        assert "has no operator 'load_library'" in str(error)
    assert not mark.exists()


def test_modules_in_a_run_are_not_loaded(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever works in the folder of a run has compilers and devices in processes of their own; they must not look there."""
    if find_compiler() is None:
        pytest.skip("no C compiler here, so no kernel runs on the processor")
    for name in ("tvm", "json", "numpy", "tapml", "sitecustomize"):
        (copy / f"{name}.py").write_text(f"open({str(tmp_path / 'loaded')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(copy)
    monkeypatch.setenv("TAPML_CACHE", str(tmp_path / "cache"))
    run = tapml.Run.open(copy)
    run.test("cpu", operator=run.operators[0].name)
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "why"),
    [
        ("aten.from_file.default", ["{here}/secret", True, 4], {"dtype": {"dtype": "uint8"}}, "the name of something outside"),
        ("aten.save.default", [{"ref": "i0"}, "{here}/made"], {}, "has no operator"),
        ("import_module", ["tests.carving.tampered"], {}, "has no operator"),
        ("_dir.append", ["x"], {}, "has no operator"),
        ("aten.add_.Tensor", [{"ref": "i0"}, {"ref": "i0"}], {}, "writes to its inputs"),
        ("aten.linear.default.__class__", [], {}, "has no operator"),
        ("profiler._record_function_enter.default", ["x"], {}, "not for computing"),
        ("aten._print.default", ["x"], {}, "something else than tensors"),
        ("getitem", [["text"], 0], {}, "not applied to the tensors"),
        ("aten.empty.memory_format", [[1]], {"memory_format": {"memory_format": "load"}}, "memory_format of the graph"),
        ("aten.empty.memory_format", [[1]], {"dtype": {"dtype": "hub"}}, "dtype of the graph"),
        ("aten.empty.memory_format", [[1]], {"dtype": {"device": "cpu", "layout": "x"}}, "is not an argument of a node"),
    ],
)
def test_what_a_body_may_not_call(tmp_path: Path, target: str, args: list[Any], kwargs: dict[str, Any], why: str) -> None:
    args = [a.format(here=tmp_path) if isinstance(a, str) else a for a in args]
    run = with_nodes(runs.convolution()[0].path, tmp_path / "run", lambda body: [node("x0", target, args, kwargs)])
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises((ModelError, RunError), match=why):
        tapml.Run.open(run).health()
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def lines_of(run: Path, table: str) -> list[Any]:
    return [json.loads(line) for line in (run / table).read_text().splitlines()]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("instead", [pipe, unix_socket, device, folder])
@pytest.mark.parametrize("name", [layout.CASES, layout.MANIFEST, "cases/case0.safetensors", "inputs/0.safetensors"])
def test_what_is_no_file_is_neither_read_nor_waited_for(
    copy: Path, monkeypatch: pytest.MonkeyPatch, name: str, instead: Callable[[Path], None]
) -> None:
    (copy / name).unlink()
    monkeypatch.chdir((copy / name).parent)  # the name of a socket may have 100 characters
    instead(Path((copy / name).name))
    with pytest.raises(RunError, match=r"a pipe|a socket|a symbolic link|a folder|not a run of TapML|cannot be read"):
        run = tapml.Run.open(copy)
        run.folder.case_arrays(run.cases[0])
        _ = run.folder.examples


@pytest.mark.parametrize(
    "name", ["../../../../dev/zero", "/dev/zero", "cases/../../x", "", ".", "..", "cases//case0.safetensors", "a\0b", "x" * 5000]
)
@pytest.mark.parametrize(("table", "key"), [(layout.CASES, "file"), (layout.PROMPTS, "file")])
def test_a_file_outside_of_the_run_is_refused(copy: Path, table: str, key: str, name: str) -> None:
    lines = lines_of(copy, table)
    lines[0][key] = name
    write_table(copy / table, lines)
    with pytest.raises(RunError):
        run = tapml.Run.open(reseal(copy))
        run.folder.case_arrays(run.cases[0])
        _ = run.folder.examples


def test_a_link_out_of_the_run_is_refused(copy: Path, tmp_path: Path) -> None:
    run = tapml.Run.open(copy)
    (copy / "cases").rename(tmp_path / "cases")
    (copy / "cases").symlink_to(tmp_path / "cases")
    with pytest.raises(RunError, match="is a symbolic link"):
        run.folder.case_arrays(run.cases[0])


@pytest.mark.parametrize("instead", [pipe, unix_socket, device, folder])
def test_a_weight_is_a_tensor_of_a_regular_file(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instead: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    instead(Path("weights"))
    write_table(copy / layout.WEIGHTS, [line | {"file": str(tmp_path / "weights")} for line in lines_of(copy, layout.WEIGHTS)])
    run = tapml.Run.open(reseal(copy))
    with pytest.raises(RunError, match=r"is a pipe|is a device|is a folder|cannot be read"):
        run.folder.weight(next(iter(run.folder.weights.entries)))


def test_other_bytes_than_a_tensors_are_no_weight(copy: Path, tmp_path: Path) -> None:
    """A run cannot have parts of a file read that are not what the file says to be a tensor: here, what a key is stored in."""
    lines = lines_of(copy, layout.WEIGHTS)
    path = Path(lines[0]["file"])
    data = path.read_bytes()
    size = TensorSpec.from_json(lines[0]["spec"]).nbytes
    for line in lines[:1]:
        line |= {"offset": line["offset"] + 4, "digest": digest(data[line["offset"] + 4 :][:size])}
    write_table(copy / layout.WEIGHTS, lines)
    run = tapml.Run.open(reseal(copy))
    with pytest.raises(RunError, match="has no tensor where"):
        run.folder.weight(lines[0]["key"])


@pytest.mark.parametrize("name", ["..", ".", "../../../x", "/tmp/x", "a\nb", "x" * 900, "\udc80", "…", " "])
def test_a_folder_of_an_operator_is_beside_the_others(tmp_path: Path, name: str) -> None:
    for made in (operator_folder(name), folder_name(name)):
        assert made and made not in (".", "..") and "/" not in made and "\0" not in made
        (tmp_path / made).mkdir(exist_ok=True)
    assert all(p.parent == tmp_path for p in tmp_path.iterdir())
    assert operator_folder("decode/layers.0.norm") == "decode__layers.0.norm"


def test_kernels_and_results_are_neither_read_nor_written_through_links(copy: Path, tmp_path: Path) -> None:
    run = tapml.Run.open(copy)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = copy / "targets" / "opencl"
    target.mkdir(parents=True)
    (target / "kernels").symlink_to(elsewhere)
    program = Program((), (), (), (), (), "blocked")
    with pytest.raises(RunError, match="is a symbolic link"):
        programs.keep(target, program)
    with pytest.raises(RunError, match="is a symbolic link"):
        programs.kept(target, program.digest)
    (target / "failing").symlink_to(elsewhere)
    keep_picture(target, "conv", "00", {}, False)
    (target / "migrate.jsonl").symlink_to(elsewhere / "journal")
    with pytest.raises(RunError, match="is a symbolic link"):
        Journal.open(target / "migrate.jsonl", Header("1", "r", "t", "k", "d"))
    (target / "migrate.jsonl").unlink()
    shutil.rmtree(copy / "targets")
    (copy / "targets").symlink_to(elsewhere)
    with pytest.raises(RunError, match="is a symbolic link"):
        target_folder(run.folder, "opencl")
    with pytest.raises(RunError, match="is a symbolic link"):
        run.report(tmp_path / "report.html")
    assert list(elsewhere.iterdir()) == []


def test_explain_stays_in_its_folder(tmp_path: Path) -> None:
    """An operator called ".." would have had its results beside those of all operators, and what lies there removed."""
    first = runs.convolution()[0].operators[0].name
    copy = Path(shutil.copytree(runs.convolution()[0].path, tmp_path / "run"))
    for table, key in ((layout.OPERATORS, "name"), (layout.CASES, "operator"), (layout.ORACLE, "operator")):
        write_table(copy / table, [line | ({key: ".."} if line.get(key) == first else {}) for line in lines_of(copy, table)])
    run = tapml.Run.open(reseal(copy))
    kept = copy / "targets" / "cpu" / "kernels" / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_text("")
    with contextlib.suppress(UnavailableError):  # without a C compiler nothing is explained, nor written
        found = run.explain("..", "cpu")
        assert found.folder.parent == copy / "targets" / "cpu" / "explain"
    assert kept.exists() and not (copy / "targets" / "cpu" / "evidence.json").exists()


DEEP = "[" * 100_000 + "]" * 100_000


def set_at(line: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        line = line[key]
    line[path[-1]] = value


@pytest.mark.parametrize(
    ("table", "path", "value"),
    [
        (layout.WEIGHTS, ("offset",), -8), (layout.WEIGHTS, ("offset",), 2**70), (layout.WEIGHTS, ("offset",), True),
        (layout.WEIGHTS, ("spec", 0), [-1]), (layout.WEIGHTS, ("spec", 0), [2**40, 2**40]), (layout.WEIGHTS, ("spec", 0), "44"),
        (layout.WEIGHTS, ("spec", 1), "float8"), (layout.WEIGHTS, ("file",), "weights"), (layout.WEIGHTS, ("file",), None),
        (layout.GRAPHS, ("placeholders", 0, 3, 0), [2.0]), (layout.GRAPHS, ("nodes", 0, "args"), "x"),
        (layout.GRAPHS, ("nodes", 0, "name"), "a b"), (layout.GRAPHS, ("outputs", 0), "nothing"),
        (layout.GRAPHS, ("output_keys",), []), (layout.GRAPHS, ("mutations",), {"s": "nothing"}),
        (layout.OPERATORS, ("name",), 7), (layout.OPERATORS, ("graph",), "nothing"), (layout.OPERATORS, ("signature",), "../x"),
        (layout.OPERATORS, ("inputs", 0), "nothing"), (layout.OPERATORS, ("outputs",), []), (layout.OPERATORS, ("nodes",), {}),
        (layout.CASES, ("prompt",), -1), (layout.CASES, ("step",), 1.5), (layout.CASES, ("accuracy", 0, 1), -1.0),
        (layout.CASES, ("accuracy", 0), [0] * 99), (layout.CASES, ("accuracy",), []), (layout.CASES, ("reasons",), [1]),
        (layout.CASES, ("id",), {}), (layout.CASES, ("operator",), "nothing"), (layout.CASES, ("file",), ["x"]),
        (layout.ORACLE, ("source_error",), "x"), (layout.ORACLE, ("spread",), -1), (layout.ORACLE, ("step",), None),
        (layout.PROMPTS, ("file",), 7),
        *((table, (key,), f"raw {raw}") for raw in ("NaN", "1e999", "1" * 6000, DEEP)
          for table, key in ((layout.CASES, "step"), (layout.WEIGHTS, "offset"), (layout.ORACLE, "step"))),
    ],
)  # fmt: skip
def test_a_field_that_is_something_else_is_named(copy: Path, table: str, path: tuple[Any, ...], value: Any) -> None:
    lines = lines_of(copy, table)
    set_at(lines[0], path, value)
    write_table(copy / table, lines)
    if isinstance(value, str) and value.startswith("raw "):
        (copy / table).write_text((copy / table).read_text().replace(json.dumps(value), value[4:]))
    with pytest.raises(RunError, match=r"\.jsonl is damaged at line \d+") as caught:
        _ = tapml.Run.open(reseal(copy)).folder.examples
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tables", []), ("tables", {}), ("files", {"cases/case0.safetensors": 7}), ("kind", "neither"), ("kind", "decoder"),
        ("decoder", {"chunk": 3, "max_len": 10**18, "vocabulary": 4, "stop": []}), ("digest", None), ("model", "x"),
        ("result", [[]]), ("dtype", {}),
    ],
)  # fmt: skip
def test_a_manifest_that_says_something_else_is_refused(copy: Path, key: str, value: Any) -> None:
    manifest = json.loads((copy / layout.MANIFEST).read_text()) | {key: value}
    manifest[SEAL] = seal(manifest)
    (copy / layout.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        tapml.Run.open(copy)


@pytest.mark.parametrize("reproducer", ["..", "../..", "/etc", ".", ""])
def test_a_report_packs_nothing_but_the_reproducer(copy: Path, tmp_path: Path, reproducer: str) -> None:
    """What a page holds may be handed on: files of the user must not get into it."""
    secret = tmp_path / "secret"
    secret.write_text("very secret")
    run = tapml.Run.open(copy)
    name = run.operators[0].name
    target = copy / "targets" / "cpu"
    folder = target / "explain" / "x"
    (folder / "reproducer").mkdir(parents=True)
    (target / "private").write_text("very secret")
    small = {"inputs": [], "expected": [], "actual": []}
    (folder / "evidence.json").write_text(json.dumps({"operator": name, "minimised": small, "reproducer": reproducer}))
    with contextlib.suppress(RunError):
        assert explained(target, {name: 0}, KernelTable(), False)["0"]["packed"] is None
    (folder / "evidence.json").write_text(json.dumps({"operator": name, "minimised": small, "reproducer": "reproducer"}))
    (folder / "reproducer" / "run.py").symlink_to(secret)
    with pytest.raises(RunError, match="is a symbolic link"):
        explained(target, {name: 0}, KernelTable(), False)
