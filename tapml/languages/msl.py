"""Metal Shading Language."""

from __future__ import annotations

from tapml.languages.c_like import in_c
from tapml.languages.language import Language

LANGUAGE = Language(
    name="msl",
    title="Metal Shading Language",
    suffix="metal",
    lexer="cpp",
    lanes_in_step="32 lanes",
    barrier="threadgroup_barrier(mem_flags::mem_threadgroup);",
    functions=in_c("static ", "as_type<uint>", "as_type<float>"),
)
