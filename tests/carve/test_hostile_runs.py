"""A run that somebody else made is data: whatever stands in it, no code of it runs, and nothing outside of it is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tapml
from tapml.devices.cpu import find_compiler
from tapml.errors import ModelError
from tests.carve import runs
from tests.carve.tampered import node, with_nodes

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


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "why"),
    [
        ("aten.from_file.default", ["{here}/secret", True, 4], {"dtype": {"dtype": "uint8"}}, "the name of something outside"),
        ("aten.save.default", [{"ref": "i0"}, "{here}/made"], {}, "has no operator"),
        ("import_module", ["tests.carve.tampered"], {}, "has no operator"),
        ("_dir.append", ["x"], {}, "has no operator"),
        ("aten.add_.Tensor", [{"ref": "i0"}, {"ref": "i0"}], {}, "writes to what it is given"),
        ("aten.linear.default.__class__", [], {}, "has no operator"),
        ("profiler._record_function_enter.default", ["x"], {}, "not for computing"),
        ("aten._print.default", ["x"], {}, "something else than tensors"),
        ("getitem", [["text"], 0], {}, "not applied to the tensors"),
        ("aten.empty.memory_format", [[1]], {"memory_format": {"memory_format": "load"}}, "memory_format of the graph"),
        ("aten.empty.memory_format", [[1]], {"dtype": {"dtype": "hub"}}, "dtype of the graph"),
        ("aten.empty.memory_format", [[1]], {"dtype": {"device": "cpu", "layout": "x"}}, "does not know"),
    ],
)
def test_what_a_body_may_not_call(tmp_path: Path, target: str, args: list[Any], kwargs: dict[str, Any], why: str) -> None:
    args = [a.format(here=tmp_path) if isinstance(a, str) else a for a in args]
    run = with_nodes(runs.convolution()[0].path, tmp_path / "run", lambda body: [node("x0", target, args, kwargs)])
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ModelError, match=why):
        tapml.Run.open(run).health()
    assert sorted(p.name for p in tmp_path.iterdir()) == before
