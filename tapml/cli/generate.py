"""`tapml generate BUNDLE --prompt TEXT`: a bundle's answer, greedily."""

from __future__ import annotations

import argparse
import time
from typing import Any

from tapml.cli.verb import ALL_PASSED, DEVICE, Outcome, count, prompts_of

NAME = "generate"
HELP = "have a bundle answer prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle made by tapml build")
    parser.add_argument("--prompt", metavar="TEXT", action="append", default=[], help="a prompt; may be repeated")
    parser.add_argument("--prompt-file", metavar="F", help="a file with one prompt per line")
    parser.add_argument("--max-tokens", metavar="N", type=count, default=128, help="tokens of an answer at most (default: 128)")
    parser.add_argument("--device", metavar="D", default="local", help=DEVICE)


def run(args: argparse.Namespace) -> Outcome:
    from tapml.deploy.bundle import Bundle
    from tapml.deploy.session import Session
    from tapml.deploy.text import Text
    from tapml.errors import PromptError

    texts = prompts_of(args.prompt, args.prompt_file)
    if not texts:
        raise PromptError("There is nothing to answer. Give at least one --prompt TEXT.")
    bundle = Bundle.open(args.bundle)
    text = Text(bundle)
    answers: list[dict[str, Any]] = []
    with Session(bundle, args.device) as session:
        for prompt in texts:
            tokens = text.tokens(prompt)
            started = time.monotonic()
            made: list[int] = []
            first = 0.0
            for token in session.generate(tokens, args.max_tokens):
                first = first or time.monotonic() - started
                made.append(token)
            answers.append({
                "prompt": prompt, "tokens": tokens, "generated": made, "text": text.of(made), "first_token_seconds": first,
                "seconds": time.monotonic() - started,
            })  # fmt: skip
        device = session.info
    view = [line for answer in answers for line in (f"> {answer['prompt']}", str(answer["text"]), "")][:-1]
    return Outcome(ALL_PASSED, {
        "bundle": str(bundle.path), "target": str(bundle.choice), "device": device.to_json(), "answers": answers,
    }, tuple(view))  # fmt: skip
