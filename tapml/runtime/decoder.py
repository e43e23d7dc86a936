"""The kind "decoder": a causal language model over a key-value cache, as two graphs.

    prefill(input_ids int64 [1, chunk], position_ids int64 [1, chunk], last int64 [1]) -> logits [1, 1, vocabulary]
    decode(input_ids int64 [1, 1], position_ids int64 [1, 1])                          -> logits [1, 1, vocabulary]

`last` is the index in the chunk of the last real token. The last chunk is padded with token 0 at the positions that follow;
what that writes into the key-value cache is overwritten by later steps before any of them may attend to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tapml import strict
from tapml.errors import PromptError
from tapml.operators.graph import Graph
from tapml.runtime.protocol import Cached, Call
from tapml.tensors import HostArray

# More positions than any cache has.
LONGEST = 2**24


@dataclass(frozen=True)
class Decoder(Cached):
    """`chunk`: tokens in a prefill call; `max_len`: positions in the key-value cache, a multiple of `chunk`."""

    kind = "decoder"
    chooses = "logits"
    appends = "decode"
    positions = "position_ids"
    graphs = ("prefill", appends)

    chunk: int
    max_len: int
    vocabulary: int
    stop: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Decoder:
        chunk, max_len = strict.whole(data, "chunk", 1, LONGEST), strict.whole(data, "max_len", 1, LONGEST)
        if max_len % chunk:
            raise ValueError(f"a cache of {max_len:,} positions is not filled by chunks of {chunk:,}")
        vocabulary, stop = strict.whole(data, "vocabulary", 1, 2**31), strict.several(strict.whole, data, "stop")
        return Decoder(chunk, max_len, vocabulary, stop)

    def read(self, prompt: Sequence[int]) -> Iterator[Call]:
        if not prompt:
            raise PromptError("The prompt has no tokens. Give at least one word with --prompt.")
        if len(prompt) > self.max_len:
            raise PromptError(
                f"The prompt has {len(prompt)} tokens; the key-value cache holds {self.max_len}. "
                f"Carve with --max-len {len(prompt) + self.chunk} or more, or shorten the prompt."
            )
        for start in range(0, len(prompt), self.chunk):
            yield self.fill(prompt[start : start + self.chunk], start)

    def fill(self, tokens: Sequence[int], start: int) -> Call:
        ids = np.zeros((1, self.chunk), np.int64)
        ids[0, : len(tokens)] = tokens
        positions = np.arange(start, start + self.chunk, dtype=np.int64)[None]
        last = np.array([len(tokens) - 1], np.int64)
        inputs: dict[str, HostArray] = {"input_ids": ids, "position_ids": positions, "last": last}
        return Call("prefill", inputs, start, len(tokens))

    def append(self, token: int, position: int) -> Call:
        ids, positions = np.array([[token]], np.int64), np.array([[position]], np.int64)
        return Call("decode", {"input_ids": ids, "position_ids": positions}, position, 1)

    def unlike(self, graph: Graph) -> str:
        count = 1 if graph.name == self.appends else self.chunk
        given = {p.key: (p.spec.shape, p.spec.dtype) for p in graph.inputs}
        wanted = {"input_ids": ((1, count), "int64"), "position_ids": ((1, count), "int64"), "last": ((1,), "int64")}
        if not set(given) <= set(wanted) or any(given[key] != wanted[key] for key in given):
            return "it does not take tokens, positions and the last of them"
        logits = dict(zip(graph.output_keys, graph.outputs, strict=True)).get(self.chooses)
        if logits is None or graph.specs[logits].elements != self.vocabulary:
            return f"it does not give logits of {self.vocabulary} tokens"
        return ""
