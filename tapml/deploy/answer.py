"""One answer of a bundle as text, while it comes.

    answer = Answer(session, text, prompt, max_tokens=128, stop=("\\n",))        prompt: tokens
    for piece in answer: ...
    answer.ended, answer.text, answer.tokens_per_second

What it is made of: tokens (`tapml.deploy.session`), chosen (`sampling.py`) within a grammar (`schema.py`), as text (`stream.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tapml.deploy.sampling import GREEDY, Sampling
from tapml.deploy.schema import Schema
from tapml.deploy.session import Session
from tapml.deploy.stream import Stream
from tapml.deploy.text import Text
from tapml.errors import UsageError
from tapml.runtime.protocol import Generating
from tapml.words import plural

# Why an answer ended; "schema": its JSON is whole, and nothing can follow.
STOP_TOKEN, STOP_STRING, SCHEMA = "stop token", "stop string", "schema"
MAX_TOKENS, CONTEXT_FULL, INTERRUPTED = "max tokens", "context full", "interrupted"


@dataclass(frozen=True)
class Asked:
    """How answers are made. `schema` is followed by each of them; text ends before a string of `stop`."""

    max_tokens: int = 128
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    schema: Schema | None = None


class Answer:
    """See the module's docstring. Iterating gives pieces of text, and raises what `Session.generate` and `Stream` raise. `ended`
    is None until then; `complete` is whether its JSON is whole, None without a schema;
    `reused`, how many first tokens of the prompt the cache held."""

    def __init__(self, session: Session, text: Text, prompt: Sequence[int], asked: Asked, reuse: bool = False) -> None:
        protocol = session.bundle.protocol
        if not isinstance(protocol, Generating):
            raise UsageError(f"{session.bundle.name} chooses no tokens: it is called with inputs.")
        self._session = session
        self._asked = asked
        self._reuse = reuse
        self._stopping = protocol.stop
        self._decode = text.of
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.text = ""
        self.ended: str | None = None
        self.stop_string: str | None = None
        self.complete: bool | None = None
        self.seconds = self.first_seconds = 0.0
        self.reused = 0
        self.interrupted = False

    def __iter__(self) -> Iterator[str]:
        asked = self._asked
        stream = Stream(self._decode, asked.stop)
        grammar = None if asked.schema is None else asked.schema.grammar()
        started = time.monotonic()
        tokens = self._session.generate(self.prompt, asked.max_tokens, asked.sampling, grammar, self._reuse)
        with closing(tokens):
            for token in tokens:
                self.tokens.append(token)
                self.seconds = time.monotonic() - started
                self.first_seconds = self.first_seconds or self.seconds
                self.reused = self._session.held.reused
                yield from self._said(stream.add(token))
                self.stop_string = stream.stopped
                if self.stop_string is not None:
                    self.ended = STOP_STRING
                elif self.interrupted:
                    self.ended = INTERRUPTED
                if self.ended is not None:
                    break
        yield from self._said(stream.end())
        self.stop_string = stream.stopped
        if grammar is not None:
            self.complete = grammar.whole
        if self.ended is None:
            self.ended = self._why(stream, grammar is not None and grammar.done)

    def _said(self, piece: str) -> Iterator[str]:
        if piece:
            self.text += piece
            yield piece

    def _why(self, stream: Stream, done: bool) -> str:
        if stream.stopped is not None:
            return STOP_STRING
        if self.tokens and self.tokens[-1] in self._stopping:
            return STOP_TOKEN
        if done:
            return SCHEMA
        return MAX_TOKENS if len(self.tokens) == self._asked.max_tokens else CONTEXT_FULL

    def interrupt(self) -> None:
        """Ends the answer with the token that is being made. May be called from a signal's handler."""
        self.interrupted = True

    @property
    def tokens_per_second(self) -> float | None:
        """Of those after the first, for which the prompt was taken in; None where there are none."""
        after = self.seconds - self.first_seconds
        return (len(self.tokens) - 1) / after if len(self.tokens) > 1 and after > 0 else None

    @property
    def summary(self) -> str:
        """How much there is of it, how fast it came and why it ended, as people read it."""
        rate = "" if self.tokens_per_second is None else f", then {self.tokens_per_second:.1f} tokens/s"
        why = self.ended if self.stop_string is None else f"stop string {self.stop_string!r}"
        unfinished = "; the JSON is not whole" if self.complete is False else ""
        return f"{plural(len(self.tokens), 'token')}; the first after {self.first_seconds:.2f} s{rate}; ended: {why}{unfinished}"

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.prompt, "generated": self.tokens, "text": self.text, "ended": self.ended,
            "stop_string": self.stop_string, "complete": self.complete, "first_token_seconds": self.first_seconds,
            "seconds": self.seconds, "tokens_per_second": self.tokens_per_second, "reused": self.reused,
        }  # fmt: skip
