"""The flags of the verbs that answer, and what they mean.

    add_flags(parser)
    asked = asked_of(args, bundle)
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tapml.cli.verb import DEVICE, count
from tapml.errors import UsageError

if TYPE_CHECKING:
    from tapml.deploy.answer import Asked
    from tapml.deploy.bundle import BundleFolder


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", metavar="N", type=count, default=128, help="tokens of an answer at most (default: 128)")
    parser.add_argument("--system", metavar="TEXT", help="a system message, for models with a chat template")
    parser.add_argument("--temperature", metavar="T", type=float, help="0 takes the likeliest token (default: 0)")
    parser.add_argument("--top-k", metavar="K", type=int, help="of the K likeliest tokens (default: 0, all)")
    parser.add_argument("--top-p", metavar="P", type=float, help="of the likeliest that make up P (default: 1, all)")
    parser.add_argument(
        "--min-p", metavar="P", type=float,
        help="of those at least P times as likely as the likeliest (default: 0, all)",
    )  # fmt: skip
    parser.add_argument(
        "--repetition-penalty", metavar="R", type=float,
        help="above 1, tokens that are in the text already are less likely (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--published", action="store_true",
        help="choose tokens as the model's publisher does; flags that are given count all the same",
    )
    parser.add_argument("--seed", metavar="N", type=int, help="the same seed gives the same answer (default: 0)")
    parser.add_argument(
        "--logit-bias", metavar="TOKEN=BIAS", type=_bias, action="append", default=[],
        help="added to the logit of a token id, -inf leaves it out; may be repeated",
    )  # fmt: skip
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="where the answer ends; may be repeated")
    parser.add_argument("--json-schema", metavar="SCHEMA", help="a file, or the text itself: the answer is JSON of this schema")
    parser.add_argument("--device", metavar="D", default="local", help=DEVICE)


def asked_of(args: argparse.Namespace, bundle: BundleFolder) -> Asked:
    """Raises UsageError for numbers out of range, a schema that cannot be read or followed, and an empty stop string."""
    from tapml.deploy.answer import Asked
    from tapml.deploy.sampling import GREEDY, SETTINGS
    from tapml.deploy.schema import Schema

    given = {name: value for name in SETTINGS if (value := getattr(args, name)) is not None}
    sampling = replace(bundle.published if args.published else GREEDY, **given, logit_bias=dict(args.logit_bias))
    if "" in args.stop:
        raise UsageError("--stop is empty, so every answer would be. Give it a text, or leave it out.")
    schema = None if args.json_schema is None else Schema(bundle, _schema_text(args.json_schema))
    return Asked(args.max_tokens, sampling, tuple(args.stop), schema)


def _schema_text(given: str) -> str:
    if given.lstrip().startswith("{"):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--json-schema {given} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--json-schema {given[:200]} cannot be read: {why}. Give a file, or the schema itself.") from error


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        if not token.strip().isdecimal():
            raise ValueError
        return int(token), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKEN=BIAS, such as 42=-5: a token's id and a number") from None
