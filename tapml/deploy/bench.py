"""How fast a bundle is on a device, and what it takes of it.

    measured = bench(bundle, prompt_tokens=32, tokens=32, repeat=5)
    measured.decode, measured.call.bytes_per_second, measured.copy_share

A decoder is given a prompt of random tokens, the same each time, and goes on greedily by `tokens` tokens, stop tokens or not: one
decode call each. A model that chooses no tokens is called with the run's first example. All of it runs once before anything is
counted, then `repeat` times; numbers are the median, the least and the most.

    first token     from the tokens of the prompt to the first token of the answer, setting the states back included
    prefill         tokens of the prompt / the time of the calls that take them in
    call            a decode call, from token to token: inputs up, launches, logits back, the choice
    launches alone  the launches of the call submitted again and again without waiting in between, the time of one; what
                    submitting costs the host is in it as far as the device does not hide it
    around them     call - launches alone: what uploading, waiting, reading and choosing add. Not measured by itself
    bytes read      the weights, constants and states that the call's operators take as inputs, each input once; of a table in
                    which rows are looked up, the rows. Values within the call are not counted, nor is what is written
    bytes/s         bytes read / the call's median. The share is of the speed at which the device copies its own memory
                    (`tapml.devices.copying`), where each byte counts twice; so it is less than the memory's real load
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tapml.deploy.bundle import AGAIN, BundleFolder
from tapml.deploy.plan import GraphPlan, Place
from tapml.deploy.session import Session
from tapml.devices.copying import CopySpeed, copy_speed
from tapml.devices.interface import DeviceInfo
from tapml.errors import BundleError, PromptError, UnavailableError, UsageError
from tapml.kernels import Program
from tapml.operators.graph import Operator
from tapml.runtime.protocol import Call, Generating, Stepper, answered, generated
from tapml.tensors import HostArray
from tapml.words import plural

PROMPT_TOKENS = 32
TOKENS = 32
REPEAT = 5
SEED = 0

# Operators that read some rows of a table: as many bytes as they give.
LOOKUPS = ("embedding", "gather")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Spread:
    """Of several measurements."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Prompt:
    """What taking in a prompt takes: `tokens` of it, in `calls` calls and `launches` launches; `first` in seconds, `prefill` in
    tokens a second."""

    tokens: int
    calls: int
    launches: int
    first: Spread
    prefill: Spread

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens, "calls": self.calls, "launches": self.launches, "first_token_seconds": self.first.to_json(),
            "tokens_per_second": self.prefill.to_json(),
        }  # fmt: skip


@dataclass(frozen=True)
class CallCost:
    """Of one decode call, or of one call of a model that chooses no tokens. `alone` are its launches alone."""

    graph: str
    launches: int
    seconds: Spread
    alone: Spread
    bytes_read: int

    @property
    def around(self) -> float:
        """Seconds."""
        return self.seconds.median - self.alone.median

    @property
    def bytes_per_second(self) -> float:
        return self.bytes_read / self.seconds.median

    def to_json(self) -> dict[str, Any]:
        return {
            "graph": self.graph, "launches": self.launches, "seconds": self.seconds.to_json(),
            "launches_alone_seconds": self.alone.to_json(), "around_seconds": self.around, "bytes_read": self.bytes_read,
            "bytes_per_second": self.bytes_per_second,
        }  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """Bytes: `weights` and `planned` (see `Plan.planned_bytes`) as they are, `device` the most that buffers on the device took,
    `host` the most that this process took (None where the system does not tell). A local device is in a process of its own."""

    weights: int
    planned: int
    device: int
    host: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """`load` is opening the session, in seconds: reading and checking the files, the driver's compiling, the weights' way.
    `tokens` were decoded each time, at `decode` tokens a second. `prompt`, `tokens` and `decode` are None of a model that chooses
    no tokens, `copy` where the device's copying could not be measured: `no_copy` says why."""

    info: DeviceInfo
    repeat: int
    load: float
    prompt: Prompt | None
    tokens: int | None
    decode: Spread | None
    call: CallCost
    memory: Memory
    copy: CopySpeed | None
    no_copy: str = ""

    @property
    def copy_share(self) -> float | None:
        return None if self.copy is None else self.call.bytes_per_second / self.copy.bytes_per_second

    def to_json(self) -> dict[str, Any]:
        prompt, decode, copy = (None if part is None else part.to_json() for part in (self.prompt, self.decode, self.copy))
        return {
            "device": self.info.to_json(), "repeat": self.repeat, "load_seconds": self.load, "prompt": prompt,
            "tokens": self.tokens, "tokens_per_second": decode, "call": self.call.to_json(), "memory": self.memory.to_json(),
            "copy": copy, "no_copy": self.no_copy, "copy_share": self.copy_share,
        }  # fmt: skip


def bench(
    bundle: BundleFolder, device: str = "local", prompt_tokens: int | None = None, tokens: int | None = None,
    repeat: int = REPEAT, progress: Progress | None = None,
) -> Measured:
    """Without numbers: `PROMPT_TOKENS` and `TOKENS`, fewer where the context is shorter. Raises PromptError where they do not fit
    the context, UsageError where a model that chooses no tokens is given such numbers, BundleError where it has no example; what
    opening a `Session` raises; DeviceError and UnavailableError from the device."""
    tell: Progress = progress or (lambda stage, done, total: None)
    protocol = bundle.protocol
    if isinstance(protocol, Generating):
        prompt_tokens, tokens = _fitting(bundle.name, protocol, prompt_tokens, tokens)
    elif prompt_tokens is not None or tokens is not None:
        raise UsageError(f"{bundle.name} chooses no tokens: it is called with the run's example. Leave their numbers out.")
    elif not bundle.examples:
        raise BundleError(f"{bundle.path} has no example of the run to call it with. {AGAIN}")
    tell("load", 0, 0)
    started = time.perf_counter()
    with Session(bundle, device) as session:
        load = time.perf_counter() - started
        prompt: Prompt | None = None
        decode: Spread | None = None
        if isinstance(protocol, Generating) and prompt_tokens is not None and tokens is not None:
            prompt, intervals = _answers(session, protocol, prompt_tokens, tokens, repeat, tell)
            cost = _cost(session, (protocol.appends,), [t for run in intervals for t in run], repeat)
            decode = Spread.of([tokens / sum(run) for run in intervals])
        else:
            calls = protocol.check(bundle.examples[0].inputs, ())
            cost = _cost(session, tuple(call.graph for call in calls), _calls(session, calls, repeat, tell), repeat)
        info = session.info
        memory = Memory(session.uploaded, bundle.plan.planned_bytes, session.peak, _host_peak())
        tell("copy", 0, 0)
        copy, no_copy = _copied(session)
        return Measured(info, repeat, load, prompt, tokens, decode, cost, memory, copy, no_copy)


def _fitting(name: str, protocol: Generating, prompt: int | None, tokens: int | None) -> tuple[int, int]:
    """Each decoded token takes a position, as each of the prompt does."""
    room = protocol.max_len
    if prompt is None:
        prompt = max(1, min(PROMPT_TOKENS, room // 2, room - (tokens or 1)))
    if tokens is None:
        tokens = max(1, min(TOKENS, room - prompt))
    if prompt + tokens > room:
        raise PromptError(
            f"A prompt of {plural(prompt, 'token')} and {tokens} after it take {prompt + tokens} positions; the context of "
            f"{name} has {room}. Give a smaller --prompt-tokens or --tokens."
        )
    return prompt, tokens


class _Clocked:
    """A `Stepper` that notes what its calls take."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self.calls: list[tuple[str, float]] = []

    def reset(self) -> None:
        self._stepper.reset()

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        started = time.perf_counter()
        outputs = self._stepper.step(graph, inputs)
        self.calls.append((graph, time.perf_counter() - started))
        return outputs


def _answers(
    session: Session, protocol: Generating, prompt_tokens: int, tokens: int, repeat: int, tell: Progress
) -> tuple[Prompt, list[list[float]]]:
    """What taking in the prompt takes, and the seconds from each token to the next, answer by answer."""
    prompt = np.random.default_rng(SEED).integers(protocol.vocabulary, size=prompt_tokens).tolist()
    firsts: list[float] = []
    rates: list[float] = []
    intervals: list[list[float]] = []
    for index in range(repeat + 1):
        tell("answers", index, repeat + 1)
        stepper = _Clocked(session.stepper)
        times = [time.perf_counter()]
        for _ in generated(stepper, prompt, protocol, tokens + 1, _likeliest, ignore_stop=True):
            times.append(time.perf_counter())
        taken = stepper.calls[: len(stepper.calls) - tokens]
        if index:
            firsts.append(times[1] - times[0])
            rates.append(prompt_tokens / sum(seconds for _, seconds in taken))
            intervals.append([after - before for before, after in pairwise(times[1:])])
    launches = sum(session.stepper.launches(graph) for graph, _ in taken)
    return Prompt(prompt_tokens, len(taken), launches, Spread.of(firsts), Spread.of(rates)), intervals


def _likeliest(row: HostArray, position: int) -> int:
    return int(row.argmax())


def _calls(session: Session, calls: Sequence[Call], repeat: int, tell: Progress) -> list[float]:
    found: list[float] = []
    for index in range(repeat + 1):
        tell("calls", index, repeat + 1)
        stepper = _Clocked(session.stepper)
        answered(stepper, calls)
        found.append(sum(seconds for _, seconds in stepper.calls))
    return found[1:]


def _cost(session: Session, graphs: tuple[str, ...], seconds: Sequence[float], repeat: int) -> CallCost:
    """So many calls together that the wait at the end is small beside them."""
    player, bundle = session.stepper, session.bundle
    times = max(1, min(100, round(0.25 / statistics.median(seconds))))
    alone: list[float] = []
    for _ in range(repeat + 1):
        started = time.perf_counter()
        for graph in graphs:
            player.repeat(graph, times)
        alone.append((time.perf_counter() - started) / times)
    nbytes = sum(bytes_read(bundle.plan.graphs[graph], bundle.model.named, bundle.programs) for graph in graphs)
    launches = sum(player.launches(graph) for graph in graphs)
    return CallCost(graphs[-1], launches, Spread.of(seconds), Spread.of(alone[1:]), nbytes)


def bytes_read(plan: GraphPlan, operators: dict[str, Operator], programs: dict[str, Program]) -> int:
    """Of weights, constants and states in one call; see the module's docstring."""
    total = 0
    for launch in plan.launches:
        program = programs[launch.operator]
        given = sum(spec.nbytes for spec in program.outputs)
        looks_up = operators[launch.operator].kind in LOOKUPS
        read: dict[Place, int] = {}
        for place, spec in zip(launch.inputs, program.inputs, strict=True):
            if program.steps and place.kind in ("weight", "constant", "state", "next"):
                read[place] = min(spec.nbytes, given) if looks_up else spec.nbytes
        total += sum(read.values())
    return total


def _copied(session: Session) -> tuple[CopySpeed | None, str]:
    """Comes last, so that a device which does not survive it costs no other number."""
    try:
        return copy_speed(session.device, session.bundle.choice.target.language), ""
    except UnavailableError as error:
        return None, str(error)


def _host_peak() -> int | None:
    try:
        import resource
    except ImportError:  # not a system that has it
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere
