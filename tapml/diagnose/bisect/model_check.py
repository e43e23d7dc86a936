"""Checks of the whole model with some operators on the target, in two ways, and every one of them counted.

    model = ModelCheck(run, bench, programs)
    checked = model.together(names)            as it ships: the real hybrid, values and states stay on the device
    checked = model.one_by_one(names)          operator by operator on host values, with a memory (`tapml.diagnose.bisect.prefix`)
    checked.answer, checked.call, checked.bits

Both feed the calls of `tapml.migrate.end_to_end`, or after `turn_to` those of a check that goes further, and judge by its
bounds, which follow from the source's own end-to-end error. Both stop at the first wrong call; `calls` limits them to the first
few. A device that refuses or is lost is a wrong answer with its reason, and work goes on with the device opened anew.
UnavailableError passes through when that happens too often.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tapml.backends.interface import Compiled
from tapml.carving.folder import RunFolder
from tapml.diagnose.bisect.parting import Further
from tapml.diagnose.bisect.prefix import BUDGET, PrefixHybrid
from tapml.errors import DeviceError, DeviceLost, RunError
from tapml.migrate.end_to_end import Answer, Reference, answer_of
from tapml.migrate.outcome import Lost, Ran, Refused
from tapml.migrate.workbench import Workbench
from tapml.runtime.hybrid import Hybrid
from tapml.runtime.protocol import Stepper
from tapml.tensors import HostArray

How = Literal["together", "one by one"]


@dataclass(frozen=True)
class Checked:
    """What a check said. `call` is the first wrong call, None when it passed; `bits` is a digest of all outputs until then."""

    answer: Answer
    call: int | None
    bits: bytes

    @property
    def passed(self) -> bool:
        return self.answer.passed


@dataclass(frozen=True)
class RunRecord:
    """One check, for the record: how many operators were on the target, of how many calls it would have made."""

    how: How
    operators: int
    calls: int
    passed: bool
    call: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class ModelCheck:
    """See the module's docstring. `programs` are those of the operators that can be on the target. Raises RunError where the
    source's own answer is NaN: whatever a target gives, nothing can be said of it."""

    def __init__(self, run: RunFolder, bench: Workbench, programs: Mapping[str, Compiled], budget: int = BUDGET) -> None:
        self._bench = bench
        self._programs = dict(programs)
        self._run = run
        self._reference = self._own = Reference.of(run, Hybrid(bench.model, bench.model.source))
        if self._reference.hollow:
            raise RunError(f"The model cannot be checked as a whole: {self._reference.hollow}. Try: tapml health {run.path}")
        self.engine = PrefixHybrid(bench, programs, budget)
        self.course: list[RunRecord] = []

    def turn_to(self, further: Further | None) -> None:
        """Checks other calls from here on; None: those of the run again. What the engine remembers stays."""
        source = Hybrid(self._bench.model, self._bench.model.source)
        self._reference = self._own if further is None else further.reference(self._run, source)

    @property
    def runs(self) -> int:
        """Checks made."""
        return len(self.course)

    @property
    def calls(self) -> int:
        """Calls of a whole check."""
        return len(self._reference.calls)

    def graphs(self, calls: int) -> frozenset[str]:
        """Graphs that the first so many calls run."""
        return frozenset(call.graph for call in self._reference.calls[:calls])

    def together(self, names: frozenset[str], calls: int | None = None) -> Checked:
        """The real hybrid."""
        watched: _Watched | None = None

        def check() -> Answer:
            nonlocal watched
            hybrid = self._bench.hybrid()
            watched = _Watched(hybrid)
            if hybrid.offloaded != names:
                hybrid.offload({name: self._programs[name] for name in sorted(names)})
            return self._first(calls).check(watched)

        outcome = self._bench.attempt(check)
        answer = outcome.value if isinstance(outcome, Ran) else answer_of(outcome)
        return self._checked("together", names, calls, answer, watched)

    def one_by_one(self, names: frozenset[str], calls: int | None = None) -> Checked:
        """Operator by operator. The engine guards each launch itself."""
        self.engine.offload(names)
        watched = _Watched(self.engine)
        try:
            answer = self._first(calls).check(watched)
        except DeviceError as error:
            answer = answer_of(Refused(error))
        except DeviceLost as error:
            answer = answer_of(Lost(error))
        return self._checked("one by one", names, calls, answer, watched)

    def _first(self, calls: int | None) -> Reference:
        r = self._reference
        return r if calls is None else Reference(r.calls[:calls], r.outputs[:calls], r.errors[:calls], r.straddling)

    def _checked(
        self, how: How, names: frozenset[str], calls: int | None, answer: Answer, watched: _Watched | None
    ) -> Checked:
        done = 0 if watched is None else watched.begun
        checked = Checked(answer, None if answer.passed else max(done - 1, 0), b"" if watched is None else watched.bits)
        self.course.append(RunRecord(how, len(names), calls or self.calls, answer.passed, checked.call))
        return checked


class _Watched:
    """A stepper that counts the calls that were begun, and takes a digest of what came out."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._digest = hashlib.blake2b(digest_size=16)
        self.begun = 0

    @property
    def bits(self) -> bytes:
        return self._digest.digest()

    def reset(self) -> None:
        self._stepper.reset()

    def step(self, graph: str, inputs: dict[str, HostArray]) -> dict[str, HostArray]:
        self.begun += 1
        outputs = self._stepper.step(graph, inputs)
        for key in sorted(outputs):
            self._digest.update(outputs[key].reshape(-1).view("uint8").data)
        return outputs
