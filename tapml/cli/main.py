"""The `tapml` command: finds the verb, runs it, prints the outcome, and turns every error into one line and an exit code.

    0    done, and everything passed
    1    done, and something failed its check
    2    wrong use (an error inside TapML also ends with 2, with its traceback on stderr)
    3    a target or a device is not available, or was lost
    130  Ctrl-C

Results go to stdout; progress, warnings and errors go to stderr. With `--json FILE` the result is also written, as one JSON
object; with `--json -` stdout holds that object and nothing else. An error is then `{"error": …, "code": …}`. What each
verb's object holds is written down in `tapml/cli/schemas/`. JSON has no infinity: an infinite error is written as the largest
double, NaN as null. `TAPML_DEBUG=1` shows tracebacks and what libraries print.

What is printed, by whomever, is text without control characters (`tapml.printable`); JSON is exact.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TextIO

import tapml
from tapml.cli import (
    agent,
    bench,
    bisect,
    build,
    carve,
    chat,
    check,
    devices,
    doctor,
    evaluate,
    explain,
    export,
    faults,
    generate,
    health,
    hub,
    migrate,
    report,
    test,
    verify,
)
from tapml.cli.verb import ALL_PASSED, INTERRUPTED, JSON, WRONG_USE, Outcome, Verb, check_file
from tapml.errors import TapmlError, UsageError, nearest
from tapml.printable import bare, cut, guarded
from tapml.remote.credentials import WARNING, conceal
from tapml.targets.known import EXAMPLE
from tapml.verdicts import finite
from tapml.whole_file import write_whole

VERBS: dict[str, Verb] = {
    verb.NAME: verb
    for verb in (
        doctor, carve, test, migrate, bisect, explain, health, check, report, export, build, verify, bench, evaluate,
        generate, chat, faults, hub, agent, devices,
    )
}

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EEXIST}


class _Parser(argparse.ArgumentParser):
    """argparse, with its complaints as one line of ours."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}. Try: {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(
        prog="tapml",
        allow_abbrev=False,
        description="Carve operator tests out of a working PyTorch model, and migrate the model to a new platform, operator by "
        "operator.",
        epilog=f"Start with: tapml carve MODEL -o RUN, then tapml migrate RUN --target {EXAMPLE.name}. "
        "Exit codes: 0 everything passed, 1 something failed its check, 2 wrong use, "
        "3 a target or device is not available, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"tapml {tapml.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for verb in VERBS.values():
        one = verbs.add_parser(verb.NAME, help=verb.HELP, description=verb.HELP, allow_abbrev=False)
        verb.add_arguments(one)
        one.add_argument("--json", metavar="FILE", help=JSON)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of the command line. Raises UsageError; exits by itself for --help and --version."""
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise UsageError(f"There is no verb {argv[0]!r}. {nearest(argv[0], VERBS)} Try: tapml --help")
    args, unknown = build_parser().parse_known_args(argv)
    if unknown:
        verb = f"tapml {args.verb}" if args.verb else "tapml"
        raise UsageError(f"Unrecognized: {' '.join(unknown)}. Try: {verb} --help")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. `argv` is what follows `tapml`."""
    with guarded():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and conceal(arguments):
        print(f"tapml: {WARNING}", file=sys.stderr, flush=True)
    _yielding_threads()
    _quiet_libraries()
    destination: str | None = None
    args: argparse.Namespace | None = None
    try:
        args = parse(arguments)
        if args.verb is None:
            build_parser().print_help()
            return 0
        check_file("--json", args.json)
        destination = args.json
        with _stdout_held(destination == "-") as write:
            args.tell = lambda data: _tell(_stamped(data, ALL_PASSED), destination, write)
            outcome = VERBS[args.verb].run(args)
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else WRONG_USE
    except KeyboardInterrupt:
        return _failed(_interrupted(args), INTERRUPTED, destination)
    except TapmlError as error:
        return _failed(_one_line(error), error.exit_code, destination)
    except Exception as error:
        known = _known(error)
        if known is None:
            traceback.print_exc()
            return _failed(_bug(error), WRONG_USE, destination)
        return _failed(known, WRONG_USE, destination)
    return _show(outcome, destination)


def _show(outcome: Outcome, destination: str | None) -> int:
    """Prints the outcome. A reader of stdout that went away (`tapml test run | head`) is no error."""
    try:
        if destination != "-" and outcome.view:
            from tapml.report.console import stdout

            console = stdout()
            for part in outcome.view:
                if isinstance(part, str):
                    console.print(part, markup=False, highlight=False, soft_wrap=True)
                else:
                    console.print(part, soft_wrap=getattr(part, "no_wrap", None) is True)
        if destination is not None and not outcome.told:
            _write_json(_stamped(outcome.data, outcome.code), destination)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    except OSError as error:
        print(f"tapml: {_known(error) or error}", file=sys.stderr)
        return WRONG_USE
    return outcome.code


def _failed(message: str, code: int, destination: str | None) -> int:
    """Says what went wrong on stderr, and in the JSON where one was asked for."""
    if os.environ.get("TAPML_DEBUG") == "1" and sys.exc_info()[0] is not None:
        traceback.print_exc()
    with contextlib.suppress(BrokenPipeError):
        print(f"tapml: {message}", file=sys.stderr, flush=True)
    if destination is not None:
        try:
            _write_json(_stamped({"error": message, "code": code}, code), destination)
            sys.stdout.flush()
        except BrokenPipeError:
            _forget_stdout()
        except OSError as error:
            print(f"tapml: the JSON could not be written either: {error}", file=sys.stderr)
    return code


def _one_line(text: object, limit: int = 2000) -> str:
    return cut(" ".join(str(text).split()), limit)


def _interrupted(args: argparse.Namespace | None) -> str:
    hint = getattr(VERBS[args.verb], "resume_hint", None) if args is not None and args.verb else None
    return f"Interrupted. {hint(args)}" if hint else "Interrupted."


def _bug(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {_one_line(error, 300)} -- this is a bug in TapML. "
        "Please report it with the traceback above and what `tapml doctor` prints."
    )


def _known(error: BaseException | None) -> str | None:
    """What to say about an error of the system that is nobody's bug: a full disk, a place that cannot be written, no memory."""
    while error is not None:
        text = _one_line(error, 200)
        name = error.filename if isinstance(error, OSError) else None
        code = error.errno if isinstance(error, OSError) else None
        if code in _FULL or "No space left on device" in text or "File too large" in text:
            where = f" while writing {name}" if name else ""
            return f"The disk is full{where} ({text}). Free some space, or choose another place, and run the same command again."
        if code in _NOT_WRITABLE:
            reason = error.strerror if isinstance(error, OSError) else text
            return f"{name or 'A file'} cannot be used: {reason}. Choose another place, or change its permissions."
        if isinstance(error, MemoryError):
            return f"Out of memory ({text or 'allocation failed'}). Try fewer prompts, a smaller --max-len, or --dtype float16."
        error = error.__cause__ or error.__context__
    return None


def _yielding_threads() -> None:
    """PyTorch's threads wait for each other by spinning unless told otherwise, before it is loaded. An operator is short, so on
    a machine that does anything else the spinning costs more than the work: five times the time of a decode step."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _quiet_libraries() -> None:
    """Libraries' warnings and progress bars are noise in front of results; TAPML_DEBUG=1 leaves them on."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if os.environ.get("TAPML_DEBUG") == "1":
        return
    warnings.simplefilter("ignore")
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _stdout_held(hold: bool) -> Iterator[Callable[[str], None]]:
    """While a verb runs under `--json -`, whatever libraries print on stdout, from Python or from C, goes to stderr. Gives what
    writes on the real stdout all the same."""
    stdout = bare(sys.stdout)

    def write(text: str) -> None:
        stdout.write(text)
        stdout.flush()

    if not hold:
        yield write
        return
    with contextlib.redirect_stdout(sys.stderr):
        try:
            real, errors = sys.__stdout__.fileno() if sys.__stdout__ else 1, sys.stderr.fileno()
        except (OSError, ValueError):  # a stream without a file, as under a test
            yield write
            return
        saved = os.dup(real)
        os.dup2(errors, real)
        try:
            yield lambda text: _write_all(saved, text.encode())
        finally:
            os.dup2(saved, real)
            os.close(saved)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _tell(data: dict[str, Any], destination: str | None, write: Callable[[str], None]) -> None:
    """The JSON of a verb that goes on running: one line on stdout, or a file that is there all at once."""
    text = _json(data)
    if destination == "-":
        write(text)
    elif destination is not None:
        write_whole(Path(destination), text)


def _stamped(data: dict[str, Any], code: int) -> dict[str, Any]:
    """What the JSON of every verb has, where the verb's own result does not say it already."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"passed": code == ALL_PASSED, "version": tapml.__version__, "date": date} | data


def _write_json(data: dict[str, Any], destination: str) -> None:
    text = _json(data, indent=2)
    if destination == "-":
        bare(sys.stdout).write(text)
    else:
        write_whole(Path(destination), text)


def _json(data: dict[str, Any], indent: int | None = None) -> str:
    """JSON in ASCII: every other character, and what steers a terminal, is an escape of JSON's own, so nothing is changed."""
    return json.dumps(finite(data), indent=indent, allow_nan=False).replace("\x7f", "\\u007f") + "\n"


def _forget_stdout() -> None:
    """After a broken pipe: the interpreter's own flush at exit must not complain again."""
    stream: TextIO = sys.stdout
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
