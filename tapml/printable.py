"""The one place that makes text safe to print: what steers a terminal, hides, or turns the direction of writing becomes visible.

    printable("a\\x1b[2J\\u202e")            the same with escapes that can be read
    cut(text, 2000)                        a longer text ends with "… (N more characters)"

    with guarded():                        all that is printed on sys.stdout and sys.stderr meanwhile goes through `printable`
        stream = bare(sys.stdout)          for those who know what they write: rich's console with our colours, and JSON

Names, metadata, error texts and logs come from models, runs, drivers, devices and hubs, and are not TapML's. They are kept as
they are, in JSON and in memory, and made safe where they leave for a terminal; so nobody has to remember it where a text is made.
Newlines and tabs stay. `tapml.report.terminal` has the console that goes with this.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# Characters of one text, or of one line, that are printed.
MOST = 20_000

# C0 but for tab and newline, delete, C1; what has no width; marks, overrides and isolates of direction; separators of lines that
# terminals and editors see differently; interlinear marks; halves of characters; tags.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def printable(text: str) -> str:
    """The text with an escape for every character that cannot be seen as itself. Once is as good as twice."""
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(_escape, text.replace("\r\n", "\n"))


def cut(text: str, most: int = MOST) -> str:
    """The beginning of a text of more than `most` characters, and how many are left out."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Guard:
    """A stream for text, of which everything that is written goes through `printable`, and lines are cut."""

    def __init__(self, stream: TextIO) -> None:
        self.guarded = stream

    def write(self, text: str) -> int:
        if len(text) > MOST:
            text = "\n".join(map(cut, text.split("\n")))
        self.guarded.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guarded, name)


def guard(stream: TextIO) -> TextIO:
    """The stream behind a guard; one that has a guard stays as it is."""
    return stream if isinstance(stream, Guard) else cast(TextIO, Guard(stream))


def bare(stream: TextIO) -> TextIO:
    """The stream without its guards, and without what rich puts in front of it while a bar is shown."""
    while True:
        inner = stream.guarded if isinstance(stream, Guard) else getattr(stream, "rich_proxied_file", stream)
        if inner is stream:
            return stream
        stream = inner


@contextmanager
def guarded() -> Iterator[None]:
    """See the module's docstring. May be entered within itself."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = guard(sys.stdout), guard(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
