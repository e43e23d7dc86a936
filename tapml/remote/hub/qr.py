"""QR codes of an address, for a phone's camera: as SVG for the page, and drawn with half blocks in a terminal.

    qr_svg("https://192.168.1.5:8765/?pair=K7QF2-M9XTD")
    qr_text(url, colour=True)
"""

from __future__ import annotations

import io

import segno

# Cameras want a border of four modules; on a screen two do, and keep it small.
BORDER = 2

# Black on white whatever the terminal's own colours are, so that the code is not inverted on a dark one.
_ON, _OFF = "\x1b[38;5;16;48;5;231m", "\x1b[0m"


def qr_svg(text: str) -> str:
    """A whole SVG document that takes the size it is given."""
    out = io.BytesIO()
    segno.make(text, error="m", micro=False).save(
        out, kind="svg", border=BORDER, xmldecl=False, nl=False, omitsize=True, dark="#000", light="#fff"
    )
    return out.getvalue().decode()


def qr_text(text: str, colour: bool) -> str:
    """Lines of half blocks, two rows of modules each. Without colour it fits terminals that are dark."""
    rows = [bytes(row) for row in segno.make(text, error="l", micro=False).matrix_iter(border=BORDER)]
    if len(rows) % 2:
        rows.append(bytes(len(rows[0])))
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        if colour:
            drawn = "".join(" ▄▀█"[2 * bool(u) + bool(v)] for u, v in zip(upper, lower, strict=True))
            lines.append(f"{_ON}{drawn}{_OFF}")
        else:
            lines.append("".join("█▀▄ "[2 * bool(u) + bool(v)] for u, v in zip(upper, lower, strict=True)))
    return "\n".join(lines)
