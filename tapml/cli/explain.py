"""`tapml explain RUN OPERATOR --target T`: why one operator is wrong, at which stage, on which smallest input."""

from __future__ import annotations

import argparse
from pathlib import Path

from tapml.cli.verb import ALL_PASSED, DEVICE, INJECT, NAMES, RUN, SOMETHING_FAILED, Outcome

NAME = "explain"
HELP = "name the stage at which an operator goes wrong, with evidence, the smallest failing input and a reproducer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument(
        "operator", metavar="OPERATOR",
        help="its name as in the tables; a part of it, or a pattern, will do if only one operator matches",
    )
    parser.add_argument("--target", metavar="T", required=True, help=f"the target on which it is wrong: {NAMES}")
    parser.add_argument("--device", metavar="D", default="local", help=DEVICE)
    parser.add_argument("--inject", metavar="FILE.py:FUNCTION", help=INJECT)
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write the findings (default: inside RUN)")


def run(args: argparse.Namespace) -> Outcome:
    from tapml.api import Run
    from tapml.diagnose.explain.stage import explain
    from tapml.report.explain import view
    from tapml.report.progress import Progress

    folder = Run.open(args.run).folder
    with Progress(NAME) as progress:
        found = explain(folder, args.operator, args.target, args.device, args.inject, args.out, progress)
    return Outcome(ALL_PASSED if found.passed else SOMETHING_FAILED, found.to_json(), view(found))


def resume_hint(args: argparse.Namespace) -> str:
    return "Compiled kernels are kept: the same command will be faster."
