"""Prompt texts become what the model takes: tokens for a causal language model, named tensors of one shape for an encoder.

    encode(model, ["What is the capital of France?"])       (Prompt(text, tokens),)
    encoder_inputs(model, ["one text", "another"])          a dict of tensors for each text, all of the same shape

With a chat template, a text is one user turn and the template asks for an answer; without one it is taken as it is. A model
without a tokenizer takes token ids: "5 9 70". A template is a program of whoever made the model: it is rendered in jinja2's
sandbox, which transformers does, and within bounds of time and memory (`within_limits.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tapml.errors import ModelError, PromptError
from tapml.source.model import LoadedModel
from tapml.source.within_limits import Unbounded, bounded

_SAMPLE = "Paris is the capital of France, and Berlin is the capital of Germany."


@dataclass(frozen=True)
class Prompt:
    """`text` as the user gave it ("" for the tokens of example inputs)."""

    text: str
    tokens: tuple[int, ...]


def encode(model: LoadedModel, texts: Sequence[str]) -> tuple[Prompt, ...]:
    """The prompts of a causal language model; with no texts, the rows of its example's `input_ids` where its `attention_mask` is
    not 0. Raises PromptError for an empty text, for token ids outside of the vocabulary, and when there is nothing at all;
    ModelError for example inputs that would not be used."""
    if texts:
        return tuple(Prompt(text, _tokens(model, text)) for text in texts)
    example = model.example_inputs.get("input_ids")
    if example is None:
        raise PromptError(f"{model.name} needs a prompt. Give one with --prompt TEXT.")
    if unused := _no_text(model):
        raise ModelError(
            f"{model.name} is carved as a decoder of text, token by token, in which its example {_inputs(unused)} would not be "
            "used. Leave that out to carve the text alone; or carve one forward pass with it: a module that calls the model "
            "with use_cache=False, from FILE.py:FUNCTION."
        )
    rows = example.reshape(-1, example.shape[-1])
    mask = model.example_inputs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.shape != example.shape:
        mask = torch.ones_like(example)
    kept = mask.reshape(rows.shape)
    return tuple(
        Prompt("", _in_vocabulary(model, tuple(row[seen != 0].tolist()))) for row, seen in zip(rows, kept, strict=True)
    )


def unused_inputs(model: LoadedModel, texts: Sequence[str]) -> list[str]:
    """A line where prompts take the place of example inputs that hold something else than a text."""
    unused = _no_text(model) if texts else []
    return [f"the example {_inputs(unused)} was ignored: prompts were given, and prompts are text only"] if unused else []


def _inputs(names: Sequence[str]) -> str:
    return f"input{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _no_text(model: LoadedModel) -> list[str]:
    """The example inputs that a text does not have, or not so: images, sounds, segments, positions that are not 0, 1, 2, …"""
    found = []
    for name, value in model.example_inputs.items():
        holds = any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))
        if name in ("input_ids", "attention_mask") or not holds:
            continue
        if isinstance(value, torch.Tensor) and (
            (name == "token_type_ids" and not bool(value.any()))
            or (name in ("position_ids", "cache_position") and _counts(value))
        ):
            continue
        found.append(name)
    return found


def _counts(places: torch.Tensor) -> bool:
    return places.dim() > 0 and bool((places == torch.arange(places.shape[-1], device=places.device)).all())


def _tokens(model: LoadedModel, text: str) -> tuple[int, ...]:
    if not text.strip():
        raise PromptError("A prompt is empty. Give at least one word with --prompt.")
    _refuse_surrogates(text)
    if model.tokenizer is None:
        if not re.fullmatch(r"\s*\d+(?:[\s,]+\d+)*\s*", text):
            raise PromptError(f"{model.name} has no tokenizer: give token ids, such as --prompt '5 9 70', not {text[:40]!r}.")
        return _in_vocabulary(model, tuple(int(n) for n in re.findall(r"\d+", text)))
    if getattr(model.tokenizer, "chat_template", None):
        text = _rendered(model, text)
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = model.tokenizer(text)["input_ids"]
    if not ids:
        raise PromptError(f"The prompt {text[:40]!r} has no tokens. Give at least one word with --prompt.")
    return _in_vocabulary(model, tuple(int(n) for n in ids))


def _rendered(model: LoadedModel, text: str) -> str:
    """The text as one user turn of the model's chat template. Raises ModelError when the template cannot be rendered."""
    turn = [{"role": "user", "content": text}]
    tokenizer = model.tokenizer
    assert tokenizer is not None
    try:
        return bounded(lambda: str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)))
    except Unbounded as error:
        raise ModelError(
            f"The chat template of {model.name} cannot be rendered: {error}. Correct chat_template in its tokenizer's files, or "
            "remove it there; prompts are then used as they are."
        ) from error


def _refuse_surrogates(text: str) -> None:
    """Raises PromptError for a text with halves of characters in it (bytes that were no UTF-8), which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = text[max(error.start - 20, 0) : error.start + 20].encode("utf-8", "replace").decode()
        raise PromptError(f"A prompt is not text: it has half a character at {error.start}, after {shown!r}.") from error


def positions(module: Any) -> int | None:
    """How many positions a transformers model knows; None for one without a limit."""
    found = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _in_vocabulary(model: LoadedModel, tokens: tuple[int, ...]) -> tuple[int, ...]:
    size = vocabulary(model.module)
    outside = [token for token in tokens if not 0 <= token < size]
    if outside:
        raise PromptError(f"Token {outside[0]} is outside of {model.name}'s vocabulary of {size} tokens.")
    return tokens


def vocabulary(module: Any) -> int:
    """How many tokens a causal language model's input embedding knows."""
    return int(module.get_input_embeddings().weight.shape[0])


def encoder_inputs(model: LoadedModel, texts: Sequence[str]) -> tuple[dict[str, torch.Tensor], ...]:
    """Inputs of a text encoder, int64 [1, n] each, n being the length of the longest text (shorter ones are padded and
    masked). With no texts: the model's example inputs alone. Raises PromptError."""
    if not texts:
        return (dict(model.example_inputs),)
    if model.tokenizer is None:
        raise PromptError(f"{model.name} has no tokenizer and takes no text. Leave --prompt out: its example inputs are used.")
    if any(not text.strip() for text in texts):
        raise PromptError("A prompt is empty. Give at least one word with --prompt.")
    for text in texts:
        _refuse_surrogates(text)
    if len(texts) > 1 and getattr(model.tokenizer, "pad_token", None) is None:
        raise PromptError(f"The tokenizer of {model.name} has no padding token, so it accepts only one --prompt.")
    wanted = {"padding": True} if len(texts) > 1 else {}
    batch = model.tokenizer(list(texts), return_tensors="pt", **wanted)
    limit = positions(model.module)
    length = int(batch["input_ids"].shape[1])
    if limit is not None and length > limit:
        raise PromptError(f"A prompt has {length} tokens; {model.name} takes {limit}. Shorten it.")
    return tuple({k: v[row : row + 1].to(model.device) for k, v in batch.items()} for row in range(len(texts)))


def default_inputs(model: LoadedModel) -> dict[str, torch.Tensor]:
    """Example inputs for a module that came without: those of a sample sentence. Raises ModelError when it takes no text."""
    if model.tokenizer is None:
        raise ModelError(
            f"{model.name} needs example inputs. Give FILE.py:FUNCTION returning (module, example_inputs), or from Python "
            "example_inputs=…."
        )
    return encoder_inputs(model, [_SAMPLE])[0]
