"""`tapml generate BUNDLE --prompt TEXT`: a bundle's answers, printed while they come.

The answer alone goes to stdout, where there are several each after its prompt; how long it took and why it ended to stderr. With
`--json` nothing is printed before the end.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from tapml.cli.answering import add_flags, asked_of
from tapml.cli.verb import ALL_PASSED, SOMETHING_FAILED, Outcome, prompts_of

NAME = "generate"
HELP = "have a bundle answer prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle made by tapml build")
    parser.add_argument("--prompt", metavar="TEXT", action="append", default=[], help="a prompt; may be repeated")
    parser.add_argument("--prompt-file", metavar="F", help="a file with one prompt per line")
    add_flags(parser)


def run(args: argparse.Namespace) -> Outcome:
    from tapml.deploy.answer import Answer
    from tapml.deploy.bundle import BundleFolder
    from tapml.deploy.session import Session
    from tapml.deploy.text import Text
    from tapml.errors import PromptError

    texts = prompts_of(args.prompt, args.prompt_file)
    if not texts:
        raise PromptError("There is nothing to answer. Give at least one --prompt TEXT.")
    bundle = BundleFolder.open(args.bundle)
    text = Text(bundle)
    asked = asked_of(args, bundle)
    prompts = [(prompt, text.tokens(prompt, args.system)) for prompt in texts]
    streams = args.json is None
    found: list[dict[str, Any]] = []
    view: list[str] = []
    whole = True
    with Session(bundle, args.device) as session:
        for prompt, tokens in prompts:
            answer = Answer(session, text, tokens, asked)
            title = f"> {prompt}" if len(prompts) > 1 else ""
            if streams and title:
                print(title, flush=True)
            for piece in answer:
                if streams:
                    print(piece, end="", flush=True)
            if streams:
                print("\n" if title else "", flush=True)
            print(answer.summary, file=sys.stderr, flush=True)
            whole = whole and answer.complete is not False
            found.append({"prompt": prompt} | answer.to_json())
            view += [title, answer.text, ""] if title else [answer.text]
        device = session.info
    return Outcome(ALL_PASSED if whole else SOMETHING_FAILED, {
        "bundle": str(bundle.path), "target": str(bundle.choice), "device": device.to_json(),
        "sampling": asked.sampling.to_json(), "answers": found,
    }, () if streams else tuple(view))  # fmt: skip
