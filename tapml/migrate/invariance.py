"""Whether operators give the same bits again, and the same bits for a row wherever it stands: what was found, and the file that
keeps it.

    found.not_deterministic, found.depends_on_batch      a `Spread` an operator; nothing where all bits were the same
    keep_invariance(run, "opencl", found, injected)      RUN/targets/opencl/invariance.json
    kept_invariance(run, "opencl", injected)             its `to_json()`

No reference decides here: the bits of a target are held against its own. How it is found is in `tapml.diagnose.invariance`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tapml import strict
from tapml.carving.folder import RunFolder
from tapml.carving.layout import TARGET_FOLDER, folder_name
from tapml.migrate.kept import keep_json, kept_json
from tapml.verdicts import finite

# What was changed between two answers: nothing but the run (and what memory held), the places of the rows, the other rows, how
# many rows there are in a call.
Relation = Literal["runs", "place", "company", "chunk"]


@dataclass(frozen=True)
class Spread:
    """What differed of one operator. `what` says it in words, `case` which recorded call it was. `compared` answers were held
    against the first one (of runs), or rows against the same row of the whole call; `differing` of them had other bits.
    `difference` is the largest of an element of output `output`, `of_bound` the largest distance in units of the bound within
    which the operator is judged, with a rounding to the output's dtype. `copies` operators run these kernels."""

    operator: str
    signature: str
    relation: Relation
    what: str
    case: str
    compared: int
    differing: int
    output: int
    difference: float
    of_bound: float
    copies: int = 1

    @property
    def within(self) -> bool:
        return self.of_bound <= 1.0

    @property
    def size(self) -> tuple[float, float, int]:
        """Sorts the largest last."""
        return self.of_bound, self.difference, self.differing

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Invariance:
    """`calls` of `operators` operators were run `repeat` times each; of `with_rows` of them rows were put in other places or
    chunks. `not_run` says of which operators nothing is known, and why."""

    repeat: int
    operators: int
    calls: int
    with_rows: int
    not_deterministic: tuple[Spread, ...] = ()
    depends_on_batch: tuple[Spread, ...] = ()
    not_run: tuple[tuple[str, str], ...] = ()

    @property
    def spreads(self) -> tuple[Spread, ...]:
        return self.not_deterministic + self.depends_on_batch

    @property
    def passed(self) -> bool:
        """No spread is beyond the bound. Bits that differ within it are no failure."""
        return not self.beyond

    @property
    def beyond(self) -> dict[str, Spread]:
        """Those that are beyond the bound, by operator."""
        return {spread.operator: spread for spread in self.spreads if not spread.within}

    def to_json(self) -> dict[str, Any]:
        return {
            "repeat": self.repeat, "operators": self.operators, "calls": self.calls, "with_rows": self.with_rows,
            "not_deterministic": [s.to_json() for s in self.not_deterministic],
            "depends_on_batch": [s.to_json() for s in self.depends_on_batch],
            "not_run": [{"operator": operator, "reason": reason} for operator, reason in self.not_run],
            "passed": self.passed,
        }  # fmt: skip


def keep_invariance(run: RunFolder, target: str, found: Invariance, injected: bool) -> None:
    """Replaces what was kept. A folder that cannot be written costs a warning."""
    keep_json(run, _name(target, injected), finite({"run": run.digest, **found.to_json()}), "invariance")


def kept_invariance(run: RunFolder, target: str, injected: bool = False) -> dict[str, Any] | None:
    """What was found for a target, as JSON. None when nothing was, or in a run that lay here before. Raises RunError when the
    file is damaged."""
    again = "Run tapml test with --repeat again to replace it."
    return kept_json(run, _name(target, injected), _checked, again)


def _checked(data: dict[str, Any]) -> str:
    """The digest of its run."""
    for key in ("repeat", "operators", "calls", "with_rows"):
        strict.whole(data, key)
    for key in ("not_deterministic", "depends_on_batch"):
        for spread in strict.items(data, key):
            for name in ("operator", "relation", "what", "case"):
                strict.text(spread, name)
            for name in ("compared", "differing", "output", "copies"):
                strict.whole(spread, name)
            for name in ("difference", "of_bound"):
                strict.real(spread, name)
    for left in strict.items(data, "not_run"):
        strict.text(left, "operator")
        strict.text(left, "reason")
    return strict.text(data, "run")


def _name(target: str, injected: bool) -> str:
    return f"{TARGET_FOLDER}/{folder_name(target)}/invariance{'.injected' if injected else ''}.json"
