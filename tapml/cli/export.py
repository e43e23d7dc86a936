"""`tapml export-cases RUN -o DIR`: the recorded calls as plain arrays, for tests in other languages."""

from __future__ import annotations

import argparse
from pathlib import Path

from tapml.cli.verb import ALL_PASSED, RUN, Outcome

NAME = "export-cases"
HELP = "write the recorded calls as .npy files and one JSON, for tests in other languages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="the folder to make; it must not hold anything yet")
    parser.add_argument(
        "--operator", metavar="GLOB", default="*", help="only operators whose name matches, for example 'decode/*norm'"
    )


def run(args: argparse.Namespace) -> Outcome:
    from tapml.carving.export import INDEX, export_cases
    from tapml.carving.folder import RunFolder
    from tapml.report.console import amount
    from tapml.words import plural

    folder = RunFolder.open(Path(args.run))
    found = export_cases(folder, Path(args.output), args.operator)
    lines = [
        f"{found.folder / INDEX}: {plural(found.cases, 'case')} of {plural(found.operators, 'different operator')}, "
        f"{plural(found.files, 'file')}, {amount(found.bytes)}"
    ]
    if found.without:
        lines.append(f"No call was recorded of {', '.join(found.without[:8])}{', …' if len(found.without) > 8 else ''}")
    return Outcome(ALL_PASSED, found.to_json() | {"run_digest": folder.digest}, tuple(lines))
