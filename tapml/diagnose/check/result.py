"""What `tapml check` said: of each operator, what the deployment has for it, and which is the first that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tapml.diagnose.check.follow import Found


@dataclass(frozen=True)
class Look:
    """One look at the deployment: `label` "as written" or "optimised". `found` are pairs of a question's label and what was found
    there, in execution order. `probing` says how the outputs change when values are exposed; "" where they do not."""

    label: str
    found: tuple[tuple[str, Found], ...]
    probing: str = ""

    @cached_property
    def wrong(self) -> tuple[tuple[str, Found], ...]:
        return tuple((question, f) for question, f in self.found if f.status == "fail")

    @property
    def first(self) -> Found | None:
        """The first that is wrong, by its value or by a weight that is not the model's."""
        return next((f for _, f in self.found if f.status == "fail" or f.weight), None)

    @property
    def first_wrong(self) -> str | None:
        return None if self.first is None else self.first.operator.name

    @cached_property
    def seen(self) -> tuple[str, ...]:
        """The operators of which at least one output was recognised."""
        return tuple(dict.fromkeys(f.operator.name for _, f in self.found if f.status != "unseen"))

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        known = set(self.seen)
        return tuple(dict.fromkeys(f.operator.name for _, f in self.found if f.operator.name not in known))

    @property
    def passed(self) -> bool:
        return not self.wrong and not self.probing and bool(self.seen)

    def to_json(self) -> dict[str, Any]:
        return {
            "matched": len(self.seen), "unmatched": list(self.unseen), "first_wrong": self.first_wrong, "probing": self.probing,
            "values": [_value(question, f) for question, f in self.found],
        }  # fmt: skip


def _value(question: str, found: Found) -> dict[str, Any]:
    comparison = found.comparison
    return {
        "operator": found.operator.name, "output": found.output, "call": question, "status": found.status,
        "error": None if comparison is None else comparison.error, "bound": None if comparison is None else comparison.bound,
        "source_error": None if comparison is None else comparison.source_error, "name": found.name or None,
        "recognised_by": found.how if found.name else None, "among": list(found.among),
        "reason": "" if comparison is None else comparison.describe(), "weight": found.weight or None,
        "exchanged_with": found.exchanged or None,
        "elements_shown": None if found.parts is None else found.parts[0],
        "summed": None if found.parts is None else found.summed,
    }  # fmt: skip


@dataclass(frozen=True)
class CheckResult:
    """`engine`: what ran, with its version. `weights`: by the model's keys, what to say of quantized weights of the deployment
    that are not the model's, whatever came of them. `unknown_weights`: quantized ones that were compared with nothing."""

    engine: str
    looks: Sequence[Look]
    seconds: float
    run_digest: str
    weights: Mapping[str, str] = field(default_factory=dict)
    unknown_weights: Sequence[str] = ()

    @property
    def passed(self) -> bool:
        return all(look.passed for look in self.looks) and not self.weights

    @property
    def first_wrong(self) -> str | None:
        return next((look.first_wrong for look in self.looks if look.first_wrong), None)

    def to_json(self) -> dict[str, Any]:
        first, *others = [look.to_json() for look in self.looks]
        return first | {
            "engine": self.engine, "optimised": others[0] if others else None, "first_wrong": self.first_wrong,
            "seconds": self.seconds, "run_digest": self.run_digest, "wrong_weights": dict(self.weights),
            "unknown_weights": list(self.unknown_weights),
        }  # fmt: skip
