"""Finding things in the text of emitted kernels: calls, subscripts, loops, parameters, in any of the languages.

    arguments(text, at)                     of the call whose "(" is at `at`: their (start, end) places in the text
    names(text)                             ["in0_ptr", "in1_ptr", "out2_ptr"]: a kernel's buffers, in the order of its arguments
    reindexed(text, "in1_ptr", f)           every access of in1_ptr at f(index)
    loops(text)                             counted loops, with the places of bound and body

The texts come from our own code generator, so this knows its habits (`for (int ax1 = 0; ax1 < 64; ++ax1) {`) and nothing more of
the languages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_OPENING, _CLOSING = "([{", ")]}"
_BUFFER = re.compile(r"\b(?:in|out)\d+_ptr\b")
_LOOP = re.compile(r"for \((?:int|var) (?P<variable>\w+)(?: : i32)? = 0i?; (?P=variable) < (?P<bound>\d+)i?; [^)]*\) \{")


@dataclass(frozen=True)
class KernelText:
    """A kernel's source, its language, and the number of elements of each buffer that it names (in two launches with different
    buffers: the larger)."""

    source: str
    language: str
    elements: Mapping[str, int]


@dataclass(frozen=True)
class Loop:
    """A loop from 0 to `bound`: `bound_at` is where the number stands, `body` what is between the braces."""

    variable: str
    bound: int
    bound_at: tuple[int, int]
    body: str


def closing(text: str, at: int) -> int:
    """The place of the bracket that closes the one at `at`. ValueError when none does."""
    depth = 0
    for k in range(at, len(text)):
        depth += (text[k] in _OPENING) - (text[k] in _CLOSING)
        if depth == 0:
            return k
    raise ValueError(f"the bracket at {at} is never closed")


def arguments(text: str, at: int) -> list[tuple[int, int]]:
    """Where the arguments of a call are, whose opening bracket is at `at`, without the blanks around them."""
    end = closing(text, at)
    places: list[tuple[int, int]] = []
    start, depth = at + 1, 0
    for k in range(at + 1, end + 1):
        if k == end or (depth == 0 and text[k] == ","):
            inner = text[start:k]
            places.append((start + len(inner) - len(inner.lstrip()), k - len(inner) + len(inner.rstrip())))
            start = k + 1
        depth += (text[k] in _OPENING) - (text[k] in _CLOSING)
    return places


def stripped(text: str) -> str:
    """An expression without brackets that hold all of it."""
    while text.startswith("(") and closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def names(text: str) -> list[str]:
    """The buffers of a kernel in the order of its arguments: every language declares them in that order, before all use."""
    return list(dict.fromkeys(_BUFFER.findall(text)))


def loops(text: str) -> list[Loop]:
    """The counted loops, from the first to the last opening brace."""
    return [
        Loop(m["variable"], int(m["bound"]), m.span("bound"), text[m.end() : closing(text, m.end() - 1)])
        for m in _LOOP.finditer(text)
    ]


def indices(text: str, buffer: str, vectors: bool = True) -> list[tuple[int, int]]:
    """Where the indices stand at which `buffer` is accessed: `buffer[index]`, with `vectors` also `vload8(0, buffer + index)`."""
    found: list[tuple[int, int]] = []
    for m in re.finditer(rf"\b{buffer}\[", text):
        found.append((m.end(), closing(text, m.end() - 1)))
    for m in re.finditer(rf"\bvload\d+\(0, {buffer} \+ ", text) if vectors else ():
        found.append((m.end(), closing(text, text.index("(", m.start()))))
    return sorted(found)


def reindexed(text: str, buffer: str, f: Callable[[str], str], vectors: bool = True) -> str:
    """The text with each access of `buffer` at `f(index)` instead. From the last to the first, so that an access inside another's
    index is done before it."""
    count = len(indices(text, buffer, vectors))
    for k in reversed(range(count)):
        start, end = indices(text, buffer, vectors)[k]
        text = text[:start] + f(text[start:end]) + text[end:]
    return text
