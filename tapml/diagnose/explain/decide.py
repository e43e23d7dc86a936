"""From outcomes to a stage: the decision table of triage, as data, and nothing else.

    decide({"run": "wrong", "graph": "right", "cpu": "wrong", ...}) -> Decision("lower", "…")
    needed("cpu", outcomes)        whether that probe could still change the stage

How it reasons. A compiled operator goes through stages in order: source numbers, graph, weights, lowered function, schedule,
text, driver, launch. Two runs that share all stages up to some point and differ after it tell on which side of that point a
fault lies: if both are wrong, it is before (or the same fault twice, which we take to be less likely); if one is right, it is
after. Each rule below is one such pair, and they stand in the order in which one excludes the next, so the first rule that fits
decides.

The invariants, which the tests check over all outcomes:
- Every combination of outcomes reaches a rule, since the last one asks for nothing.
- A probe that was not run (its platform is absent) never counts as right: no rule asks for "not run" where another asks for
  "right" and gives the same stage, unless its words say what is missing.
- `needed` is False only where no outcome of the probe, whatever the other open ones give, changes the stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tapml.diagnose.probes.evidence import Outcome
from tapml.targets.known import REFERENCE
from tapml.verdicts import Stage

RIGHT: frozenset[Outcome] = frozenset({"right"})
WRONG: frozenset[Outcome] = frozenset({"wrong"})
REFUSED: frozenset[Outcome] = frozenset({"refused"})
RAN: frozenset[Outcome] = frozenset({"right", "wrong"})
NO_ANSWER: frozenset[Outcome] = frozenset({"refused", "not run"})
NOT_WRONG: frozenset[Outcome] = frozenset({"right", "refused", "not run"})
NOT_RIGHT: frozenset[Outcome] = frozenset({"wrong", "refused", "not run"})


@dataclass(frozen=True)
class Rule:
    """If every probe of `when` gave one of these outcomes, the fault is in `stage`, `because` of this."""

    stage: Stage | None
    when: Mapping[str, frozenset[Outcome]]
    because: str


@dataclass(frozen=True)
class Decision:
    """`stage` is None where nothing is wrong or nothing can be told."""

    stage: Stage | None
    because: str


CPU = REFERENCE.name
SAME, OTHER, THERE, DRIVER = "same schedule elsewhere", "other schedule", "other schedule elsewhere", "other driver"

RULES: tuple[Rule, ...] = (
    # What did not even run. The device's word is taken for which of its stages refused.
    Rule(
        "launch", {"limits": WRONG},
        "the launch asks for more than the device says it has",
    ),
    Rule(
        "codegen", {"load": REFUSED, DRIVER: REFUSED},
        "two drivers of the same language refuse the text, so the text is at fault",
    ),
    Rule(
        "driver", {"load": REFUSED, DRIVER: RAN},
        "this driver refuses a text that another driver of the same language accepts",
    ),
    Rule(
        "driver", {"load": REFUSED},
        "the driver refuses the kernel (no other driver of its language is here, so the text may be at fault as well)",
    ),
    Rule(
        "launch", {"run": REFUSED},
        "the driver accepted the kernel, and the device refuses to run it",
    ),
    Rule(
        None, {"run": RIGHT},
        "the numbers are right",
    ),
    # Before the kernels.
    Rule(
        "precision", {"float64": RIGHT},
        "against float64 the target is within its bound and nearer than the source, so the source is at fault",
    ),
    Rule(
        "convert", {"graph": WRONG},
        "the graph that the compiler was given computes something else, in PyTorch already",
    ),
    Rule(
        "weights", {"uploads": RIGHT},
        "the same kernels are right with the weights uploaded as plain inputs, so the weights on the device are not the model's",
    ),
    # The kernels' text is right, and too few of them ran.
    Rule(
        "launch", {"grid": RIGHT, "text": NOT_WRONG},
        "the same text is right with more workgroups, so the launch is too small",
    ),
    # What it was converted to, and the lowered function, without any of the target's threads.
    Rule(
        "convert", {CPU: NOT_RIGHT, "converted": WRONG},
        "what the operator was converted to is wrong before it is lowered, where no schedule, text or driver of this target "
        "takes part",
    ),
    Rule(
        "lower", {CPU: WRONG, "converted": RIGHT},
        "what the operator was converted to is right, and its lowered function is wrong as plain C in one thread too, where "
        "nothing of this target's schedule, text or driver takes part",
    ),
    Rule(
        "lower", {CPU: WRONG},
        "the lowered function is wrong as plain C in one thread too, where nothing of this target's schedule, text or "
        "driver takes part (what it was converted to could not be run, so the conversion cannot be excluded)",
    ),
    # A hazard in the text, which some platforms tolerate: right numbers elsewhere do not make it harmless.
    Rule(
        "schedule", {"text": WRONG, "text elsewhere": WRONG, OTHER: NOT_WRONG},
        "the same schedule has the same hazard in the text for another target, whether it shows there or not: it comes with "
        "the schedule",
    ),
    # One schedule against another, here and on another target.
    Rule(
        "schedule", {OTHER: RIGHT, SAME: WRONG},
        "another schedule is right on this target, and the same schedule is wrong on another target as well: the fault "
        "goes with the schedule",
    ),
    Rule(
        "driver", {SAME: RIGHT, DRIVER: RIGHT},
        "the same schedule is right on another target, and another driver of the same language runs the very same text correctly",
    ),
    Rule(
        "codegen", {SAME: RIGHT, DRIVER: WRONG},
        "the same schedule is right on another target, and another driver of the same language gets it wrong too: "
        "the fault is in the text",
    ),
    Rule(
        "codegen", {SAME: RIGHT},
        "the same schedule of the same function is right on another target, so the fault is in the text for this one (no "
        "second driver of its language is here, so this driver cannot be excluded)",
    ),
    Rule(
        "schedule", {SAME: WRONG, THERE: RIGHT},
        "the same schedule is wrong on another target too, and there another schedule is right: the fault goes with the schedule",
    ),
    Rule(
        "lower", {SAME: WRONG, THERE: WRONG},
        "it is wrong with every schedule on this target and on another: the fault is in what these targets share before "
        "scheduling",
    ),
    Rule(
        "lower", {SAME: WRONG, OTHER: NOT_RIGHT},
        "it is wrong on another target too, and no schedule was found with which it is right: the fault is in what the "
        "targets share (the schedule could not be excluded)",
    ),
    # The other target does not take this schedule, or is not here.
    Rule(
        "driver", {DRIVER: RIGHT, SAME: NO_ANSWER, OTHER: NOT_RIGHT},
        "another driver of the same language runs the very same text correctly",
    ),
    Rule(
        "codegen", {THERE: RIGHT, OTHER: NOT_RIGHT},
        "no schedule is right on this target, and on another target one is: the fault is in the text for this one",
    ),
    Rule(
        "lower", {THERE: WRONG, OTHER: NOT_RIGHT},
        "no schedule is right on this target or on another",
    ),
    Rule(
        "schedule", {OTHER: RIGHT},
        "another schedule of the same lowered function is right on this target (no other target ran the same schedule, so "
        "the text of this one cannot be excluded)",
    ),
    Rule(
        "codegen", {CPU: RIGHT, OTHER: WRONG},
        "the lowered function is right as plain C, and every schedule is wrong on this target (no other target is here to "
        "tell the text from the driver)",
    ),
    Rule(
        "codegen", {CPU: RIGHT},
        "the lowered function is right as plain C (no other schedule and no other target could be run, so schedule and "
        "driver cannot be excluded)",
    ),
    Rule(
        None, {},
        "the numbers are wrong, and none of the probes that could be run tells where",
    ),
)


# The same where what runs is an engine that TapML did not make: what happens inside of it is one stage.
FOREIGN_RULES: tuple[Rule, ...] = (
    Rule(
        "backend", {"load": REFUSED},
        "the backend refuses the operator",
    ),
    Rule(
        "backend", {"run": REFUSED},
        "the backend accepted the operator, and fails to run it",
    ),
    *(rule for rule in RULES if rule.stage in (None, "precision", "weights") and rule.when),
    Rule(
        "convert", {"graph": WRONG},
        "the graph that the backend was given computes something else, in PyTorch already",
    ),
    Rule(
        "backend", {"graph": RIGHT},
        "PyTorch computes the same graph correctly on the processor, so the fault is inside the backend, whose stages cannot be "
        "told apart",
    ),
    RULES[-1],
)


def decide(outcomes: Mapping[str, Outcome], rules: Sequence[Rule] = RULES) -> Decision:
    """The stage that these outcomes name. Probes that were not made may be missing where `needed` said that they are not."""
    certain = _open_rules(outcomes, rules)[-1]
    return Decision(certain.stage, certain.because)


def needed(probe: str, outcomes: Mapping[str, Outcome], rules: Sequence[Rule] = RULES) -> bool:
    """Whether an outcome of this probe could still change the stage, given those that are known."""
    if probe in outcomes:
        return False
    still = _open_rules(outcomes, rules)
    return len({rule.stage for rule in still}) > 1 and any(probe in rule.when for rule in still)


def _open_rules(outcomes: Mapping[str, Outcome], rules: Sequence[Rule]) -> list[Rule]:
    """The rules that may still decide: not contradicted by what is known, up to the first that is satisfied by it, which is
    last."""
    found: list[Rule] = []
    for rule in rules:
        if any(probe in outcomes and outcomes[probe] not in allowed for probe, allowed in rule.when.items()):
            continue
        found.append(rule)
        if all(probe in outcomes for probe in rule.when):
            return found
    raise AssertionError("the last rule asks for nothing")
