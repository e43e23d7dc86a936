"""`tapml health RUN [--target T]`: where overflow, underflow, NaN and Inf are made, and how much room float16 would leave."""

from __future__ import annotations

import argparse

from tapml.cli.verb import ALL_PASSED, DEVICE, INJECT, NAMES, RUN, SOMETHING_FAILED, Outcome
from tapml.errors import UsageError
from tapml.targets.known import EXAMPLE

NAME = "health"
HELP = "find the first operator that produces an overflow, NaN or Inf, and the headroom left in half precision"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("--target", metavar="T", help=f"also watch this target: {NAMES}")
    parser.add_argument("--device", metavar="D", default="local", help=DEVICE)
    parser.add_argument("--inject", metavar="FILE.py:FUNCTION", help=INJECT)
    parser.add_argument(
        "--prompt-index", metavar="K", type=_index, default=0, help="the prompt of the run to follow, counted from 0 (default: 0)"
    )


def run(args: argparse.Namespace) -> Outcome:
    from pathlib import Path

    from tapml.carving.folder import RunFolder
    from tapml.diagnose.health.result import keep_health
    from tapml.diagnose.health.stage import health
    from tapml.report.health import view
    from tapml.report.progress import Progress

    if args.target is None:
        given = [flag for flag, used in (("--inject", args.inject), ("--device", args.device != "local")) if used]
        if given:
            raise UsageError(f"{' and '.join(given)} is about a target. Name one with --target T, as in --target {EXAMPLE.name}.")
    folder = RunFolder.open(Path(args.run))
    with Progress(NAME) as progress:
        found = health(folder, args.target, args.device, args.inject, args.prompt_index, progress)
    keep_health(folder, found, found.facts["target"])
    return Outcome(ALL_PASSED if found.passed else SOMETHING_FAILED, found.to_json(), view(found))


def _index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
