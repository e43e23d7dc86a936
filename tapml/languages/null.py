"""No language: kernels of the device that computes nothing, in tests and dry runs."""

from __future__ import annotations

from tapml.languages.language import Language

LANGUAGE = Language(name="null", title="no language", suffix="txt", lexer="text", native=False)
