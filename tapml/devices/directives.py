"""What the text of a stranger's kernel may not ask a C or OpenCL C compiler for: files, and the assembler.

    reaches_out(kernel)        what it asks for, as one would say it ("includes a file"); "" where it keeps to itself

A compiler reads files for its text (`#include`, `#embed`, `.incbin`), tells which exist (`__has_include`), and quotes lines of a
file that the text only names (`#line`). So an agent passes no such text on. What is refused is found wherever it stands, in
comments and strings too, and however it is spelled: trigraphs, digraphs and continued lines are put right first, a comment
behind `#` is refused, and so is `##`, which could put a word together that is not there. The headers of C's own arithmetic
that TapML's kernels begin with are let through as exactly these lines. This is a second fence: the first is that the
compiler runs where only the system's own files can be read (`tapml.devices.confined`).
"""

from __future__ import annotations

import re

from tapml.kernels import Kernel
from tapml.languages import LANGUAGES

HEADERS = ("stdbool.h", "stdint.h", "math.h", "tgmath.h")

_OWN = re.compile(rf"^#include <(?:{'|'.join(map(re.escape, HEADERS))})>$", re.MULTILINE)
_CONTINUED = re.compile(r"\\[ \t\v\f]*(?:\r\n|\n|\r)")

# The words of `#pragma` that change how code is generated, and nothing else.
_HARMLESS = r"(?:OPENCL|STDC|unroll|nounroll|clang\s+loop|clang\s+fp|GCC\s+unroll|GCC\s+ivdep)\b"

_BEHIND_HASH = (
    (r"include|import|embed", "includes a file"),
    (r"line|\d", "claims to be from another file"),
    (r"ident|sccs|assert|unassert", "has a directive of old compilers"),
    (r"/[*/]", "has a comment after #"),
    (r"\\", "has a backslash after #"),
    (r"#", "joins tokens with ##"),
    (rf"pragma\b(?!\s+{_HARMLESS})", "has a #pragma other than OPENCL, STDC and unroll"),
)
_WORDS = (
    (r"_Pragma|__pragma", "has a _Pragma"),
    (r"__has_include\w*|__has_embed", "asks which files exist"),
    (r"asm|__asm|__asm__|_asm", "has inline assembly"),
    (r"(?:__)?(?:section|symver|alias|ifunc|weakref)(?:__)?\s*\(", "writes text into the assembler's input"),
)
_RULES = (
    (re.compile(rf"#\s*(?:{'|'.join(f'({pattern})' for pattern, _ in _BEHIND_HASH)})"), _BEHIND_HASH),
    (re.compile(rf"\b(?:{'|'.join(f'({pattern})' for pattern, _ in _WORDS)})(?!\w)"), _WORDS),
)


def reaches_out(kernel: Kernel) -> str:
    """In a time that grows with the length of the text only."""
    if not LANGUAGES[kernel.language].native:
        return ""
    text = _OWN.sub("", kernel.source).replace("??=", "#").replace("??/", "\\")
    text = _CONTINUED.sub("", text).replace("%:", "#")
    for rule, meanings in _RULES:
        found = rule.search(text)
        if found is not None:
            assert found.lastindex is not None
            return meanings[found.lastindex - 1][1]
    return ""
