"""Functions of one number that kernels bring along as text, since no kernel language has them exactly, and an expression without
variables would repeat its parts hundreds of times.

    own("sine", x)                        the call in a tensor expression
    with_functions(source, language)      the kernel's text with the functions that it calls, in its language

Each is written once, in the part of WGSL that a few replacements turn into C: typed `let` and `var`, `if`, `while`, no vectors. A
number that is not finite is made from bits that the function was given, as WGSL refuses a constant one.
"""

from __future__ import annotations

import re
from typing import Any

from tvm import ir, tirx

from tapml.compile.texts_elementary import ELEMENTARY
from tapml.compile.texts_special import SPECIAL_TEXTS
from tapml.languages import Language

_PREFIX = "own_"

# In an order in which each comes after those that it calls.
_TEXTS: dict[str, str] = ELEMENTARY | SPECIAL_TEXTS

# Which text defines each function.
_HOME = {name: key for key, text in _TEXTS.items() for name in re.findall(rf"fn {_PREFIX}(\w+)", text)}

NAMES = frozenset(_HOME)


def own(name: str, *arguments: Any) -> Any:
    """The function of that name of float32 elements, as an element."""
    assert name in _HOME, name
    return tirx.call_pure_extern("float32", _PREFIX + name, *arguments)


def own_name(call: Any) -> str | None:
    """Which of these functions a TIR call calls; None for any other call."""
    first = call.args[0] if len(call.args) else None
    name = str(first.value) if isinstance(first, ir.StringImm) else ""
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None


def with_functions(source: str, language: Language) -> str:
    """The text of a kernel with the functions that it calls before it. Raises ValueError where a language has no text to put
    them in."""
    called = _called(source)
    if not called:
        return source
    texts = "".join(_TEXTS[name] for name in _TEXTS if name in called)
    if language.functions is None:
        names = ", ".join(sorted(called))
        raise ValueError(f"{names}: functions that come as text, and the compiler emits no text for {language.name}")
    where = re.search(r'^(extern "C"|__kernel|kernel|fn|@|struct|var|void)', source, flags=re.MULTILINE)
    assert where, "a kernel begins somewhere"
    return source[: where.start()] + language.functions(texts) + source[where.start() :]


def _called(text: str) -> set[str]:
    """The names of the functions that the text calls, and of those that these call."""
    found: set[str] = set()
    new = {_HOME[name] for name in re.findall(rf"\b{_PREFIX}(\w+)\(", text) if name in _HOME}
    while new:
        found |= new
        texts = "".join(_TEXTS[name] for name in new)
        new = {_HOME[name] for name in re.findall(rf"\b{_PREFIX}(\w+)\(", texts)} - found
    return found
