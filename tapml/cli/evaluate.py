"""`tapml eval BUNDLE --against RUN`: how good a bundle is against its source, over a text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tapml.cli.verb import ALL_PASSED, DEVICE, RUN, Outcome, count
from tapml.errors import UsageError
from tapml.words import plural

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tapml.deploy.bundle import BundleFolder
    from tapml.deploy.evaluate import Evaluated
    from tapml.deploy.likelihood import Estimate

NAME = "eval"
HELP = "compare a bundle with its source over a text: perplexity, divergence, agreement"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle made by tapml build")
    parser.add_argument("--against", metavar="RUN", required=True, help=f"{RUN}: the one that the bundle was built from")
    parser.add_argument("--other-run", action="store_true", help="take RUN though it is another one; the result says in what")
    parser.add_argument(
        "--text", metavar="FILE", help="text, or token ids for a model without a tokenizer (default: the beginning of Moby-Dick)"
    )
    parser.add_argument("--max-tokens", metavar="N", type=count, help="score the first N tokens only")
    parser.add_argument("--by-layer", action="store_true", help="also how far the output of each layer is from the source's")
    parser.add_argument("--device", metavar="D", default="local", help=DEVICE)


def run(args: argparse.Namespace) -> Outcome:
    from tapml.carving.folder import RunFolder
    from tapml.deploy.bundle import BundleFolder
    from tapml.deploy.evaluate import OWN_TEXT_NAME, comparable, evaluate
    from tapml.deploy.session import Session
    from tapml.deploy.text import Text
    from tapml.report.progress import Progress

    bundle = BundleFolder.open(args.bundle)
    against = RunFolder.open(Path(args.against))
    comparable(bundle, against, args.other_run)
    tokens = Text(bundle).plain(_text(args.text, bundle))
    with Progress(NAME) as progress:
        progress("load")
        with Session(bundle, args.device) as session:
            found = evaluate(session, against, tokens, args.max_tokens, args.by_layer, args.other_run, progress)
            device = session.info
    text = OWN_TEXT_NAME if args.text is None else args.text
    data = {
        "bundle": str(bundle.path), "target": str(bundle.choice), "device": device.to_json(), "run": str(against.path),
        "run_digest": against.digest, "text": text,
    }  # fmt: skip
    title = f"{bundle.path.name} · {bundle.choice} · {device.name}, against {against.path.name} in PyTorch"
    return Outcome(ALL_PASSED, data | found.to_json(), (title, *found.differences, *_view(found, text)))


def _text(file: str | None, bundle: BundleFolder) -> str:
    from tapml.carving.layout import TOKENIZER
    from tapml.deploy.evaluate import own_text

    if file is None:
        if TOKENIZER not in bundle.manifest["files"]:
            raise UsageError(f"{bundle.name} has no tokenizer for a text. Give --text FILE with token ids, such as 5 9 70.")
        return own_text()
    try:
        return Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {file} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"--text {file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _view(found: Evaluated, text: str) -> tuple[RenderableType, ...]:
    tally = found.tally
    scored = f"{len(tally):,} of {plural(found.text_tokens, 'token')} scored in {plural(found.windows, 'window')}"
    table = _grid("right", "left")
    for name, value, note in (
        ("perplexity of the source", _shown(tally.perplexity_of_source), ""),
        ("perplexity of the bundle", _shown(tally.perplexity_of_bundle), ""),
        ("ln of their ratio", _shown(tally.log_ratio), "token by token"),
        ("KL(source || bundle)", _shown(tally.divergence), f"nats a token, {max(tally.divergences):.3g} at most"),
        ("the same likeliest token", _percent(tally.agreement), f"{round(sum(tally.same)):,} of {len(tally):,}"),
    ):
        table.add_row(name, value, note)
    rows: list[RenderableType] = [f"{text}: {scored}, up to {plural(found.window, 'token')} long", "", table]
    if found.layers is not None:
        layers = _grid("right")
        for layer in found.layers:
            layers.add_row(layer.layer, _shown(layer.error))
        rows += ["", "relative RMS error of each layer's output", layers]
    return (*rows, "", "± is the standard error of the mean, as if tokens were independent")


def _grid(*justify: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column()
    for one in justify:
        table.add_column(justify=one)  # type: ignore[arg-type]
    return table


def _shown(estimate: Estimate) -> str:
    error = f"{estimate.error:.2g}" if estimate.error < 100 else f"{estimate.error:.0f}"
    return f"{estimate.value:.4g} ± {error}"


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.2%} ± {estimate.error:.2%}"
