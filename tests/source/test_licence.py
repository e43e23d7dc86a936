"""The licence that a model's files state."""

from __future__ import annotations

from pathlib import Path

import pytest

from tapml.source.licence import CARD, card, stated


@pytest.mark.parametrize("text, licence", [
    ("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n", "apache-2.0"),
    ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
    ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit, apache-2.0"),
    ("---\nlanguage: en\n---\nlicense: mit\n", ""),
    ("# A model\n", ""),
    ("---\nlicense: {a: 1}\n---\n", ""),
    ("---\nlicense: [\n---\n", ""),
    ("---\n- mit\n---\n", ""),
    (card("a: 'b' \"c\""), "a: 'b' \"c\""),
    (card(""), ""),
])  # fmt: skip
def test_cards(tmp_path: Path, text: str, licence: str) -> None:
    (tmp_path / CARD).write_text(text)
    assert stated(tmp_path) == licence


def test_no_card_and_one_that_is_no_text(tmp_path: Path) -> None:
    assert stated(tmp_path) == ""
    (tmp_path / CARD).write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert stated(tmp_path) == ""
