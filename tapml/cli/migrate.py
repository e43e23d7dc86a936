"""`tapml migrate RUN --target T`: move a model operator by operator, and compare it end to end with the source."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tapml.cli.verb import (
    ALL_PASSED,
    DEVICE,
    INJECT,
    NAMES,
    RUN,
    SOMETHING_FAILED,
    Outcome,
    count,
    device_words,
    follow_up,
    quoted,
)
from tapml.verdicts import worth_explaining

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tapml.api import Run
    from tapml.migrate.migrate import MigrationResult

NAME = "migrate"
HELP = "move a model to a target, operator by operator, and compare the answers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("--target", metavar="T", required=True, help=f"the target to move to: {NAMES}")
    parser.add_argument(
        "--device", metavar="D", default="local", help=f"{DEVICE}; with A,B@URL or all@URL, several share the tests"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue an earlier migration of this run that was interrupted")
    again.add_argument("--fresh", action="store_true", help="start over; an earlier journal is kept beside the new one")
    parser.add_argument("--tokens", metavar="N", type=count, default=None, help="tokens to generate and compare for each prompt")
    parser.add_argument("--inject", metavar="FILE.py:FUNCTION", help=INJECT)


def run(args: argparse.Namespace) -> Outcome:
    from tapml.api import Run
    from tapml.report.progress import Progress

    folder = Run.open(args.run)
    with Progress(NAME) as progress:
        result = folder.migrate(
            target=args.target, device=args.device, resume=args.resume, fresh=args.fresh, tokens=args.tokens,
            inject=args.inject, progress=progress,
        )  # fmt: skip
    return Outcome(ALL_PASSED if result.passed else SOMETHING_FAILED, result.to_json(), view(args, folder, result))


def view(args: argparse.Namespace, run: Run, result: MigrationResult) -> tuple[RenderableType, ...]:
    """What people see: the verdicts, what moved, both sides' answers, what to type next."""
    from tapml.report.circumstances import circumstance_lines
    from tapml.report.console import VerdictTable, command, counts_line, positions_line
    from tapml.report.migration import answers, end_to_end_lines, moved_line

    following = None if result.passed else _next(args, result)
    return (
        VerdictTable(result.verdicts),
        "",
        *answers(run.folder, run.text, result),
        moved_line(result),
        *end_to_end_lines(result),
        *circumstance_lines(result.circumstances),
        *positions_line(result.positions),
        counts_line(result.verdicts, f"{result.target} on {result.device.name}", result.seconds),
        *([] if following is None else [command(following)]),
    )


def _next(args: argparse.Namespace, result: MigrationResult) -> str | None:
    """Explain the worst operator that stayed; where each is right alone, find those that make the model wrong. None where all
    that stayed were not tested."""
    kept = [v for v in result.verdicts if v.operator in result.kept_on_source]
    if result.end_to_end.passed and all(v.status == "skipped" for v in kept):
        return None
    worst = worth_explaining(kept)
    return follow_up(args, "bisect") if worst is None else follow_up(args, "explain", worst.operator)


def resume_hint(args: argparse.Namespace) -> str:
    """The command that goes on."""
    words = ["tapml", "migrate", args.run, "--target", args.target]
    words += device_words(args.device)
    for flag in ("tokens", "inject"):
        value = getattr(args, flag)
        if value is not None:
            words += [f"--{flag}", str(value)]
    return f"No verdict is lost. Continue with: {quoted(words)} --resume"
