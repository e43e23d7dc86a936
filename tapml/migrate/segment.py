"""Segments: operators that follow each other in a graph, given to the target as one, since engines fuse what stands together.

    with OperatorTester(run, "ort:provider=cpu") as tester:
        found = judge_segment(tester, "layers.0.self_attn.q_proj..layers.0.mlp.down_proj")

A segment is one body, made of the nodes of its operators; values that are read within it alone never leave it. Its inputs are
what the source gave at some calls of the check (`tapml.migrate.end_to_end.check_calls`): the first, the last, and one between. It
is judged as an operator is: by what the source and float64 give for the whole of it.

Where a segment fails, the smallest one within it that fails in the same way is looked for: first its end is drawn in, then its
beginning, each by halving. An operator that fails alone is found so too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tapml.carving.folder import RunFolder
from tapml.errors import UsageError, nearest
from tapml.migrate.end_to_end import check_calls
from tapml.migrate.model import Model
from tapml.migrate.operator_test import OperatorTester, Trial
from tapml.migrate.workbench import Progress
from tapml.operators.cut import body_of
from tapml.operators.graph import Operator
from tapml.operators.patterns import GraphIndex
from tapml.tensors import HostArray
from tapml.verdicts import Verdict

BETWEEN = ".."


@dataclass(frozen=True)
class Segment:
    """Operators of one graph in execution order, at least one."""

    operators: tuple[Operator, ...]

    @property
    def name(self) -> str:
        first, last = self.operators[0].name, self.operators[-1].name
        return first if len(self.operators) == 1 else f"{first}{BETWEEN}{last}"

    def to_json(self) -> dict[str, Any]:
        return {"first": self.operators[0].name, "last": self.operators[-1].name, "operators": len(self.operators)}


@dataclass(frozen=True)
class SegmentResult:
    """`verdict` is that of the whole segment; `smallest` the smallest one in it that fails in the same way, with its own verdict,
    None where the whole passes."""

    segment: Segment
    verdict: Verdict
    smallest: tuple[Segment, Verdict] | None = None

    @property
    def alone(self) -> str | None:
        """The operator that fails without its neighbours; None where none does."""
        if self.smallest is None or len(self.smallest[0].operators) > 1:
            return None
        return self.smallest[0].name

    def to_json(self) -> dict[str, Any]:
        smallest = None
        if self.smallest is not None:
            segment, verdict = self.smallest
            smallest = {**segment.to_json(), "verdict": verdict.to_json()}
        return {**self.segment.to_json(), "smallest": smallest}


def parse_segment(model: Model, text: str) -> Segment:
    """"A..B", each end an operator or the path of a module, which stands for its first or last operator; "A" alone is all
    of one module. Raises UsageError for what is no segment of operators that can move."""
    begin, between, end = text.partition(BETWEEN)
    first = _found(model, begin, text)[0]
    last = _found(model, end, text, first.graph)[-1] if between else _found(model, begin, text)[-1]
    if first.graph != last.graph:
        raise UsageError(
            f"--segment {text}: {first.name} is in the graph {first.graph}, {last.name} in {last.graph}. Name two of one graph."
        )
    operators = model.operators_of[first.graph]
    start, stop = operators.index(first), operators.index(last)
    if stop < start:
        turned = f"{last.name}{BETWEEN}{first.name}"
        raise UsageError(f"--segment {text}: {last.name} runs before {first.name}. Try: --segment {turned}")
    found = operators[start : stop + 1]
    if staying := [o for o in found if model.why_it_stays(o)]:
        raise UsageError(
            f"--segment {text}: {staying[0].name} is in it and stays on the source ({model.why_it_stays(staying[0])}). Take a "
            "segment before it or after it."
        )
    return Segment(found)


def _found(model: Model, end: str, text: str, graph: str = "") -> list[Operator]:
    """The operators that one end means, in execution order. The name of the graph in front may be left out behind "..", and
    where it is the only graph."""
    for name in (end, f"{graph}/{end}"):
        found = [o for o in model.operators if o.name == name] or [o for o in model.operators if o.name.startswith(f"{name}.")]
        if end and found:
            return found
    example = model.operators[0].name if model.operators else "A"
    known = nearest(end, model.named) if end else f"Give two operators, such as {example}{BETWEEN}B."
    raise UsageError(f"--segment {text}: no operator or module {end!r}. {known}")


def judge_segment(tester: OperatorTester, text: str, progress: Progress | None = None) -> SegmentResult:
    """Raises UsageError as `parse_segment` does, and for one that no call of the check reaches; UnavailableError when the device
    was lost for good."""
    segment = parse_segment(tester.model, text)
    return _Trying(tester, segment, progress).result()



class _Trying:
    def __init__(self, tester: OperatorTester, segment: Segment, progress: Progress | None) -> None:
        self.tester = tester
        self.segment = segment
        self.tell = tester.bench.telling(progress)
        self.index = GraphIndex(tester.model.graphs[segment.operators[0].graph])
        self.tell("run on the source", 0, 0)
        self.calls = _recorded(tester.run, tester.model, segment)
        if not self.calls:
            graph = segment.operators[0].graph
            raise UsageError(
                f"The check calls the graph {graph} nowhere, so there are no inputs for a segment of it. Carve with a longer "
                "prompt or more --decode-steps."
            )
        self.tried: dict[tuple[int, int], tuple[Segment, Verdict]] = {}

    def result(self) -> SegmentResult:
        last = len(self.segment.operators) - 1
        self.tester.bench.require_change([self._operator(self.segment)])
        whole = self._verdict(0, last)
        if whole.status in ("pass", "unchecked"):
            return SegmentResult(self.segment, whole)
        high = self._least(0, last, lambda at: self._fails_like(whole, 0, at))
        low = high - self._least(0, high, lambda back: self._fails_like(whole, high - back, high))
        return SegmentResult(self.segment, whole, self.tried[low, high])

    def _least(self, low: int, high: int, holds: Callable[[int], bool]) -> int:
        """The least number in [low, high] at which `holds`, where it holds from there on; it does at `high`."""
        while low < high:
            middle = (low + high) // 2
            if holds(middle):
                high = middle
            else:
                low = middle + 1
        return high

    def _fails_like(self, whole: Verdict, low: int, high: int) -> bool:
        return self._verdict(low, high).status == whole.status

    def _verdict(self, low: int, high: int) -> Verdict:
        if (low, high) not in self.tried:
            self.tell("test segments", len(self.tried), 0)
            part = Segment(self.segment.operators[low : high + 1])
            self.tried[low, high] = part, self._tested(part)
        return self.tried[low, high][1]

    def _operator(self, segment: Segment) -> Operator:
        """The segment as one operator, whose body is among the model's then."""
        kind = segment.operators[0].kind if len(segment.operators) == 1 else "segment"
        region = {name for operator in segment.operators for name in operator.nodes}
        body, inputs, outputs, nodes = body_of(self.index, region, kind)
        self.tester.model.bodies.setdefault(body.signature, body)
        return Operator(segment.name, self.index.graph.name, kind, body.signature, inputs, outputs, nodes, "")

    def _tested(self, segment: Segment) -> Verdict:
        model, operator = self.tester.model, self._operator(segment)
        keys = model.weight_keys(operator)
        trials: list[Trial] = []
        for call, values in self.calls.items():
            named = zip(operator.inputs, keys, strict=True)
            inputs = [values[name] if key is None else model.weight(key) for name, key in named]
            trials.append(Trial.computed(model, operator, inputs, call))
        return self.tester.tried(operator, trials)


def _recorded(run: RunFolder, model: Model, segment: Segment) -> dict[str, dict[str, HostArray]]:
    """What the operators of the segment read at the first, the middle and the last call of the check, by a name of the call."""
    graph = segment.operators[0].graph
    wanted = {name for operator in segment.operators for name in operator.inputs}
    calls = check_calls(run)
    here = [k for k, call in enumerate(calls) if call.graph == graph]
    chosen = {here[0], here[len(here) // 2], here[-1]} if here else set()
    states = dict(model.initial_states)
    found: dict[str, dict[str, HostArray]] = {}
    for k, call in enumerate(calls[: max(chosen, default=-1) + 1]):
        walk = model.walks[call.graph]
        values = walk.begin(call.inputs, states)
        kept = {name: values[name] for name in wanted if name in values} if k in chosen else {}
        for step in walk.steps:
            made = model.source(step.operator.signature)(step.read(values, model.weight))
            if k in chosen:
                pairs = zip(step.operator.outputs, made, strict=True)
                kept |= {name: array for name, array in pairs if name in wanted}
            step.done(values, made)
        states |= walk.advanced(values, model.weight)
        if k in chosen:
            found[f"{graph}, call {k}"] = kept
    return found
