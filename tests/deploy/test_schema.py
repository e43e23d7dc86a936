"""Answers that are JSON of a schema, whatever the logits say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tapml.carving import layout as of_run
from tapml.deploy.bundle import BundleFolder
from tapml.deploy.sampling import Sampler, Sampling
from tapml.deploy.schema import Schema
from tapml.errors import UsageError
from tapml.runtime.decoder import Decoder
from tests.deploy.vocabularies import END, real, small
from tests.models import VOCABULARY

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "é", None, 2.5]}, "maxItems": 3},
        "next": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
OTHERS = [
    {"type": "integer", "minimum": 0, "maximum": 1500},  # which may end before it has to
    {"enum": ["yes", "no", "perhaps \"so\""]},
    {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 9}, "minItems": 2, "maxItems": 4},
    {"type": "string", "pattern": "^[a-z]{2,5}-[0-9]+$", "maxLength": 9},
]  # fmt: skip


class Stub:
    """What a schema asks of a bundle."""

    def __init__(self, tokenizer: Any, vocabulary: int, stop: tuple[int, ...]) -> None:
        self.name, self.manifest = "stub", {"files": {of_run.TOKENIZER: {}} if tokenizer else {}}
        self.protocol = Decoder(8, 32, vocabulary, stop)
        self._content = tokenizer.to_str().encode() if tokenizer else b""

    def content(self, name: str) -> bytes:
        return self._content


def schema_of(found: Any, tokenizer: Any = None, vocabulary: int = VOCABULARY, stop: tuple[int, ...] = (END,)) -> Schema:
    text = found if isinstance(found, str) else json.dumps(found)
    return Schema(cast(BundleFolder, Stub(tokenizer or small(), vocabulary, stop)), text)


def written(schema: Schema, seed: int, temperature: float, most: int = 400) -> list[int]:
    """Tokens by random logits, new at each step."""
    rng, grammar = np.random.default_rng(seed), schema.grammar()
    vocabulary = schema._protocol.vocabulary
    sampler = Sampler(Sampling(temperature=temperature, seed=seed), vocabulary, (), grammar)
    tokens: list[int] = []
    while not grammar.done:
        assert grammar.whole == bool(set(schema._protocol.stop) & set(np.flatnonzero(grammar.allowed()))), "ends where it may"
        tokens.append(sampler.choose((rng.standard_normal(vocabulary) * 4).astype(np.float32), len(tokens)))
        assert len(tokens) < most
    assert grammar.whole
    return tokens


SCHEMAS = [(found, schema_of(found)) for found in (PERSON, *OTHERS)]


@settings(max_examples=40)
@given(st.sampled_from(SCHEMAS), st.integers(0, 2**32), st.sampled_from([0.0, 1.0]))
def test_whatever_the_logits_it_is_json_of_the_schema(one: tuple[Any, Schema], seed: int, temperature: float) -> None:
    found, schema = one
    tokens = written(schema, seed, temperature)
    assert END not in tokens[:-1]
    text = small().decode(tokens, skip_special_tokens=True)
    Draft202012Validator(found).validate(json.loads(text))
    if found["type" if "type" in found else "enum"] == "array":
        assert re.fullmatch(r"\[-?\d(, -?\d)+\]", text), "no white space but this"


def test_a_stop_token_is_offered_where_the_json_may_end() -> None:
    grammar = schema_of(OTHERS[0]).grammar()
    assert not grammar.whole and not grammar.allowed()[END]
    grammar.take(small().token_to_id("7"))
    assert grammar.whole and not grammar.done and grammar.allowed()[END]
    grammar.take(END)
    assert grammar.whole and grammar.done


def test_with_a_real_tokenizer_and_rows_that_have_no_token() -> None:
    """A model's vocabulary may be larger than its tokenizer's, or smaller."""
    for vocabulary in (real().get_vocab_size() + 37, real().get_vocab_size() - 1000):
        schema = schema_of(PERSON, real(), vocabulary, (2,))
        tokens = written(schema, 3, 1.0)
        Draft202012Validator(PERSON).validate(json.loads(real().decode(tokens, skip_special_tokens=True)))
        assert max(tokens) < min(vocabulary, real().get_vocab_size())


def test_without_a_stop_token_it_ends_where_nothing_can_follow() -> None:
    tokens = written(schema_of(PERSON, stop=()), 5, 1.0)
    Draft202012Validator(PERSON).validate(json.loads(small().decode(tokens)))


@pytest.mark.parametrize("text, said", [
    ("{", r"is not JSON: .*line 1"),
    ("true", r"The JSON schema is true; it has to be an object"),
    ("[1]", "has to be an object"),
    ('{"type": "objec"}', "cannot be followed: Invalid type: objec"),
    ('{"type": "array", "uniqueItems": true}', "cannot be followed: Unimplemented keys.*uniqueItems"),
    ('{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}', "uniqueItems"),
    ('{"type": "integer", "minimum": 5, "maximum": 2}', "Unsatisfiable schema: minimum"),
    ('{"type": "string", "pattern": "("}', "unclosed group"),
    ('{"$ref": "http://elsewhere/schema"}', "http://elsewhere/schema"),
    ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
])  # fmt: skip
def test_schemas_that_cannot_be_followed(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        schema_of(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_bundle_without_a_tokenizer_writes_no_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stub has no tokenizer, so it writes no JSON"):
        Schema(cast(BundleFolder, Stub(None, VOCABULARY, ())), "{}")
