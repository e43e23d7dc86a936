"""`tapml test RUN --target T`: compile every operator of a run and check it against the recording."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tapml.cli.verb import ALL_PASSED, DEVICE, INJECT, NAMES, RUN, SOMETHING_FAILED, Outcome, check_file, follow_up
from tapml.errors import UsageError
from tapml.whole_file import write_whole

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tapml.migrate.tested import TestResult

NAME = "test"
HELP = "check every operator of a run on a target, or kernels of your own, against the recording"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument(
        "--target", metavar="T", help=f"the target to test: {NAMES}; with --kernels the default is one of their language"
    )
    parser.add_argument(
        "--kernels", metavar="DIR", help="test your own kernels in this folder instead of generated ones; operators that it "
        "has none for are not tested (docs/own-kernels.md says what is in it)"
    )
    parser.add_argument(
        "--device", metavar="D", default="local", help=f"{DEVICE}; with A,B@URL or all@URL, several share the tests"
    )
    parser.add_argument(
        "--operator", metavar="GLOB", default="*", help="only operators whose name matches, for example 'decode/*q_proj'"
    )
    parser.add_argument(
        "--segment",
        metavar="A..B",
        help="test the operators from A to B as one, which the engine may fuse; A and B are operators or modules, a module alone "
        "is all of it",
    )
    parser.add_argument(
        "--mode",
        choices=("isolated", "cumulative"),
        default="isolated",
        help="where an operator's inputs come from: the recording (isolated, the default), or what the target computed before it",
    )
    parser.add_argument(
        "--repeat", metavar="N", type=int, help="also run each recorded call N times, and its rows in other places and chunks: "
        "the same bits, or the operator is listed"
    )
    parser.add_argument("--inject", metavar="FILE.py:FUNCTION", help=INJECT)
    parser.add_argument("--junit", metavar="FILE", help="also write the verdicts as a JUnit file, for a CI server")
    parser.add_argument("--markdown", metavar="FILE", help="also write a summary as Markdown, for pull requests")


def run(args: argparse.Namespace) -> Outcome:
    from tapml.api import Run
    from tapml.report.progress import Progress

    if args.target is None and args.kernels is None:
        raise UsageError("Name what is to be tested: --target T, or --kernels DIR. Try: tapml test --help")
    for flag in ("junit", "markdown"):
        check_file(f"--{flag}", getattr(args, flag))
    with Progress(NAME) as progress:
        result = Run.open(args.run).test(
            target=args.target, device=args.device, operator=args.operator, segment=args.segment, mode=args.mode,
            inject=args.inject, repeat=args.repeat, kernels=args.kernels, progress=progress,
        )
    write(args, result)
    return Outcome(ALL_PASSED if result.passed else SOMETHING_FAILED, result.to_json(), view(args, result))


def write(args: argparse.Namespace, result: TestResult) -> None:
    """The files that were asked for, each whole or not at all."""
    from tapml.report.junit import junit
    from tapml.report.markdown import markdown

    if args.junit is not None:
        write_whole(Path(args.junit), junit(result))
    if args.markdown is not None:
        write_whole(Path(args.markdown), markdown(result, _next(args, result)))


def _next(args: argparse.Namespace, result: TestResult) -> str | None:
    return None if result.to_explain is None or args.kernels is not None else follow_up(args, "explain", result.to_explain)


def view(args: argparse.Namespace, result: TestResult) -> tuple[RenderableType, ...]:
    """What people see: the table, worst first or in the order in which the model runs, the summary line, what to type next."""
    from tapml.report import console
    from tapml.report.circumstances import circumstance_lines
    from tapml.report.invariance import invariance_lines

    where = f"{result.target} on {result.device.name}"
    if len(result.devices) > 1:
        where = f"{result.target} on {', '.join(f'{share.name} ({share.operators})' for share in result.devices)}"
    following = _next(args, result)
    return (
        console.VerdictTable(result.tested, result.in_order),
        *(["", console.not_tested(result)] if result.without else []),
        "",
        *console.first_wrong_line(result.first_wrong),
        *console.segment_lines(result.segment),
        *circumstance_lines(result.circumstances),
        *console.positions_line(result.positions),
        *invariance_lines(result.invariance),
        console.counts_line(result.verdicts, where, result.seconds),
        *([] if following is None else [console.command(following)]),
    )


def resume_hint(args: argparse.Namespace) -> str:
    return "Compiled kernels are kept: the same command will be faster."
