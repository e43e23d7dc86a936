"""`tapml check RUN --onnx FILE | --outputs DIR | --backend FILE.py:FUNCTION`: an existing deployment against the run."""

from __future__ import annotations

import argparse
from pathlib import Path

from tapml.cli.verb import ALL_PASSED, RUN, SOMETHING_FAILED, Outcome

NAME = "check"
HELP = "compare an existing deployment with the run, operator by operator, and name the first that is wrong"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--onnx", metavar="FILE", help="an ONNX file, run by ONNX Runtime: as written, and optimised")
    what.add_argument(
        "--outputs", metavar="DIR",
        help="arrays that any engine wrote (.npy, .npz, .safetensors; map.json gives other names), or llama-eval-callback's text",
    )  # fmt: skip
    what.add_argument(
        "--backend", metavar="FILE.py:FUNCTION",
        help="a function (inputs, names of operators) -> arrays by name; runs in this process",
    )  # fmt: skip
    parser.add_argument(
        "--provider", metavar="P", help="with --onnx: the provider of ONNX Runtime that computes (default: the processor's)"
    )


def run(args: argparse.Namespace) -> Outcome:
    from tapml.carving.folder import RunFolder
    from tapml.diagnose.check.stage import check
    from tapml.report.check import view
    from tapml.report.progress import Progress

    folder = RunFolder.open(Path(args.run))
    with Progress(NAME) as progress:
        found = check(folder, args.onnx, args.outputs, args.backend, args.provider, progress)
    return Outcome(ALL_PASSED if found.passed else SOMETHING_FAILED, found.to_json(), tuple(view(found)))
