"""Numbers as the page holds them: rounded, and in a form that JSON knows.

    short(1.2345678e-05)     1.235e-05
    short(math.inf)          "inf"
"""

from __future__ import annotations

import math

Number = float | int | str | None


def short(value: float | None, digits: int = 4) -> Number:
    """`value` to `digits` significant digits; "inf", "-inf" or "nan" for what JSON has no number for; None for None."""
    if value is None:
        return None
    value = float(value)
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    rounded = float(f"{value:.{digits - 1}e}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


class Strings:
    """Each different string once: `table[text]` is its place in `table.all`."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._places: dict[str, int] = {}

    def __getitem__(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.all)
            self.all.append(text)
        return self._places[text]
