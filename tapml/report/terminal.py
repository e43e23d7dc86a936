"""The console that everything is printed with: rich's, which makes colours and tables of our own, and takes no orders from data.

    console = Terminal()                     stdout
    console = Terminal(sys.stderr, width=80)

What it is handed is text: "[bold]" and ":smile:" in a name are those characters, control characters are visible escapes
(`tapml.printable`), and one text is at most `MOST` characters long. Only styles that the program chose become a terminal's codes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from tapml.printable import MOST, bare, printable


class Terminal(Console):
    """See the module's docstring. `stream` is stdout unless given; the rest is rich's."""

    def __init__(self, stream: TextIO | None = None, **options: Any) -> None:
        file = bare(sys.stdout if stream is None else stream)
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Every part of every renderable comes through here, in tables and boxes too, before it is measured and cropped."""
        if isinstance(renderable, str):
            renderable = self.render_str(renderable)
        if isinstance(renderable, Text):
            renderable = self._shown(renderable)
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)

    def _shown(self, text: Text) -> Text:
        """The same text, cut and with its escapes, before it is wrapped."""
        if len(text) > MOST:
            text = text[:MOST].append(f"… ({len(text) - MOST:,} more characters)")
        if printable(text.plain) == text.plain:
            return text
        shown = text.blank_copy()
        for part, style, _ in text.render(self):
            shown.append(printable(part), style)
        return shown
