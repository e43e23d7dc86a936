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
from tapml.diagnose.probes.evidence import Outcome, share, worst_of
from tapml.migrate.operator_test import Trial
from tapml.migrate.outcome import Attempted, Failed, Lost, Ran, Refused
from tapml.migrate.workbench import Workbench
from tapml.operators.graph import Operator
from tapml.tensors import HostArray, spec_of


@dataclass(frozen=True)
class Shot:
    """`outputs` are those of the worst run, `comparison` that of their worst, number `output`; `runs` how many runs there were,
    `wrong` how many of them were beyond the bound, `results` how many different results they gave. `failed` is what ended them,
    if anything did: then nothing else is known."""

    outputs: tuple[HostArray, ...] = ()
    comparison: Comparison | None = None
    output: int = 0
    runs: int = 0
    wrong: int = 0
    results: int = 0
    failed: Failed | None = None

    @property
    def outcome(self) -> Outcome:
        """A device that dies over a kernel counts as a wrong answer: the kernel was accepted, and did harm."""
        if isinstance(self.failed, Refused):
            return "refused"
        return "wrong" if self.wrong or self.lost else "right"

    @property
    def lost(self) -> bool:
        return isinstance(self.failed, Lost)

    @property
    def flaky(self) -> bool:
        return self.results > 1

    @property
    def detail(self) -> str:
        if self.failed is not None:
            return self.failed.text
        if self.comparison is None:
            return ""
        text = difference(self.comparison)
        if self.flaky:
            text = (
                f"{self.results} different results in {self.runs} runs, {self.wrong} of them beyond the tolerance; the worst: "
                f"{text}"
            )
        return text


def difference(found: Comparison) -> str:
    """The error as a multiple of the tolerance, in words, or the values where it is none."""
    if found.error and found.bound == 0:
        return f"not equal: {found.actual!r} instead of {found.expected!r}"
    if not np.isfinite(found.ratio):
        return f"{found.actual!r} instead of {found.expected!r}"
    return share(found.error, found.bound)


def fire(
    bench: Workbench, operator: Operator, program: Compiled, trial: Trial, repeats: int = 1, resident: bool = True
) -> Shot:
    """Runs a program `repeats` times on a trial's inputs, over poisoned memory. Raises UnavailableError only when the device
    cannot be opened again after it died."""
    specs = [spec_of(r) for r in trial.expected]

    def once() -> Sequence[HostArray]:
        return bench.run(operator, program, trial.inputs, specs, resident, layouts=trial.layouts)

    return judge(trial, [lambda: bench.attempt(once)] * repeats)


def judge(trial: Trial, runs: Sequence[Callable[[], Attempted[Sequence[HostArray]]]]) -> Shot:
    """Makes these runs, each of which gives outputs in the graph's dtypes, and compares them with the trial's expected ones. The
    first that fails ends it."""
    worst: Shot | None = None
    bits: set[bytes] = set()
    wrong = 0
    for run in runs:
        made = run()
        if not isinstance(made, Ran):
            return Shot(failed=made)
        output, comparison = worst_of([compare(y, r) for y, r in zip(made.value, trial.references, strict=True)])
        bits.add(b"".join(np.ascontiguousarray(a).tobytes() for a in made.value))
        wrong += not comparison.passed
        shot = Shot(tuple(made.value), comparison, output)
        if worst is None or worst.comparison is None or _badness(comparison) > _badness(worst.comparison):
            worst = shot
    assert worst is not None
    return Shot(worst.outputs, worst.comparison, worst.output, len(runs), wrong, len(bits))


def _badness(found: Comparison) -> tuple[bool, float]:
    return (not found.passed, found.ratio)


def repeats_for(wrong: int, runs: int, most: int = 20) -> int:
    """How many runs show a fault with 99% confidence that was seen in `wrong` of `runs`, by (1 - p)^n <= 0.01; 1 for a fault
    that was there every time."""
    if wrong >= runs:
        return 1
    share_wrong = max(wrong, 1) / runs
    return min(most, int(np.ceil(np.log(0.01) / np.log(1 - share_wrong))))
