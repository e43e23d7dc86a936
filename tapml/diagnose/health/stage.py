"""Numeric health: where overflow, underflow to zero, NaN and Inf are made, and how close each operator is to the end of float16.

    found = health(run, "opencl")                   or health(run) for the source alone
    found.source.first("overflow")                  the first operator and node that made one, even if the output is finite
    found.target.made                               all that the target made, in the order in which it did
    found.headroom[0]                               the operator with the least room in float16

A prompt goes through the model (prefill and the first decode steps, `probes/watch.py`). On the source every node inside an
operator is judged alone, on the target every operator by its outputs: each is computed again in float64 from the very inputs
that it got (`anomalies.py`), so a bad number is attributed to the operator that made it, and to none that received it. Constants
that a model puts among its numbers (masks) are intended. Headroom is that of the source's numbers: inputs, weights, everything
inside, and partial sums, for which there are bounds (`anatomy.py`); each operator's own recorded calls count as well.

A target runs with everything that compiles. An operator that its device refuses, or is lost at, stays on the source for the
rest and is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from tapml.backends.interface import Backend, Compiled
from tapml.carving.folder import RunFolder
from tapml.diagnose.health.anatomy import Anatomy, Part, Values, largest
from tapml.diagnose.health.anomalies import Kind, bad_elements
from tapml.diagnose.health.headroom import Peak, bits
from tapml.diagnose.health.result import Headroom, Health, Made, Range, Side
from tapml.diagnose.probes.watch import Seen, calls_of, watch
from tapml.errors import first_line, is_confined
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.inject import Inject
from tapml.migrate.model import Model
from tapml.migrate.outcome import Ran
from tapml.migrate.workbench import Progress, Workbench
from tapml.operators.graph import Operator
from tapml.runtime.hybrid import Hybrid
from tapml.runtime.protocol import Call
from tapml.tensors import FLOATS, HostArray, dtype_name


def health(
    run: RunFolder,
    target: str | Backend | None = None,
    device: str = "local",
    inject: Inject | None = None,
    prompt: int = 0,
    progress: Progress | None = None,
) -> Health:
    """Watches the source, and where one is given the target: by its text, or an opened backend, which stays the caller's. Raises
    UsageError for a prompt that the run does not have, and what opening a target raises; UnavailableError when the device was
    lost again and again."""
    calls = calls_of(run, prompt)
    tell: Progress = progress or (lambda stage, done, total: None)
    facts: dict[str, Any] = {"run": run.digest, "prompt": prompt}
    facts |= dict.fromkeys(("target", "device", "device_info", "inject"))
    if target is None:
        source, headroom = _Source(run, Model.of(run)).watch(calls, tell)
        return Health(source, None, headroom, facts, Circumstances(run.digest))
    with Workbench.on(run, target, device, inject) as bench:
        bench.compile(run.operators, bench.telling(tell))
        source, headroom = _Source(run, bench.model).watch(calls, tell)
        there = _watch_target(bench, calls, bench.telling(tell))
        facts |= {
            "target": str(bench.choice), "device": bench.device_name, "device_info": bench.info.to_json(),
            "inject": None if bench.rewrite is None else bench.rewrite.text,
        }  # fmt: skip
        circumstances = Circumstances.of(bench)
    return Health(source, there, headroom, facts, circumstances)


class _Anomalies:
    """What one side made so far."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.made: dict[tuple[str, Kind], Made] = {}
        self.given: dict[str, Range] = {}
        self.not_checked: dict[str, str] = {}
        self.operators: set[str] = set()
        self.outputs_finite = True

    def note(self, found: Made) -> None:
        """Keeps the first of an operator and a kind; a later one counts as another call, or another node of the same call."""
        key = (found.operator, found.kind)
        before = self.made.get(key)
        if before is None:
            self.made[key] = found
        elif before.step != found.step:
            self.made[key] = replace(before, calls=before.calls + 1)

    @contextmanager
    def checking(self, operator: Operator) -> Iterator[None]:
        """What PyTorch cannot compute in float64, or refuses for what a target computed (an index that is out of range), is
        said, not skipped in silence."""
        try:
            yield
        except Exception as error:
            if not is_confined(error):
                raise
            self.not_checked[operator.name] = first_line(error)

    def look(self, seen: Seen) -> None:
        """Notes what the model was given bad, and whether its outputs are finite."""
        operator = seen.operator
        self.operators.add(operator.name)
        graph = self.model.graphs[seen.graph]
        places = {p.name: p for p in graph.placeholders}
        for name, array in zip(operator.inputs, seen.inputs, strict=True):
            if name in places and f"{places[name].role} {places[name].key}" not in self.given and _is_float(array):
                label = f"{places[name].role} {places[name].key}"
                self.given[label] = _range(label, array)
        for name, array in zip(operator.outputs, seen.outputs, strict=True):
            if name in graph.outputs and _is_float(array) and not np.isfinite(array).all():
                self.outputs_finite = False

    def side(self, calls: int, on_source: dict[str, str] | None = None) -> Side:
        given = tuple(r for r in self.given.values() if r.nonfinite)
        return Side(
            calls, len(self.operators), tuple(self.made.values()), given, self.outputs_finite, self.not_checked, on_source or {}
        )


class _Source:
    """The source, node by node."""

    def __init__(self, run: RunFolder, model: Model) -> None:
        self.run = run
        self.model = model
        self.anomalies = _Anomalies(model)
        self.anatomies: dict[str, Anatomy] = {}
        self.peaks: dict[str, Peak] = {}

    def watch(self, calls: Sequence[Call], tell: Progress) -> tuple[Side, tuple[Headroom, ...]]:
        total = sum(len(self.model.operators_of[call.graph]) for call in calls)
        for count, seen in enumerate(watch(self.model, Hybrid(self.model, self.model.source), calls)):
            tell("watch the source", count, total)
            self.anomalies.look(seen)
            with self.anomalies.checking(seen.operator):
                self._dissect(seen.operator, seen.inputs, seen)
        tell("watch the source", total, total)
        for count, case in enumerate(self.run.cases):
            tell("measure recorded calls", count, len(self.run.cases))
            operator = self.run.operator(case.operator)
            with self.anomalies.checking(operator):
                self._dissect(operator, self.run.case_arrays(case)[0], None)
        tell("measure recorded calls", len(self.run.cases), len(self.run.cases))
        return self.anomalies.side(len(calls)), self._headroom()

    def _dissect(self, operator: Operator, inputs: Sequence[HostArray], seen: Seen | None) -> None:
        """Every node of one call: its bad numbers where the call was `seen`, and magnitudes. Of an operator that stays on the
        source the outputs alone: its nodes have values that no array here holds."""
        if self.model.why_it_stays(operator):
            if seen is not None:
                self._judge_outputs(seen)
            return
        anatomy = self.anatomies.setdefault(operator.signature, Anatomy(self.model.bodies[operator.signature]))
        peak = self.peaks.setdefault(operator.name, Peak())
        outputs = {name: k for k, name in enumerate(anatomy.body.outputs)}
        keys = self.model.weight_keys(operator)
        for k, (array, key) in enumerate(zip(inputs, keys, strict=True)):
            if _is_float(array):
                label = f"weight {key}" if key is not None else f"input {k}"
                peak.see(array, label, dtype_name(array), stored=True, count=key is not None, once=key)
        values = anatomy.values(inputs)
        for part in anatomy.parts:
            exact = anatomy.exact(part, values)
            output = outputs.get(part.name)
            label = f"{'inside' if output is None else f'output {output}'}: {part.node.target}"
            if not part.constant:  # what was among its inputs was seen there
                peak.see(exact, label, part.spec.dtype, stored=output is not None, count=output is not None)
            most = anatomy.accumulated(part, values)
            if most is not None:
                peak.reach(most, f"partial sums of {part.node.target}")
            if seen is not None and not part.constant:
                for kind, where in bad_elements(values[part.name], exact).items():
                    given = _ranges_of_part(operator, anatomy, part, values, keys)
                    made = _made(seen, kind, where, values[part.name], exact, given)
                    self.anomalies.note(replace(made, node=part.node.target, line=part.node.source, output=output))

    def _judge_outputs(self, seen: Seen) -> None:
        exact = self.model.exact(seen.operator.signature)(seen.inputs)
        names = _labels(seen.operator, self.model.weight_keys(seen.operator))
        given = tuple(_range(name, a) for name, a in zip(names, seen.inputs, strict=True) if _is_float(a))
        for k, (y, x) in enumerate(zip(seen.outputs, exact, strict=True)):
            for kind, where in bad_elements(y, x).items() if _is_float(y) else ():
                self.anomalies.note(replace(_made(seen, kind, where, y, x, given), output=k))

    def _headroom(self) -> tuple[Headroom, ...]:
        found = [
            Headroom(
                o.name, o.kind, peak.magnitude, peak.where, bits(peak.magnitude, "float16"), bits(peak.magnitude, "bfloat16"),
                peak.stored, bits(peak.stored, "float16"), peak.lost_share, peak.subnormal_share,
            )
            for o in self.model.operators
            if (peak := self.peaks.get(o.name)) is not None
        ]  # fmt: skip
        return tuple(sorted(found, key=lambda h: -h.magnitude))


def _watch_target(bench: Workbench, calls: Sequence[Call], tell: Progress) -> Side:
    """The target with everything that compiles and that its device runs; begins anew without an operator that it refuses."""
    programs, failures = bench.load(bench.model.operators, tell)
    refused = {name: failure.text for name, failure in failures.items()}
    while True:
        under_way: list[str] = []
        outcome = bench.attempt(partial(_watch_programs, bench, programs, calls, tell, refused, under_way))
        if isinstance(outcome, Ran):
            return outcome.value
        # Values go up before the operator that reads them, and what the source refuses was made before.
        names = [name for name in outcome.suspects or under_way[:1] if name in programs]
        if not names:
            outcome.get()  # not at an operator of the target: uploading, or reading back
        for name in names:
            del programs[name]
            refused[name] = outcome.text


def _watch_programs(
    bench: Workbench, programs: Mapping[str, Compiled], calls: Sequence[Call], tell: Progress, refused: dict[str, str],
    under_way: list[str],
) -> Side:
    """`under_way` holds the name of the operator that comes next, for whoever has to say where a device gave up."""
    under_way.clear()
    model = bench.model
    anomalies = _Anomalies(model)
    hybrid = bench.hybrid()
    hybrid.offload(programs)
    order = [o.name for call in calls for o in model.operators_of[call.graph]]
    under_way[:] = order[:1]
    for count, seen in enumerate(watch(model, hybrid, calls)):
        tell("watch the target", count, len(order))
        under_way[:] = order[count + 1 : count + 2]
        anomalies.look(seen)
        if seen.operator.name in programs:
            with anomalies.checking(seen.operator):
                _judge_outputs(model, seen, anomalies)
    tell("watch the target", len(order), len(order))
    hybrid.close()
    return anomalies.side(len(calls), refused)


def _judge_outputs(model: Model, seen: Seen, anomalies: _Anomalies) -> None:
    """A target's outputs, all that it shows of an operator."""
    operator = seen.operator
    exact = model.exact(operator.signature)(seen.inputs) if any(map(_is_float, seen.outputs)) else seen.outputs
    for k, (y, x) in enumerate(zip(seen.outputs, exact, strict=True)):
        if not _is_float(y):
            continue
        for kind, where in bad_elements(y, x).items():
            ours = model.source(operator.signature)(seen.inputs)[k]
            same = bad_elements(ours, x).get(kind, np.zeros(where.shape, bool))
            anatomy = Anatomy(model.bodies[operator.signature])
            if any(part.constant for part in anatomy.parts):
                where = where & ~(same & np.isneginf(ours) & np.isneginf(y))  # a mask that the dtype cannot hold, as meant
            if not where.any():
                continue
            if kind == "inf" and _inner_peak(anatomy, seen.inputs) > _limit(y):
                kind = "overflow"  # float64 gives a number that the dtype holds, by way of one that it does not
            names = _labels(operator, model.weight_keys(operator))
            given = tuple(_range(name, a) for name, a in zip(names, seen.inputs, strict=True) if _is_float(a))
            made = _made(seen, kind, where, y, x, given)
            anomalies.note(replace(made, output=k, source_too=bool((same & where).any())))


def _inner_peak(anatomy: Anatomy, inputs: Sequence[HostArray]) -> float:
    """The largest magnitude inside an operator, partial sums included, in float64."""
    values = anatomy.values(inputs)
    sizes = [largest(anatomy.exact(part, values)) for part in anatomy.parts]
    sums = [anatomy.accumulated(part, values) for part in anatomy.parts]
    return max([*sizes, *(s for s in sums if s is not None)], default=0.0)


def _made(
    seen: Seen, kind: Kind, where: NDArray[np.bool_], actual: HostArray, exact: HostArray, inputs: tuple[Range, ...]
) -> Made:
    index = tuple(int(n) for n in np.unravel_index(int(where.reshape(-1).argmax()), where.shape))
    return Made(
        operator=seen.operator.name, op=seen.operator.kind, kind=kind, graph=seen.graph, step=seen.step, node=None, line="",
        output=None, elements=int(where.sum()), of=int(where.size), index=index, value=f"{float(actual[index]):.6g}",
        exact=float(exact[index]), inputs=inputs,
    )  # fmt: skip


def _ranges_of_part(
    operator: Operator, anatomy: Anatomy, part: Part, values: Values, keys: Sequence[str | None]
) -> tuple[Range, ...]:
    """What a node read: inputs of the operator by what they are, results of other nodes by their operation."""
    names = {f"i{k}": label for k, label in enumerate(_labels(operator, keys))}
    names |= {node.name: f"{node.target} ({node.name})" for node in anatomy.body.nodes}
    return tuple(_range(names[name], values[name]) for name in part.reads if _is_float(values[name]))


def _labels(operator: Operator, keys: Sequence[str | None]) -> list[str]:
    return [f"value {name}" if key is None else f"weight {key}" for name, key in zip(operator.inputs, keys, strict=True)]


def _range(name: str, array: HostArray) -> Range:
    finite = array[np.isfinite(array)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return Range(name, dtype_name(array), low, high, int(array.size - finite.size))


def _is_float(array: HostArray) -> bool:
    return dtype_name(array) in FLOATS


def _limit(array: HostArray) -> float:
    return float(ml_dtypes.finfo(array.dtype).max)
