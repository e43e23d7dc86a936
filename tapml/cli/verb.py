"""What a verb of the command line is, and what it hands back.

Each verb is one file beside this one, with

    NAME                            the word after `tapml`
    HELP                            one line for `tapml --help`
    add_arguments(parser)           its own flags; `--json` is added for every verb by `main.py`
    run(args) -> Outcome            does the work; torch, tvm and the like are imported in here, never at the top
    resume_hint(args) -> str        optional: what to type after Ctrl-C

`main.py` finds the verb, prints the outcome, writes the JSON and turns errors into exit codes. A verb therefore prints nothing
itself: what people see is `Outcome.view`, progress goes to stderr through `tapml.report.progress`. The hub, which runs until it
is stopped, is the exception: it prints where it listens, and writes its JSON with `args.tell` as soon as it does.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tapml.devices.known import PLATFORMS, RUNNABLE
from tapml.errors import PromptError, UsageError
from tapml.targets.known import EXAMPLE
from tapml.whole_file import why_not

if TYPE_CHECKING:
    from rich.console import RenderableType

ALL_PASSED = 0
SOMETHING_FAILED = 1
WRONG_USE = 2
UNAVAILABLE = 3
INTERRUPTED = 130

RUN = "a run folder made by tapml carve"
DEVICE = "the device to run on: local, NAME@URL for a device of a tapml hub, any@URL for the first free one (default: local)"
INJECT = (
    "run the text that FUNCTION(operator, target, source) returns in place of each kernel's source: a fault put in on purpose, "
    "or a kernel of your own"
)
JSON = "also write the result to FILE as one JSON object; with -, to stdout, which then holds nothing else"
_TARGETS = [*PLATFORMS, *(name for name in RUNNABLE if name not in PLATFORMS)]
NAMES = (
    f"{', '.join(_TARGETS[:-1])} or {_TARGETS[-1]}, with options as in {EXAMPLE.name}:device=1,f16=0 (tapml doctor shows what "
    "runs here)"
)


@dataclass(frozen=True)
class Outcome:
    """`code` is the exit code, `data` the object for `--json`, `view` what is printed on stdout, top to bottom (strings are
    printed as they are; other things are rich renderables). `told`: the JSON was written while the verb ran."""

    code: int
    data: dict[str, Any]
    view: tuple[RenderableType, ...] = field(default=(), compare=False)
    told: bool = False


class Verb(Protocol):
    """The shape of a verb's module."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> Outcome: ...


def count(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def prompts_of(prompts: list[str], file: str | None) -> list[str]:
    """The texts of `--prompt`, then those of `--prompt-file`: one a line, empty lines skipped. Raises UsageError when the file
    cannot be read, PromptError when a prompt is blank or the file holds none."""
    for text in prompts:
        if not text.strip():
            raise PromptError('--prompt is empty. Give it at least one word, as in --prompt "What is the capital of France?"')
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
            # How Python hands on bytes of an argument that are not of the terminal's encoding.
            shown = text.encode("utf-8", "surrogateescape" if _escaped(text) else "replace").decode("utf-8", "replace")
            raise PromptError(f"--prompt {shown[:40]!r} is not UTF-8 text. Type it again, or put it in a UTF-8 --prompt-file.")
    if file is None:
        return prompts
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(f"--prompt-file {file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompt-file {file} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    if not lines:
        raise PromptError(f"--prompt-file {file} contains no prompt: it should have one per line, and every line is blank.")
    return [*prompts, *lines]


def check_file(flag: str, destination: str | None) -> None:
    """Says at once, not after minutes of work, that a file cannot be written. None and "-" are no files."""
    if destination is None or destination == "-":
        return
    path = Path(destination)
    if path.is_dir():
        stdout = ", or - for stdout" if flag == "--json" else ""
        raise UsageError(f"{flag} {destination} is a directory. Give the name of a file{stdout}.")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {destination}: there is no directory {path.parent}. Create it first, or give another place.")
    refused = "" if path.exists() and not path.is_file() else why_not(path.resolve().parent)
    if refused:
        raise UsageError(f"{flag} {destination} cannot be written: {refused} in {path.resolve().parent}. Give another place.")


def _escaped(text: str) -> bool:
    return all(0xDC80 <= ord(letter) <= 0xDCFF for letter in text if 0xD800 <= ord(letter) <= 0xDFFF)


def device_words(device: str) -> list[str]:
    """`--device` as it can be typed again, but for the hub's token, which is not to be shown."""
    if device == "local":
        return []
    name, at, url = device.partition("@")
    return ["--device", f"{name}{at}{url.partition('?')[0]}?token=…" if at and "?" in url else device]


def follow_up(args: argparse.Namespace, verb: str, *names: str) -> str:
    """The command that goes on from a result with another verb: the same run, target, device and fault. Where several devices
    shared the work, one of them goes on."""
    name, at, url = args.device.partition("@")
    one = "any" if name == "all" else name.partition(",")[0]
    words = ["tapml", verb, args.run, *names, "--target", args.target, *device_words(f"{one}{at}{url}")]
    if args.inject is not None:
        words += ["--inject", args.inject]
    return quoted(words)


def quoted(words: Sequence[str]) -> str:
    """A command line as it can be typed."""
    return " ".join(shlex.quote(word) for word in words)
