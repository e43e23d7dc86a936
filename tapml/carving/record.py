"""One run of the source over real prompts, with every operator's calls streaming to the selection.

    recording = record_decoder(executor, protocol, prompts, decode_steps=32, selection=selection)
    recording = record_module(executor, protocol, examples, selection)

The executor is `tapml.carving.executor.GraphExecutor`; its hook is set while recording and taken off afterwards. What to keep is
decided in `tapml.carving.select`, how wrong the source is in `tapml.carving.oracle`.

`source_seconds` is what the same calls take without a hook. It is measured, after the recording, on the first prompt (its
prefill and up to `SPEED_STEPS` decode calls, or the first example), and scaled by the number of calls of each graph.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from tapml.carving.executor import GraphExecutor
from tapml.carving.late import Late, check_calls
from tapml.carving.select import Moment, Selection
from tapml.operators.graph import Operator
from tapml.operators.positional import positional
from tapml.runtime.protocol import Cached, Call, Generating, ModelProtocol, answered, greedy
from tapml.tensors import HostArray

SPEED_STEPS = 8

Progress = Callable[[str, int, int], None]
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Recording:
    """`generated`: for each prompt the greedy tokens (the stop token included); empty for modules that are not decoders. `calls`:
    how often each graph ran. `seconds`: of the recorded run; `source_seconds`: of the same calls without recording. `late`: how
    the cache was filled to its end, None for modules that are not decoders."""

    generated: tuple[tuple[int, ...], ...]
    calls: dict[str, int]
    seconds: float
    source_seconds: float
    late: Late | None = None


def is_checkpoint(count: int, planned: int) -> bool:
    """Whether call number `count` (from 1) may become the late case: powers of two, and the planned last call. The end itself
    cannot be foreseen, since a stop token may come early."""
    return count > 0 and (count & (count - 1) == 0 or count == planned)


def record_decoder(
    executor: GraphExecutor,
    protocol: Generating,
    prompts: Sequence[Sequence[int]],
    decode_steps: int,
    selection: Selection,
    progress: Progress | None = None,
    windows: Sequence[int] = (),
) -> Recording:
    """Generates up to `decode_steps` tokens for each prompt, greedily, and offers every call to the selection; then goes on from
    the first prompt to the end of the cache (`tapml.carving.late`). `windows` are the lengths of the model's sliding windows.
    Raises PromptError for a prompt that is empty or does not fit the cache."""
    stepper = _RecordingStepper(executor, selection, protocol, decode_steps, len(prompts))
    started = time.perf_counter()
    generated: list[tuple[int, ...]] = []
    try:
        for index, prompt in enumerate(prompts):
            stepper.begin(index)
            tokens: list[int] = []
            for token, _ in greedy(stepper, prompt, protocol, decode_steps):
                tokens.append(token)
                if progress is not None:
                    progress("record", index * decode_steps + len(tokens), len(prompts) * decode_steps)
            generated.append(tuple(tokens))
        # Answers that are a stop token alone show no decode step. One past the last of them is better than no case at all.
        place = protocol.first(prompts[-1])
        if not stepper.calls[protocol.appends] and decode_steps > 1 and place < protocol.max_len:
            call = protocol.append(generated[-1][-1], place)
            stepper.step(call.graph, call.inputs)
    finally:
        executor.hook = None
    seconds = time.perf_counter() - started
    late: Late | None = None
    if isinstance(protocol, Cached):
        late = Late.planned(prompts, generated, protocol, windows)
        calls = check_calls(prompts[0], generated[0], late, protocol)
        seconds += _record_late(executor, protocol, calls, late, selection, stepper.calls)
    timed = _TimedStepper(executor)
    for _ in greedy(timed, prompts[0], protocol, min(decode_steps, SPEED_STEPS + 1)):
        pass
    return Recording(tuple(generated), dict(stepper.calls), seconds, timed.scaled(stepper.calls), late)


def _record_late(
    executor: GraphExecutor, shape: Cached, calls: Sequence[Call], late: Late, selection: Selection, counts: dict[str, int]
) -> float:
    """Runs the calls of the check, of which the last are the late ones, and offers those; they are added to `counts`. The first
    operator of each signature that depends on positions stands for all. Returns the seconds of the late calls."""
    chosen: dict[str, str] = {}
    dependent = positional(executor.graphs, executor.operators, shape.max_len, shape.positions)
    for operator in executor.operators:
        if operator.name in dependent:
            chosen.setdefault(operator.signature, operator.name)
    first = len(calls) - len(late.calls(shape))
    executor.reset()
    for call in calls[:first]:
        executor.step(call.graph, call.inputs)
    started = time.perf_counter()
    try:
        for step, call in enumerate(calls[first:], first):
            executor.hook = partial(_offer_late, selection, chosen, Moment(0, step, call.position), late.recorded(call, shape))
            counts[call.graph] += 1
            executor.step(call.graph, call.inputs)
    finally:
        executor.hook = None
    return time.perf_counter() - started


def _offer_late(
    selection: Selection, chosen: dict[str, str], moment: Moment, why: str | None, operator: Operator, inputs: Tensors,
    outputs: Tensors,
) -> None:  # fmt: skip
    own = why if chosen.get(operator.signature) == operator.name else None
    selection.offer_late(operator, inputs, outputs, moment, own)


def record_module(
    executor: GraphExecutor,
    protocol: ModelProtocol,
    examples: Sequence[dict[str, HostArray]],
    selection: Selection,
    progress: Progress | None = None,
) -> Recording:
    """The calls of each example (inputs by key), each from the initial states."""
    stepper = _RecordingStepper(executor, selection, protocol, 0, len(examples))
    started = time.perf_counter()
    try:
        for index, example in enumerate(examples):
            stepper.begin(index)
            answered(stepper, protocol.check(example, ()))
            if progress is not None:
                progress("record", index + 1, len(examples))
    finally:
        executor.hook = None
    seconds = time.perf_counter() - started
    timed = _TimedStepper(executor)
    answered(timed, protocol.check(examples[0], ()))
    return Recording((), dict(stepper.calls), seconds, timed.scaled(stepper.calls))


class _RecordingStepper:
    """The executor as a Stepper that knows which prompt and step it is at, and tells the selection."""

    def __init__(
        self, executor: GraphExecutor, selection: Selection, protocol: ModelProtocol, decode_steps: int, prompts: int
    ) -> None:
        self._executor = executor
        self._selection = selection
        self._protocol = protocol
        self._planned = decode_steps - 1
        self._prompts = prompts
        self._prompt = 0
        self._step = 0
        self._counts: defaultdict[str, int] = defaultdict(int)
        self.calls: defaultdict[str, int] = defaultdict(int)
        self._moment = Moment(0, 0)
        executor.hook = self._hook

    def begin(self, prompt: int) -> None:
        self._prompt, self._step = prompt, 0
        self._counts.clear()

    def reset(self) -> None:
        self._executor.reset()

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        self._counts[graph] += 1
        self.calls[graph] += 1
        self._moment = Moment(
            self._prompt,
            self._step,
            self._protocol.position(inputs),
            is_checkpoint(self._counts[graph], self._planned if graph == self._protocol.appends else 0),
            self._prompt == self._prompts - 1,
        )
        self._step += 1
        return self._executor.step(graph, inputs)

    def _hook(self, operator: Operator, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        self._selection.offer(operator, inputs, outputs, self._moment)


class _TimedStepper:
    """The executor as a Stepper that adds up the seconds of each graph's calls."""

    def __init__(self, executor: GraphExecutor) -> None:
        self._executor = executor
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._calls: defaultdict[str, int] = defaultdict(int)

    def reset(self) -> None:
        self._executor.reset()

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        started = time.perf_counter()
        outputs = self._executor.step(graph, inputs)
        self._seconds[graph] += time.perf_counter() - started
        self._calls[graph] += 1
        return outputs

    def scaled(self, calls: dict[str, int]) -> float:
        """Seconds that this many calls of each graph take at the measured speed. A graph that was not timed (the first
        prompt stopped before its first decode call) counts as slow as the mean of the others."""
        mean = sum(self._seconds.values()) / sum(self._calls.values())
        return sum(
            count * (self._seconds[graph] / self._calls[graph] if self._calls[graph] else mean) for graph, count in calls.items()
        )
