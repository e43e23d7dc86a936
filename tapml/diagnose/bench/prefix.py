"""A bisection over prefixes of the model, as google-ai-edge/litert-samples#307 does it.

    PrefixBisection(run, bench).find()           a `Diagnosis` of whatever is on the workbench, or None
    bisection.executions                         how often a prefix, or the whole, ran on the target for it

The rule (`utilities/litert_gpu_toolkit/checker.py`: `check_gpu_compatibility`, `bisect_gpu_divergence`, `_compare`,
`_frontier_tensors`). Every signature (here: graph) runs once as a whole on the target and on the processor, from the same inputs.
Its outputs are held against each other element by element, at rtol and atol 1e-2. Where one differs, the graph is cut
after operator k: operators 0 to k run on the target, and every value that is still needed behind the cut, is an output, or was
made by k is compared. A binary search over k gives the first cut that disagrees, and the operator there is named. What disagrees:
a NaN or infinity where the processor has a number, if the whole graph shows one; else a tensor whose worst element is off by more
than 1e-2 + 1e-2 of its largest magnitude. Integers must be equal. A cut that cannot run is passed over, outwards, in steps of 1,
2, 4.

In its favour: the inputs are those of the recorded run (the tool draws them from N(0, 1) unless it is given some), a state is an
input as the source left it, and the operators are ours, so that the name can be right. An operator that the compiler refuses is
named by the compiler's error, as there. What the tool warns of, an exposed value that changes how its neighbours are compiled,
does not happen here: operators are compiled one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tapml.carving.folder import RunFolder
from tapml.diagnose.bench.result import Diagnosis
from tapml.migrate.end_to_end import check_calls
from tapml.migrate.outcome import Ran
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Graph, Operator
from tapml.tensors import HostArray, as_read

RTOL = ATOL = 1e-2

Values = dict[str, HostArray]


@dataclass(frozen=True)
class Start:
    """What a graph is given, by the names of its values, and all that the source makes of it."""

    graph: Graph
    operators: tuple[Operator, ...]
    given: Values
    expected: Values

    @cached_property
    def last_read(self) -> Mapping[str, int]:
        """By value, the last operator that reads it; one that leaves the graph is read behind all."""
        found = {name: k for k, operator in enumerate(self.operators) for name in operator.inputs}
        return found | dict.fromkeys(self.leaving, len(self.operators))

    @property
    def leaving(self) -> tuple[str, ...]:
        made = {name for operator in self.operators for name in operator.outputs}
        return tuple(dict.fromkeys(n for n in (*self.graph.outputs, *self.graph.mutations.values()) if n in made))

    def frontier(self, cut: int) -> list[str]:
        """The values that are compared when the graph is cut behind operator `cut`."""
        made = [name for operator in self.operators[: cut + 1] for name in operator.outputs]
        return [n for n in made if self.last_read.get(n, -1) > cut or n in self.operators[cut].outputs]


class PrefixBisection:
    """See the module's docstring. What the source computes is computed once."""

    def __init__(self, run: RunFolder, bench: Workbench) -> None:
        self.run = run
        self.bench = bench
        self.executions = 0

    @cached_property
    def starts(self) -> list[Start]:
        """The first call of each graph in the check of the whole model."""
        model, states = self.bench.model, dict(self.bench.model.initial_states)
        found: dict[str, Start] = {}
        for call in check_calls(self.run):
            graph = model.graphs[call.graph]
            given = {p.name: states[p.key] for p in graph.states} | {p.name: call.inputs[p.key] for p in graph.inputs}
            made = dict(given)
            for operator in model.operators_of[call.graph]:
                outputs = model.source(operator.signature)(self._read(operator, made))
                made.update(zip(operator.outputs, outputs, strict=True))
            found.setdefault(call.graph, Start(graph, tuple(model.operators_of[call.graph]), given, made))
            states |= {key: made[name] for key, name in graph.mutations.items() if name in made}
            if len(found) == len(model.graphs):
                break
        return list(found.values())

    def find(self) -> Diagnosis | None:
        """The first operator of the first graph that differs; one without a name where no cut can be found."""
        self.executions = 0
        model = self.bench.model
        refused = next((o for o in model.operators if not model.why_it_stays(o) and self.bench.program(o) is None), None)
        if refused is not None:
            return Diagnosis(refused.name, None, "it does not compile, and the error names it")
        return next((said for said in map(self._of_graph, self.starts) if said is not None), None)

    def _of_graph(self, start: Start) -> Diagnosis | None:
        end = len(start.operators) - 1
        made = self._prefix(start, end)
        if isinstance(made, str):
            return Diagnosis(None, None, f"{start.graph.name} as a whole does not run: {made}")
        if all(close(start.expected[n], made[n]) for n in start.leaving):
            return None
        nonfinite = any(_broken(start.expected[n], made[n]) for n in start.frontier(end))
        low, high = -1, end
        if self._agrees(start, end, nonfinite):
            words = f"the outputs of {start.graph.name} differ, and no tensor by more than 1e-2 of its scale"
            return Diagnosis(None, None, words)
        while high - low > 1:
            cut, agrees = self._near((low + high) // 2, low, high, start, nonfinite)
            if agrees is None:
                return Diagnosis(None, None, f"no prefix of {start.graph.name} between {low} and {high} runs")
            low, high = (cut, high) if agrees else (low, cut)
        return Diagnosis(start.operators[high].name, None, f"first cut that disagrees: {high} of {end + 1} operators")

    def _near(self, middle: int, low: int, high: int, start: Start, nonfinite: bool) -> tuple[int, bool | None]:
        """A cut that runs, `middle` or near it, and whether it agrees; None where none runs."""
        agrees, step = self._agrees(start, middle, nonfinite), 1
        while agrees is None:
            near = [cut for cut in (middle + step, middle - step) if low < cut < high]
            if not near:
                return middle, None
            for cut in near:
                agrees = self._agrees(start, cut, nonfinite)
                if agrees is not None:
                    return cut, agrees
            step *= 2
        return middle, agrees

    def _agrees(self, start: Start, cut: int, nonfinite: bool) -> bool | None:
        """Whether the prefix up to `cut` gives what the source does; None where it does not run."""
        made = self._prefix(start, cut)
        if isinstance(made, str):
            return None
        wrong = _broken if nonfinite else _off_scale
        return not any(wrong(start.expected[n], made[n]) for n in start.frontier(cut))

    def _prefix(self, start: Start, cut: int) -> Values | str:
        """All values that operators 0 to `cut` make on the target; or why they do not run."""
        self.executions += 1
        outcome = self.bench.attempt(lambda: self._run(start, cut))
        return outcome.value if isinstance(outcome, Ran) else outcome.text

    def _run(self, start: Start, cut: int) -> Values:
        model, made = self.bench.model, dict(start.given)
        for operator in start.operators[: cut + 1]:
            program = self.bench.program(operator)
            if program is None:  # it stays on the source, whatever the target
                outputs = model.source(operator.signature)(self._read(operator, made))
            else:
                keys = zip(operator.inputs, model.weight_keys(operator), program.inputs, strict=True)
                given = [made[n] if k is None else self.bench.weight_buffer(operator, k, s.dtype) for n, k, s in keys]
                specs = model.bodies[operator.signature].output_specs
                stored = self.bench.backend.run_once(program, given)
                outputs = [as_read(a.reshape(s.shape), s.dtype) for a, s in zip(stored, specs, strict=True)]
            made.update(zip(operator.outputs, outputs, strict=True))
        return made

    def _read(self, operator: Operator, values: Values) -> list[HostArray]:
        keys = zip(operator.inputs, self.bench.model.weight_keys(operator), strict=True)
        return [values[name] if key is None else self.bench.model.weight(key) for name, key in keys]


def close(expected: HostArray, actual: HostArray) -> bool:
    """Element by element; integers and booleans equal."""
    if expected.dtype.kind in "iub":
        return bool((expected == actual).all())
    left, right = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        return bool(np.isclose(left, right, rtol=RTOL, atol=ATOL, equal_nan=True).all())


def _broken(expected: HostArray, actual: HostArray) -> bool:
    """NaN or infinity where the processor has a number."""
    left, right = actual.astype(np.float64), expected.astype(np.float64)
    return bool((~np.isfinite(left) & np.isfinite(right)).any())


def _off_scale(expected: HostArray, actual: HostArray) -> bool:
    if expected.dtype.kind in "iub":
        return not close(expected, actual)
    left, right = actual.astype(np.float64), expected.astype(np.float64)
    both = np.isfinite(left) & np.isfinite(right)
    off = np.abs(left - right, where=both, out=np.zeros(both.shape)).max(initial=0.0)
    scale = np.abs(right, where=both, out=np.zeros(both.shape)).max(initial=0.0)
    return _broken(expected, actual) or bool(off > ATOL + RTOL * scale)
