"""Kernels for the page: each source text once, marked for highlighting at write time, so that the page needs no highlighter.

    table = KernelTable()
    number = table.add(program)           its place in `table.programs`
    table.data()                          {"programs": [...], "kernels": [...], "texts": [...]}

A text is {"language", "source", "marks"}: `marks` is a list of (length, class) one after the other, over the whole source; a
class is one letter of `CLASSES`. The page makes text nodes of it, so nothing in a kernel is ever read as HTML.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Number, String, Token

from tapml.kernels import Program
from tapml.languages import LANGUAGES
from tapml.report.html.numbers import Strings

# A letter a class: plain, keyword, type, number, string, comment, function of the language, preprocessor.
CLASSES = "okntscfp"

# Characters of a text that are told apart; a longer one is shown plain.
MOST_MARKED = 200_000

_GPU_KEYWORDS = frozenset((
    "__kernel", "kernel", "__global", "global", "__local", "local", "__constant", "constant", "__private", "private",
    "__global__", "__shared__", "__device__", "__restrict__", "device", "threadgroup", "thread",
))  # fmt: skip
_GPU_CALLS = frozenset((
    "get_group_id", "get_local_id", "get_global_id", "get_num_groups", "get_local_size", "barrier", "__syncthreads", "fma", "mad",
    "exp", "log", "sqrt", "rsqrt", "pow", "tanh", "erf", "fabs", "fmin", "fmax", "min", "max", "sin", "cos", "floor", "ceil",
    "round", "select", "dot", "convert_int", "convert_float", "as_int", "as_float",
))  # fmt: skip
_VECTORS = frozenset(
    f"{kind}{n}" for kind in ("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "float", "double")
    for n in ("", 2, 3, 4, 8, 16)
)


class KernelTable:
    """Collects programs; equal programs, kernels and texts are kept once."""

    def __init__(self) -> None:
        self._programs: dict[str, int] = {}
        self._kernels: dict[str, int] = {}
        self._texts = Strings()
        self._languages: list[str] = []
        self.programs: list[dict[str, Any]] = []
        self.kernels: list[dict[str, Any]] = []

    def add(self, program: Program) -> int:
        """The place of a program."""
        if program.digest not in self._programs:
            self._programs[program.digest] = len(self.programs)
            self.programs.append({})
            self.programs[-1] = self._program(program)
        return self._programs[program.digest]

    def texts_of(self, program: int) -> set[int]:
        """The places of the texts that a program uses."""
        return {self.kernels[step[0]]["text"] for step in self.programs[program]["steps"]}

    def data(self, left_out: frozenset[int] = frozenset()) -> dict[str, Any]:
        """Everything, without the source of the texts in `left_out`."""
        texts = [
            {"language": language, "left_out": True} if k in left_out else
            {"language": language, "source": text, "marks": marks(text, language)}
            for k, (text, language) in enumerate(zip(self._texts.all, self._languages, strict=True))
        ]  # fmt: skip
        return {"programs": self.programs, "kernels": self.kernels, "texts": texts}

    def _program(self, program: Program) -> dict[str, Any]:
        places: list[int] = []
        for kernel in program.kernels:
            if kernel.digest not in self._kernels:
                text = self._texts[kernel.source]
                if text == len(self._languages):
                    self._languages.append(kernel.language)
                self._kernels[kernel.digest] = len(self.kernels)
                self.kernels.append({
                    "entry": kernel.entry, "grid": list(kernel.grid), "block": list(kernel.block), "text": text,
                    "access": list(kernel.access),
                })  # fmt: skip
            places.append(self._kernels[kernel.digest])
        return {
            "digest": program.digest, "schedule": program.schedule, "scratch": list(program.scratch),
            "steps": [[places[step.kernel], [f"{a.role} {a.index}" for a in step.arguments]] for step in program.steps],
            "forwards": [list(pair) for pair in program.forwards],
        }  # fmt: skip


def marks(source: str, language: str) -> list[int | str]:
    """(length, class) one after the other, over the whole text; neighbours of one class are merged."""
    if len(source) > MOST_MARKED:
        return [len(source), "o"]
    found: list[int | str] = []
    for letter, text in _tokens(source, language):
        if found and found[-1] == letter:
            found[-2] = int(found[-2]) + len(text)
        else:
            found += [len(text), letter]
    return found


def _tokens(source: str, language: str) -> Iterator[tuple[str, str]]:
    for _, kind, text in get_lexer_by_name(LANGUAGES[language].lexer).get_tokens_unprocessed(source):
        yield _letter(kind, text), text


def _letter(kind: Any, text: str) -> str:
    if text in _GPU_KEYWORDS:
        return "k"
    if text in _VECTORS or kind in Keyword.Type:
        return "n"
    if text in _GPU_CALLS or kind in Name.Function or kind in Name.Builtin:
        return "f"
    if kind in Comment.Preproc or kind in Name.Decorator:
        return "p"
    for parent, letter in zip((Comment, Keyword, Number, String), "ckts", strict=True):
        if kind in parent:
            return letter
    assert kind in Token
    return "o"
