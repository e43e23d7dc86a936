"""Where a migrated model's tokens part from the source's, beyond what the check of the whole model covers.

    for parting in journalled(run, bench): ...          what the last migration to this target saw
    parting = compared(run, bench, programs, 150)       what the model says now, with everything on the target

    for further in parting.checks(run): ...             calls that end where it parted, the shortest first

The calls feed the source's tokens (teacher forcing). Most faults show when the text before the step is prefilled, in chunks, and
the step alone is decoded; only a fault in what earlier decode calls left behind needs all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from tapml.backends.interface import Compiled
from tapml.carving.folder import Prompt, RunFolder
from tapml.errors import RunError
from tapml.migrate.end_to_end import Oracle, PromptResult, Reference, compare_prompt
from tapml.migrate.outcome import Ran
from tapml.migrate.records import Records
from tapml.migrate.workbench import Progress, Workbench
from tapml.runtime.hybrid import Hybrid
from tapml.runtime.protocol import Call, Generating


@dataclass(frozen=True)
class Further:
    """A check that goes further than that of the run. `words` say which, for people."""

    words: str
    prompt: int
    calls: tuple[Call, ...]

    def reference(self, run: RunFolder, source: Hybrid) -> Reference:
        return Reference.of(run, source, self.calls, self.prompt)


@dataclass(frozen=True)
class Parting:
    """`place` is the index of the first token of the answer that differs; where all are equal and the logits are beyond the
    bound, of the last. `tokens` are the source's."""

    prompt: int
    place: int
    tokens: tuple[int, ...]

    @staticmethod
    def of(result: PromptResult) -> Parting | None:
        """Where the two sides part; None for one that passed or shows nothing, and for a module that is not a decoder."""
        if result.passed or (result.unchecked and result.tokens_match) or not result.tokens_source:
            return None
        last = len(result.tokens_source) - 1
        place = last if result.differs_at is None else min(result.differs_at, last)
        return Parting(result.index, place, result.tokens_source)

    def checks(self, run: RunFolder) -> Iterator[Further]:
        """The prompt and the tokens before the place, once prefilled but for the last, once decoded one by one."""
        protocol = run.protocol
        assert isinstance(protocol, Generating)
        prompt, fed = run.prompts[self.prompt].tokens, self.tokens[: self.place]
        where = f"prompt {self.prompt}, token {self.place} of its answer"
        if (calls := protocol.at_once(prompt, fed)) is not None:
            yield Further(f"{where}, the text before it prefilled", self.prompt, tuple(calls))
        yield Further(where, self.prompt, tuple(protocol.forced(prompt, fed)))


def journalled(run: RunFolder, bench: Workbench) -> list[Parting]:
    """Where prompts parted in the last migration of this run to this target, with the fault that is injected now. Nothing where
    its journal is missing, damaged or of another run."""
    try:
        migration = Records.of(run, str(bench.choice), bench.rewrite is not None).migration
    except RunError:
        return []
    own = None if bench.rewrite is None else bench.rewrite.digest
    if migration is None or migration.header.get("inject") != own:
        return []
    found = [Parting.of(PromptResult.from_json(r["result"])) for r in migration.records if r["record"] == "prompt"]
    return [parting for parting in found if parting is not None and parting.prompt < len(run.prompts)]


def compared(
    run: RunFolder, bench: Workbench, programs: Mapping[str, Compiled], tokens: int, progress: Progress | None = None
) -> Parting | None:
    """The first prompt whose answer of so many tokens parts with these programs on the target; None where none does. A device
    that refuses, or is lost, says nothing about tokens: the check of the whole model has met that."""
    source, oracle = Hybrid(bench.model, bench.model.source), Oracle(run)

    def answered(prompt: Prompt) -> PromptResult:
        hybrid = bench.hybrid()
        if hybrid.offloaded != programs.keys():
            hybrid.offload(programs)
        return compare_prompt(run, source, hybrid, prompt, tokens, oracle)

    for prompt in run.prompts:
        if progress is not None:
            progress("compare", prompt.index, len(run.prompts))
        outcome = bench.attempt(partial(answered, prompt))
        if not isinstance(outcome, Ran):
            continue
        parting = Parting.of(outcome.value)
        if parting is not None:
            return parting
    return None
