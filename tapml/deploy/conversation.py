"""The turns of a conversation, and what of them goes to the model.

    conversation = Conversation(text, positions=2048, system="You are terse.")
    asked = conversation.ask("Why is the sky blue?", room=128)         asked.tokens, asked.dropped
    conversation.answered("It scatters light.")

What goes to the model is always the whole conversation in its chat template. Where that leaves less than `room` positions for the
answer, the oldest turns are dropped, a question with its answer at a time; the system message and the last question stay. What
was dropped is not remembered, nor is a question without an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tapml.errors import PromptError


class OfTurns(Protocol):
    """What a conversation needs of `tapml.deploy.text.Text`."""

    def of_turns(self, messages: Sequence[dict[str, str]]) -> list[int]: ...


@dataclass(frozen=True)
class Turns:
    """`tokens` of all that goes to the model, after `dropped` turns were left out for good."""

    tokens: list[int]
    dropped: int


class Conversation:
    """See the module's docstring. `turns` are (question, answer), the oldest first."""

    def __init__(self, text: OfTurns, positions: int, system: str | None = None) -> None:
        self._text = text
        self._positions = positions
        self._question = ""
        self.system = system
        self.turns: list[tuple[str, str]] = []

    def ask(self, question: str, room: int) -> Turns:
        """Raises PromptError where the question does not fit alone; then the conversation is as it was. Raises what the template
        does."""
        for dropped in range(len(self.turns) + 1):
            tokens = self._text.of_turns(self._messages(self.turns[dropped:], question))
            if len(tokens) + room <= self._positions:
                break
        if len(tokens) >= self._positions:
            raise PromptError(
                f"The message does not fit: with what the template adds it is {len(tokens):,} tokens, and the context holds "
                f"{self._positions:,}, the answer included. Shorten it."
            )
        self.turns = self.turns[dropped:]
        self._question = question
        return Turns(tokens, dropped)

    def answered(self, text: str) -> None:
        """The answer to the last question. An empty one is none."""
        if text:
            self.turns.append((self._question, text))

    def reset(self) -> None:
        """Forgets every turn; the system message stays."""
        self.turns = []

    def to_json(self) -> list[dict[str, str]]:
        """As messages {"role", "content"}."""
        return self._messages(self.turns)

    def _messages(self, turns: Sequence[tuple[str, str]], question: str | None = None) -> list[dict[str, str]]:
        found: list[Any] = [] if self.system is None else [("system", self.system)]
        for asked, answer in turns:
            found += [("user", asked), ("assistant", answer)]
        if question is not None:
            found.append(("user", question))
        return [{"role": role, "content": content} for role, content in found]
