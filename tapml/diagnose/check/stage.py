"""The stage `check`: an existing deployment of the model against the run.

    result = check_onnx(run, Path("model.onnx"))                  ONNX Runtime, as written and optimised
    result = check_outputs(run, Path("dumps"))                    arrays that any engine wrote
    result = check_function(run, "engine.py:values")              a function of the user's

An engine that is made to show values may compute others than it does for its users (fusion ends where a value is exposed). So the
deployment is also run with nothing exposed, and its outputs must be the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from tapml.carving.folder import RunFolder
from tapml.carving.tolerance import compare, of_source
from tapml.diagnose.check.dumps import read_dumps, read_texts
from tapml.diagnose.check.feeds import Question, decode_question, questions
from tapml.diagnose.check.follow import Follower, Found
from tapml.diagnose.check.function import Engine
from tapml.diagnose.check.ggml_text import Glimpse
from tapml.diagnose.check.onnx_file import OnnxFile, Wanted
from tapml.diagnose.check.partly import follow_partly
from tapml.diagnose.check.quantized import Weights, matched
from tapml.diagnose.check.result import CheckResult, Look
from tapml.diagnose.check.seen import Seen
from tapml.errors import UsageError
from tapml.migrate.model import Model
from tapml.runtime.protocol import Cached
from tapml.targets.onnxruntime import PROCESSOR
from tapml.tensors import HostArray

Progress = Callable[[str, int, int], None]

AS_WRITTEN, OPTIMISED = "as written", "optimised"


def check(
    run: RunFolder, onnx: str | Path | None, outputs: str | Path | None, backend: str | None, provider: str | None = None,
    progress: Progress | None = None,
) -> CheckResult:
    """The one of these that is given. Raises UsageError unless it is one."""
    if sum(given is not None for given in (onnx, outputs, backend)) != 1:
        raise UsageError("Give one of: an ONNX file, a folder of arrays, a function.")
    if provider is not None and onnx is None:
        raise UsageError("A provider is ONNX Runtime's: give it with an ONNX file.")
    if onnx is not None:
        return check_onnx(run, Path(onnx), provider or PROCESSOR, progress)
    return check_function(run, backend, progress) if backend is not None else check_outputs(run, Path(str(outputs)), progress)


def check_onnx(
    run: RunFolder, path: Path, provider: str = PROCESSOR, progress: Progress | None = None, optimised: bool = True
) -> CheckResult:
    """With `optimised`, also as ONNX Runtime optimises the file. Raises UsageError for a file that does not fit the run,
    UnavailableError where the provider is not here."""
    started = time.monotonic()
    tell = progress or (lambda stage, done, total: None)
    model = Model.of(run)
    looks = []
    weights: Weights | None = None
    for label in (AS_WRITTEN, OPTIMISED)[: 2 if optimised else 1]:
        with closing(OnnxFile(path, provider, label == OPTIMISED)) as file:
            if inside := file.inside:
                more = f" and {len(inside) - 1:,} more" if len(inside) > 1 else ""
                raise UsageError(
                    f"{path} quantizes activations within operators, {inside[0]}{more}: there, quantization and faults cannot "
                    "be told apart. Check the file before its activations are quantized, or one that is quantized dynamically."
                )
            weights = weights or matched(model, file.weights())
            looks.append(_looked(run, model, file, weights, label, tell))
            engine = f"{path.name} in {file.version}"
    assert weights is not None
    return CheckResult(engine, looks, time.monotonic() - started, run.digest, weights.wrong, weights.unknown)


def _looked(run: RunFolder, model: Model, file: OnnxFile, weights: Weights, label: str, tell: Progress) -> Look:
    asked = questions(run, file.inputs)
    last = asked[-1]
    states: Mapping[str, HostArray] = model.initial_states
    found: list[tuple[str, Found]] = []
    probing = ""
    while asked:
        question = asked.pop(0)
        tell(f"run ({label}, {question.label})", 0, 0)
        plain = file.outputs(question.feed)
        seen = file.seen(question.feed)
        probing = probing or _changed(plain, seen)
        follower = Follower(model, seen, question.real, weights)
        found += _followed(model, follower, question, states, tell)
        if question is last and (following := decode_question(run, file.inputs, question, plain)) is not None:
            asked.append(following)
            states = follower.states
    return Look(label, tuple(found), probing)


def _followed(
    model: Model, follower: Follower, question: Question, states: Mapping[str, HostArray], tell: Progress
) -> Iterator[tuple[str, Found]]:
    graph = model.graphs[question.call.graph]
    total = len(model.operators_of[graph.name])
    for done, found in enumerate(follower.follow(graph, question.call.inputs, states)):
        tell("compare", min(done, total), total)
        yield question.label, found


def _changed(plain: Mapping[str, HostArray], seen: Seen) -> str:
    """How what the user gets differs when values are exposed."""
    for name, array in plain.items():
        exposed = seen.values.get(name)
        if exposed is None or exposed.shape != array.shape:
            continue
        comparison = compare(exposed, of_source(array, 0.0))
        if not comparison.passed:
            return f"output {name} is another one when values are exposed: {comparison.describe()}"
    return ""


def check_outputs(run: RunFolder, folder: Path, progress: Progress | None = None) -> CheckResult:
    """Arrays in files, or a text of llama.cpp (see `dumps.py`), of the run's first example or of the first tokens of its first
    prompt."""
    if (texts := read_texts(folder)) is not None:
        return _partly(run, f"the text in {folder}", *texts)
    return _once(run, f"the files in {folder}", lambda question: read_dumps(folder, run.operators), progress)


def check_function(run: RunFolder, text: str, progress: Progress | None = None) -> CheckResult:
    """`FILE.py:FUNCTION`, a function (inputs by name, names of operators) -> arrays by name."""
    engine = Engine.load(text)
    return _once(run, text, lambda question: engine.seen(question.feed, run.operators), progress)


def _once(
    run: RunFolder, engine: str, see: Callable[[Question], Seen], progress: Progress | None
) -> CheckResult:
    started = time.monotonic()
    tell = progress or (lambda stage, done, total: None)
    model = Model.of(run)
    question = questions(run, _own_inputs(run))[0]
    seen = see(question)
    if not seen.values:
        raise UsageError(f"There is nothing to compare: {engine} gave no arrays.")
    found = _followed(model, Follower(model, seen, question.real), question, model.initial_states, tell)
    return CheckResult(engine, [Look(AS_WRITTEN, tuple(found))], time.monotonic() - started, run.digest)


def _partly(run: RunFolder, engine: str, shown: Sequence[Glimpse], names: Mapping[str, str]) -> CheckResult:
    started = time.monotonic()
    model = Model.of(run)
    question = questions(run, _own_inputs(run))[0]
    graph = model.graphs[question.call.graph]
    found = follow_partly(model, graph, question.call.inputs, model.initial_states, shown, names, question.real)
    look = Look(AS_WRITTEN, tuple((question.label, each) for each in found))
    return CheckResult(engine, [look], time.monotonic() - started, run.digest)


def _own_inputs(run: RunFolder) -> Sequence[Wanted]:
    """What the model itself takes: the tokens and what follows from them, or the example's inputs."""
    if isinstance(run.protocol, Cached):
        return [Wanted(name, "int64", (1, None)) for name in ("input_ids", "attention_mask", "position_ids")]
    return [Wanted(p.key, p.spec.dtype, p.spec.shape) for p in run.graphs[0].inputs]
