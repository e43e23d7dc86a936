"""What a deployment is fed with, and the call of the run's graph that is the same.

    for question in questions(run, file.inputs): ...
    following = decode_question(run, file.inputs, question, outputs)      one more token, over the cache that the engine gave

A module's example inputs are matched by name, else in order, by shape and dtype. A causal language model gets the first tokens
of the first prompt, as many as one call of the run's graph takes in, without padding; an attention mask of ones, positions from
0, and an empty cache where the file has inputs for one; one of a fixed length is zeros, which the mask leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tapml.carving.folder import RunFolder
from tapml.diagnose.check.onnx_file import Wanted
from tapml.errors import UsageError
from tapml.runtime.protocol import Cached, Call
from tapml.tensors import NUMPY, HostArray

_TOKENS = ("input_ids", "tokens", "input")
_MASK = ("attention_mask", "mask")
_POSITIONS = ("position_ids", "positions", "cache_position")
_TWO_PARTS = ("encoder_", "decoder_")
_PAST = re.compile(r"past|cache(?!_position)|state", re.IGNORECASE)
_PRESENT = re.compile(r"present|past|cache|state", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """`call` is the run's, `feed` the engine's by name. `real`: of axes of so many positions in the run's graph, how many are no
    padding; `tokens`: how many tokens the text has after it."""

    label: str
    call: Call
    feed: Mapping[str, HostArray]
    real: Mapping[int, int]
    tokens: int = 0


def questions(run: RunFolder, inputs: Sequence[Wanted], tokens: int | None = None) -> list[Question]:
    """The first calls. Raises UsageError for inputs that the run has nothing for."""
    if isinstance(run.protocol, Cached):
        return [_prefill(run, run.protocol, inputs, tokens)]
    graph = run.graphs[0]
    found = []
    for number, example in enumerate(run.examples[:2]):
        call = run.protocol.check(example, ())[0]
        found.append(Question(f"example {number}", call, _named(inputs, {p.key: example[p.key] for p in graph.inputs}), {}))
    return found


def _named(inputs: Sequence[Wanted], given: Mapping[str, HostArray]) -> dict[str, HostArray]:
    left = dict(given)
    found: dict[str, HostArray] = {}
    for wanted in inputs:
        if wanted.name in left and _takes(wanted, left[wanted.name]):
            found[wanted.name] = _cast(wanted, left.pop(wanted.name))
    for wanted in inputs:
        if wanted.name not in found:
            fitting = [key for key, array in left.items() if _takes(wanted, array)]
            if not fitting:
                raise UsageError(
                    f"The input {wanted.name} {_shape(wanted)} is not among the run's example inputs: "
                    f"{', '.join(f'{k} {list(a.shape)}' for k, a in given.items())}. Carve with inputs of that shape."
                )
            found[wanted.name] = _cast(wanted, left.pop(fitting[0]))
    return found


def _prefill(run: RunFolder, protocol: Cached, inputs: Sequence[Wanted], tokens: int | None) -> Question:
    prompt = run.prompts[0].tokens
    names = {w.name: w for w in inputs}
    if other := next((name for name in names if name.startswith(_TWO_PARTS)), None):
        raise UsageError(
            f"The file's input {other} is that of a model with an encoder and a decoder; a run of a language model has one part. "
            "Carve the part that the file holds as a module (FILE.py:FUNCTION), with inputs of these names."
        )
    ids = _one(names, _TOKENS)
    if ids is None:
        raise UsageError(f"None of the file's inputs takes tokens ({', '.join(names)}); a language model's is called input_ids.")
    count = tokens or min(len(prompt), protocol.chunk)
    if len(ids.shape) == 2 and ids.shape[1] is not None:
        count = ids.shape[1]
    if count > min(len(prompt), protocol.chunk):
        raise UsageError(
            f"The file takes {count} tokens at once; the run's first prompt has {len(prompt)}, in calls of {protocol.chunk}. "
            f"Carve with a prompt of {count} tokens or more, and --chunk {count} or more."
        )
    feed = _texts(inputs, prompt[:count], 0)
    for wanted in inputs:
        if wanted.name not in feed:
            if not _PAST.search(wanted.name) or len(wanted.shape) < 2:
                raise UsageError(f"The run has nothing for the file's input {wanted.name} {_shape(wanted)}.")
            shape = tuple((1 if axis == 0 else 0) if n is None else n for axis, n in enumerate(wanted.shape))
            feed[wanted.name] = np.zeros(shape, NUMPY[wanted.dtype])
    real = {protocol.chunk: count, protocol.max_len: count}
    return Question(f"the first {count} tokens", protocol.fill(prompt[:count], 0), feed, real, count)


def _texts(inputs: Sequence[Wanted], tokens: Sequence[int], before: int) -> dict[str, HostArray]:
    """What follows from tokens at positions from `before` on."""
    names = {w.name: w for w in inputs}
    count = len(tokens)
    positions = np.arange(before, before + count)
    found: dict[str, HostArray] = {}
    for wanted, values in (
        (_one(names, _TOKENS), np.array([tokens])), (_one(names, _MASK), np.ones((1, before + count))),
        (_one(names, _POSITIONS[:2]), positions[None]), (names.get("cache_position"), positions),
    ):  # fmt: skip
        if wanted is not None:
            if len(wanted.shape) == 2 and wanted.shape[1] is not None and wanted.shape[1] > values.shape[-1]:
                rest = np.zeros((1, wanted.shape[1] - values.shape[-1]))
                values = np.concatenate([values, rest] if _in_place(inputs, wanted) else [rest, values], axis=1)
            found[wanted.name] = values.astype(NUMPY[wanted.dtype])
    for wanted in inputs:
        if wanted.dtype == "bool" and wanted.name.startswith("use_cache"):
            found[wanted.name] = np.full([n or 1 for n in wanted.shape], before > 0)
        elif wanted.name == "token_type_ids":
            found[wanted.name] = np.zeros((1, count), NUMPY[wanted.dtype])
    return found


def _in_place(inputs: Sequence[Wanted], mask: Wanted) -> bool:
    """Whether the file writes tokens to their positions in a cache of fixed length, as its mask has one element a position; else
    it appends them to what is there, and what is there ends with the last token."""
    return any(_PAST.search(w.name) and len(w.shape) > 2 and mask.shape[1] in w.shape[2:] for w in inputs)


def _kept(wanted: Wanted, before: HostArray, present: HostArray) -> HostArray | None:
    """What the engine gave for a cache, as it takes it: of a fixed length the last positions, where it gave more of them or the
    new ones alone. None where the two do not fit."""
    if present.ndim != len(wanted.shape):
        return None
    changing = [axis for axis, n in enumerate(wanted.shape) if n is not None and n != present.shape[axis]]
    if not changing:
        return present
    if len(changing) > 1:
        return None
    axis, n = changing[0], wanted.shape[changing[0]]
    assert n is not None
    if present.shape[axis] < n:
        present = np.concatenate([before.astype(present.dtype), present], axis)
    return present.take(range(present.shape[axis] - n, present.shape[axis]), axis)


def decode_question(
    run: RunFolder, inputs: Sequence[Wanted], before: Question, outputs: Mapping[str, HostArray]
) -> Question | None:
    """The next token over the cache that the engine gave; None where it keeps none."""
    protocol, prompt = run.protocol, run.prompts[0] if run.prompts else None
    if not isinstance(protocol, Cached) or prompt is None:
        return None
    text = (*prompt.tokens, *prompt.generated)
    past = [w for w in inputs if w.name not in _texts(inputs, [0], 0)]
    present = [name for name in outputs if _PRESENT.search(name) and outputs[name].ndim > 2]
    if not past or len(past) != len(present) or len(text) <= before.tokens or before.tokens >= protocol.max_len:
        return None
    ids = _one({w.name: w for w in inputs}, _TOKENS)
    if ids is None or ids.shape[-1] not in (None, 1):
        return None
    token = text[before.tokens]
    feed = _texts(inputs, [token], before.tokens)
    for wanted, name in zip(past, present, strict=True):
        kept = _kept(wanted, before.feed[wanted.name], outputs[name])
        if kept is None or (None not in wanted.shape and before.tokens >= max(n or 0 for n in wanted.shape[2:])):
            return None
        feed[wanted.name] = kept.astype(NUMPY[wanted.dtype])
    real = {protocol.max_len: before.tokens + 1}
    return Question("one more token over its cache", protocol.append(token, before.tokens), feed, real, before.tokens + 1)


def _one(names: Mapping[str, Wanted], known: Sequence[str]) -> Wanted | None:
    return next((names[name] for name in known if name in names), None)


def _takes(wanted: Wanted, array: HostArray) -> bool:
    same = (wanted.dtype in ("float16", "float32", "float64")) == (array.dtype.kind not in "biu")
    return same and len(wanted.shape) == array.ndim and all(map(lambda n, m: n in (None, m), wanted.shape, array.shape))


def _cast(wanted: Wanted, array: HostArray) -> HostArray:
    return array.astype(NUMPY[wanted.dtype])


def _shape(wanted: Wanted) -> str:
    return "[" + ", ".join("?" if n is None else str(n) for n in wanted.shape) + "]"
