"""Prompts that are taken in by other pieces: a token gives the same bits wherever in a call it stands, or the first operator
where it does not is named.

    for pieces in other_pieces(protocol, prompt): ...
    operator = first_apart(stand, protocol, list(protocol.read(prompt)), pieces.calls)

Nothing says which axis of a value is that of the tokens: every axis as long as a chunk is tried, and a value has the same rows if
it has along one of them. Of an axis as long as the cache only the positions up to the token's own are compared: what is beyond is
padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from tapml.deploy.composition import Stand, outputs_of
from tapml.deploy.player import Player
from tapml.runtime.protocol import Cached, Call
from tapml.tensors import NUMPY, HostArray


@dataclass(frozen=True)
class Pieces:
    """A prompt in pieces of up to `length` tokens."""

    length: int
    calls: tuple[Call, ...]


def other_pieces(protocol: Cached, prompt: Sequence[int]) -> Iterator[Pieces]:
    """Pieces shorter than a chunk, as far as padding them does not reach beyond the cache."""
    for length in sorted({max(1, protocol.chunk // 2), max(1, protocol.chunk - 1)} - {protocol.chunk}):
        starts = range(0, len(prompt), length)
        if len(prompt) > 1 and starts[-1] + protocol.chunk <= protocol.max_len:
            yield Pieces(length, tuple(protocol.fill(prompt[start : start + length], start) for start in starts))


# An operator, the number of its output, an axis, a position in the text; and a digest of what is there.
_Rows = dict[tuple[str, int, int, int], bytes]


def first_apart(stand: Stand, protocol: Cached, calls: Sequence[Call], others: Sequence[Call]) -> str | None:
    """The first operator, in execution order, that gives a token other bits in `others` than in `calls`; None where that cannot
    be told."""
    with closing(stand.truth()) as player:
        base, other = _rows(player, protocol, calls), _rows(player, protocol, others)
        launches = player.plan.graphs[calls[0].graph].launches
    axes: dict[tuple[str, int], dict[int, bool]] = {}
    for (operator, k, axis, position), digest in base.items():
        along = axes.setdefault((operator, k), {})
        along[axis] = along.get(axis, True) and other.get((operator, k, axis, position), digest) == digest
    apart = {operator for (operator, _), along in axes.items() if not any(along.values())}
    return next((launch.operator for launch in launches if launch.operator in apart), None)


def _rows(player: Player, protocol: Cached, calls: Sequence[Call]) -> _Rows:
    found: _Rows = {}
    player.reset()
    for call in calls:
        graph = player.model.graphs[call.graph]
        player.begin(call.graph, call.inputs)
        player.launch(call.graph, 0, len(player.plan.graphs[call.graph].launches), apart=True)
        for launch in player.plan.graphs[call.graph].launches:
            values = player.model.named[launch.operator].outputs
            for (_, k), place in outputs_of(player.programs, launch):
                spec, shape = player.programs[launch.operator].outputs[k], graph.specs[values[k]].shape
                axes = [axis for axis, size in enumerate(shape) if size == protocol.chunk]
                if not axes:
                    continue
                (data,) = player.contents([(place, spec.nbytes)])
                array = np.frombuffer(data, NUMPY[spec.dtype], spec.elements).reshape(shape)
                for axis in axes:
                    for row in range(call.tokens):
                        position = call.position + row
                        found[launch.operator, k, axis, position] = _row(array, axis, row, position, protocol)
        player.end(call.graph)
    return found


def _row(array: HostArray, axis: int, row: int, position: int, protocol: Cached) -> bytes:
    known = tuple(
        row if a == axis else slice(position + 1) if size == protocol.max_len else slice(None)
        for a, size in enumerate(array.shape)
    )
    return hashlib.blake2b(np.ascontiguousarray(array[known]).tobytes(), digest_size=16).digest()
