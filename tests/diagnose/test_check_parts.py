"""`tapml check --outputs` on what llama.cpp's `llama-eval-callback` prints: parts of values, and their sums."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tapml.carving.folder import RunFolder
from tapml.cli.main import main
from tapml.diagnose.check.feeds import questions
from tapml.diagnose.check.ggml_text import glimpses
from tapml.diagnose.check.onnx_file import Wanted
from tapml.diagnose.check.result import CheckResult
from tapml.diagnose.check.stage import check_outputs
from tapml.errors import UsageError
from tapml.migrate.model import Model
from tapml.runtime.hybrid import Hybrid
from tapml.tensors import HostArray

MakeRun = Callable[[str], RunFolder]

EXTENTS = 4
UNLIKE = ("q_proj", "k_proj", "rotary")


def printed(name: str, array: HostArray, total: str = "whole", decimals: int = 4) -> str:
    """In the format of llama.cpp of 2026: three elements from either end of each axis but the outermost."""
    whole = array.reshape((1,) * (EXTENTS - array.ndim) + array.shape)
    extents = ", ".join(str(n) for n in reversed(whole.shape))
    seen: list[float] = []

    def axis(part: HostArray, depth: int) -> Iterator[str]:
        pad = "    " * depth
        if part.ndim == 1:
            ends = [*range(3), *range(len(part) - 3, len(part))] if len(part) > 6 else list(range(len(part)))
            cells = [f"{float(part[k]):12.{decimals}f}" for k in ends]
            seen.extend(float(cell) for cell in cells)
            if len(part) > 6:
                cells[3] = f"   ..., {cells[3]}"
            yield f"{pad}[{', '.join(cells)}  ],"
            return
        yield f"{pad}["
        for k, inner in enumerate(part):
            if len(part) > 6 and 3 <= k < len(part) - 3:
                if k == 3:
                    yield f"{pad}    ..., "
                continue
            yield from axis(inner, depth + 1)
        yield f"{pad}],"

    lines = [f"common_debug_cb_eval: {name:>24} = (f32)        MUL(a{{{extents}}}, b.weight{{4, 1, 1, 1}}}}) = {{{extents}}}"]
    for block in whole:
        lines += axis(block, 1)
    value = float(np.sum(array, dtype=np.float32)) if total == "whole" else sum(seen)
    return "\n".join([*lines, *([] if total == "none" else [f"    sum = {value:f}"])])


@pytest.fixture
def values(make_run: MakeRun) -> dict[str, HostArray]:
    """What a right engine shows, without padding; but not what llama.cpp has in another order of rows (rotary pairs)."""
    run = make_run("llama")
    model = Model.of(run)
    question = questions(run, [Wanted(name, "int64", (1, None)) for name in ("input_ids", "attention_mask")])[0]
    found = {}
    for operator, made in Hybrid(model, model.source).observe("prefill", dict(question.call.inputs)):
        array = made[0]
        if array.dtype == np.float32 and array.ndim == 3 and not any(part in operator.name for part in UNLIKE):
            found[operator.name] = array[0, : question.tokens] if array.shape[1] > 1 else array[0]
    return found


def checked(
    run: RunFolder, values: dict[str, HostArray], folder: Path, total: str = "whole", names: bool = False
) -> CheckResult:
    folder.mkdir(exist_ok=True)
    (folder / "log.txt").write_text("main: loading\n" + "\n".join(
        printed(f"node_{k}", array, total) for k, array in enumerate(values.values())
    ))  # fmt: skip
    if names:
        (folder / "map.json").write_text(json.dumps({f"node_{k}": name for k, name in enumerate(values)}))
    return check_outputs(run, folder)


def test_the_elements_that_are_printed_are_read() -> None:
    array = np.arange(2 * 8 * 9, dtype=np.float32).reshape(2, 8, 9) / 7
    old = printed("a (reshaped)", array, "seen").replace("common_debug_cb_eval", "ggml_debug")
    first, second = glimpses(f"{printed('a (reshaped)', array)}\n{old}")
    assert (first.name, second.name, first.shape) == ("a (reshaped)", "a (reshaped)#2", (1, 2, 8, 9))
    assert len(first.seen) == 2 * 6 * 6 and np.abs(array.reshape(-1)[first.places] - first.seen).max() <= first.half * 1.001
    assert first.total == pytest.approx(float(array.sum())) and second.total is None  # the sum of what is printed says nothing
    with pytest.raises(ValueError, match="shows 5 elements along an axis of 9"):
        glimpses(printed("a", array[:, :, :5]).replace("{5, ", "{9, "))


@pytest.mark.parametrize("total", ["whole", "none"])
def test_a_right_text_is_right_and_says_how_much_was_seen(
    total: str, make_run: MakeRun, values: dict[str, HostArray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("llama")
    result = checked(run, values, tmp_path / "dump", total)
    assert result.passed and set(result.looks[0].seen) == set(values)
    assert {f.status for _, f in result.looks[0].found} == {"unseen", "pass" if total == "whole" else "unchecked"}
    assert main(["check", str(run.path), "--outputs", str(tmp_path / "dump")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "seen: 6 to 36 elements of each value" in said and ("are unchecked" in said) == (total == "none")


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("what", ["scale", "order", "inside"])
def test_the_first_wrong_value_is_named(
    what: str, names: bool, make_run: MakeRun, values: dict[str, HostArray], tmp_path: Path
) -> None:
    """`inside`: an element that is not printed, which the sum shows."""
    at = next(k for k, name in enumerate(values) if "layers.1.post_attention_layernorm" in name)
    wrong, after = list(values)[at], list(values)[at:]
    for name in after:
        array = values[name].copy()
        if what == "inside":
            array[array.shape[0] // 2, 20] += 0.5
        values[name] = array * np.float32(1.01) if what == "scale" else array[:, ::-1] if what == "order" else array
    result = checked(make_run("llama"), values, tmp_path, names=names)
    assert not result.passed and result.first_wrong is not None
    first = result.looks[0].first
    assert first is not None and wrong in (first.operator.name, *first.among) and len(first.among) <= 2


def test_a_value_with_an_operators_name_is_compared_whatever_follows(
    make_run: MakeRun, values: dict[str, HostArray], tmp_path: Path
) -> None:
    name = next(name for name in values if name.endswith("layers.0.input_layernorm"))
    values[name] = values[name] * np.float32(1.01)
    result = checked(make_run("llama"), values, tmp_path, names=True)
    assert {f.operator.name for _, f in result.looks[0].wrong} == {name}


def test_texts_that_cannot_be_read_are_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("nothing")
    with pytest.raises(UsageError, match="holds no values as llama-eval-callback prints them"):
        check_outputs(make_run("llama"), tmp_path)
    (tmp_path / "log.txt").write_text(printed("a", np.ones((3, 4), np.float32)).rpartition("[")[0])
    with pytest.raises(UsageError, match="a ends before its last element"):
        check_outputs(make_run("llama"), tmp_path)
    np.save(tmp_path / "b.npy", np.ones(3))
    with pytest.raises(UsageError, match="Give a folder for each"):
        check_outputs(make_run("llama"), tmp_path)
