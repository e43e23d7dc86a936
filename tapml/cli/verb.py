"""What a verb of the command line is, and what it hands back.

Each verb is one file beside this one, with

    NAME                            the word after `tapml`
    HELP                            one line for `tapml --help`
    add_arguments(parser)           its own flags; `--json` is added for every verb by `main.py`
    run(args) -> Outcome            does the work; torch, tvm and the like are imported in here, never at the top
    resume_hint(args) -> str        optional: what to type after Ctrl-C

`main.py` finds the verb, prints the outcome, writes the JSON and turns errors into exit codes. A verb therefore prints nothing
itself: what people see is `Outcome.view`, progress goes to stderr through `tapml.report.progress`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType

ALL_PASSED = 0
SOMETHING_FAILED = 1
WRONG_USE = 2
UNAVAILABLE = 3
INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """`code` is the exit code, `data` the object for `--json`, `view` what is printed on stdout, top to bottom (strings are
    printed as they are; other things are rich renderables)."""

    code: int
    data: dict[str, Any]
    view: tuple[RenderableType, ...] = field(default=(), compare=False)


class Verb(Protocol):
    """The shape of a verb's module."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> Outcome: ...
