"""Texts become tokens, with the chat template where there is one; what cannot be tokens is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import psutil
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as vocabularies
from transformers import PreTrainedTokenizerFast

from tapml.errors import ModelError, PromptError
from tapml.source import prompts
from tapml.source.load import load
from tapml.source.model import LoadedModel
from tapml.source.prompts import encode, encoder_inputs, unused_inputs
from tapml.source.within_limits import Unbounded, bounded
from tests import models

WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "user": 3, "answer": 4, "one": 5, "two": 6, "three": 7, "<pad>": 8}


def words() -> PreTrainedTokenizerFast:
    inner = Tokenizer(vocabularies.WordLevel(WORDS, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load(models.causal_lm("llama"), example_inputs={"input_ids": torch.tensor([[5, 9], [7, 7]])})


def test_plain_and_chat(model: LoadedModel) -> None:
    tokenizer = words()
    assert encode(replace(model, tokenizer=tokenizer), ["one two"])[0].tokens == (5, 6)
    tokenizer.chat_template = (
        "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
        "{% if add_generation_prompt %}answer{% endif %}"
    )
    made = encode(replace(model, tokenizer=tokenizer), ["one two", "three"])
    assert made[0].text == "one two"
    assert [p.tokens for p in made] == [(1, 3, 5, 6, 2, 4), (1, 3, 7, 2, 4)]


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (ENDLESS, "within 1 s"),
        ("{{ 'a' * 10000000000 }}", "of memory"),
        ("{{ 'a' | center(10000000000) }}", "of memory"),
        ("{% set n = namespace(t='a' * 1000) %}{% for i in range(99) %}{% set n.t = n.t ~ n.t %}{% endfor %}", "of memory"),
        ("{{ 'a' * 20000000 }}", "20,000,000 bytes"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ raise_exception('no system prompt') }}", "no system prompt"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "RecursionError"),
    ],
)
def test_a_chat_template_is_a_program_of_a_stranger(
    model: LoadedModel, template: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends, and with an error that says what to do."""
    monkeypatch.setattr(prompts, "bounded", partial(bounded, seconds=1.0) if template == ENDLESS else bounded)
    tokenizer = words()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=f"The chat template of .* cannot be rendered: .*{why}"):
        encode(replace(model, tokenizer=tokenizer), ["one two"])


def test_what_ends_within_its_bounds_is_what_it_was() -> None:
    before = {child.pid for child in psutil.Process().children()}
    assert bounded(lambda: "é\n\x1b") == "é\n\x1b"
    with pytest.raises(Unbounded, match="without an answer"):
        bounded(lambda: os._exit(0))
    assert {child.pid for child in psutil.Process().children()} <= before, "no process is left, ended or not"


def test_token_ids_and_example_tokens(model: LoadedModel) -> None:
    assert encode(model, ["5 9, 70"])[0].tokens == (5, 9, 70)
    assert [p.tokens for p in encode(model, [])] == [(5, 9), (7, 7)]


@pytest.mark.parametrize(
    ("text", "expected"), [("", "empty"), ("  \n", "empty"), ("hello", "has no tokenizer"), ("5 128", "Token 128 is outside")]
)
def test_prompts_that_are_refused(model: LoadedModel, text: str, expected: str) -> None:
    with pytest.raises(PromptError, match=expected):
        encode(model, [text])


def test_a_prompt_is_needed_where_there_is_no_example(model: LoadedModel) -> None:
    with pytest.raises(PromptError, match="needs a prompt"):
        encode(replace(model, example_inputs={}), [])


def test_encoder_texts_get_one_shape() -> None:
    module, inputs = models.encoder()
    encoder = load(module, example_inputs=inputs, tokenizer=words())
    short, long = encoder_inputs(encoder, ["one", "one two three"])
    assert short["input_ids"].tolist() == [[5, 8, 8]]
    assert short["attention_mask"].tolist() == [[1, 0, 0]]
    assert long["input_ids"].tolist() == [[5, 6, 7]]
    assert torch.equal(encoder_inputs(encoder, [])[0]["input_ids"], inputs["input_ids"])
    without = words()
    without.pad_token = None
    bare = load(module, example_inputs=inputs, tokenizer=without)
    assert len(encoder_inputs(bare, ["one"])) == 1
    with pytest.raises(PromptError, match="no padding token"):
        encoder_inputs(bare, ["one", "two three"])
    with pytest.raises(PromptError, match="takes 64"):
        encoder_inputs(encoder, ["one " * 65])
    with pytest.raises(PromptError, match="empty"):
        encoder_inputs(encoder, ["one", ""])


def test_example_inputs_that_are_no_text_are_refused_or_told() -> None:
    module = models.causal_lm("llama")
    example = {"input_ids": torch.tensor([[5, 9, 70]]), "pixel_values": torch.randn(1, 3, 8, 8), "use_cache": True}
    model = load(module, example_inputs=example)
    with pytest.raises(ModelError, match=r"its example input pixel_values would not be used\. Leave that out"):
        encode(model, [])
    (told,) = unused_inputs(model, ["5 9"])
    assert told == "the example input pixel_values was ignored: prompts were given, and prompts are text only"
    moved = {"input_ids": torch.tensor([[5, 9, 70]]), "position_ids": torch.tensor([[3, 4, 5]])}
    with pytest.raises(ModelError, match="its example input position_ids would not be used"):
        encode(load(module, example_inputs=moved), [])


def test_what_the_mask_of_an_example_hides_is_no_part_of_its_prompt() -> None:
    example = {
        "input_ids": torch.tensor([[0, 0, 5, 9], [7, 8, 6, 0]]), "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]),
        "position_ids": torch.arange(4)[None], "token_type_ids": torch.zeros(2, 4, dtype=torch.long),
    }  # fmt: skip
    model = load(models.causal_lm("llama"), example_inputs=example)
    assert [prompt.tokens for prompt in encode(model, [])] == [(5, 9), (7, 8, 6)]
    assert unused_inputs(model, ["5 9"]) == []
