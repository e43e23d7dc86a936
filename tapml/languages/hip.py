"""HIP. The compiler emits assembly in its place, so that functions cannot be brought along as text."""

from __future__ import annotations

from tapml.languages.cuda_c import BARRIER
from tapml.languages.language import Language

LANGUAGE = Language(
    name="hip", title="HIP", suffix="hip", lexer="cuda", plain_pointers=True, lanes_in_step="at least 32 lanes", barrier=BARRIER,
)  # fmt: skip
