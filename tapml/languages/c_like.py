"""Functions that kernels bring along, in the dialects of C: they are written once, in a part of WGSL that a few replacements turn
into C (`compile/function_texts.py`).

    functions=in_c("static ", "as_type<uint>", "as_type<float>")
"""

from __future__ import annotations

import re
from collections.abc import Callable

_TYPES = {"f32": "float", "u32": "unsigned int", "i32": "int"}


def in_c(before: str, bits: str, number: str, helpers: str = "") -> Callable[[str], str]:
    """A `Language.functions` for a dialect. `before` stands before each function; `bits` and `number` are the names of what takes
    a float's bits and makes a float of bits, and `helpers` defines them where the dialect has none."""

    def functions(text: str) -> str:
        text = re.sub(r"^fn (\w+)\((.*)\) -> (\w+) \{", head, text, flags=re.MULTILINE)
        text = re.sub(r"\blet (\w+) : (\w+) =", lambda m: f"const {_TYPES[m[2]]} {m[1]} =", text)
        text = re.sub(r"\bvar (\w+) : (\w+) =", lambda m: f"{_TYPES[m[2]]} {m[1]} =", text)
        text = re.sub(r"\babs\(", "fabs(", text)
        text = text.replace("bitcast<u32>(", f"{bits}(").replace("bitcast<f32>(", f"{number}(")
        return helpers + re.sub(r"\b(f32|u32|i32)\(", lambda m: f"({_TYPES[m[1]]})(", text)

    def head(match: re.Match[str]) -> str:
        parameters = re.sub(r"(\w+) : (\w+)", lambda m: f"{_TYPES[m[2]]} {m[1]}", match[2])
        return f"{before}{_TYPES[match[3]]} {match[1]}({parameters}) {{"

    return functions
