"""Pictures of wrong outputs: where the mismatches are, in words and in a map that stays small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapml.carving.tolerance import Accuracy, Reference, of_source
from tapml.migrate.picture import LEVELS, SIDE, keep_picture, kept_picture, picture

SOURCE_ERROR = 1e-6


def values(*shape: int) -> Any:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def drawn(wrong: Any, expected: Any) -> Any:
    """The first map with these elements 2% off."""
    actual = np.where(wrong, expected * 1.02, expected).astype(expected.dtype)
    worst = tuple(int(n) for n in np.argwhere(wrong)[0])
    return picture(actual, of_source(expected, SOURCE_ERROR), worst)["maps"][0]


def test_a_pattern_is_told_in_words() -> None:
    expected = values(1, 8, 64)
    columns = np.zeros(expected.shape, bool)
    columns[..., 3::4] = True
    found = drawn(columns, expected)
    assert found["pattern"] == "128 of 512 elements: every 4th of axis 2, from 3"
    assert (found["height"], found["size"], found["every"]) == (8, [8, 64], [1, 1])
    rows = [found["cells"][k * 64 : k * 64 + 64] for k in range(8)]
    assert all((letter > "0") == (k % 4 == 3) for row in rows for k, letter in enumerate(row)), rows
    last = np.zeros(expected.shape, bool)
    last[:, -1] = True
    assert drawn(last, expected)["pattern"] == "64 of 512 elements: the last of axis 1"
    tail = np.zeros(expected.shape, bool)
    tail[..., 60:] = True
    assert drawn(tail, expected)["pattern"] == "32 of 512 elements: axis 2 from 60 to the last"
    one = np.zeros(expected.shape, bool)
    one[0, 2, 5] = True
    assert drawn(one, expected)["pattern"] == "1 of 512 elements: place 2 of axis 1 and place 5 of axis 2"
    assert drawn(np.ones(expected.shape, bool), expected)["pattern"] == "every element is a mismatch"


def test_an_image_is_also_shown_channel_by_position() -> None:
    expected = values(2, 6, 4, 5)
    wrong = np.zeros(expected.shape, bool)
    wrong[1, 4] = True
    actual = np.where(wrong, expected * 1.02, expected).astype(np.float32)
    plane, channels = picture(actual, of_source(expected, SOURCE_ERROR), (1, 4, 0, 0))["maps"]
    assert plane["at"] == "[1, 4, :, :]" and plane["pattern"] == "every element is a mismatch"
    assert channels["at"] == "[1, :, :, :]" and (channels["rows"], channels["columns"]) == ("axis 1", "axis 2 × axis 3")
    assert channels["pattern"] == "20 of 120 elements: place 4 of axis 1" and channels["size"] == [6, 20]


def test_a_large_output_is_reduced_to_the_worst_of_each_block() -> None:
    expected = values(300, 1000)
    wrong = np.zeros(expected.shape, bool)
    wrong[299, 999] = True
    found = drawn(wrong, expected)
    assert found["every"] == [2, 4] and found["height"] == 150 and len(found["cells"]) == 150 * 250 <= SIDE * SIDE
    assert found["cells"].strip("0")[-1] == found["cells"][-1] != "0" and set(found["cells"][:-1]) == {"0"}


def test_what_is_not_compared_and_what_is_not_finite_have_letters_of_their_own() -> None:
    expected = values(2, 3)
    actual = expected.copy()
    actual[0, 0], actual[1, 2] = 99.0, np.nan
    excluded = np.array([[True, False, False], [False, False, False]])
    found = picture(actual, Reference(expected, Accuracy(), expected.astype(np.float64), excluded), (1, 2))
    assert found["maps"][0]["cells"] == " 0000~" and found["values"]["odd"] == 1
    assert found["values"]["outside"] == 0, "the value that was not compared is not among the values"
    whole = picture(np.array([1, 2, 3]), of_source(np.array([1, 5, 3]), 0.0), (1,))
    assert whole["maps"][0]["cells"] == "0~0", "integers are equal or not"


def test_both_histograms_stand_on_one_axis() -> None:
    expected = np.linspace(-1.0, 1.0, 500, dtype=np.float32)
    told = picture(expected * 2, of_source(expected, SOURCE_ERROR), (0,))["values"]
    assert (told["low"], told["high"]) == (-2.0, 2.0)
    assert told["expected"][:10] == "0" * 10 and "0" not in told["actual"]
    far = expected.copy()
    far[0] = 1e30
    told = picture(far, of_source(expected, SOURCE_ERROR), (0,))["values"]
    assert told["outside"] == 1 and told["high"] == 3.0, "one value far away does not flatten all others"


@given(st.lists(st.integers(0, 5), max_size=4), st.sampled_from([np.float16, np.float32, np.int64, np.bool_]))
def test_any_shape_can_be_drawn(shape: list[int], dtype: Any) -> None:
    expected = np.zeros(shape, dtype)
    found = picture(np.ones(shape, dtype), of_source(expected, 0.0), None)
    assert found["shape"] == shape
    for each in found["maps"]:
        assert set(each["cells"]) <= set(LEVELS) | {" ", "~"}


def test_a_picture_is_of_the_kernels_that_made_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, told = "prefill/layers.1.mlp.down_proj", picture(values(2, 2) * 2, of_source(values(2, 2), SOURCE_ERROR), (0, 0))
    keep_picture(tmp_path, name, "abc", told, injected=False)
    found = kept_picture(tmp_path, name, "abc", injected=False)
    assert found is not None and found["maps"] == told["maps"]
    assert kept_picture(tmp_path, name, "abd", injected=False) is None, "other kernels"
    assert kept_picture(tmp_path, name, "abc", injected=True) is None, "a fault that was injected has its own"
    assert kept_picture(tmp_path, "prefill_layers.1.mlp.down_proj", "abc", injected=False) is None, "another operator"
    next((tmp_path / "failing").iterdir()).write_text("{")
    assert kept_picture(tmp_path, name, "abc", injected=False) is None
    (tmp_path / "file").write_text("")
    keep_picture(tmp_path / "file", name, "abc", told, injected=False)
    assert "the report shows no error map" in caplog.text
