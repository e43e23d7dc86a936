"""Tokens as text while they come.

    stream = Stream(text.of, stop=("\\nUser:",))
    for token in tokens:
        print(stream.add(token), end="", flush=True)
        if stream.stopped is not None: break
    print(stream.end())

The pieces together are the text of all tokens, cut where the first stop string begins. No piece ends within a character, and what
may be the beginning of a stop string waits until it is known. The first stop string is the one that is complete first, of those
that end at the same place the longest, so that it does not matter how the text falls into tokens.

A token's text depends on its neighbours: characters that take several tokens, spaces that only the first word loses. So a few
tokens are decoded again with each new one, as few as a boundary between characters allows: the time that a token takes does not
grow with the text. A tokenizer that falls back to bytes (as those of SentencePiece do) makes every byte of a run that is no UTF-8
a U+FFFD, also of characters before the wrong byte; those were handed out by then, and stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tapml.errors import UsageError

# What a decoder makes of bytes that are no character, or not yet one.
UNKNOWN = "\ufffd"

# Tokens that are decoded again at most; and of those, how many may be a part of one character or the beginning of the next.
WINDOW = 48
OPEN = 16


class Stream:
    """See the module's docstring. `decode` makes text of tokens, without special ones. `stopped` is the stop string that ended
    the text, None while there was none; after that, and after `end`, nothing may be added. Raises UsageError for an empty stop
    string."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise UsageError("A stop string is empty, so every answer would be. Leave it out.")
        self._decode = decode
        self._stop = tuple(stop)
        self._window: list[int] = []
        self._text = ""  # of the window
        self._given = 0  # characters of the window's text that were handed to the search for stop strings
        self._context = 0  # tokens of the window up to its last boundary
        self._waiting = ""
        self.stopped: str | None = None

    def add(self, token: int) -> str:
        """The text that is known with this token, which may be none."""
        self._window.append(token)
        text = self._decode(self._window)
        if text and text == self._text and not text.endswith(UNKNOWN):
            self._window.pop()  # a special token, which has no text
            return ""
        self._text = text
        whole = text.rstrip(UNKNOWN)
        fresh = whole[self._given :]
        self._given = max(self._given, len(whole))
        if text and whole == text:
            self._move(text)
        elif len(self._window) > WINDOW:
            fresh += self._break(text)
        return self._searched(fresh)

    def end(self) -> str:
        """What was held back, at the end of the tokens."""
        left, self._window = self._decode(self._window)[self._given :], []
        found = self._searched(left)
        if self.stopped is None:
            found, self._waiting = found + self._waiting, ""
        return found

    def _move(self, text: str) -> None:
        """At a boundary between characters: what stood before the last boundary is not needed any more."""
        later = self._window[self._context :]
        shown = self._decode(later) if self._context else text
        if shown:
            self._window, self._text, self._given = later, shown, len(shown)
        self._context = len(self._window)

    def _break(self, text: str) -> str:
        """Nothing but unknown characters for long: looks for a place where the text comes apart, and gives what is before it."""
        for count in range(len(self._window) - OPEN, len(self._window) - 2 * OPEN, -1):
            before = self._decode(self._window[:count])
            after = self._decode(self._window[count:])
            if after and before + after == text:
                fresh = before[self._given :]
                self._window, self._text, self._context = self._window[count:], after, 0
                self._given = max(0, self._given - len(before))
                return fresh
        return ""

    def _searched(self, fresh: str) -> str:
        """Of the text so far, what is neither a stop string nor perhaps the beginning of one."""
        if self.stopped is not None:
            return ""
        text = self._waiting + fresh
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if found:
            end, _, self.stopped = min(found)
            self._waiting = ""
            return text[: end - len(self.stopped)]
        held = max((_begun(text, stop) for stop in self._stop), default=0)
        self._waiting = text[len(text) - held :]
        return text[: len(text) - held]


def _begun(text: str, stop: str) -> int:
    """How many of the last characters are the first ones of a stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
