"""The languages that kernels are written in: what each is is said once, in a file of its own."""

from __future__ import annotations

from tapml.languages.known import LANGUAGES
from tapml.languages.language import Extent, Language

__all__ = ["LANGUAGES", "Extent", "Language"]
