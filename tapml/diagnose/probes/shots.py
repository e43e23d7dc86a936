"""Running one operator on one input, as often as it takes to trust the answer, and judging what came out.

    shot = fire(bench, operator, program, trial, repeats=3)
    shot.outcome, shot.comparison, shot.detail

A device that refuses or dies is an outcome here, not an exception. Kernels that gave different bits in two runs of the same input
are `flaky`, and wrong if any of the runs was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tapml.backends.interface import Compiled
from tapml.carving.tolerance import Comparison, compare
from tapml.diagnose.probes.evidence import Outcome, ratio, worst_of
from tapml.migrate.operator_test import Trial
from tapml.migrate.outcome import Failed, Lost, Ran
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator
from tapml.tensors import HostArray, TensorSpec, spec_of


@dataclass(frozen=True)
class Shot:
    """`outputs` and the numbers are those of the worst run; `runs` how many there were, `wrong` how many of them were beyond the
    bound, `results` how many different results they gave. `refused` is the stage at which the device refused ("" if it did not),
    `lost` whether it died."""

    outputs: tuple[HostArray, ...] = ()
    comparison: Comparison | None = None
    output: int = 0
    runs: int = 0
    wrong: int = 0
    results: int = 0
    refused: str = ""
    lost: bool = False
    message: str = ""

    @property
    def outcome(self) -> Outcome:
        """A device that dies over a kernel counts as a wrong answer: the kernel was accepted, and did harm."""
        if self.refused:
            return "refused"
        return "wrong" if self.wrong or self.lost else "right"

    @property
    def flaky(self) -> bool:
        return self.results > 1

    @property
    def detail(self) -> str:
        if self.refused or self.lost or self.comparison is None:
            return self.message
        text = share(self.comparison)
        if self.flaky:
            text = (
                f"{self.results} different results in {self.runs} runs, {self.wrong} of them beyond the tolerance; the worst: "
                f"{text}"
            )
        return text


# One run: outputs in the graph's dtypes, or what happened instead.
Run = Callable[[], "Sequence[HostArray] | Shot"]


def share(found: Comparison) -> str:
    """The error as a multiple of the tolerance, in words."""
    times = ratio(found.error, found.bound)
    if found.error == 0:
        return "equal to the reference"
    if found.bound == 0:
        return f"not equal: {found.actual!r} instead of {found.expected!r}"
    if not np.isfinite(times):
        return f"{found.actual!r} instead of {found.expected!r}"
    return f"error {times:.3g} of the tolerance"


def fire(
    bench: Workbench, operator: Operator, program: Compiled, trial: Trial, repeats: int = 1, resident: bool = True
) -> Shot:
    """Runs a program `repeats` times on a trial's inputs, over poisoned memory. Raises UnavailableError only when the device
    cannot be opened again after it died."""
    specs = [spec_of(r) for r in trial.expected]
    return judge(trial, [lambda: _outputs(bench, operator, program, trial, specs, resident)] * repeats)


def _outputs(
    bench: Workbench, operator: Operator, program: Compiled, trial: Trial, specs: Sequence[TensorSpec], resident: bool
) -> Sequence[HostArray] | Shot:
    outcome = bench.attempt(lambda: bench.run(operator, program, trial.inputs, specs, resident, layouts=trial.layouts))
    return outcome.value if isinstance(outcome, Ran) else shot_of(outcome)


def shot_of(outcome: Failed) -> Shot:
    """No answer: the device refused, or died."""
    if isinstance(outcome, Lost):
        return Shot(lost=True, message=outcome.text)
    return Shot(refused=outcome.error.stage, message=outcome.text)


def judge(trial: Trial, runs: Sequence[Run]) -> Shot:
    """Makes these runs and compares each with the trial's expected outputs. A run gives outputs, or a shot that ends it all."""
    worst: Shot | None = None
    bits: set[bytes] = set()
    wrong = 0
    for run in runs:
        made = run()
        if isinstance(made, Shot):
            return made
        found = [compare(y, r) for y, r in zip(made, trial.references, strict=True)]
        bits.add(b"".join(np.ascontiguousarray(a).tobytes() for a in made))
        output, comparison = worst_of(found)
        wrong += not comparison.passed
        shot = Shot(tuple(made), comparison, output)
        if worst is None or _badness(shot) > _badness(worst):
            worst = shot
    assert worst is not None
    return Shot(worst.outputs, worst.comparison, worst.output, len(runs), wrong, len(bits))


def _badness(shot: Shot) -> tuple[bool, float]:
    assert shot.comparison is not None
    return (not shot.comparison.passed, ratio(shot.comparison.error, shot.comparison.bound))


def repeats_for(wrong: int, runs: int, most: int = 20) -> int:
    """How many runs show a fault with 99% confidence that was seen in `wrong` of `runs`, by (1 - p)^n <= 0.01; 1 for a fault
    that was there every time."""
    if wrong >= runs:
        return 1
    share_wrong = max(wrong, 1) / runs
    return min(most, int(np.ceil(np.log(0.01) / np.log(1 - share_wrong))))
