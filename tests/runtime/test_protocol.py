"""A kind of model that nobody else knows of is generated with, checked and compared like the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tapml.carving.folder import Prompt
from tapml.errors import PromptError
from tapml.migrate.end_to_end import Oracle, Reference, check_calls, compare_one
from tapml.runtime.decoder import Decoder
from tapml.runtime.kinds import KINDS
from tapml.runtime.module import Module
from tapml.runtime.protocol import Call, Generating, answered, greedy
from tapml.tensors import HostArray

WORDS = 11


@dataclass(frozen=True)
class Translator(Generating):
    """An encoder that reads the whole prompt, and a step that has the answer's last token and no positions."""

    kind = "translator"
    chooses = "scores"
    appends = "step"
    graphs = ("encode", "step")

    max_len: int = 6
    vocabulary: int = WORDS
    stop: tuple[int, ...] = (0,)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def read(self, prompt: Sequence[int]) -> Iterator[Call]:
        if not prompt:
            raise PromptError("The prompt has no tokens.")
        yield Call("encode", {"source": np.array(prompt, np.int64)}, 0, len(prompt))
        yield self.append(1, 0)

    def append(self, token: int, position: int) -> Call:
        return Call("step", {"token": np.array([token], np.int64)}, position, 1)

    def first(self, prompt: Sequence[int]) -> int:
        return 1


class Toy:
    """A Stepper: the next token is the last one plus what was encoded. `shift` is added to the scores from step `late` on."""

    def __init__(self, shift: float = 0.0, late: int = 0, turn: int = 0) -> None:
        self.shift, self.late, self.turn = shift, late, turn
        self.reset()

    def reset(self) -> None:
        self.encoded, self.steps = 0, 0

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        if graph == "encode":
            self.encoded = int(inputs["source"].sum())
            return {}
        token = (int(inputs["token"][0]) + self.encoded) % WORDS
        scores = np.full((1, WORDS), -1.0, np.float32)
        wrong = self.steps >= self.late
        scores[0, (token + self.turn * wrong) % WORDS] = 1.0 + self.shift * wrong
        self.steps += 1
        return {"scores": scores}


def run_of(*prompts: Sequence[int]) -> Any:
    """What a `RunFolder` offers to the comparison of the whole model."""
    protocol = Translator()
    found = [
        Prompt(k, "", tuple(p), tuple(t for t, _ in greedy(Toy(), p, protocol, 4))) for k, p in enumerate(prompts)
    ]
    lines = [
        {"prompt": p.index, "step": 0, "graph": "step", "source_error": {"scores": 1e-7}, "straddling": {}, "spread": {}}
        for p in found
    ]
    return SimpleNamespace(protocol=protocol, prompts=tuple(found), examples=(), late=None, oracle=tuple(lines))


def test_a_third_kind_is_generated_with() -> None:
    tokens = [token for token, _ in greedy(Toy(), (3, 5), Translator(), 20)]
    assert tokens == [9, 6, 3, 0], "up to the stop token"
    assert [t for t, _ in greedy(Toy(), (3, 5), Translator(stop=()), 20)] == [9, 6, 3, 0, 8, 5], "as far as there are positions"
    assert [t for t, _ in greedy(Toy(), (3, 5), Translator(), 2)] == [9, 6]


def test_a_third_kind_is_checked() -> None:
    run = run_of((3, 5))
    assert [(c.graph, c.position) for c in check_calls(run)] == [("encode", 0), ("step", 0), ("step", 1), ("step", 2)]
    reference = Reference.of(run, Toy())
    assert reference.check(Toy()).passed
    answer = reference.check(Toy(shift=0.5, late=2))
    assert answer.status == "fail" and answer.reason.startswith("output scores of step (call 3)")


def test_a_third_kind_is_compared_end_to_end() -> None:
    run = run_of((3, 5), (2,))
    oracle = Oracle(run)
    same = [compare_one(run, Toy(), Toy(), index, 4, oracle) for index in range(2)]
    assert [p.tokens_target for p in same] == [p.generated for p in run.prompts] and all(p.passed for p in same)
    off = compare_one(run, Toy(), Toy(shift=0.5, late=1), 0, 4, oracle)
    assert off.tokens_match and not off.passed
    other = compare_one(run, Toy(), Toy(turn=1, late=1), 0, 4, oracle)
    assert (other.differs_at, other.passed) == (1, False) and "the source gives 6, the target 7" in other.reason
    cut = compare_one(replace_protocol(run, stop=()), Toy(), Toy(), 0, 20, oracle)
    assert (cut.cache, len(cut.tokens_source)) == (6, 6)


def replace_protocol(run: Any, **changes: Any) -> Any:
    return SimpleNamespace(**{**vars(run), "protocol": replace(run.protocol, **changes)})


def test_kinds_come_back_from_what_a_run_holds() -> None:
    for protocol in (Decoder(4, 16, 128, (2,)), Module()):
        assert KINDS[protocol.kind](protocol.to_json()) == protocol
    with pytest.raises(ValueError, match="no shape"):
        KINDS["module"]({"chunk": 4})
    with pytest.raises(TypeError):
        KINDS["decoder"](None)


def test_what_two_kinds_are_asked() -> None:
    decoder, x = Decoder(4, 16, 128, ()), np.ones(3, np.float32)
    calls = list(decoder.forced(range(6), [7, 8]))
    assert [(c.graph, c.position, c.tokens) for c in calls] == [
        ("prefill", 0, 4), ("prefill", 4, 2), ("decode", 6, 1), ("decode", 7, 1),
    ]  # fmt: skip
    whole = decoder.at_once(range(6), [7, 8])
    assert whole is not None and [(c.graph, c.position, c.tokens) for c in whole] == [
        ("prefill", 0, 4), ("prefill", 4, 3), ("decode", 7, 1),
    ]  # fmt: skip
    assert decoder.at_once(range(6), [7]) is None and decoder.at_once(range(15), [7, 8]) is None
    (call,) = Module("g").check({"x": x}, ())
    assert call.graph == "g" and call.inputs["x"] is x
    assert (decoder.position(calls[2].inputs), Module().position({"x": x})) == (6, 0)


def test_what_was_answered_is_of_all_calls() -> None:
    assert list(answered(Toy(), Translator().check((3, 5), (9, 6)))) == ["scores"]
