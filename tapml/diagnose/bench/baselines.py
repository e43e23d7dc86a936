"""Three of the other ways to look for a fault, as they are practised, over the same kernels, devices and faults as TapML's own.

    RandomInputs(run, bench, seed).find(operators)      each operator alone, on inputs drawn from N(0, 1)
    DebugCompare(run, bench).find()                     function by function in a run of the whole model, as MLC-LLM does it
    EndToEndOnly(run, bench).find()                     the model's answers only

The rules of other projects' tests of kernels are in `neighbours.py`, a bisection over prefixes of the model in `prefix.py`.

Each gives a `Diagnosis` of whatever is on the workbench: of the clean model it is a false alarm. They are here to be measured
against (`stage.py`), so each is given its best chance: where its rule leaves something open, the reading that finds
more was taken, and its paragraph says so. None of them poisons memory or repeats a run, which is not done in practice.

`RandomInputs`. Unit tests of kernels as most projects write them: the right shapes, and every float drawn from the standard
normal distribution, activations, states and weights alike. Integers are drawn evenly from the range that the recording shows
for that input, without repetition where the recorded ones have none (indices that are written to must differ); booleans are as
recorded, because a random mask may hide everything. There are as many draws as the recording has calls of the signature. The
source and float64 run on the same inputs, and the bound is TapML's (`tapml.carving.tolerance`), so the inputs are the only
difference. Weights are the test's own: a fault that hands over another tensor of the model is not met, one that packs or
rearranges whatever weight it is given is.

`DebugCompare`. The rule of mlc-llm's `python/mlc_llm/testing/debug_compare.py`: in a run on the target, each function's inputs,
as the target computed them and with the weights that lie on the device, go through the reference too; the last output alone is
compared, with numpy's `assert_allclose` at rtol 1e-2 and atol 1 (NaN and inf must match); a function is compared the first
time that its name comes up and never again; the first mismatch ends the run. A function's name stands for its kernels, so an
operator whose kernels were changed has a name of its own, though it shares a signature with others: read more strictly, by
signature, it would be compared in one layer only, and a fault in any other layer would never be looked at.

`EndToEndOnly`. What remains without tests of operators: every prompt of the run is answered greedily by the model on the target,
and tokens and logits are compared with the source's, within the bound that was measured for the whole model. It says that
something is wrong. It names no operator, and what it can hand on is the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from tapml.backends.interface import Compiled
from tapml.carving.folder import RunFolder
from tapml.carving.tolerance import Reference, compare, of_source
from tapml.diagnose.bench.result import Diagnosis
from tapml.migrate.end_to_end import Oracle, check_calls
from tapml.migrate.outcome import Ran
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator
from tapml.runtime.hybrid import Hybrid
from tapml.runtime.protocol import Generating, answered, greedy
from tapml.tensors import FLOATS, NUMPY, HostArray, as_read

RTOL = 1e-2
ATOL = 1.0

# Tokens that the end-to-end comparison generates at most for a prompt.
MAX_TOKENS = 16


@dataclass(frozen=True)
class Drawn:
    """One draw: all inputs in the body's order, and what each output is judged by."""

    inputs: list[HostArray]
    references: list[Reference]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (*self.inputs, *(r.values for r in self.references)))


class RandomInputs:
    """See the module's docstring. The same seed draws the same inputs for a signature, clean or not."""

    # Draws that are kept for the next operator of a signature, in bytes: a language model's head has 100 MB of weights.
    KEPT = 512 * 2**20

    def __init__(self, run: RunFolder, bench: Workbench, seed: int = 0) -> None:
        self.run = run
        self.bench = bench
        self.seed = seed
        self._kept: dict[tuple[str, int], Drawn] = {}

    def find(self, operators: Sequence[Operator]) -> list[Diagnosis]:
        """One for each of these operators that fails on a draw."""
        found = (self.test(operator) for operator in operators)
        return [said for said in found if said is not None]

    def draws(self, operator: Operator) -> int:
        return len(self.run.cases_of_signature(operator.signature))

    def meets(self, operator: Operator) -> bool:
        """Whether a fault in the weights of an operator changes those that the test brings."""
        if not self.draws(operator):
            return False
        drawn, keys = self.draw(operator, 0), self.bench.model.weight_keys(operator)
        return any(
            key is not None and self._handed_over(operator, key, a) is not a for a, key in zip(drawn.inputs, keys, strict=True)
        )

    def test(self, operator: Operator) -> Diagnosis | None:
        """The first draw that fails. An operator that refuses to compile or to run fails."""
        program = self.bench.program(operator)
        elements = sum(spec.elements for spec in self.bench.model.bodies[operator.signature].inputs)
        if program is None:
            return Diagnosis(operator.name, elements, f"does not compile: {self.bench.failure(operator).reason}")
        for number in range(self.draws(operator)):
            drawn = self.draw(operator, number)
            outcome = self.bench.attempt(partial(self._complaint, operator, program, drawn))
            if not isinstance(outcome, Ran):
                return Diagnosis(operator.name, elements, f"does not run: {outcome.text}")
            if outcome.value:
                return Diagnosis(operator.name, elements, f"draw {number}: {outcome.value}")
        return None

    def draw(self, operator: Operator, number: int) -> Drawn:
        """Draw `number` for an operator's signature; needs a recorded call of it."""
        key = (operator.signature, number)
        if key not in self._kept:
            drawn = self._drawn(operator, number)
            while self._kept and sum(d.nbytes for d in self._kept.values()) + drawn.nbytes > self.KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = drawn
        return self._kept[key]

    def _drawn(self, operator: Operator, number: int) -> Drawn:
        model = self.bench.model
        cases = self.run.cases_of_signature(operator.signature)
        rng = np.random.default_rng([self.seed, int(operator.signature, 16), number])
        floats = all(spec.dtype in FLOATS for spec in model.bodies[operator.signature].inputs)
        recorded = [] if floats else [self.run.case_arrays(case)[0] for case in cases]
        inputs: list[HostArray] = []
        for k, spec in enumerate(model.bodies[operator.signature].inputs):
            if spec.dtype in FLOATS:
                inputs.append(self.floats(rng, spec.shape).astype(NUMPY[spec.dtype]))
            elif spec.dtype == "bool":
                inputs.append(recorded[number % len(recorded)][k])
            else:
                inputs.append(self.integers(rng, [arrays[k] for arrays in recorded], number))
        with np.errstate(all="ignore"):
            return Drawn(inputs, self.references(operator, inputs))

    def floats(self, rng: np.random.Generator, shape: tuple[int, ...]) -> HostArray:
        """What floating point inputs are, as float32."""
        return rng.standard_normal(shape, np.float32)

    def integers(self, rng: np.random.Generator, recorded: Sequence[HostArray], number: int) -> HostArray:
        """What an input of integers is in draw `number`; `recorded` are those of the recorded calls."""
        return _integers(rng, recorded)

    def references(self, operator: Operator, inputs: Sequence[HostArray]) -> list[Reference]:
        return self.bench.model.references(operator.signature).on_host(inputs)

    def complaint(self, operator: Operator, actual: Sequence[HostArray], drawn: Drawn) -> str:
        """What is wrong with these outputs; "" for nothing."""
        found = (compare(y, r) for y, r in zip(actual, drawn.references, strict=True))
        return next((comparison.describe() for comparison in found if not comparison.passed), "")

    def _complaint(self, operator: Operator, program: Compiled, drawn: Drawn) -> str:
        keys = self.bench.model.weight_keys(operator)
        given = [a if key is None else self._handed_over(operator, key, a) for a, key in zip(drawn.inputs, keys, strict=True)]
        made, beside = self.carried_out(program, given)
        actual = [as_read(y.reshape(r.values.shape), r.dtype) for y, r in zip(made, drawn.references, strict=True)]
        return beside or self.complaint(operator, actual, drawn)

    def carried_out(self, program: Compiled, inputs: Sequence[HostArray]) -> tuple[Sequence[HostArray], str]:
        """The outputs as the device stores them, and what else was wrong with the run."""
        return self.bench.backend.run_once(program, inputs), ""

    def _handed_over(self, operator: Operator, key: str, array: HostArray) -> HostArray:
        """A random weight as the device gets it. What comes out the same for another array does not depend on what the test
        brought: another tensor was taken instead, and the test cannot notice."""
        changed = self.bench.backend.weight(operator.name, key, array)
        if changed is array:
            return array
        of_another = self.bench.backend.weight(operator.name, key, np.zeros_like(array))
        return array if changed.tobytes() == of_another.tobytes() else changed


def _integers(rng: np.random.Generator, recorded: Sequence[HostArray]) -> HostArray:
    """Integers like the recorded ones: same shape, from their range; all different where each recorded array's are."""
    low, high = (int(pick(f(a) for a in recorded if a.size)) for pick, f in ((min, np.min), (max, np.max)))
    shape, size = recorded[0].shape, recorded[0].size
    distinct = size > 1 and all(np.unique(a).size == a.size for a in recorded)
    if distinct:
        # Values far apart (2**63 - 1 stands for "until the end") make a range that cannot be listed.
        some = recorded[0].reshape(-1) if high - low >= 1 << 24 else np.arange(low, high + 1)
        values = rng.permutation(some)[:size]
    else:
        values = rng.integers(low, high, size, endpoint=True)
    return values.reshape(shape).astype(recorded[0].dtype)


class DebugCompare:
    """See the module's docstring. The calls are those of TapML's own check of the whole model: prefill and a few decode steps."""

    def __init__(self, run: RunFolder, bench: Workbench) -> None:
        self.run = run
        self.bench = bench

    def find(self) -> Diagnosis | None:
        """The first mismatch, or the operator at which the run broke off; None when the run ended without either."""
        refused = _refused(self.bench)
        if refused is not None:
            return Diagnosis(refused.name, _elements(self.bench, refused), "does not compile")
        running = [self.bench.model.operators[0]]
        outcome = self.bench.attempt(lambda: self._first_mismatch(running))
        if isinstance(outcome, Ran):
            return outcome.value
        return Diagnosis(running[0].name, _elements(self.bench, running[0]), f"the run aborted: {outcome.text}")

    def _first_mismatch(self, running: list[Operator]) -> Diagnosis | None:
        visited: set[tuple[str, str]] = set()
        for operator, values, output in self._steps(running):
            program = self.bench.program(operator)
            assert program is not None
            name = (operator.signature, program.digest)
            if name in visited:
                continue
            visited.add(name)
            keys = zip(operator.inputs, self.bench.model.weight_keys(operator), strict=True)
            inputs = [values[n] if key is None else self._weight(operator, key) for n, key in keys]
            mismatch = allclose(output, self.bench.model.source(operator.signature)(inputs)[-1])
            if mismatch:
                return Diagnosis(operator.name, sum(a.size for a in inputs), mismatch)
        return None

    def _steps(self, running: list[Operator]) -> Iterator[tuple[Operator, dict[str, HostArray], HostArray]]:
        """Every operator of the run, with the values of the graph as the target had them before it, and its last output.
        `running[0]` is the operator that is being carried out."""
        model = self.bench.model
        went_up: dict[str, HostArray] = {}

        def on_upload(graph: str, key: str, array: HostArray) -> HostArray:
            went_up[key] = self.bench.backend.value(graph, key, array)
            return went_up[key]

        hybrid = Hybrid(model, self.bench.model.source, self.bench.backend, self.bench.weight_buffer, on_upload)
        try:
            hybrid.offload(self.bench.programs([o.name for o in model.operators]))
            states = dict(model.initial_states)
            for call in check_calls(self.run):
                went_up.clear()
                graph = model.graphs[call.graph]
                operators = model.operators_of[call.graph]
                values = {p.name: states[p.key] for p in graph.states} | {p.name: call.inputs[p.key] for p in graph.inputs}
                running[0] = operators[0]
                for index, (operator, outputs) in enumerate(hybrid.observe(call.graph, call.inputs), 1):
                    values |= {p.name: went_up[p.key] for p in (*graph.states, *graph.inputs) if p.key in went_up}
                    yield operator, values, outputs[-1]
                    values.update(zip(operator.outputs, outputs, strict=True))
                    running[0] = operators[min(index, len(operators) - 1)]
                states |= {p.key: values[p.name] for p in graph.states}
                states |= {key: values[name] for key, name in graph.mutations.items() if name in values}
        finally:
            hybrid.close()

    def _weight(self, operator: Operator, key: str) -> HostArray:
        return self.bench.backend.weight(operator.name, key, self.bench.model.weight(key))


def allclose(actual: HostArray, expected: HostArray) -> str:
    """What numpy's assert_allclose says at MLC-LLM's tolerance; "" where they agree."""
    left, right = (a.astype(np.float64) for a in (actual, expected))
    with np.errstate(all="ignore"):
        try:
            np.testing.assert_allclose(left, right, rtol=RTOL, atol=ATOL)
        except AssertionError as error:
            return " ".join(str(error).split("\n ACTUAL")[0].split())
    return ""


class EndToEndOnly:
    """See the module's docstring. The source's answers are computed once, when they are first needed."""

    def __init__(self, run: RunFolder, bench: Workbench) -> None:
        self.run = run
        self.bench = bench
        self._answers: list[list[tuple[int, HostArray]]] | None = None
        self._outputs: list[dict[str, HostArray]] | None = None

    def find(self) -> Diagnosis | None:
        """What differs first; None when tokens are equal and logits within the bound for every prompt, or outputs for every
        example."""
        refused = _refused(self.bench)
        if refused is not None:
            return Diagnosis(None, None, "the model does not build")
        outcome = self.bench.attempt(self._difference)
        reason = outcome.value if isinstance(outcome, Ran) else f"the run aborted: {outcome.text}"
        return Diagnosis(None, None, reason) if reason else None

    def _difference(self) -> str:
        hybrid = self.bench.everything()
        protocol = self.run.protocol
        return self._answers_of(hybrid, protocol) if isinstance(protocol, Generating) else self._examples(hybrid)

    def _answers_of(self, hybrid: Hybrid, protocol: Generating) -> str:
        oracle = Oracle(self.run)
        if self._answers is None:
            source = Hybrid(self.bench.model, self.bench.model.source)
            self._answers = [list(greedy(source, p.tokens, protocol, MAX_TOKENS)) for p in self.run.prompts]
        for prompt, ours in zip(self.run.prompts, self._answers, strict=True):
            error = max(oracle.of_prompt(prompt.index).values(), default=0.0)
            place = 0
            for place, ((token, row), (expected, reference)) in enumerate(
                zip(greedy(hybrid, prompt.tokens, protocol, MAX_TOKENS), ours, strict=False), 1
            ):
                found = compare(row, of_source(reference, error))
                if token != expected or not found.passed:
                    what = f"token {token} instead of {expected}; " if token != expected else ""
                    return f"prompt {prompt.index}, token {place}: {what}logits: {found.describe()}"
            if place != len(ours):
                return f"prompt {prompt.index}: stops after {place} of {len(ours)} tokens"
        return ""

    def _examples(self, hybrid: Hybrid) -> str:
        oracle = Oracle(self.run)
        if self._outputs is None:
            source = Hybrid(self.bench.model, self.bench.model.source)
            self._outputs = [answered(source, self.run.protocol.check(e, ())) for e in self.run.examples]
        for index, (example, expected) in enumerate(zip(self.run.examples, self._outputs, strict=True)):
            actual = answered(hybrid, self.run.protocol.check(example, ()))
            errors = oracle.of_prompt(index)
            for key, reference in expected.items():
                found = compare(actual[key], of_source(reference, errors.get(key, 0.0)))
                if not found.passed:
                    return f"example {index}, output {key}: {found.describe()}"
        return ""


def _refused(bench: Workbench) -> Operator | None:
    """The first operator that does not compile."""
    return next((o for o in bench.model.operators if bench.program(o) is None), None)


def _elements(bench: Workbench, operator: Operator) -> int:
    return sum(spec.elements for spec in bench.model.bodies[operator.signature].inputs)
