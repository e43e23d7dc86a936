"""What a look at numeric health found, as plain data, and the files that keep it.

    keep_health(run, found, target)              RUN/targets/opencl/health.json, and RUN/targets/source/health.json
    data = kept_health(run, "opencl")            what `Health.to_json()` gave; None when there is none

A file belongs to the run with the digest in its facts. What was found with an injected fault goes to `health.injected.json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tapml.carving.folder import RunFolder
from tapml.carving.layout import TARGET_FOLDER, folder_name
from tapml.diagnose.health.anomalies import KINDS, Kind
from tapml.migrate.circumstances import Circumstances
from tapml.migrate.kept import keep_json, kept_json

WHAT = "numeric health"


SOURCE = "source"

# Operators with less room than this in float16 are worth a warning: a prompt that was not tried may well be this much larger.
FEW_BITS = 2.0


@dataclass(frozen=True)
class Range:
    """A value that an operator or a node was given. `low` and `high` are of its finite elements, None where there are none."""

    name: str
    dtype: str
    low: float | None
    high: float | None
    nonfinite: int


@dataclass(frozen=True)
class Made:
    """Bad numbers that an operator made, at the first call where it did; `calls` counts those where it did. `node` is the
    node inside (an ATen operator) and `line` its line in the model's code; a target shows only outputs, so there `node` is None
    and `output` says which. `value` is what stands at `index`, the first of `elements` bad ones, and `exact` what float64 gives
    there. `source_too`: whether the source, given the target's own inputs, makes the same."""

    operator: str
    op: str
    kind: Kind
    graph: str
    step: int
    node: str | None
    line: str
    output: int | None
    elements: int
    of: int
    index: tuple[int, ...]
    value: str
    exact: float
    inputs: tuple[Range, ...]
    calls: int = 1
    source_too: bool | None = None


@dataclass(frozen=True)
class Side:
    """One side's run. `given` are weights and inputs of the model that held NaN or Inf before anybody computed;
    `outputs_finite` is about the model's outputs; `not_checked` names what float64 could not follow, `on_source` what a target
    did not run, each with the reason."""

    calls: int
    operators: int
    made: tuple[Made, ...]
    given: tuple[Range, ...]
    outputs_finite: bool
    not_checked: dict[str, str] = field(default_factory=dict)
    on_source: dict[str, str] = field(default_factory=dict)

    def first(self, kind: Kind) -> Made | None:
        return next((m for m in self.made if m.kind == kind), None)

    @property
    def sound(self) -> bool:
        """Nothing but underflow, which loses small numbers only, was made."""
        return all(m.kind == "underflow" for m in self.made)


@dataclass(frozen=True)
class Headroom:
    """An operator's largest magnitude and where it stands. Bits are log2(the type's largest number / magnitude), None for an
    operator of zeros. `stored` is the largest among inputs, weights and outputs, which have to fit the type even where a kernel
    adds up in float32; `lost_share` and `subnormal_share` are of its weights and outputs that are not zero."""

    operator: str
    op: str
    magnitude: float
    where: str
    float16_bits: float | None
    bfloat16_bits: float | None
    stored: float
    stored_float16_bits: float | None
    lost_share: float
    subnormal_share: float


@dataclass(frozen=True)
class Health:
    """`headroom` is worst first. `facts` say of which run, prompt, target, device and fault this is."""

    source: Side
    target: Side | None
    headroom: tuple[Headroom, ...]
    facts: dict[str, Any]
    circumstances: Circumstances = field(default_factory=Circumstances)

    @property
    def passed(self) -> bool:
        return self.source.sound and (self.target is None or self.target.sound)

    @property
    def tight(self) -> tuple[Headroom, ...]:
        """Operators that float16 would leave with few bits, or none."""
        return tuple(h for h in self.headroom if h.float16_bits is not None and h.float16_bits < FEW_BITS)

    def to_json(self) -> dict[str, Any]:
        sides = {"source": self.source, "target": self.target}
        return {
            **{name: None if side is None else asdict(side) for name, side in sides.items()},
            "headroom": [asdict(h) for h in self.headroom],
            "first": {name: None if side is None else _firsts(side) for name, side in sides.items()},
            "facts": self.facts,
            "passed": self.passed,
            **self.circumstances.to_json(),
        }


def keep_health(run: RunFolder, found: Health, target: str | None) -> None:
    """Replaces what was kept. A folder that cannot be written costs a warning."""
    alone = replace(found, target=None, facts=found.facts | _NO_TARGET, circumstances=Circumstances(run.digest))
    keep_json(run, _name(None, False), alone.to_json(), WHAT)
    if target is not None:
        keep_json(run, _name(target, found.facts["inject"] is not None), found.to_json(), WHAT)


def kept_health(run: RunFolder, target: str | None, injected: bool = False) -> dict[str, Any] | None:
    """What was found for a target (None: the source alone), as JSON. None when nothing was, or in a run that lay here before.
    Raises RunError when the file is damaged."""
    again = "Run tapml health again to replace it."
    return kept_json(run, _name(target, injected), lambda data: str(data["facts"]["run"]), again)


_NO_TARGET: dict[str, Any] = dict.fromkeys(("target", "device", "device_info", "inject"))


def _name(target: str | None, injected: bool) -> str:
    folder = SOURCE if target is None else folder_name(target)
    return f"{TARGET_FOLDER}/{folder}/health{'.injected' if injected else ''}.json"


def _firsts(side: Side) -> dict[str, Any]:
    found = {kind: side.first(kind) for kind in KINDS}
    return {kind: None if made is None else asdict(made) for kind, made in found.items()}
