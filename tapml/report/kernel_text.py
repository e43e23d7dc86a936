"""Kernel text for people: highlighted, and without the lines that say the same thing again.

    kernels_view(kernels, schedule)       a rich renderable for each kernel
    folded(source, 40)                    the lines that are shown
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.syntax import Syntax
from rich.text import Text

from tapml.languages import LANGUAGES

if TYPE_CHECKING:
    from tapml.kernels import Kernel

LINES = 60
FEWEST = 12



def kernels_view(kernels: Sequence[Kernel], schedule: str) -> Iterator[RenderableType]:
    """Name and launch of each kernel, and its text, `LINES` lines in all or `FEWEST` of each."""
    for kernel in kernels:
        launch = f"  {kernel.language}, schedule {schedule}"
        if LANGUAGES[kernel.language].threads:
            launch += f", {_size(kernel.grid)} workgroups of {_size(kernel.block)}"
        yield Text.assemble((kernel.entry, "bold"), (launch, "dim"))
        yield Padding(_code(kernel, max(LINES // len(kernels), FEWEST)), (0, 0, 0, 2))


def _size(extent: tuple[int, int, int]) -> str:
    return "×".join(str(n) for n in extent)


def _code(kernel: Kernel, most: int) -> RenderableType:
    text = "\n".join(folded(kernel.source, most))
    return Syntax(text, LANGUAGES[kernel.language].lexer, theme="ansi_dark", background_color="default", word_wrap=True)


def folded(source: str, most: int = LINES) -> list[str]:
    """The lines of a text, runs of lines that differ in numbers only folded to their first, and of the rest at most `most`: the
    beginning and the end."""
    lines = [line for line in source.rstrip().splitlines() if not re.match(r"\s*(__kernel void .*\);|#pragma.*|)\s*$", line)]
    shapes = [re.sub(r"\d+", "0", line) for line in lines]
    kept: list[str] = []
    start = 0
    while start < len(lines):
        end = start
        while end < len(lines) and shapes[end] == shapes[start]:
            end += 1
        kept.append(lines[start])
        if end - start == 2:
            kept.append(lines[start + 1])
        elif end - start > 2:
            indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
            kept.append(f"{indent}// … {end - start - 1} more lines like it")
        start = end
    if len(kept) <= most:
        return kept
    front = most * 2 // 3
    return [*kept[:front], f"// … {len(kept) - most} more lines", *kept[len(kept) - (most - front):]]
