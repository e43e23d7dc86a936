"""Errors of other libraries in the one line that a user of TapML gets."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop; the name of its type when it has no message."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
