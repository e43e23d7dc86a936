"""`tapml report RUN -o FILE.html`: all that is known of a run as one page that opens offline."""

from __future__ import annotations

import argparse
from pathlib import Path

from tapml.cli.verb import ALL_PASSED, RUN, Outcome

NAME = "report"
HELP = "write everything known about a run to one HTML file that opens offline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument(
        "-o", "--output", metavar="FILE.html", required=True, help="the file to write; it is replaced if it exists"
    )
    parser.add_argument("--target", metavar="T", action="append", help="only this target; may be repeated (default: all)")
    parser.add_argument("--against", metavar="RUN2", help="another run of the same model to compare with")


def run(args: argparse.Namespace) -> Outcome:
    from tapml.carving.folder import RunFolder
    from tapml.report.console import amount
    from tapml.report.html.page import write_report
    from tapml.report.progress import Progress
    from tapml.words import plural

    folder = RunFolder.open(Path(args.run))
    other = None if args.against is None else RunFolder.open(Path(args.against))
    with Progress(NAME) as progress:
        written = write_report(folder, Path(args.output), args.target, other, progress)
    targets = ", ".join(written.targets) or "no target yet"
    lines = [f"{written.file}: {plural(written.operators, 'operator')}, {targets}, {amount(written.bytes)}"]
    lines += [f"left out, to keep it small: {note}" for note in written.left_out]
    return Outcome(ALL_PASSED, written.to_json() | {"run_digest": folder.digest}, tuple(lines))
