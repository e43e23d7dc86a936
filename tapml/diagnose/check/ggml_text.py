"""What llama.cpp's `llama-eval-callback` prints, read as text: a head a value, some of its elements, and its sum.

    common_debug_cb_eval:  attn_norm-0 = (f32)  MUL(norm-0{576, 7, 1, 1}, blk.0.attn_norm.weight{576, 1, 1, 1}}) = {576, 7, 1, 1}
        [ [ [ 0.1234, -0.2345, 0.3456, ..., 0.4567, 0.5678, -0.6789 ], … ] ]
        sum = 12.345678

Extents are listed from the innermost axis on. Of a long axis only the first and the last elements are printed, with a fixed
number of decimals. Older versions begin with `ggml_debug:` and add up what is printed, not the whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_HEAD = re.compile(r"\b\w*debug\w*:\s+(\S.*?) = \((\w+)\)\s+(\w+)\(.*\) = \{(\d+), (\d+), (\d+), (\d+)\}\s*$")
_SUM = re.compile(r"^\s*sum = (\S+)\s*$")
_WORD = re.compile(r"\[|\]|\.\.\.|-?(?:\d+\.\d+|nan|inf)")

FLOATS = ("f32", "f16", "bf16")

# More than this is no value of a model.
_MOST = 2**40


@dataclass(frozen=True)
class Glimpse:
    """A value of which some elements were printed: those at `places` of the flat array are `seen`, each within `half` of what it
    is. `total` is the sum of all; None where none was printed, or where it says nothing of the others."""

    name: str
    shape: tuple[int, ...]
    places: NDArray[np.int64]
    seen: NDArray[np.float64]
    half: float
    total: float | None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def glimpses(text: str) -> list[Glimpse]:
    """In the order of the text; the second value of a name is NAME#2. Those that are no numbers of the model (codes, indices) are
    left out. Raises ValueError for a value whose elements are not those of its extents."""
    found: list[Glimpse] = []
    count: dict[str, int] = {}
    for name, dtype, extents, body in _blocks(text.splitlines()):
        if dtype in FLOATS and any("[" in line for line in body):
            count[name] = count.get(name, 0) + 1
            label = name if count[name] == 1 else f"{name}#{count[name]}"
            found.append(_read(label, tuple(reversed(extents)), body))
    return found


def _blocks(lines: list[str]) -> Iterator[tuple[str, str, tuple[int, ...], list[str]]]:
    heads = [(k, match) for k, line in enumerate(lines) if (match := _HEAD.search(line))]
    ends = [*(k for k, _ in heads[1:]), len(lines)]
    for (k, head), end in zip(heads, ends, strict=False):  # one end more where there is no head
        yield head[1], head[2], tuple(int(head[n]) for n in (4, 5, 6, 7)), lines[k + 1 : end]


def _read(name: str, shape: tuple[int, ...], body: list[str]) -> Glimpse:
    if not 0 < math.prod(shape) < _MOST:
        raise ValueError(f"{name} has the extents {list(reversed(shape))}")
    sums = [match[1] for line in body if (match := _SUM.match(line))]
    words = [word for line in body if not _SUM.match(line) for word in _WORD.findall(line)]
    places: list[int] = []
    seen: list[float] = []
    rest = iter(words)
    for block in range(shape[0]):
        if next(rest, None) != "[":
            raise ValueError(f"{name} ends before its last element")
        _fill(name, shape[1:], block * math.prod(shape[1:]), rest, places, seen)
    decimals = max((len(word.partition(".")[2]) for word in words if word[-1].isdigit()), default=4)
    values = np.array(seen, np.float64)
    half = 0.5 * 10.0**-decimals
    total = float(sums[-1]) if sums else None
    if total is not None and len(places) < math.prod(shape) and abs(total - values.sum()) <= len(places) * half * 1.01 + 1e-6:
        total = None  # of what is printed alone
    return Glimpse(name, shape, np.array(places, np.int64), values, half, total)


def _fill(
    name: str, shape: tuple[int, ...], first: int, words: Iterator[str], places: list[int], seen: list[float]
) -> None:
    """Reads one axis up to its closing bracket; `first` is the place of its first element."""
    n, inner = shape[0], math.prod(shape[1:])
    before: list[tuple[list[int], list[float]]] = []
    after: list[tuple[list[int], list[float]]] = []
    items = before
    for word in words:
        if word == "]":
            break
        if word == "...":
            items = after
        elif word == "[" and len(shape) > 1:
            p: list[int] = []
            s: list[float] = []
            _fill(name, shape[1:], 0, words, p, s)
            items.append((p, s))
        elif word != "[" and len(shape) == 1:
            items.append(([0], [float(word)]))
        else:
            raise ValueError(f"{name} does not have {len(shape)} more axes where they are due")
    else:
        raise ValueError(f"{name} ends before its last element")
    if len(before) + len(after) > n or (items is before and len(before) != n):
        raise ValueError(f"{name} shows {len(before) + len(after)} elements along an axis of {n}")
    at = [*range(len(before)), *range(n - len(after), n)]
    for k, (p, s) in zip(at, before + after, strict=True):
        places += [first + k * inner + place for place in p]
        seen += s
