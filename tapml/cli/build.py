"""`tapml build RUN --target T -o BUNDLE`: a migrated run as a folder that runs without PyTorch and without the compiler."""

from __future__ import annotations

import argparse
from pathlib import Path

from tapml.cli.verb import ALL_PASSED, NAMES, RUN, Outcome

NAME = "build"
HELP = "make a bundle of a migrated run: the model, and the kernels that passed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument("--target", metavar="T", required=True, help=f"the target that it was migrated to: {NAMES}")
    parser.add_argument("-o", "--out", metavar="BUNDLE", required=True, help="the folder to create")
    parser.add_argument(
        "--allow", metavar="OPERATOR", action="append", default=[],
        help="ship this operator although it did not pass: a name or a pattern such as 'decode/*.norm'; may be repeated",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="replace a bundle that is there")


def run(args: argparse.Namespace) -> Outcome:
    from tapml.carving.folder import RunFolder
    from tapml.deploy.build import build
    from tapml.report.bundle import unproven
    from tapml.report.console import amount, command

    folder = RunFolder.open(Path(args.run))
    built = build(folder, args.target, Path(args.out), fresh=args.fresh, allow=args.allow)
    differ = [] if not built.prompts_differ else [
        f"{built.prompts_differ} of the run's prompts give other tokens here than in the carve: the tokenizer or the chat "
        "template does not ship as it was"
    ]  # fmt: skip
    return Outcome(ALL_PASSED, built.to_json(), (
        f"{built.path}: {built.operators:,} operators, {built.programs:,} programs, {amount(built.nbytes)}, of which weights "
        f"{amount(built.weight_bytes)}",
        f"Memory beside the weights: {amount(built.planned_bytes)} ({amount(built.naive_bytes)} if none were used twice)",
        f"Licence of the weights: {folder.manifest['model']['licence'] or 'not stated by the files of the model'}",
        *differ,
        *unproven(built.allowed),
        command(f"tapml generate {args.out} --prompt TEXT" if folder.protocol.chooses else f"tapml verify {args.out}"),
    ))  # fmt: skip


def resume_hint(args: argparse.Namespace) -> str:
    return "Nothing was left behind."
