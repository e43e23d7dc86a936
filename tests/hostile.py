"""A text that tries to steer a terminal, and what may be left of one in what is printed.

    left_in(text)                              what steers, hides or turns in it; "" for nothing
    left_in(text, styles=True, bars=True)      the same of what a terminal got: our colours, and what a progress bar needs, may be
"""

from __future__ import annotations

import re

# A window's title, a bell, the screen cleared, a line begun anew, the direction turned, a style from C1, a width of zero, half a
# character, a link; and the markup of rich.
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\rall passed\u202e\x9b31m\u200b\x00\u2066\ud800\x1b]8;;http://example.com\x1b\\x\x1b[0m"
    "[bold]loud[/bold] :smile:"
)
# How it looks where it is not left out.
SEEN = "\\x1b]0;owned"

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_STYLES = re.compile(r"\x1b\[[0-9;]*m")
# Cursor shown and hidden, up, to the beginning of the line, and the line cleared.
_BARS = re.compile(r"\x1b\[\?25[lh]|\x1b\[\d*A|\x1b\[2K|\r")


def left_in(text: str, styles: bool = False, bars: bool = False) -> str:
    """See the module's docstring."""
    if styles:
        text = _STYLES.sub("", text)
    if bars:
        text = _BARS.sub("", text)
    return "".join(sorted(set(_UNSAFE.findall(text))))
