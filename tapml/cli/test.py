"""`tapml test RUN --target T`: compile every operator of a run and check it against the recording."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tapml.cli.verb import ALL_PASSED, DEVICE, INJECT, SOMETHING_FAILED, Outcome, follow_up

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tapml.api import TestResult

NAME = "test"
HELP = "check every operator of a run on a target, against the recording"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a folder made by tapml carve")
    parser.add_argument("--target", metavar="T", required=True, help="what to compile for: name or name:option=value,…")
    parser.add_argument("--device", metavar="D", default="local", help=f"{DEVICE}; A,B@URL or all@URL: several share the testing")
    parser.add_argument("--operator", metavar="GLOB", default="*", help="only operators whose name matches: 'decode/*q_proj'")
    parser.add_argument(
        "--mode",
        choices=("isolated", "cumulative"),
        default="isolated",
        help="feed each operator what was recorded, or what the target computed before it",
    )
    parser.add_argument("--inject", metavar="FILE.py:FUNCTION", help=INJECT)


def run(args: argparse.Namespace) -> Outcome:
    from tapml.api import Run
    from tapml.report.progress import Progress

    with Progress(NAME) as progress:
        result = Run.open(args.run).test(
            target=args.target, device=args.device, operator=args.operator, inject=args.inject, mode=args.mode, progress=progress
        )
    return Outcome(ALL_PASSED if result.passed else SOMETHING_FAILED, result.to_json(), view(args, result))


def view(args: argparse.Namespace, result: TestResult) -> tuple[RenderableType, ...]:
    """What people see: the table, worst first or in the order in which the model runs, the summary line, what to type next."""
    from tapml.report.circumstances import circumstance_lines
    from tapml.report.console import VerdictTable, command, counts_line, first_wrong_line

    where = f"{result.target} on {result.device.name}"
    if len(result.devices) > 1:
        where = f"{result.target} on {', '.join(f'{share.name} ({share.operators})' for share in result.devices)}"
    to_explain = result.to_explain
    return (
        VerdictTable(result.verdicts, result.in_order),
        "",
        *first_wrong_line(result.first_wrong),
        *circumstance_lines(result.circumstances),
        counts_line(result.verdicts, where, result.seconds),
        *([] if to_explain is None else [command(follow_up(args, "explain", to_explain))]),
    )


def resume_hint(args: argparse.Namespace) -> str:
    return "Compiled kernels are kept: the same command goes on faster."
