"""`tapml verify BUNDLE`: whether a bundle gives the source's answers here, and the same bits however its plan is run."""

from __future__ import annotations

import argparse
import time

from tapml.cli.verb import ALL_PASSED, DEVICE, SOMETHING_FAILED, Outcome, count

NAME = "verify"
HELP = "run a bundle in several ways, and name the first operator whose bits depend on what is around it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle made by tapml build")
    parser.add_argument("--device", metavar="D", default="local", help=DEVICE)
    parser.add_argument("--repeat", metavar="N", type=count, default=20, help="runs of the first prompt (default: 20)")
    parser.add_argument(
        "--max-tokens", metavar="N", type=count, help="tokens of each answer to compare (default: all that the run has)"
    )


def run(args: argparse.Namespace) -> Outcome:
    from tapml.deploy.bundle import BundleFolder
    from tapml.deploy.session import Session
    from tapml.deploy.verify import verify
    from tapml.report.bundle import unproven
    from tapml.report.progress import Progress
    from tapml.report.verify import view

    started = time.monotonic()
    bundle = BundleFolder.open(args.bundle)
    with Progress(NAME) as progress:
        progress("load")
        with Session(bundle, args.device) as session:
            found = verify(session, args.repeat, args.max_tokens, progress=progress)
            device = session.info
    spent = time.monotonic() - started
    data = {
        "bundle": str(bundle.path), "target": str(bundle.choice), "device": device.to_json(), "seconds": spent,
        "allowed": list(bundle.allowed),
    }  # fmt: skip
    code = ALL_PASSED if found.passed else SOMETHING_FAILED
    where = f"{bundle.path.name} · {bundle.choice} · {device.name}"
    return Outcome(code, data | found.to_json(), (*unproven(bundle.allowed), *view(found, where, spent)))
