"""Late positions: a synthetic text that goes on from the first prompt to the end of the key-value cache.

    late = Late.planned(prompts, answers, shape, windows)
    calls = check_calls(prompts[0], answers[0], late, shape)    the check of a whole decoder, its late calls last
    first = len(calls) - len(late.calls(shape))                 the step that the first late call has there

Prompts and answers fill a small part of the cache, and a kernel that is wrong beyond it would pass everything. So the first
prompt and its answer are continued with tokens of the prompts (others are drawn where these are few), the same each time. Prefill
calls fill the cache, which costs little; decode calls are made at a few positions only: powers of two and three quarters of the
cache, beyond what the prompts reached; both sides of a sliding window's edge; and the last position.

Such a decode call puts another token at its position than the prefill call before it did, so a key that is not written shows.
A cache of more than `CHUNKS` prefill calls is filled in part: the calls are spread over it, and what they leave out stays zero,
in the source as in the target. No state is reset before the first late call: the first prompt's prefill calls are behind it.

Nothing here needs torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tapml import strict
from tapml.carving.case import LATE_POSITION
from tapml.runtime.decoder import LONGEST
from tapml.runtime.protocol import Cached, Call, ModelProtocol

# Most prefill calls that fill the cache, those with a decode call in them not counted.
CHUNKS = 32

# Different tokens that the text has at least, where the vocabulary allows it.
DIFFERENT = 32


@dataclass(frozen=True)
class Late:
    """`tokens`: one for each position of the cache, those of the first prompt and its answer first. `chunks`: positions at which
    prefill calls start; `steps`: position and token of the decode calls; both ascend. `windows`: lengths of the model's
    sliding windows. `reached`: how many positions, from 0, the prompts and their answers filled."""

    tokens: tuple[int, ...]
    chunks: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    windows: tuple[int, ...]
    reached: int

    @staticmethod
    def planned(
        prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], shape: Cached, windows: Iterable[int] = ()
    ) -> Late:
        """`answers` are the greedy tokens of each prompt, the last of which was not fed back."""
        reached = max(min(len(p) + max(len(a) - 1, 0), shape.max_len) for p, a in zip(prompts, answers, strict=True))
        edges = tuple(sorted({w for w in windows if 1 < w < shape.max_len}))
        pool = _pool((token for part in (*prompts, *answers) for token in part), shape)
        chance = random.Random(0)
        tokens = [*prompts[0], *answers[0]][: shape.max_len]
        tokens += chance.choices(pool, k=shape.max_len - len(tokens))
        positions = _positions(shape.max_len, reached, edges)
        steps = tuple((p, chance.choice([t for t in pool if t != tokens[p]] or pool)) for p in positions)
        chunks = _chunks(shape, len(prompts[0]), positions)
        return Late(tuple(tokens), chunks, steps, edges, reached)

    def calls(self, shape: Cached) -> list[Call]:
        """The late calls, by position: a chunk, then the decode calls within it."""
        made: list[Call] = []
        for start in self.chunks:
            made.append(shape.fill(self.tokens[start : start + shape.chunk], start))
            made += [shape.append(token, place) for place, token in self.steps if start <= place < start + shape.chunk]
        return made

    def recorded(self, call: Call, shape: Cached) -> str | None:
        """Why a late call is worth a case; None for one that only fills the cache."""
        if call.graph == shape.appends:
            return f"{LATE_POSITION} {call.position}"
        end = call.position + shape.chunk
        if any(call.position <= place < end for place, _ in self.steps):
            return f"{LATE_POSITION}s {call.position} to {end - 1}"
        return None

    def positions(self, shape: Cached) -> dict[str, Any]:
        """What was exercised, for people and JSON: `cache` positions, `exercised` of them, the last one, how many the prompts
        reached, and where decode calls were made beside those of the answers."""
        filled = {*range(self.reached), *(p for p, _ in self.steps)}
        for start in self.chunks:
            filled |= set(range(start, start + shape.chunk))
        return {
            "cache": shape.max_len, "exercised": len(filled), "last": max(filled), "prompts": self.reached,
            "late_steps": [p for p, _ in self.steps], "windows": list(self.windows),
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": list(self.tokens), "chunks": list(self.chunks), "steps": [list(s) for s in self.steps],
            "windows": list(self.windows), "reached": self.reached,
        }  # fmt: skip

    @staticmethod
    def from_json(data: dict[str, Any]) -> Late:
        whole = strict.whole
        steps = strict.several(strict.items, data, "steps", 2)
        return Late(
            strict.several(whole, data, "tokens"), strict.several(whole, data, "chunks"),
            tuple((whole(step, 0), whole(step, 1)) for step in steps), strict.several(whole, data, "windows"),
            whole(data, "reached", 0, LONGEST),
        )  # fmt: skip


def check_calls(given: Any, answer: Sequence[int], late: Late | None, protocol: ModelProtocol) -> list[Call]:
    """The short check with what the model is given and the source's tokens; then the late calls, if any."""
    calls = protocol.check(given, answer)
    return calls + late.calls(protocol) if late is not None and isinstance(protocol, Cached) else calls


def positions_words(positions: dict[str, Any] | None) -> str:
    """ "positions 0 to 159 of 160 were exercised"; "" for a module that is not a decoder."""
    if not positions:
        return ""
    count, last = positions["exercised"], positions["last"]
    gaps = "" if count == last + 1 else f", {count:,} of them,"
    return f"positions 0 to {last} of {positions['cache']}{gaps} were exercised"


def _pool(seen: Iterable[int], shape: Cached) -> list[int]:
    """The different tokens of the prompts and answers without those that end a generation, and others where they are few."""
    pool = [token for token in dict.fromkeys(seen) if token not in shape.stop]
    chance = random.Random(1)
    for token in chance.sample(range(shape.vocabulary), min(shape.vocabulary, DIFFERENT + len(shape.stop))):
        if len(pool) >= DIFFERENT:
            break
        if token not in pool and token not in shape.stop:
            pool.append(token)
    return pool or [0]


def _positions(max_len: int, reached: int, windows: Sequence[int]) -> list[int]:
    """Where decode calls are made."""
    powers = (1 << k for k in range(max_len.bit_length()))
    spread = {p for p in (*powers, max_len * 3 // 4) if reached <= p < max_len}
    edges = {p for w in windows for p in (w - 1, w)}
    return sorted(spread | edges | {max_len - 1})


def _chunks(shape: Cached, prompt: int, positions: Sequence[int]) -> tuple[int, ...]:
    """Where prefill calls start: all chunks that the prompt left open, or `CHUNKS` of them spread evenly; and those with a decode
    call in them."""
    fresh = range(prompt // shape.chunk * shape.chunk, shape.max_len, shape.chunk)
    if len(fresh) > CHUNKS:
        fresh = [fresh[round(k * (len(fresh) - 1) / (CHUNKS - 1))] for k in range(CHUNKS)]  # type: ignore[assignment]
    return tuple(sorted({*fresh, *(p // shape.chunk * shape.chunk for p in positions)}))
