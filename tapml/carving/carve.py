"""The carve stage from a loaded model to a finished run: export, cut, record, oracle, write.

    result = carve(model, ["What is the capital of France?"], Path("run"), decode_steps=32)

Each step is a module of its own; this one calls them in order, hands each the others' results, and times them. What is kept
and why: docs/carving.md.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tapml.carving import faithful, layout, oracle
from tapml.carving.arrays import unpack
from tapml.carving.case import Case
from tapml.carving.executor import GraphExecutor
from tapml.carving.folder import Prompt, State, reference_arrays
from tapml.carving.late import check_calls
from tapml.carving.record import Recording, record_decoder, record_module
from tapml.carving.reference import ReferenceMaker
from tapml.carving.select import SLOTS, Kept, Selection
from tapml.carving.suite import write_suite
from tapml.carving.tolerance import Accuracy
from tapml.carving.warnings import WatchedExecutor, answer_warnings, nothing_to_move, weight_warnings
from tapml.carving.writer import RunWriter, clear_disk_errors
from tapml.errors import PromptError, UsageError
from tapml.operators.cut import cut
from tapml.operators.execute import host_from_tensor, tensor_from_host
from tapml.operators.graph import Body, Graph, Operator
from tapml.operators.stays import why_it_stays
from tapml.runtime.protocol import Cached, Call
from tapml.source import prompts as source_prompts
from tapml.source.decoder import attention_windows
from tapml.source.export import Exported, export
from tapml.source.model import LoadedModel
from tapml.source.parts import code_of
from tapml.source.weights import WeightTable
from tapml.tensors import HostArray, TensorSpec, spec_of

DECODE_STEPS = 16
CHUNK = 32

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CarveResult:
    """What a carve did. `bytes` is what the run's recorded tensors take, `naive_bytes` what the activations of all calls (weights
    not counted) would have; `seconds` is all of it, `stages` each part, `recording_seconds` the recorded run alone and
    `source_seconds` the same calls without recording (see `tapml.carving.record`). `positions`: see `tapml.carving.late`; None
    for a module that is not a decoder. `compared`: the graphs against the module, see `tapml.carving.faithful`. `warnings`: what
    its owner should know, a line each. `weights`: how the model's file holds them where that is not `dtype` ("Q4_1"), else
    "". `stays`: the operators that stay on the source whatever the target, each {"operator", "reason"}."""

    run: str
    model: str
    kind: str
    dtype: str
    operators: int
    signatures: int
    nodes: int
    cases: int
    calls: dict[str, int]
    calls_seen: int
    calls_dropped: int
    bytes: int
    naive_bytes: int
    seconds: float
    recording_seconds: float
    source_seconds: float
    stages: dict[str, float]
    prompts: list[dict[str, Any]]
    compared: dict[str, Any]
    warnings: list[str]
    weights: str
    stays: list[dict[str, str]]
    positions: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def carve(
    model: LoadedModel,
    prompts: Sequence[str],
    out: Path,
    decode_steps: int = DECODE_STEPS,
    max_len: int | None = None,
    chunk: int = CHUNK,
    cases: int = len(SLOTS),
    fresh: bool = False,
    load_seconds: float = 0.0,
    progress: Progress | None = None,
) -> CarveResult:
    """Makes the run at `out`. `prompts` are texts (token ids such as "5 9 70" for a model without a tokenizer); with none, the
    model's example inputs are used. `max_len` (positions in the cache) defaults to the longest prompt and `decode_steps` tokens,
    rounded up to a multiple of `chunk`, the tokens of a prefill call. `load_seconds` is counted as a stage.

    Raises PromptError, UsageError, ModelError, and RunError when `out` is taken (a finished run is replaced with `fresh` only)
    or the disk is full; then nothing is left behind."""
    if decode_steps < 1 or chunk < 1:
        raise UsageError(f"--decode-steps {decode_steps} and --chunk {chunk} must be at least 1.")
    clock = _Clock(progress or (lambda stage, done, total: None), load_seconds)
    with clear_disk_errors(out), RunWriter.create(out, fresh) as run:
        job = _prepare(model, prompts, decode_steps, max_len, chunk, clock)
        with clock.stage("cut"):
            operators, bodies = _cut(job.exported.graphs)
        states = {**job.exported.states, **job.exported.initial}
        selection = Selection(operators, bodies, cases, run.arrays, run.remove)
        executor = WatchedExecutor(job.exported.graphs, operators, bodies, job.exported.tensors, states)
        with clock.stage("record"):
            recording = job.record(executor, selection, decode_steps, clock.progress)
        with clock.stage("compare"):
            compared = job.compare(model, recording)
            warnings = [
                *model.notes, *job.exported.notes, *source_prompts.unused_inputs(model, prompts),
                *weight_warnings(model, job.exported), *nothing_to_move(operators),
                *answer_warnings(executor, job.exported.graphs, operators, bodies, model.dtype),
            ]
        with clock.stage("oracle"):
            kept = _judge(run, selection, operators, bodies, job.exported, clock.progress)
            calls = job.followed(recording)
            lines = oracle.follow(
                job.exported.graphs, operators, bodies, job.exported.tensors, states, calls, clock.progress
            )
            run.lines(layout.ORACLE, (line.to_json() for line in lines))
        with clock.stage("write"):
            tensors = job.exported.tensors.items()
            table = WeightTable.build(((key, host_from_tensor(t)) for key, t in tensors), model.weight_files)
            run.lines(layout.GRAPHS, (g.to_json() for g in job.exported.graphs))
            run.lines(layout.BODIES, ({"signature": s, "body": b.to_json()} for s, b in bodies.items()))
            run.lines(layout.OPERATORS, (o.to_json() for o in operators))
            run.lines(layout.WEIGHTS, table.to_records())
            run.lines(layout.STATES, _states(run, job.exported))
            run.lines(layout.PROMPTS, job.prompt_lines(run, recording))
            run.lines(layout.LATE, [] if recording.late is None else [recording.late.to_json()])
            run.lines(layout.CASES, (c.to_json() for c in kept))
            tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
            if tokenizer is not None:
                run.text(layout.TOKENIZER, tokenizer.to_str())
            if (chat := _chat(model)) is not None:
                run.text(layout.CHAT, json.dumps(chat))
            write_suite(run, operators, bodies, kept, model.name, sorted({str(w.file.path) for w in table.entries.values()}))
        result = _result(model, run, job, operators, bodies, selection, kept, recording, compared, warnings, clock)
        run.finish(_manifest(model, job.exported, selection, result))
    return result


def _chat(model: LoadedModel) -> dict[str, Any] | None:
    """The chat template, and the special tokens that it may name; None for a model without."""
    tokenizer = model.tokenizer
    template = getattr(tokenizer, "chat_template", None)
    if tokenizer is None or not isinstance(template, str):
        return None
    return {"template": template, "special": {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}}


def _generation(model: LoadedModel) -> dict[str, float]:
    """How the model's publisher has tokens chosen, in the names of `tapml.deploy.sampling`; {} where nothing is said."""
    config = getattr(model.module, "generation_config", None) if model.kind == "causal_lm" else None
    sampled = ("temperature", "top_k", "top_p", "min_p") if getattr(config, "do_sample", False) else ()
    found = {name: getattr(config, name, None) for name in (*sampled, "repetition_penalty")}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


class _Clock:
    """Seconds of each stage, and progress."""

    def __init__(self, progress: Progress, load_seconds: float) -> None:
        self.progress = progress
        self.stages = {"load": load_seconds}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name, 0, 0)
        started = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - started


class _DecoderJob:
    """A causal language model and its prompts."""

    def __init__(self, exported: Exported, prompts: Sequence[source_prompts.Prompt], windows: Sequence[int]) -> None:
        assert isinstance(exported.protocol, Cached)
        self._windows = windows
        self.exported = exported
        self._prompts = prompts
        self._shape = exported.protocol

    def record(self, executor: GraphExecutor, selection: Selection, decode_steps: int, progress: Progress) -> Recording:
        tokens = [p.tokens for p in self._prompts]
        return record_decoder(executor, self._shape, tokens, decode_steps, selection, progress, self._windows)

    def compare(self, model: LoadedModel, recording: Recording) -> faithful.Compared:
        return faithful.compare_decoder(model, self.exported, [p.tokens for p in self._prompts], recording.generated)

    def followed(self, recording: Recording) -> list[list[Call]]:
        """The calls that the oracle runs end to end: of the first prompt as far as the cache goes."""
        pairs = zip(self._prompts, recording.generated, strict=True)
        late = [recording.late, *[None] * (len(self._prompts) - 1)]
        return [check_calls(p.tokens, made, own, self._shape) for (p, made), own in zip(pairs, late, strict=True)]

    def positions(self, recording: Recording) -> dict[str, Any] | None:
        return None if recording.late is None else recording.late.positions(self._shape)

    def prompt_lines(self, run: RunWriter, recording: Recording) -> list[dict[str, Any]]:
        pairs = zip(self._prompts, recording.generated, strict=True)
        return [Prompt(k, p.text, p.tokens, generated).to_json() for k, (p, generated) in enumerate(pairs)]


class _ModuleJob:
    """Any other module and its example inputs, by the keys of the graph's inputs."""

    def __init__(self, exported: Exported, examples: Sequence[dict[str, HostArray]], texts: Sequence[str]) -> None:
        self.exported = exported
        self._examples = examples
        self._texts = texts

    def record(self, executor: GraphExecutor, selection: Selection, decode_steps: int, progress: Progress) -> Recording:
        return record_module(executor, self.exported.protocol, self._examples, selection, progress)

    def compare(self, model: LoadedModel, recording: Recording) -> faithful.Compared:
        return faithful.compare_module(model, self.exported, self._examples)

    def followed(self, recording: Recording) -> list[list[Call]]:
        return [self.exported.protocol.check(example, ()) for example in self._examples]

    def positions(self, recording: Recording) -> dict[str, Any] | None:
        return None

    def prompt_lines(self, run: RunWriter, recording: Recording) -> list[dict[str, Any]]:
        lines = []
        for k, example in enumerate(self._examples):
            file = f"{layout.INPUT_FOLDER}/{k}.safetensors"
            run.arrays(file, example)
            lines.append({"index": k, "text": self._texts[k] if self._texts else "", "file": file})
        return lines


def _prepare(
    model: LoadedModel, texts: Sequence[str], decode_steps: int, max_len: int | None, chunk: int, clock: _Clock
) -> _DecoderJob | _ModuleJob:
    """Prompts to tokens or inputs, and the export; a prompt that cannot work is refused before the export."""
    if model.kind == "causal_lm":
        prompts = source_prompts.encode(model, texts)
        longest = max(len(p.tokens) for p in prompts)
        if longest == 0:
            raise PromptError("The prompt has no tokens. Give at least one word with --prompt.")
        positions = _positions(model, longest, decode_steps, max_len, chunk)
        with clock.stage("export"):
            return _DecoderJob(export(model, chunk=chunk, max_len=positions), prompts, attention_windows(model.module))
    if not texts:
        with clock.stage("export"):
            exported = export(model)
        return _ModuleJob(exported, [{k: host_from_tensor(t) for k, t in exported.examples.items()}], ())
    inputs = source_prompts.encoder_inputs(model, texts)
    with clock.stage("export"):
        exported = export(replace(model, example_inputs=inputs[0]))
    keys = exported.graphs[0].inputs
    return _ModuleJob(exported, [{p.key: host_from_tensor(example[p.key]) for p in keys} for example in inputs], texts)


def _positions(model: LoadedModel, longest: int, decode_steps: int, max_len: int | None, chunk: int) -> int:
    """How many positions the cache gets. Raises PromptError for a prompt that does not fit it, or the model; UsageError for one
    that leaves no room for the tokens that were asked for."""
    positions = _round_up(longest + decode_steps, chunk) if max_len is None else _round_up(max_len, chunk)
    limit = source_prompts.positions(model.module)
    most = positions if limit is None else limit // chunk * chunk
    if limit is not None and longest > most:
        if longest <= limit:
            raise PromptError(
                f"A prompt has {longest} tokens; of the {limit} positions that {model.name} knows, {most} are whole chunks of "
                f"{chunk} tokens. Carve with a smaller --chunk, such as {math.gcd(limit, 16)}, or shorten the prompt."
            )
        raise PromptError(
            f"A prompt has {longest} tokens; {model.name} knows {limit} positions, and no --max-len changes that. Shorten the "
            f"prompt to fewer than {limit} tokens."
        )
    if longest > positions:
        needed = min(_round_up(longest + decode_steps, chunk), most if limit is not None else 1 << 62)
        raise PromptError(
            f"A prompt has {longest} tokens; the key-value cache holds {positions}. Carve with --max-len {needed} or more, or "
            "shorten the prompt."
        )
    # Fewer tokens than asked for are generated where the model's positions end.
    return min(positions, most) if max_len is None else positions


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _cut(graphs: Sequence[Graph]) -> tuple[list[Operator], dict[str, Body]]:
    operators: list[Operator] = []
    bodies: dict[str, Body] = {}
    for graph in graphs:
        own, own_bodies = cut(graph, graph.name if len(graphs) > 1 else "")
        operators += own
        bodies |= own_bodies
    return operators, bodies


def _judge(
    run: RunWriter,
    selection: Selection,
    operators: Sequence[Operator],
    bodies: dict[str, Body],
    exported: Exported,
    progress: Progress,
) -> list[Case]:
    """Numbers the kept calls in the order of the operators, and measures each in float64. What its outputs are judged by goes
    beside its tensors."""
    place = {operator.name: k for k, operator in enumerate(operators)}
    weights = {(g.name, p.name): p.key for g in exported.graphs for p in g.weights}
    kept = [k for tally in selection.tallies.values() for k in tally.kept]
    kept.sort(key=lambda k: (place[k.operator], k.moment.prompt, k.moment.step))
    device = next((t.device for t in exported.tensors.values()), None) or "cpu"
    makers: dict[str, ReferenceMaker] = {}
    cases: list[Case] = []
    for number, call in enumerate(kept):
        progress("oracle: cases", number, len(kept))
        operator = operators[place[call.operator]]
        body = bodies[operator.signature]
        path = run.partial / call.file
        arrays = unpack(path.read_bytes(), path)
        inputs = [
            exported.tensors[weights[operator.graph, name]] if role == "weight" else tensor_from_host(arrays[f"i{k}"], device)
            for k, (name, role) in enumerate(zip(operator.inputs, body.roles, strict=True))
        ]
        outputs = [arrays[f"o{k}"] for k in range(len(body.outputs))]
        if operator.signature not in makers:
            makers[operator.signature] = ReferenceMaker(body, device)
        references = makers[operator.signature].make(inputs, outputs)
        file = f"{layout.CASE_FOLDER}/case{number}.safetensors"
        for k, reference in enumerate(references):
            arrays |= reference_arrays(k, reference)
        run.arrays(file, arrays)
        run.remove(call.file)
        cases.append(_case(number, operator, call, file, tuple(r.accuracy for r in references)))
    return cases


def _case(number: int, operator: Operator, call: Kept, file: str, accuracy: tuple[Accuracy, ...]) -> Case:
    order = {slot: k for k, slot in enumerate(SLOTS)}
    reasons = tuple(sorted(call.reasons, key=lambda slot: (order.get(slot, len(order)), slot)))
    return Case(
        f"case{number}", operator.name, operator.signature, operator.graph, call.moment.prompt, call.moment.step, reasons,
        file, accuracy, call.layouts,
    )


def _states(run: RunWriter, exported: Exported) -> list[dict[str, Any]]:
    lines = []
    for number, (key, spec) in enumerate(exported.states.items()):
        file = None
        if key in exported.initial:
            content = host_from_tensor(exported.initial[key])
            spec = spec_of(content)
            if np.any(content):
                file = f"{layout.STATE_FOLDER}/{number}.safetensors"
                run.arrays(file, {"state": content})
        lines.append(State(key, TensorSpec(spec.shape, spec.dtype), file).to_json())
    return lines


def _result(
    model: LoadedModel,
    run: RunWriter,
    job: _DecoderJob | _ModuleJob,
    operators: Sequence[Operator],
    bodies: dict[str, Body],
    selection: Selection,
    cases: Sequence[Case],
    recording: Recording,
    compared: faithful.Compared,
    warnings: list[str],
    clock: _Clock,
) -> CarveResult:
    tallies = selection.tallies.values()
    return CarveResult(
        run=str(run.path),
        model=model.name,
        kind=job.exported.protocol.kind,
        dtype=model.dtype,
        operators=len(operators),
        signatures=len(bodies),
        nodes=sum(len(g.nodes) for g in job.exported.graphs),
        cases=len(cases),
        calls=recording.calls,
        calls_seen=sum(t.seen for t in tallies),
        calls_dropped=sum(t.dropped for t in tallies),
        bytes=run.size(),
        naive_bytes=sum(t.naive_bytes for t in tallies),
        seconds=sum(clock.stages.values()),
        recording_seconds=recording.seconds,
        source_seconds=recording.source_seconds,
        stages=clock.stages,
        prompts=[{k: v for k, v in line.items() if k != "file"} for line in job.prompt_lines(run, recording)],
        compared=compared.to_json(),
        warnings=warnings,
        weights=model.weights,
        stays=[{"operator": o.name, "reason": why} for o in operators if (why := why_it_stays(bodies[o.signature]))],
        positions=job.positions(recording),
    )


def _manifest(model: LoadedModel, exported: Exported, selection: Selection, result: CarveResult) -> dict[str, Any]:
    counts = {s: {"seen": t.seen, "kept": len(t.kept), "dropped": t.dropped} for s, t in selection.tallies.items()}
    return {
        "code": code_of(model) if exported.has_own_code else {},
        "model": {"name": model.name, "spec": model.spec, "digest": model.digest, "licence": model.licence},
        "kind": result.kind,
        "dtype": model.dtype,
        "weights": model.weights,
        "decoder": exported.protocol.to_json(),
        "generation": _generation(model),
        "result": {k: v for k, v in result.to_json().items() if k != "prompts"},
        "signatures": counts,
    }
