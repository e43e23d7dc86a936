"""`tapml bisect RUN --target T`: the smallest set of operators that makes the model wrong on a target."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tapml.cli.verb import ALL_PASSED, DEVICE, INJECT, NAMES, RUN, SOMETHING_FAILED, Outcome, count, follow_up

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tapml.diagnose.bisect.result import BisectResult

NAME = "bisect"
HELP = "find the smallest set of operators that makes the model wrong on a target"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("--target", metavar="T", required=True, help=f"the target on which the model is wrong: {NAMES}")
    parser.add_argument("--device", metavar="D", default="local", help=DEVICE)
    parser.add_argument("--inject", metavar="FILE.py:FUNCTION", help=INJECT)
    parser.add_argument(
        "--all", action="store_true", help="find every set: keep each one on the source and search again until the rest is right"
    )
    parser.add_argument(
        "--tokens", metavar="N", type=count, default=None,
        help="where the short check passes, also compare N tokens of each answer",
    )
    parser.add_argument(
        "--confidence",
        metavar="P",
        type=_confidence,
        default=None,
        help="confidence in the answer where a fault is intermittent (default: 0.95)",
    )


def run(args: argparse.Namespace) -> Outcome:
    from tapml.api import Run
    from tapml.diagnose.bisect.stage import CONFIDENCE, bisect
    from tapml.report.progress import Progress

    folder = Run.open(args.run).folder
    with Progress(NAME) as progress:
        result = bisect(
            folder, args.target, args.device, args.inject, args.all, args.confidence or CONFIDENCE, progress=progress,
            tokens=args.tokens,
        )  # fmt: skip
    return Outcome(ALL_PASSED if result.passed else SOMETHING_FAILED, result.to_json(), view(args, result))


def view(args: argparse.Namespace, result: BisectResult) -> tuple[RenderableType, ...]:
    """What people see: each set with its culprits and numbers, then what to type next."""
    from tapml.report.bisect import next_steps, outcome_line, set_views, without_line
    from tapml.report.circumstances import circumstance_lines

    commands = [follow_up(args, "explain", name) for name in result.culprits]
    tokens = "" if args.tokens is None else f" --tokens {args.tokens}"
    everything = f"{follow_up(args, 'bisect')}{tokens} --all" if result.more else None
    return (
        *set_views(result),
        *without_line(result),
        *circumstance_lines(result.circumstances),
        outcome_line(result),
        *next_steps(commands, everything),
    )


def resume_hint(args: argparse.Namespace) -> str:
    return "Compiled kernels are kept: the same command will be faster."


def _confidence(text: str) -> float:
    """An argparse type: a share between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1; give a share such as 0.95")
    return value
