"""Feeding a causal language model that is two graphs: `prefill` (a chunk of tokens) and `decode` (one token).

Used in the same way by the source, by a hybrid of source and target, and by a deployed model: each is a `Stepper`.

    prefill(input_ids int64 [1, chunk], position_ids int64 [1, chunk], last int64 [1]) -> logits [1, 1, vocabulary]
    decode(input_ids int64 [1, 1], position_ids int64 [1, 1])                          -> logits [1, 1, vocabulary]

`last` is the index in the chunk of the last real token. The last chunk is padded with token 0 at the positions that follow;
what that writes into the key-value cache is overwritten by later steps before any of them may attend to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from tapml import strict
from tapml.errors import PromptError
from tapml.tensors import HostArray

# More positions than any cache has.
LONGEST = 2**24


@dataclass(frozen=True)
class DecoderShape:
    """`chunk`: tokens in a prefill call; `max_len`: positions in the key-value cache, a multiple of `chunk`;
    `stop`: token ids that end generation."""

    chunk: int
    max_len: int
    vocabulary: int
    stop: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> DecoderShape:
        chunk, max_len = strict.whole(data, "chunk", 1, LONGEST), strict.whole(data, "max_len", 1, LONGEST)
        if max_len % chunk:
            raise ValueError(f"a cache of {max_len:,} positions is not filled by chunks of {chunk:,}")
        vocabulary, stop = strict.whole(data, "vocabulary", 1, 2**31), strict.several(strict.whole, data, "stop")
        return DecoderShape(chunk, max_len, vocabulary, stop)


class Stepper(Protocol):
    """Something that runs graphs of one model and keeps its states."""

    def reset(self) -> None:
        """Sets every state back to what it is before the first token."""

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        """Runs one graph: inputs by key, outputs by key. States advance."""


@dataclass(frozen=True)
class Call:
    """One call of a graph in a generation; `tokens` are real ones, padding not counted."""

    graph: str
    inputs: dict[str, HostArray]
    position: int
    tokens: int


def prefill_calls(prompt: Sequence[int], shape: DecoderShape) -> Iterator[Call]:
    """The prefill calls for a prompt. Raises PromptError if it is empty or longer than the cache."""
    if not prompt:
        raise PromptError("The prompt has no tokens. Give at least one word with --prompt.")
    if len(prompt) > shape.max_len:
        raise PromptError(
            f"The prompt has {len(prompt)} tokens; the key-value cache holds {shape.max_len}. "
            f"Carve with --max-len {len(prompt) + shape.chunk} or more, or shorten the prompt."
        )
    for start in range(0, len(prompt), shape.chunk):
        part = list(prompt[start : start + shape.chunk])
        ids = np.zeros((1, shape.chunk), np.int64)
        ids[0, : len(part)] = part
        positions = np.arange(start, start + shape.chunk, dtype=np.int64)[None]
        last = np.array([len(part) - 1], np.int64)
        inputs: dict[str, HostArray] = {"input_ids": ids, "position_ids": positions, "last": last}
        yield Call("prefill", inputs, start, len(part))


def decode_call(token: int, position: int) -> Call:
    """The call that appends one token at a position."""
    ids = np.array([[token]], np.int64)
    return Call("decode", {"input_ids": ids, "position_ids": np.array([[position]], np.int64)}, position, 1)


def greedy(
    stepper: Stepper, prompt: Sequence[int], shape: DecoderShape, max_tokens: int, ignore_stop: bool = False
) -> Iterator[tuple[int, HostArray]]:
    """Yields (token, logits [vocabulary]) until a stop token, `max_tokens` or a full cache. The stop token is yielded too."""
    stepper.reset()
    logits: HostArray | None = None
    for call in prefill_calls(prompt, shape):
        logits = stepper.step(call.graph, call.inputs)["logits"]
    assert logits is not None
    position = len(prompt)
    for count in range(1, max_tokens + 1):
        row = logits.reshape(-1)
        token = int(row.argmax())
        yield token, row
        if (token in shape.stop and not ignore_stop) or count == max_tokens or position >= shape.max_len:
            return
        call = decode_call(token, position)
        logits = stepper.step(call.graph, call.inputs)["logits"]
        position += 1
