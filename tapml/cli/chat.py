"""`tapml chat BUNDLE`: a conversation with a bundle, at a terminal or line by line from a pipe.

Answers go to stdout, all else to stderr. At a terminal Ctrl-C stops an answer and not the program; Ctrl-D leaves. Without one,
each message from stdin is answered in turn, and the first that cannot be is the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapml.cli.answering import add_flags, asked_of
from tapml.cli.verb import ALL_PASSED, INTERRUPTED, Outcome, check_file
from tapml.errors import PromptError, UsageError, nearest
from tapml.whole_file import write_whole
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.deploy.answer import Answer, Asked
    from tapml.deploy.session import Session
    from tapml.deploy.text import Text

NAME = "chat"
HELP = "talk to a bundle, turn by turn"

ROOM_SHARE = 4  # at least a quarter of the context is left to an answer, as long as there are older turns to drop
FENCE = '"""'

COMMANDS = {
    "help": "this list",
    "reset": "forget the conversation; the system message stays",
    "system TEXT": "set the system message; without TEXT there is none",
    "set NAME VALUE": "such as /set temperature 0.7; without NAME, what is set",
    "stats": "tokens and speed so far",
    "save FILE": "write the conversation as JSON",
    "exit": "leave; Ctrl-D does too",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle made by tapml build, of a model with a chat template")
    add_flags(parser)


def run(args: argparse.Namespace) -> Outcome:
    from tapml.deploy.bundle import BundleFolder
    from tapml.deploy.session import Session
    from tapml.deploy.text import Text

    bundle = BundleFolder.open(args.bundle)
    text = Text(bundle)
    asked = asked_of(args, bundle)
    text.of_turns([{"role": "user", "content": "?"}])  # a model without a chat template says so now
    with Session(bundle, args.device) as session:
        chat = _Chat(session, text, asked, args.system)
        chat.talk()
        device = session.info
    return Outcome(ALL_PASSED, {
        "bundle": str(bundle.path), "target": str(bundle.choice), "device": device.to_json(),
        "sampling": chat.asked.sampling.to_json(), "system": chat.conversation.system, "turns": chat.said,
        "dropped": chat.dropped,
    })  # fmt: skip


def resume_hint(args: argparse.Namespace) -> str:
    return "The conversation is gone; /save FILE keeps one."


class _Chat:
    def __init__(self, session: Session, text: Text, asked: Asked, system: str | None) -> None:
        from tapml.deploy.conversation import Conversation
        from tapml.runtime.protocol import Generating

        protocol = session.bundle.protocol
        assert isinstance(protocol, Generating)
        self.session = session
        self.text = text
        self.asked = asked
        self.positions = protocol.max_len
        self.conversation = Conversation(text, self.positions, system)
        self.said: list[dict[str, Any]] = []
        self.dropped = 0
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()

    def talk(self) -> None:
        """Until /exit or the end of the input."""
        if self.terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  -- input() then edits lines and recalls earlier ones
            where = f"{self.session.bundle.choice} on {self.session.info.name}"
            _note(f"{self.session.bundle.name} · {where} · {self.positions:,} positions · /help for commands, Ctrl-D to leave")
        while True:
            try:
                message = read(self._line)
                if message is None:
                    return
                if message.strip() and not self._taken(message.strip()):
                    return
            except KeyboardInterrupt:
                if not self.terminal:
                    raise
                _note("\nTo leave, type /exit or press Ctrl-D.")
            except UsageError as error:
                if not self.terminal:
                    raise
                _note(str(error))

    def _line(self, more: bool) -> str | None:
        """The next line of the input, None at its end; `more` when it goes on from the one before."""
        try:
            if self.terminal:
                line = input("… " if more else "> ")
            else:
                line = sys.stdin.readline()
                if not line:
                    return None
                line = line.removesuffix("\n").removesuffix("\r")
            line.encode()
        except EOFError:
            print(flush=True)
            return None
        except UnicodeError as error:
            raise PromptError("The message is not UTF-8 text.") from error
        return line

    def _taken(self, message: str) -> bool:
        """Whether the conversation goes on after this message, which may be a command."""
        if message.startswith("/") and not message.startswith("//"):
            return self._commanded(message[1:])
        self._answer(message.removeprefix("/") if message.startswith("//") else message)
        return True

    def _answer(self, message: str) -> None:
        from tapml.deploy.answer import Answer

        turns = self.conversation.ask(message, min(self.asked.max_tokens, self.positions // ROOM_SHARE))
        if turns.dropped:
            left = "is" if turns.dropped == 1 else "are"
            _note(f"The conversation does not fit any more: the oldest {plural(turns.dropped, 'turn')} {left} forgotten.")
        answer = Answer(self.session, self.text, turns.tokens, self.asked, reuse=True)
        with _stopped_by_ctrl_c(answer) if self.terminal else contextlib.nullcontext():
            try:
                for piece in answer:
                    print(piece, end="", flush=True)
            finally:
                print(flush=True)
        self.conversation.answered(answer.text)
        self.dropped += turns.dropped
        self.said.append({"prompt": message} | answer.to_json())
        _note(f"[{answer.summary}]")

    def _commanded(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "help":
                _note("\n".join(f"/{command:<16} {what}" for command, what in COMMANDS.items()))
                _note(f"A line that ends with \\ goes on; so does all between two lines of {FENCE}. //… says what begins with /.")
                _note("Ctrl-C stops an answer; pressed twice, the program.")
            case "reset":
                self.conversation.reset()
                _note("The conversation is forgotten.")
            case "system":
                self.conversation.system = rest or None
                _note("The system message is set." if rest else "There is no system message.")
            case "set":
                self._set(*rest.split(None, 1))
            case "stats":
                self._stats()
            case "save":
                self._save(rest)
            case "exit":
                return False
            case _:
                raise UsageError(f"There is no command /{name}. {nearest(name, [c.split()[0] for c in COMMANDS])} Try: /help")
        return True

    def _set(self, name: str = "", value: str = "") -> None:
        from tapml.deploy.sampling import SETTINGS

        key = name.replace("-", "_")
        if not name:
            shown = [f"{setting.replace('_', '-')} {getattr(self.asked.sampling, setting)}" for setting in SETTINGS]
            _note("  ".join([*shown, f"max-tokens {self.asked.max_tokens}"]))
            return
        if key not in (*SETTINGS, "max_tokens"):
            names = [setting.replace("_", "-") for setting in (*SETTINGS, "max_tokens")]
            raise UsageError(f"There is no setting {name!r}. {nearest(name, names)} Try: /set")
        whole = key in ("top_k", "seed", "max_tokens")
        try:
            number: Any = int(value) if whole else float(value)
        except ValueError:
            raise UsageError(f"{name} is {'a whole number' if whole else 'a number'}, not {value!r}.") from None
        if key != "max_tokens":
            self.asked = replace(self.asked, sampling=replace(self.asked.sampling, **{key: number}))
        elif number < 1:
            raise UsageError("max-tokens is a whole number of at least 1.")
        else:
            self.asked = replace(self.asked, max_tokens=number)
        _note(f"{name} is {number}.")

    def _stats(self) -> None:
        tokens = sum(len(turn["generated"]) for turn in self.said)
        after = sum(turn["seconds"] - turn["first_token_seconds"] for turn in self.said)
        rate = f", {(tokens - len(self.said)) / after:.1f} tokens/s after the first" if after > 0 else ""
        reused, prompts = sum(turn["reused"] for turn in self.said), sum(len(turn["tokens"]) for turn in self.said)
        held = f"The cache holds {len(self.session.held.tokens):,} of {self.positions:,} positions."
        taken = f"Prompts: {plural(prompts, 'token')}, {reused:,} of them from the cache."
        _note(f"{plural(len(self.said), 'answer')}, {plural(tokens, 'token')}{rate}. {taken} {held}")

    def _save(self, name: str) -> None:
        if not name:
            raise UsageError("/save needs the name of a file, as in /save talk.json")
        check_file("/save", name)
        content = {"model": self.session.bundle.name, "sampling": self.asked.sampling.to_json()}
        try:
            write_whole(Path(name), json.dumps(content | {"messages": self.conversation.to_json()}, indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"/save {name} cannot be written: {error.strerror}. Give another place.") from error
        _note(f"{name}: {plural(len(self.conversation.turns), 'turn')}")


def read(line: Callable[[bool], str | None]) -> str | None:
    """One message, None at the end of the input: a line; several, each but the last ending with a backslash; or what is between
    two lines of three double quotes. `line` gives the next one, told whether it goes on from the one before."""
    first = line(False)
    if first is None:
        return None
    parts: list[str] = []
    if first.strip() == FENCE:
        while (more := line(True)) is not None and more.strip() != FENCE:
            parts.append(more)
        return "\n".join(parts)
    held: str | None = first
    while held is not None and held.endswith("\\"):
        parts.append(held[:-1])
        held = line(True)
    return "\n".join(parts if held is None else [*parts, held])


@contextlib.contextmanager
def _stopped_by_ctrl_c(answer: Answer) -> Iterator[None]:
    """The first Ctrl-C ends the answer after the token that is being made, so that the device is left in order; the second ends
    the program, since a device that was left in the middle of a call answers nothing any more."""

    def stop(number: int, frame: object) -> None:
        if answer.interrupted:
            raise SystemExit(INTERRUPTED)
        answer.interrupt()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
