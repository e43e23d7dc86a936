"""What a kind of model says of its calls: which graphs it has, and how calls follow from what it is asked.

    protocol = run.protocol                                        one object, which travels in the run
    calls = protocol.check(given, answer)                          a short check: given a prompt's tokens, or inputs by key
    tokens = [token for token, _ in greedy(stepper, prompt, protocol, 16)]

A kind is one file beside this one and a line in `tapml.runtime.kinds`. Kinds that choose tokens derive from `Generating`, and are
generated with, checked and compared like each other. Nobody else names a graph, an input or an output of a kind. Whatever runs
the calls (the source, a hybrid, a shipped model) is a `Stepper`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tapml.operators.graph import Graph
from tapml.tensors import HostArray

# Decode calls of a check: the second is the first that reads what appending itself left behind.
CHECKED = 2


class Stepper(Protocol):
    """Something that runs graphs of one model and keeps its states."""

    def reset(self) -> None:
        """Sets every state back to what it is before the first token."""

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        """Runs one graph: inputs by key, outputs by key. States advance."""


@dataclass(frozen=True)
class Call:
    """One call of a graph; `tokens` are real ones, padding not counted, and `position` is that of the first of them."""

    graph: str
    inputs: dict[str, HostArray]
    position: int
    tokens: int


class ModelProtocol(ABC):
    """See the module's docstring. `kind` is its name in the run, `noun` what the model is asked with. `chooses` is the output
    that tokens are chosen from, `appends` the graph that goes on by one token, `positions` the input that says where in the text
    tokens stand; None where there is none."""

    kind: ClassVar[str]
    noun: ClassVar[str]
    chooses: ClassVar[str | None] = None
    appends: ClassVar[str | None] = None
    positions: ClassVar[str | None] = None

    @property
    @abstractmethod
    def graphs(self) -> tuple[str, ...]:
        """Their names."""

    @abstractmethod
    def check(self, given: Any, answer: Sequence[int]) -> list[Call]:
        """The calls of a short check from the first states on: of what the model is given, and the recorded answer's tokens."""

    @abstractmethod
    def to_json(self) -> dict[str, Any] | None:
        """What a run holds of it beside its kind."""

    def unlike(self, graph: Graph) -> str:
        """What one of its graphs has of another form than callers give it; "" for nothing."""
        return ""

    def scores(self, key: str, output: HostArray) -> bool:
        """Whether the largest element along the last axis of an output means something."""
        return key == self.chooses

    def position(self, inputs: Mapping[str, HostArray]) -> int:
        """The first position that a call's inputs name; 0 where they name none."""
        array = None if self.positions is None else inputs.get(self.positions)
        return 0 if array is None else int(array.flat[0])


class Generating(ModelProtocol):
    """A kind that chooses tokens. `stop` are token ids that end an answer; text goes up to `max_len` positions; tokens are below
    `vocabulary`."""

    noun = "prompt"
    chooses: ClassVar[str]
    appends: ClassVar[str]
    stop: tuple[int, ...]
    max_len: int
    vocabulary: int

    @abstractmethod
    def read(self, prompt: Sequence[int]) -> Iterator[Call]:
        """The calls that take in a prompt; from the last one's output the first token of the answer is chosen. Raises PromptError
        for one that cannot be read."""

    @abstractmethod
    def append(self, token: int, position: int) -> Call:
        """The call that goes on by one token."""

    @abstractmethod
    def first(self, prompt: Sequence[int]) -> int:
        """The position of the first token of the answer."""

    def at_once(self, prompt: Sequence[int], fed: Sequence[int]) -> list[Call] | None:
        """The prompt and the first tokens of its answer in as few calls as can be, only the last appended; None where the answer
        can be fed token by token only, or there is too much of it."""
        return None

    def forced(self, prompt: Sequence[int], tokens: Sequence[int]) -> Iterator[Call]:
        """The calls that feed a prompt and then these tokens of an answer (teacher forcing), as far as there are positions."""
        yield from self.read(prompt)
        for position, token in zip(range(self.first(prompt), self.max_len), tokens, strict=False):
            yield self.append(token, position)

    def check(self, given: Sequence[int], answer: Sequence[int]) -> list[Call]:
        return list(self.forced(given, answer[:CHECKED]))

    def row(self, outputs: Mapping[str, HostArray]) -> HostArray:
        """What the next token is chosen from [vocabulary]."""
        return outputs[self.chooses].reshape(-1)


class Cached(Generating):
    """A kind that keeps every token of a text in a cache of `max_len` positions, which calls of up to `chunk` tokens fill."""

    chunk: int

    @abstractmethod
    def fill(self, tokens: Sequence[int], start: int) -> Call:
        """The call that takes in up to a chunk of tokens from a position on."""

    def first(self, prompt: Sequence[int]) -> int:
        return len(prompt)

    def at_once(self, prompt: Sequence[int], fed: Sequence[int]) -> list[Call] | None:
        if not 1 < len(fed) <= self.max_len - len(prompt):
            return None
        *before, last = (*prompt, *fed)
        return [*self.read(before), self.append(last, len(before))]


def answered(stepper: Stepper, calls: Iterable[Call]) -> dict[str, HostArray]:
    """The outputs of all the calls, from the first states on, by key."""
    stepper.reset()
    outputs: dict[str, HostArray] = {}
    for call in calls:
        outputs |= stepper.step(call.graph, call.inputs)
    return outputs


def generated(
    stepper: Stepper, prompt: Sequence[int], protocol: Generating, max_tokens: int, choose: Callable[[HostArray, int], int],
    ignore_stop: bool = False, kept: int = 0,
) -> Iterator[tuple[int, HostArray]]:  # fmt: skip
    """Yields (token, the row [vocabulary] that it is chosen from) until a stop token, which is yielded too, `max_tokens` or the
    last position. `choose` is given the row and the token's position. With `kept`, so many first tokens of the prompt are in the
    cache already (of a kind that has one), and the calls that would take in nothing else are left out, but for the last."""
    position = protocol.first(prompt)
    row = protocol.row(_taken_in(stepper, prompt, protocol, kept))
    for count in range(1, max_tokens + 1):
        token = choose(row, position)
        yield token, row
        if (token in protocol.stop and not ignore_stop) or count == max_tokens or position >= protocol.max_len:
            return
        call = protocol.append(token, position)
        row = protocol.row(stepper.step(call.graph, call.inputs))
        position += 1


def _taken_in(stepper: Stepper, prompt: Sequence[int], protocol: Generating, kept: int) -> dict[str, HostArray]:
    """The outputs of the calls that take in a prompt."""
    if not kept or not isinstance(protocol, Cached):
        return answered(stepper, protocol.read(prompt))
    *calls, last = protocol.read(prompt)
    for call in calls:
        if call.position + call.tokens > kept:
            stepper.step(call.graph, call.inputs)
    return stepper.step(last.graph, last.inputs)


def greedy(
    stepper: Stepper, prompt: Sequence[int], protocol: Generating, max_tokens: int, ignore_stop: bool = False
) -> Iterator[tuple[int, HostArray]]:
    """As `generated`, of the largest element of each row; of equal ones the first."""
    return generated(stepper, prompt, protocol, max_tokens, lambda row, position: int(row.argmax()), ignore_stop)
