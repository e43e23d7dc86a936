"""Tokens as text while they come: the pieces are the whole text, whatever the tokens, and none ends within a character."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapml.deploy.stream import UNKNOWN, Stream
from tapml.errors import UsageError
from tests.deploy.vocabularies import pieces, real, words

TEXT = "Hello, world! 👩‍💻🎉 你好，世界。 naïve\tcafé\r\n\n  x = [1, 2]; 🇪🇺🏳️‍🌈 \u0928\u092e\u0938\u094d\u0924\u0947 end"


def decoding(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    return lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def streamed(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], str | None]:
    stream = Stream(decoding(tokenizer), stop)
    found = []
    for token in tokens:
        found.append(stream.add(token))
        if stream.stopped is not None:
            break
    return [*found, stream.end()], stream.stopped


def cut(text: str, stop: Sequence[str]) -> str:
    """At the first stop string, found by looking at each beginning of the text in turn."""
    for end in range(len(text) + 1):
        if ended := [word for word in stop if text[:end].endswith(word)]:
            return text[: end - max(map(len, ended))]
    return text


@functools.cache
def token_lists() -> st.SearchStrategy[list[int]]:
    """Any tokens, those of single bytes often, and those of real texts, in any order."""
    tokenizer = real()
    byte = [n for n in range(tokenizer.get_vocab_size()) if UNKNOWN in tokenizer.decode([n])]
    assert len(byte) > 100
    texts = [tokenizer.encode(part).ids for part in (TEXT, TEXT[14:24], "你好", "🎉", "stop here")]
    one = st.one_of(st.integers(0, tokenizer.get_vocab_size() - 1), st.sampled_from(byte), st.integers(0, 20))
    return st.lists(st.one_of(st.lists(one, max_size=6), st.sampled_from(texts)), max_size=12).map(
        lambda lists: list(itertools.chain.from_iterable(lists))
    )


@settings(max_examples=300)
@given(data=st.data())
def test_the_pieces_are_the_whole_text(data: st.DataObject) -> None:
    tokens = data.draw(token_lists())
    whole = decoding(real())(tokens)
    places = st.tuples(st.integers(0, max(0, len(whole) - 1)), st.integers(1, 6)).map(lambda at: whole[at[0] : sum(at)] or "x")
    stop = data.draw(st.lists(st.one_of(places, st.text("ab \n.", min_size=1, max_size=3)), max_size=3))
    found, stopped = streamed(real(), tokens, stop)
    assert "".join(found) == cut(whole, stop)
    assert (stopped is None) == (not any(word in whole for word in stop))


@given(st.text(max_size=60).filter(lambda text: UNKNOWN not in text))
def test_no_piece_ends_within_a_character(text: str) -> None:
    for tokenizer in (real(), pieces()):
        tokens = tokenizer.encode(text).ids
        if decoding(tokenizer)(tokens) == text:  # SmolLM2 has no token for some bytes
            found, _ = streamed(tokenizer, tokens)
            assert not any(UNKNOWN in piece for piece in found) and "".join(found) == text


@given(st.lists(st.integers(258, pieces().get_vocab_size() - 1), max_size=30))
def test_spaces_that_only_the_first_word_loses(tokens: list[int]) -> None:
    assert "".join(streamed(pieces(), tokens)[0]) == decoding(pieces())(tokens)


@given(st.lists(st.integers(0, words().get_vocab_size() - 1), max_size=30))
def test_parts_of_words_that_only_the_first_token_shows(tokens: list[int]) -> None:
    assert "".join(streamed(words(), tokens)[0]) == decoding(words())(tokens)


def test_text_comes_as_soon_as_it_is_known() -> None:
    tokens = real().encode("One 🎉 User says").ids
    found, _ = streamed(real(), tokens, ["User:"])
    assert [piece for piece in found if piece] == ["One", " ", "🎉", " ", "User says"]
    stream = Stream(decoding(real()), ["User:"])
    for token in real().encode("One User").ids:
        stream.add(token)
    assert stream.end() == "User"
    emoji = real().encode("🎉").ids
    assert len(emoji) > 1
    stream = Stream(decoding(real()))
    assert [stream.add(token) for token in emoji[:-1]] == [""] * (len(emoji) - 1)
    assert stream.end() == UNKNOWN, "what the tokens stand for, though they end too soon"


@pytest.mark.parametrize("tokenizer", [real, pieces])
@pytest.mark.parametrize("text", ["word and another one, ", "🎉你", "\n"])
def test_a_token_takes_as_long_in_a_long_text(tokenizer: Callable[[], Any], text: str) -> None:
    """Counted in tokens that are decoded; also where none of them is a character for long."""
    asked = []

    def decode(tokens: Sequence[int]) -> str:
        asked.append(len(tokens))
        return decoding(tokenizer())(tokens)

    lone = tokenizer().encode("🎉").ids[-1:]
    for tokens in (tokenizer().encode(text * 100).ids, lone * 600):
        asked.clear()
        stream = Stream(decode)
        assert "".join(stream.add(token) for token in tokens) + stream.end() == decoding(tokenizer())(tokens)
        assert max(asked) < 60 and sum(asked) < 100 * len(tokens)


def test_an_empty_stop_string() -> None:
    with pytest.raises(UsageError, match="A stop string is empty"):
        Stream(str, [""])
