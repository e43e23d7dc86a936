"""What people see of a migration besides the verdicts: what was offloaded, both answers side by side, how far apart they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from tapml.report.console import excerpt, off_by, side_by_side
from tapml.words import plural

if TYPE_CHECKING:
    from tapml.carving.detokenizer import Decode
    from tapml.carving.folder import RunFolder
    from tapml.migrate.end_to_end import PromptResult
    from tapml.migrate.migrate import MigrationResult

PROMPTS_SHOWN = 3
NAMES_SHOWN = 3


def answers(run: RunFolder, text: Decode, result: MigrationResult) -> Iterator[RenderableType]:
    """Prompts with both answers side by side, those that differ first; nothing for a module that is not a decoder."""
    found = [p for p in result.end_to_end.prompts if p.tokens_source]
    found.sort(key=lambda p: (p.passed, p.index))
    for prompt in found[:PROMPTS_SHOWN]:
        given = run.prompts[prompt.index]
        words = excerpt(given.text, len(given.tokens)) or f"({plural(len(given.tokens), 'token id')})"
        yield Text.assemble(("prompt  ", "dim"), (words, "bold"))
        left = (f"reference · PyTorch, {run.manifest['result'].get('dtype', 'float32')}", answer(text, prompt.tokens_source))
        right = (f"migrated · {result.target}", answer(text, prompt.tokens_target))
        yield side_by_side(left, right, prompt.tokens_match)
        if not prompt.passed:
            yield Text(prompt.reason, style="red")
        yield Text("")
    if len(found) > PROMPTS_SHOWN:
        rest = found[PROMPTS_SHOWN:]
        equal = sum(p.passed for p in rest)
        yield Text(f"… and {plural(len(rest), 'more prompt')}, {equal} with equal answers\n", style="dim")


def answer(text: Decode, tokens: tuple[int, ...]) -> str:
    """An answer as text, or as token ids where the model came without a tokenizer."""
    found = text(tokens)
    return " ".join(map(str, tokens)) if found is None else found


def moved_line(result: MigrationResult) -> Text:
    """ "385 of 385 operators offloaded to opencl", and which are not."""
    moved, total = len(result.offloaded), len(result.verdicts)
    if not result.kept_on_source:
        return Text.assemble((f"{moved} of {total}", "bold green"), f" operators offloaded to {result.target}")
    names = ", ".join(result.kept_on_source[:NAMES_SHOWN])
    more = len(result.kept_on_source) - NAMES_SHOWN
    stay = f"{names} and {more} more" if more > 0 else names
    return Text.assemble((f"{moved} of {total}", "bold red"), f" operators offloaded to {result.target}; in PyTorch stay {stay}")


def end_to_end_lines(result: MigrationResult) -> Iterator[Text]:
    """Tokens, top-1 agreement where something is chosen, and logits of all prompts."""
    prompts = result.end_to_end.prompts
    worst = max(prompts, key=lambda p: p.error / p.bound if p.bound else p.error, default=None)
    if worst is None:
        yield Text("The model was not run end to end: the run has no prompt and no example.", style="yellow")
        return
    style = "green" if result.end_to_end.passed else "bold red"
    hollow = next((p.unchecked for p in prompts if p.unchecked), "")
    if hollow:
        yield Text(f"Not checked: {hollow}.", style="bold red")
    agreement = _agreement(prompts)
    yield Text.assemble((_tokens(prompts), style), "" if agreement is None else f" · top-1 agreement {agreement:.1%}")
    cut = result.end_to_end.cut_short()
    if cut is not None:
        asked, compared = plural(cut.asked or 0, "token"), len(cut.tokens_source)
        words = f"asked for {asked}, the cache holds {cut.cache}: {compared} compared. For more, carve with a larger --max-len"
        yield Text(words, style="yellow")
    what = "logits" if worst.tokens_source else "outputs"
    yield Text(f"{what} {off_by(worst.error, worst.bound, worst.source_error)}")


def _tokens(prompts: tuple[PromptResult, ...]) -> str:
    if not any(p.tokens_source for p in prompts):
        close = sum(p.passed for p in prompts)
        return f"{close} of {plural(len(prompts), 'example')} within the tolerance"
    total = sum(len(p.tokens_source) for p in prompts)
    equal = sum(a == b for p in prompts for a, b in zip(p.tokens_source, p.tokens_target, strict=False))
    return f"{equal} of {total} tokens equal"


def _agreement(prompts: tuple[PromptResult, ...]) -> float | None:
    """None where no output is a choice among classes or tokens."""
    found = [(p.top1_agreement, len(p.tokens_source) or 1) for p in prompts if p.top1_agreement is not None]
    return sum(share * n for share, n in found) / sum(n for _, n in found) if found else None
