"""`tapml carve MODEL -o RUN`: record what every operator of a model does, and keep it as a run.

The work is `tapml.api.carve`; this file holds the flags and what people see at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tapml.cli.verb import ALL_PASSED, Outcome, count, prompts_of, quoted
from tapml.targets.known import EXAMPLE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tapml.api import Run

NAME = "carve"
HELP = "record what every operator of a model does on real prompts"

MODEL = "a Hugging Face directory or id, a .gguf file, or FILE.py:FUNCTION, which returns a torch.nn.Module and example inputs"
DTYPES = ("float32", "float16", "bfloat16")
PROMPTS_SHOWN = 3
STAYS_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("-o", "--out", metavar="RUN", required=True, help="the run folder to create")
    parser.add_argument("--prompt", metavar="TEXT", action="append", default=[], help="a prompt; may be repeated")
    parser.add_argument("--prompt-file", metavar="F", help="a file with one prompt per line")
    parser.add_argument("--decode-steps", metavar="N", type=count, help="tokens to generate for each prompt (default: 16)")
    parser.add_argument("--dtype", choices=DTYPES, help="the dtype that the source computes in (default: the model's own)")
    parser.add_argument(
        "--max-len", metavar="N", type=count, help="positions in the key-value cache (default: what the prompts need)"
    )
    parser.add_argument("--chunk", metavar="N", type=count, help="tokens per prefill call (default: 32)")
    parser.add_argument("--cases", metavar="N", type=count, help="calls to keep of each distinct operator, at most (default: 6)")
    parser.add_argument("--source-device", metavar="D", help="where PyTorch runs the source: cpu or cuda (default: cpu)")
    parser.add_argument("--fresh", action="store_true", help="replace RUN if it exists")


def run(args: argparse.Namespace) -> Outcome:
    from tapml.report.progress import Progress

    prompts = prompts_of(args.prompt, args.prompt_file)
    with Progress(NAME) as progress:
        from tapml.api import carve
        from tapml.migrate.circumstances import Circumstances

        made = carve(
            args.model, out=args.out, prompts=prompts, decode_steps=args.decode_steps, dtype=args.dtype, max_len=args.max_len,
            chunk=args.chunk, cases=args.cases, device=args.source_device, fresh=args.fresh, progress=progress,
        )  # fmt: skip
    circumstances = Circumstances(made.folder.digest).to_json()
    data = {**made.facts, "prompts": [p.to_json() for p in made.folder.prompts], **circumstances}
    return Outcome(ALL_PASSED, data, view(made, args.out))


def view(made: Run, out: str) -> tuple[RenderableType, ...]:
    """What people see: how many operators, what was kept, how exact the reference is, where the time went, what to type next."""
    from rich.text import Text

    from tapml.carving.late import positions_words
    from tapml.report.console import amount, command, excerpt, facts, number
    from tapml.report.migration import answer
    from tapml.report.progress import seconds
    from tapml.words import plural

    found = made.facts
    positions = made.folder.positions
    errors = [error for case in made.cases for error in case.source_error]
    low, high = number(min(errors, default=0.0)), number(max(errors, default=0.0))
    kept, naive = found["bytes"], found["naive_bytes"]
    # Of a small model most are tables and weights, which are no part of its calls: then there is no share to speak of.
    size = f"{kept / naive:.1%} of the {amount(naive)} that all calls take" if kept <= naive else "tables and weights included"
    slower = found["recording_seconds"] / max(found["source_seconds"], 1e-9)
    rows = [
        ("operators", f"{found['operators']:,} from {found['nodes']:,} graph nodes, {found['signatures']} of them different"),
        ("cases", f"{found['cases']:,} kept of {plural(found['calls_seen'], 'call')}"),
        ("size", f"{amount(kept)}, {size}"),
        ("exactness", f"the reference is off from float64 by {low} to {high}" if any(errors) else "the reference equals float64"),
        ("speed", f"recorded in {seconds(found['recording_seconds'])}, {slower:.1f} times the plain run"),
        ("time", f"{seconds(found['seconds'])}: " + ", ".join(f"{name} {spent:.0f}" for name, spent in found["stages"].items())),
    ]
    if stays := found.get("stays", ()):
        rows.insert(1, ("on source", _stays(stays)))
    if positions is not None:
        beyond = ", ".join(map(str, positions["late_steps"]))
        words = positions_words(positions).removeprefix("positions ")
        reach = f"{words}; the prompts reach {positions['prompts']}, then decode steps at {beyond}"
        rows.insert([name for name, _ in rows].index("size"), ("positions", reach))
    if not found["operators"]:
        rows = [rows[0], rows[-1]]
    for prompt in made.folder.prompts[:PROMPTS_SHOWN]:
        text = excerpt(prompt.text, len(prompt.tokens)) or f"({plural(len(prompt.tokens), 'token id')})"
        rows += [("prompt", text), ("answer", answer(made.text, prompt.generated))]
    more = len(made.folder.prompts) - PROMPTS_SHOWN
    if more > 0:
        rows.append(("", f"… and {more} more"))
    held = found.get("weights", "")
    numbers = f"{held} weights, computed in {found['dtype']}" if held else found["dtype"]
    title = Text.assemble((found["model"], "bold"), (f" · {numbers} · {found['kind']} · {out}", "dim"))
    warnings = [Text(line, style="yellow") for line in found.get("warnings", ())]
    if not found["operators"]:
        return (title, facts(rows), *warnings)
    return (title, facts(rows), *warnings, "", command(quoted(["tapml", "migrate", out, "--target", EXAMPLE.name])))


def _stays(stays: Sequence[dict[str, str]]) -> str:
    """ "2 stay in PyTorch: complex, complex.2: they …": names by reason."""
    by_reason: dict[str, list[str]] = {}
    for entry in stays:
        by_reason.setdefault(entry["reason"], []).append(entry["operator"])
    told = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - STAYS_SHOWN} more" if len(names) > STAYS_SHOWN else ""
        told.append(f"{', '.join(names[:STAYS_SHOWN])}{more}: {reason}")
    return f"{len(stays)} stay in PyTorch on every target. " + "; ".join(told)


def resume_hint(args: argparse.Namespace) -> str:
    """An unfinished carve leaves nothing behind, so it starts over."""
    return "Nothing was left behind and an earlier run is untouched. Run the same command again."
