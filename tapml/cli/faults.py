"""`tapml faults list` and `tapml faults bench RUN --target T`: the classes of faults, and what is found when they are put in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tapml.cli.verb import ALL_PASSED, DEVICE, JSON, NAMES, RUN, SOMETHING_FAILED, Outcome, count
from tapml.errors import UsageError

if TYPE_CHECKING:
    from tapml.diagnose.bench.result import BenchResult

NAME = "faults"
HELP = "list the catalogue of faults, or put them into a model and see which are found"

LIST, BENCH = "list", "bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    what = "list the classes of faults"
    listing = actions.add_parser(LIST, help=what, description=what, allow_abbrev=False)
    listing.add_argument("faults", metavar="FAULT", nargs="*", help="numbers or names: show everything known about these")
    listing.add_argument("--target", metavar="T", help="mark the classes that this target cannot express")
    listing.add_argument("--long", action="store_true", help="show everything known about each")
    what = "put faults into the operators of a run, one at a time, and see which are found"
    benching = actions.add_parser(BENCH, help=what, description=what, allow_abbrev=False)
    benching.add_argument("run", metavar="RUN", help=RUN)
    benching.add_argument("--target", metavar="T", required=True, help=f"the target to test: {NAMES}")
    benching.add_argument("--device", metavar="D", default="local", help=DEVICE)
    benching.add_argument("--faults", metavar="F,F,…", help="numbers or names of the faults (default: all)")
    benching.add_argument("--operators", metavar="N", type=count, default=3, help="operators to put each fault into (default: 3)")
    benching.add_argument("--seed", metavar="N", type=_seed, default=0, help="seed that chooses the operators (default: 0)")
    benching.add_argument("-o", "--output", metavar="FOLDER", help="where to write the report (default: inside RUN)")
    for one in (listing, benching):
        # Given after the action as well as before it; without a default, so that what stands before is not undone.
        one.add_argument("--json", metavar="FILE", default=argparse.SUPPRESS, help=JSON)


def run(args: argparse.Namespace) -> Outcome:
    return _list(args) if args.action == LIST else _bench(args)


def _list(args: argparse.Namespace) -> Outcome:
    from tapml.diagnose.faults.catalogue import CATALOGUE, find
    from tapml.report.faults import FaultTable, blocks, count_line, next_line
    from tapml.targets.parse import parse

    target = None if args.target is None else parse(args.target).name
    chosen = tuple(find(text) for text in args.faults) if args.faults else CATALOGUE
    rows = [f.to_json() | ({} if target is None else {"here": not f.why_not(target)}) for f in chosen]
    data = {"target": target, "faults": rows}
    if args.faults or args.long:
        return Outcome(ALL_PASSED, data, tuple(blocks(chosen)))
    return Outcome(ALL_PASSED, data, (FaultTable(chosen, target), "", count_line(chosen, target), next_line(chosen[0])))


def _bench(args: argparse.Namespace) -> Outcome:
    from tapml.carving.folder import RunFolder
    from tapml.diagnose.bench.stage import bench, bench_folder
    from tapml.diagnose.faults.catalogue import find
    from tapml.report.console import facts
    from tapml.report.faults_bench import console_view, write_report
    from tapml.report.progress import Progress

    chosen = None if args.faults is None else tuple(find(text) for text in args.faults.split(","))
    folder = RunFolder.open(Path(args.run))
    output = None if args.output is None else Path(args.output)
    if output is not None and output.exists() and not output.is_dir():
        raise UsageError(f"-o {output} is a file. Give the name of a folder, which is made if need be.")
    with Progress(f"{NAME} {BENCH}") as progress:
        result = bench(
            folder, args.target, args.device, faults=chosen, operators=args.operators, seed=args.seed, progress=progress
        )
    files = write_report(result, output or bench_folder(folder, result.target))
    written = facts([("written", str(path)) for path in files])
    data = result.to_json() | {"run_digest": folder.digest, "files": [str(path) for path in files]}
    return Outcome(ALL_PASSED if all_found(result) else SOMETHING_FAILED, data, (*console_view(result), "", written))


def all_found(result: BenchResult) -> bool:
    """Whether TapML found every fault that was put in, but for those that change no bit of what was recorded."""
    faults = [fault for row in result.rows for fault in row.faults if not fault.latent]
    return all("tapml" in fault.findings and fault.findings["tapml"].detected for fault in faults)


def resume_hint(args: argparse.Namespace) -> str:
    """Nothing is lost by Ctrl-C: what to type."""
    return "The findings so far are kept: the same command continues." if args.action == BENCH else ""


def _seed(text: str) -> int:
    """An argparse type: a whole number, 0 included."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
